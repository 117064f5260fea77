"""Gradual rollouts of a service: starting one, watching it, interfering."""

from collections.abc import Callable, Mapping
from typing import Any

from django import forms
from django.db.models import OuterRef, QuerySet, Subquery
from django.http import HttpResponse
from django.views.decorators.http import require_http_methods, require_safe

from access.models import Application
from admin_panel.fields import DecimalField, ListField, NumberField
from admin_panel.forms import RowForm
from admin_panel.pages import PanelRequest, go_to, not_found, page
from admin_panel.saving import Signature, confirm, edit
from core.faults import GatewayFault
from keys.models import ApiKey
from routing import rollouts as use_cases
from routing.compile import phase
from routing.judging import Numbers
from routing.models import Rollout, ServiceConfig, ServiceVersion, VersionUse
from routing.policies import RolloutPlan
from routing.traffic import numbers_of

_MEMBERS = {  # of the plan, by the form's names
    "version": "version",
    "interval_s": "intervalS",
    "min_samples": "minSamples",
    "max_error_increase": "maxErrorIncrease",
    "max_latency_ratio": "maxLatencyRatio",
    "max_wait_s": "maxWaitS",
}
_CALLERS_SHOWN = 20


class RolloutForm(RowForm):
    """Every step holds equally long here; the admin API takes a time for each."""

    version = forms.ChoiceField(label="To version")
    percents = ListField(label="Steps", help_text="Percent of the traffic, increasing: 5, 25, 100.")
    hold_s = DecimalField("seconds", label="Each step at least", required=False)
    interval_s = DecimalField("seconds", label="Look every", required=False)
    min_samples = NumberField("requests", label="Judge from", required=False, help_text="To either side, in the step.")
    max_error_increase = DecimalField(
        "points", label="Errors at most", required=False, help_text="Percentage points of 5xx above the others."
    )
    max_latency_ratio = DecimalField(
        "times", label="p95 at most", required=False, help_text="That of the others. Empty: latency is not judged."
    )
    max_wait_s = DecimalField(
        "seconds", label="Wait for requests", required=False, help_text="Beyond the step's time; then it pauses."
    )

    def plan(self) -> dict[str, Any]:
        """As the use-case takes it; what is left empty is the plan's default, but for the latency."""
        said = self.cleaned_data
        hold = {} if said["hold_s"] is None else {"holdS": said["hold_s"]}
        plan: dict[str, Any] = {"steps": [{"percent": _number(percent)} | hold for percent in said["percents"]]}
        for name, member in _MEMBERS.items():
            if said[name] is not None or name == "max_latency_ratio":
                plan[member] = said[name]
        return plan

    def take(self, fault: GatewayFault) -> None:
        """``steps[1].percent`` and what is said of the whole plan stand at the steps."""
        errors: Mapping[str, list[str]] = fault.members.get("errors", {})
        names = {member: name for name, member in _MEMBERS.items()}
        for member, sentences in errors.items():
            for sentence in sentences:
                self.add_error(names.get(member, "percents"), sentence)
        if not errors:
            self.add_error(None, fault.detail)


def _number(text: str) -> float | str:
    try:
        return float(text.removesuffix("%"))
    except ValueError:
        return text  # the use-case says what is wrong with it


@require_http_methods(["GET", "HEAD", "POST"])
def rollout_new(request: PanelRequest, pk: str) -> HttpResponse:
    service = ServiceConfig.objects.filter(pk=pk).first()
    if service is None:
        return not_found(request, "service")
    versions = [row for row in service.versions.order_by("weight", "version") if row.takes_traffic]

    class Form(RolloutForm):
        version = forms.ChoiceField(label="To version", choices=[(row.version, row.version) for row in versions])

        def changes(self) -> dict[str, Any]:
            return self.plan()

    def save(plan: dict[str, Any], _: int | None, signed: Signature) -> Rollout:
        return use_cases.start_rollout(service=service, plan=plan, **signed)

    return edit(
        request,
        Form,
        "admin_panel/rollouts/form.html",
        save=save,
        done=lambda made: go_to("rollout", made.pk),
        initial={"percents": ["5", "25", "100"], "hold_s": 300, **_defaults()},
        context={"service": service},
    )


def _defaults() -> dict[str, Any]:
    plan = RolloutPlan(version="", steps=())
    values = {name: getattr(plan, name) for name in _MEMBERS if name != "version"}
    return {name: int(value) if value == int(value) else value for name, value in values.items()}


@require_safe
def rollout(request: PanelRequest, pk: str) -> HttpResponse:
    row = Rollout.objects.select_related("service").filter(pk=pk).first()
    if row is None:
        return not_found(request, "rollout")
    return page(request, "admin_panel/rollouts/detail.html", _shown(row))


def _shown(row: Rollout) -> dict[str, Any]:
    plan = use_cases.plan_of(row)
    steps = [(number, step, _step_state(row, number)) for number, step in enumerate(plan.steps)]
    return {"row": row, "plan": plan, "steps": steps, "compared": _compared(row) if row.is_open else []}


def _step_state(row: Rollout, number: int) -> str:
    if number == row.step:
        return "now" if row.is_open else "last"
    return "done" if number < row.step else ""


def _compared(row: Rollout) -> list[tuple[str, int, Numbers]]:
    """Version, weight and numbers since the step began; the new version first."""
    found = numbers_of(row.service_id, [phase(row)])
    names = sorted(row.weights, key=lambda name: (name != row.version, name))
    return [(name, row.weights[name], found.get(name, Numbers())) for name in names]


_ACTIONS: dict[str, tuple[Callable[..., Rollout], str, str, str]] = {
    "promote": (use_cases.promote_rollout, "Promote", "The next step begins at once, unjudged.", "btn-primary"),
    "pause": (use_cases.pause_rollout, "Pause", "The weights stay; nothing is judged until it goes on.", "btn-primary"),
    "resume": (use_cases.resume_rollout, "Resume", "The step's time begins anew.", "btn-primary"),
    "abort": (use_cases.abort_rollout, "Abort", "The weights of before the rollout come back at once.", "btn-danger"),
}  # fmt: skip


@require_http_methods(["GET", "HEAD", "POST"])
def rollout_act(request: PanelRequest, pk: str, name: str) -> HttpResponse:
    row = Rollout.objects.select_related("service").filter(pk=pk).first()
    if row is None or name not in _ACTIONS:
        return not_found(request, "rollout")
    use_case, title, effect, tone = _ACTIONS[name]
    return confirm(
        request,
        "admin_panel/rollouts/act.html",
        act=lambda signed: use_case(rollout=row, **signed),
        done=lambda: go_to("rollout", pk),
        context={"row": row, "url": request.path, "title": title, "effect": effect, "tone": tone},
    )


def latest_rollout(service: ServiceConfig) -> Rollout | None:
    return service.rollouts.order_by("-created_at").first()


def callers_of(versions: list[ServiceVersion]) -> QuerySet[VersionUse]:
    """The latest callers of those of a service's versions that are deprecated or retired."""
    ending = [row.version for row in versions if row.lifecycle != ServiceVersion.Lifecycle.SUPPORTED]
    uses = VersionUse.objects.filter(service_id__in={row.service_id for row in versions}, version__in=ending)
    return uses.annotate(
        application_name=Subquery(Application.objects.filter(pk=OuterRef("application_id")).values("name")[:1]),
        key_name=Subquery(ApiKey.objects.filter(pk=OuterRef("key_id")).values("name")[:1]),
    ).order_by("-last_used_at")[:_CALLERS_SHOWN]

"""Services: list, detail with the split of traffic, create, edit, switch on and off, delete."""

from typing import Any

from django.db.models import Count, Prefetch, Q, QuerySet
from django.http import HttpResponse
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from access.models import Application
from admin_panel.forms import ServiceForm
from admin_panel.listing import listing, wants_rows_only
from admin_panel.pages import PanelRequest, fragment, go_to, not_found, page
from admin_panel.samples import call_of, curl
from admin_panel.saving import Signature, confirm, edit, saving
from admin_panel.traffic import answers_by_default, shares
from admin_panel.views.policies import policies_of
from admin_panel.views.rollouts import callers_of, latest_rollout
from admin_panel.views.running import targets_of
from core.faults import ClientFault
from core.models import ConfigChange
from core.permissions import may
from core.revisions import locked
from routing import services as use_cases
from routing.models import Rollout, Route, ServiceConfig, ServiceTarget, ServiceVersion
from routing.target_report import health_of

_STATES = {"active": Q(is_active=True), "inactive": Q(is_active=False)}
_SORTS = {"name": "name", "changed": "updated_at", "routes": "route_count"}
_RECENT = 6
_FORM = "admin_panel/services/form.html"


@require_safe
def services(request: PanelRequest) -> HttpResponse:
    rows = ServiceConfig.objects.prefetch_related("versions").annotate(route_count=Count("routes"))
    found = listing(request, rows, search=("name", "description"), states=_STATES, sorts=_SORTS)
    lines = [(row, shares(row.versions.all()), answers_by_default(row, row.versions.all())) for row in found.page]
    ids = [row.pk for row, *_ in lines]
    rollouts = Rollout.objects.filter(service__in=ids, status__in=Rollout.OPEN)
    context = {
        "listing": found,
        "lines": lines,
        "health": health_of(ids),
        "rollouts": {rollout.service_id: rollout for rollout in rollouts},
    }
    if wants_rows_only(request):
        return fragment(request, "admin_panel/services/rows.html", context)
    return page(request, "admin_panel/services/list.html", context)


@require_safe
def service(request: PanelRequest, pk: str) -> HttpResponse:
    row = _service(pk)
    return page(request, "admin_panel/services/detail.html", _detail(request, row)) if row else _missing(request)


@require_http_methods(["GET", "HEAD", "POST"])
def service_new(request: PanelRequest) -> HttpResponse:
    def save(changes: dict[str, Any], _: int | None, signed: Signature) -> ServiceConfig:
        return use_cases.create_service(**changes, **signed)

    return edit(request, ServiceForm, _FORM, save=save, done=lambda made: go_to("service", made.pk))


@require_http_methods(["GET", "HEAD", "POST"])
def service_edit(request: PanelRequest, pk: str) -> HttpResponse:
    row = _service(pk)
    if row is None:
        return _missing(request)

    def save(changes: dict[str, Any], began: int | None, signed: Signature) -> ServiceConfig:
        return use_cases.update_service(service=row, changes=changes, if_revision=began, **signed)

    return edit(request, ServiceForm, _FORM, row=row, save=save, done=lambda _: go_to("service", pk))


@require_http_methods(["GET", "HEAD", "POST"])
def service_switch(request: PanelRequest, pk: str) -> HttpResponse:
    """On or off, as ``active`` says; the dialog asks before it is switched off."""
    row = _service(pk)
    if row is None:
        return _missing(request)
    changes = {"is_active": request.POST.get("active") == "true"}
    return confirm(
        request,
        "admin_panel/includes/deactivate.html",
        act=lambda signed: use_cases.update_service(service=row, changes=changes, **signed),
        done=lambda: go_to("service", pk),
        context={
            "row": row,
            "url": request.path,
            "effect": f"Requests to {row.name} are answered 404 on every node until it is activated again.",
            "users": _applications_naming(row.name),
        },
    )


@require_POST
def service_weights(request: PanelRequest, pk: str) -> HttpResponse:
    """The weights of all active versions in one revision, unless somebody has changed one of them meanwhile."""
    row = _service(pk)
    if row is None:
        return _missing(request)
    versions = [version for version in row.versions.all() if version.is_active]
    typed = {version.version: request.POST.get(f"weight-{version.pk}", "") for version in versions}
    began = {version.pk: request.POST.get(f"revision-{version.pk}", "") for version in versions}
    try:
        with saving(request, request.POST.get("reason", "")) as signed:
            for version in versions:
                locked(version, int(began[version.pk]) if began[version.pk].isdecimal() else 0)
            weights = {name: int(text) if text.isdecimal() and len(text) < 9 else -1 for name, text in typed.items()}
            use_cases.set_weights(service=row, weights=weights, **signed)
    except ClientFault as fault:
        refusal = {"fault": fault, "typed": typed, "errors": fault.members.get("errors", {})}
        context = _detail(request, row) | {"weights_refused": refusal}
        return page(request, "admin_panel/services/detail.html", context, status=fault.status)
    return go_to("service", row.pk)


@require_http_methods(["GET", "HEAD", "POST"])
def service_delete(request: PanelRequest, pk: str) -> HttpResponse:
    row = _service(pk)
    if row is None:
        return _missing(request)
    return confirm(
        request,
        "admin_panel/services/delete.html",
        act=lambda signed: use_cases.delete_service(service=row, **signed),
        done=lambda: go_to("services"),
        context=_blast_radius(row),
    )


def _service(pk: str) -> ServiceConfig | None:
    return _with_versions().filter(pk=pk).first()


def _with_versions() -> QuerySet[ServiceConfig]:
    targets = Prefetch("targets", ServiceTarget.objects.order_by("id"))
    return ServiceConfig.objects.prefetch_related(
        Prefetch("versions", ServiceVersion.objects.order_by("-is_active", "version").prefetch_related(targets))
    )


def _missing(request: PanelRequest) -> HttpResponse:
    return not_found(request, "service")


def _detail(request: PanelRequest, row: ServiceConfig) -> dict[str, object]:
    versions = list(row.versions.all())
    routes = list(row.routes.order_by("name"))
    parts = [row.pk, *(version.pk for version in versions)]
    parts += [target.pk for version in versions for target in version.targets.all()]
    call = call_of(row) if row.is_active else None
    falls = {share.name: share for share in shares(versions)}
    return {
        "row": row,
        "versions": [(version, falls.get(version.version)) for version in versions],
        "active": [(version, falls.get(version.version)) for version in versions if version.is_active],
        "shares": list(falls.values()),
        "slider_top": max((100, *(version.weight for version in versions if version.is_active))),
        "total_weight": sum(share.weight for share in falls.values()),
        "by_default": answers_by_default(row, versions),
        "routes": routes,
        "policies": policies_of(row),
        "rollout": latest_rollout(row),
        "callers": callers_of(versions) if may(request, "admin:applications:read") else [],
        **targets_of(row),
        "users": _applications_naming(row.name) if may(request, "admin:applications:read") else [],
        "sample": curl(request, call.path, call.method) if call else "",
        "recent": ConfigChange.objects.filter(object_id__in=parts).select_related("revision").order_by("-pk")[:_RECENT],
    }


def _blast_radius(row: ServiceConfig) -> dict[str, object]:
    versions = list(row.versions.all())
    return {
        "row": row,
        "versions": len(versions),
        "targets": sum(len(version.targets.all()) for version in versions),
        "routes": list(Route.objects.filter(service=row).order_by("name")),
        "users": _applications_naming(row.name),
    }


def _applications_naming(name: str) -> list[Application]:
    """Applications that may use a service. JSON lists are searched here: SQLite cannot."""
    rows = Application.objects.only("pk", "name", "allowed_services").order_by("name")
    return [row for row in rows if name in row.allowed_services or "*" in row.allowed_services]

"""The start page: what to do next on an empty gateway, and where things stand on a full one."""

from dataclasses import dataclass

from django.http import HttpResponse
from django.urls import reverse
from django.views.decorators.http import require_safe

from access.models import Application
from admin_panel.pages import PanelRequest, may_open, page
from admin_panel.samples import curl, first_call
from admin_panel.status import live_nodes
from admin_panel.wording import count_of
from core.models import ConfigRevision
from core.permissions import may
from core.tenants import of_tenant
from keys.models import EXPIRES_SOON, ApiKey
from queues.models import QueueRoute
from routing.models import Route, ServiceConfig, ServiceVersion
from routing.target_report import troubled_services

LATEST = 8
_MOST_APPLICATIONS = 20  # asked for a sample call
_LIVE = ("active", "deprecated")


@dataclass(frozen=True, slots=True)
class Step:
    """One line of the checklist. ``state`` is done, next or later."""

    title: str
    text: str
    action: str
    url: str
    state: str


@require_safe
def start(request: PanelRequest) -> HttpResponse:
    steps = _steps()
    may_configure = all(may(request, f"admin:{resource}:create") for resource in ("services", "applications", "keys"))
    sees_history, sees_nodes = may(request, "admin:revisions:read"), may(request, "admin:nodes:read")
    context = {
        "steps": steps,
        "is_ready": not may_configure or all(step.state == "done" for step in steps),
        "sample": _sample(request) if may(request, "admin:services:read") else "",
        "worries": [worry for worry in _worries() if may_open(request, worry[1])],
        "tiles": [tile for tile in _tiles() if may_open(request, tile[2])],
        "sees_history": sees_history,
        "latest": of_tenant(ConfigRevision.objects.prefetch_related("changes"))[:LATEST] if sees_history else [],
        "sees_nodes": sees_nodes,
        "nodes": live_nodes() if sees_nodes else [],
    }
    return page(request, "admin_panel/start.html", context)


def _steps() -> list[Step]:
    service = ServiceConfig.objects.order_by("pk").first()
    application = Application.objects.exclude(allowed_services=[]).order_by("pk").first()
    new_version = reverse("panel:version_new", args=[service.pk]) if service else ""
    new_key = reverse("panel:key_new") + (f"?application={application.name}" if application else "")
    serves = ServiceVersion.objects.filter(is_active=True).exists() or ServiceConfig.objects.exclude(default_url="")
    found = (
        ("A service", "An upstream HTTP API under a name.", "New service", reverse("panel:service_new"), service),
        ("A version", "Where the service runs, and its share of the traffic.", "Add version", new_version, serves),
        (
            "An application",
            "A client of the gateway, and which services it may call.",
            "New application",
            reverse("panel:application_new"),
            application,
        ),
        (
            "An API key",
            "What the client sends along. It is shown once.",
            "New key",
            new_key,
            ApiKey.objects.filter(application__isnull=False, status__in=_LIVE).exists(),
        ),
    )
    states = ["done" if done else "later" for *_, done in found]
    if "later" in states:
        states[states.index("later")] = "next"
    return [Step(*line[:4], state) for line, state in zip(found, states, strict=True)]


def _sample(request: PanelRequest) -> str:
    """A call that can succeed: of an application that may make one, else to any service."""
    allowed = Application.objects.filter(is_active=True).order_by("pk").values_list("allowed_services", flat=True)
    calls = (first_call(names) for names in (*allowed[:_MOST_APPLICATIONS], ["*"]))
    call = next(filter(None, calls), None)
    return curl(request, call.path, call.method) if call else ""


def _worries() -> list[tuple[str, str, str]]:
    """What wants somebody's attention: in words, the page's path and its query."""
    ending, troubled = ApiKey.objects.expiring(EXPIRES_SOON).count(), troubled_services()
    found = []
    if troubled:
        text = f"{count_of(troubled, 'service')} with targets that fail"
        found.append((text, reverse("panel:services"), ""))
    if ending:
        text = f"{count_of(ending, 'key')} that {'ends' if ending == 1 else 'end'} within a month"
        found.append((text, reverse("panel:keys"), "?state=expiring"))
    return found


def _tiles() -> list[tuple[str, int, str]]:
    return [
        ("Services", ServiceConfig.objects.count(), reverse("panel:services")),
        ("Routes", Route.objects.count(), reverse("panel:routes")),
        ("Applications", Application.objects.count(), reverse("panel:applications")),
        ("Live API keys", ApiKey.objects.live().count(), reverse("panel:keys")),
        ("Queue routes", QueueRoute.objects.count(), reverse("panel:queue_routes")),
    ]

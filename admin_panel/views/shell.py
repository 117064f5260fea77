"""What the shell asks for beside pages: the header's status, a toast's ending, names to propose while typing."""

from typing import Any

from django.db import InterfaceError, OperationalError
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.template.loader import render_to_string
from django.views.decorators.http import require_safe

from access.models import Application, PolicyBundle, RateLimit
from admin_panel.pages import PanelRequest, fragment
from admin_panel.status import ConfigStatus, acknowledgement, config_status
from core.models import ConfigRow
from core.permissions import may
from core.tenants import TenantManager
from queues.models import QueueRoute
from routing.models import ServiceConfig

SUGGESTIONS = 12
_NAMED: dict[str, tuple[type[ConfigRow], ...]] = {
    "services": (ServiceConfig,),
    "queue-routes": (QueueRoute,),
    "destinations": (ServiceConfig, QueueRoute),
    "applications": (Application,),
    "bundles": (PolicyBundle,),
    "limits": (RateLimit,),
}
_READERS = {
    ServiceConfig: "admin:services:read",
    QueueRoute: "admin:routes:read",
    Application: "admin:applications:read",
    PolicyBundle: "admin:bundles:read",
    RateLimit: "admin:limits:read",
}
_AWAY = ConfigStatus(0, "bad", "database away", "The database does not answer. Traffic goes on; changes must wait.")
_SIGNED_OUT = ConfigStatus(0, "off", "signed out", "Your session has ended. Reload the page to sign in.")


@require_safe
def status(request: HttpRequest) -> HttpResponse:
    """Polled: it never leads anybody away from a page, whatever has happened meanwhile."""
    try:
        is_staff = request.user.is_active and request.user.is_staff
        shown = config_status() if is_staff else _SIGNED_OUT
    except (OperationalError, InterfaceError):
        shown = _AWAY
    return HttpResponse(render_to_string("admin_panel/includes/status.html", {"status": shown}))


@require_safe
def acknowledged(request: PanelRequest, number: int) -> HttpResponse:
    """How a save ended: waits up to a second for every node to run the revision."""
    return fragment(
        request,
        "admin_panel/includes/toast_ending.html",
        {"ending": acknowledgement(number), "status": config_status()},
    )


@require_safe
def suggestions(request: PanelRequest, kind: str) -> JsonResponse:
    """Names that contain ``?q=`` and that the caller may see, those that begin with it first."""
    text = request.GET.get("q", "").replace("\x00", "").strip()[:100]
    names: list[str] = []
    for model in _NAMED.get(kind, ()):
        if not may(request, _READERS[model]):
            continue
        rows: TenantManager[Any] = model.objects
        names += rows.filter(name__icontains=text).order_by("name").values_list("name", flat=True)[:SUGGESTIONS]
    names.sort(key=lambda name: (not name.startswith(text), name))
    return JsonResponse({"names": names[:SUGGESTIONS]})

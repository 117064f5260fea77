"""How views answer: whole pages, the part that htmx swaps into the shell, fragments, and redirects to sign in."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import Any, TypeAlias, TypeVar
from urllib.parse import urlencode, urlsplit

from django.conf import settings
from django.contrib.auth.models import User
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect, StreamingHttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django_htmx.middleware import HtmxDetails

from access.administration.rights import caller_by_session
from admin_panel.hiding import EVERY_ADMIN, hidden_from, needed_permission
from admin_panel.status import config_status, is_maintained
from core.faults import PolicyDenied
from core.permissions import Caller, may
from core.tenants import enter_tenant

Context: TypeAlias = Mapping[str, Any]
AnyView = TypeVar("AnyView", bound=Callable[..., Any])
View: TypeAlias = Callable[..., HttpResponse | StreamingHttpResponse]


class PanelRequest(HttpRequest):
    """What every panel view behind `guarded` receives."""

    htmx: HtmxDetails
    user: User
    caller: Caller


@dataclass(frozen=True, slots=True)
class NavItem:
    title: str
    icon: str
    url: str
    shortcut: str  # the key that follows g
    is_current: bool


@dataclass(frozen=True, slots=True)
class _Entry:
    title: str
    icon: str
    name: str  # of the URL
    shortcut: str


_NAVIGATION = (
    ("", (_Entry("Home", icon="home", name="start", shortcut="o"),)),
    (
        "Configure",
        (
            _Entry("Services", icon="stack-2", name="services", shortcut="s"),
            _Entry("Routes", icon="route", name="routes", shortcut="r"),
            _Entry("Gateway", icon="world", name="gateway", shortcut="w"),
        ),
    ),
    (
        "Access",
        (
            _Entry("Applications", icon="apps", name="applications", shortcut="a"),
            _Entry("API keys", icon="key", name="keys", shortcut="k"),
            _Entry("Limits", icon="gauge", name="limits", shortcut="m"),
            _Entry("Bundles", icon="shield-check", name="bundles", shortcut="b"),
            _Entry("End users", icon="users-group", name="end_users", shortcut="e"),
            _Entry("Issuers", icon="certificate", name="token_issuers", shortcut="i"),
        ),
    ),
    (
        "Queue",
        (
            _Entry("Queue routes", icon="arrows-split-2", name="queue_routes", shortcut="q"),
            _Entry("Tasks", icon="list-check", name="tasks", shortcut="t"),
        ),
    ),
    (
        "Govern",
        (
            _Entry("History", icon="history", name="history", shortcut="h"),
            _Entry("Audit log", icon="report-search", name="audit_log", shortcut="l"),
            _Entry("Alerts", icon="bell", name="alert_channels", shortcut="c"),
            _Entry("Users", icon="users", name="users", shortcut="u"),
            _Entry("Roles", icon="shield-check", name="roles", shortcut="p"),
        ),
    ),
)


def guarded(view: View, permission: str) -> View:
    """Only for staff who may do what ``permission`` names; anybody else is led to the sign-in page and back, or
    refused. Whoever is let in sees and writes the rows of their tenant alone."""

    @wraps(view)
    def guard(request: PanelRequest, *args: Any, **kwargs: Any) -> HttpResponse | StreamingHttpResponse:
        if not (request.user.is_active and request.user.is_staff):
            return _to_sign_in(request)
        request.caller = caller_by_session(request, request.user)
        enter_tenant(request.caller.tenant_id)
        if permission != EVERY_ADMIN and not may(request, permission):
            raise PolicyDenied("insufficient_scope", f"This needs the permission {permission}, which you do not have.")
        response = view(request, *args, **kwargs)
        if isinstance(response, HttpResponse) and response.headers.get("Content-Type", "").startswith("text/html"):
            response.content = hidden_from(request.caller, response.text).encode()
        return response

    guard.permission = permission  # type: ignore[attr-defined]
    return guard


def for_anybody(view: AnyView, why: str) -> AnyView:
    """A page that asks nobody for a permission. ``why`` stands in the table of permissions."""
    view.open_to = why  # type: ignore[attr-defined]
    return view


def _to_sign_in(request: PanelRequest) -> HttpResponse:
    if not request.htmx:
        return redirect(f"{settings.LOGIN_URL}?{urlencode({'next': request.get_full_path()})}")
    shown = urlsplit(request.htmx.current_url or "/")
    came_from = shown.path + (f"?{shown.query}" if shown.query else "")
    response = HttpResponse()
    response.headers["HX-Redirect"] = f"{settings.LOGIN_URL}?{urlencode({'next': came_from})}"
    return response


def page(request: PanelRequest, template: str, context: Context | None = None, *, status: int = 200) -> HttpResponse:
    """A page in the shell, or, when htmx navigates, only what changes. A refused form keeps the address as it is."""
    is_part = request.htmx and not request.htmx.history_restore_request and request.htmx.target == "main"
    values = {
        **(context or {}),
        "layout": "admin_panel/fragment.html" if is_part else "admin_panel/shell.html",
        "shell": {
            "navigation": _navigation(request),
            "environment": settings.SERVICE_NAME,
            "status": None if is_part else config_status(),
            "is_maintained": is_maintained(),
        },
    }
    response = render(request, template, values, status=status)
    if status >= 400:
        response.headers["HX-Push-Url"] = "false"
        response.headers["HX-Retarget"] = "#main"
    return response


def fragment(request: PanelRequest, template: str, context: Context, *, status: int = 200) -> HttpResponse:
    return render(request, template, dict(context), status=status)


def not_found(request: PanelRequest, what: str) -> HttpResponse:
    return page(request, "admin_panel/missing.html", {"what": what}, status=404)


def go_to(name: str, *args: str) -> HttpResponseRedirect:
    return HttpResponseRedirect(reverse(f"panel:{name}", args=args))


def _navigation(request: PanelRequest) -> list[dict[str, Any]]:
    """What the caller may look at."""
    groups = []
    for title, entries in _NAVIGATION:
        items = [_nav_item(entry, request.path) for entry in entries]
        allowed = [item for item in items if may_open(request, item.url)]
        if allowed:
            groups.append({"title": title, "items": allowed})
    return groups


def may_open(request: PanelRequest, path: str) -> bool:
    """Whether the page at ``path`` would let the caller in."""
    permission = needed_permission(path)
    return permission == EVERY_ADMIN or may(request, permission)


def _nav_item(entry: _Entry, path: str) -> NavItem:
    url = reverse(f"panel:{entry.name}")
    is_current = path == url or (url != "/" and path.startswith(url + "/"))
    return NavItem(entry.title, entry.icon, url, entry.shortcut, is_current)

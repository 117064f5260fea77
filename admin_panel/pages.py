"""How views answer: whole pages, the part that htmx swaps into the shell, fragments, and redirects to sign in."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import Any, TypeAlias
from urllib.parse import urlencode, urlsplit

from django.conf import settings
from django.contrib.auth.models import User
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import redirect, render
from django.urls import reverse
from django_htmx.middleware import HtmxDetails

from admin_panel.status import config_status

Context: TypeAlias = Mapping[str, Any]
View: TypeAlias = Callable[..., HttpResponse]


class PanelRequest(HttpRequest):
    """What every panel view behind `signed_in` receives."""

    htmx: HtmxDetails
    user: User


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
        ),
    ),
    (
        "Access",
        (
            _Entry("Applications", icon="apps", name="applications", shortcut="a"),
            _Entry("API keys", icon="key", name="keys", shortcut="k"),
        ),
    ),
    (
        "Queue",
        (
            _Entry("Queue routes", icon="arrows-split-2", name="queue_routes", shortcut="q"),
            _Entry("Tasks", icon="list-check", name="tasks", shortcut="t"),
        ),
    ),
    ("Govern", (_Entry("History", icon="history", name="history", shortcut="h"),)),
)


def signed_in(view: View) -> View:
    """Only for staff; anybody else is led to the sign-in page and back."""

    @wraps(view)
    def guarded(request: PanelRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        if request.user.is_active and request.user.is_staff:
            return view(request, *args, **kwargs)
        return _to_sign_in(request)

    return guarded


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
            "navigation": _navigation(request.path),
            "environment": settings.SERVICE_NAME,
            "status": None if is_part else config_status(),
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


def _navigation(path: str) -> list[dict[str, Any]]:
    return [{"title": title, "items": [_nav_item(entry, path) for entry in entries]} for title, entries in _NAVIGATION]


def _nav_item(entry: _Entry, path: str) -> NavItem:
    url = reverse(f"panel:{entry.name}")
    is_current = path == url or (url != "/" and path.startswith(url + "/"))
    return NavItem(entry.title, entry.icon, url, entry.shortcut, is_current)

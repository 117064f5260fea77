"""Headers of every page, and what an admin sees when one cannot be made, such as while the database is away."""

import sys
from collections.abc import Callable
from typing import Any

from django.db import InterfaceError, OperationalError
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.template.loader import render_to_string

from access.administration.factors import must_add_factor
from admin_panel.sign_in.urls import NAMES, WITHOUT_FACTOR
from core import api_problems
from core.api_problems import as_fault, is_database_away
from core.faults import GatewayFault, InternalFault, PolicyDenied
from core.ingress import is_through_gateway

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
RETRY_AFTER_S = 5
_AWAY = "The database does not answer. Traffic goes on; changes must wait."
_WITHOUT_FACTOR = WITHOUT_FACTOR | {"login", "logout", "status"}
GetResponse = Callable[[HttpRequest], HttpResponse]


class PanelMiddleware:
    """A strict CSP on every page that brings no other; faults told calmly; no panel for what workers hand over."""

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        response = self.get_response(request)
        if response.headers.get("Content-Type", "").startswith("text/html"):
            response.headers.setdefault("Content-Security-Policy", POLICY)
            response.headers.setdefault("Cache-Control", "no-store")
        return response

    def process_view(self, request: HttpRequest, *_: Any) -> HttpResponse | None:
        match = request.resolver_match
        if not _is_panel(request) and (match is None or match.app_name != "admin"):
            return None
        if is_through_gateway(request):
            raise Http404  # the panel has a port of its own (rule 15)
        if match and match.url_name not in _WITHOUT_FACTOR and _must_add_factor(request):
            return redirect("second_factor_wanted")
        return None

    def process_exception(self, request: HttpRequest, exception: Exception) -> HttpResponse | None:
        if not _is_panel(request):
            return None
        if is_database_away(exception):
            fault: GatewayFault = InternalFault("dependency_unavailable", _AWAY, retry_after_s=RETRY_AFTER_S)
        elif isinstance(exception, GatewayFault):
            fault = exception
        else:
            return None
        return told(request, fault)


def server_error(request: HttpRequest) -> HttpResponse:
    """Django's handler500: a page where a page was asked for, a problem document of the API elsewhere."""
    return told(request, as_fault(sys.exc_info()[1])) if _is_panel(request) else api_problems.server_error(request)


def csrf_failure(request: HttpRequest, reason: str = "") -> HttpResponse:
    fault = PolicyDenied("blocked", "This page is too old to act on, or cookies are blocked: load it again.")
    return told(request, fault) if _is_panel(request) else api_problems.csrf_failure(request, reason)


def told(request: HttpRequest, fault: GatewayFault) -> HttpResponse:
    """A page; for a request by htmx only a notice above the page, which keeps what somebody has typed."""
    is_htmx = bool(getattr(request, "htmx", False))
    template = "admin_panel/fault_notice.html" if is_htmx else "admin_panel/fault.html"
    html = render_to_string(template, {"path": request.get_full_path(), "fault": fault, "method": request.method})
    response = HttpResponse(html, status=fault.status)
    if fault.retry_after_s is not None:
        response.headers["Retry-After"] = str(fault.retry_after_s)
    if is_htmx:
        response.headers["HX-Retarget"] = "#notice"
        response.headers["HX-Reswap"] = "innerHTML"
        response.headers["HX-Push-Url"] = "false"
    return response


def _must_add_factor(request: HttpRequest) -> bool:
    try:
        return must_add_factor(request.user)
    except (OperationalError, InterfaceError):  # the view meets it again, and says so calmly
        return False


def _is_panel(request: HttpRequest) -> bool:
    match = request.resolver_match
    return match is not None and (match.app_name == "panel" or match.url_name in NAMES)

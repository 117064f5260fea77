"""What runs rather than what is configured: targets and circuits, stored answers, registration."""

from __future__ import annotations

from typing import Any

from django.http import HttpResponse
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from admin_panel.pages import PanelRequest, fragment, go_to, not_found
from admin_panel.saving import confirm, signature
from core.faults import ClientFault
from routing import registration
from routing import services as use_cases
from routing.cache_purges import purge_cache
from routing.models import CachePurge, ServiceConfig
from routing.target_report import ask_targets, report_on


# --- targets -------------------------------------------------------------------------------------------------------
@require_safe
def service_targets(request: PanelRequest, pk: str) -> HttpResponse:
    """The card of targets, asked for again every few seconds."""
    row = ServiceConfig.objects.filter(pk=pk).first()
    if row is None:
        return not_found(request, "service")
    return fragment(request, "admin_panel/services/targets.html", targets_of(row))


def targets_of(row: ServiceConfig) -> dict[str, Any]:
    try:
        return {"row": row, "report": report_on(row)}
    except ClientFault as fault:  # the row was changed by hand
        return {"row": row, "report_fault": fault.detail}


@require_POST
def service_check(request: PanelRequest, pk: str) -> HttpResponse:
    """Ask each target once, now; the answers stand in a dialog."""
    row = ServiceConfig.objects.filter(pk=pk).first()
    if row is None:
        return not_found(request, "service")
    context: dict[str, Any] = {"row": row}
    try:
        context["check"], context["answers"] = ask_targets(row)
    except ClientFault as fault:
        context["fault"] = fault
    return fragment(request, "admin_panel/services/checked.html", context)


@require_http_methods(["GET", "HEAD", "POST"])
def service_reset(request: PanelRequest, pk: str) -> HttpResponse:
    row = ServiceConfig.objects.filter(pk=pk).first()
    if row is None:
        return not_found(request, "service")
    return confirm(
        request,
        "admin_panel/services/reset.html",
        act=lambda signed: use_cases.reset_circuits(service=row, **signed),
        done=lambda: go_to("service", pk),
        context={"row": row},
    )


# --- caches --------------------------------------------------------------------------------------------------------
@require_http_methods(["GET", "HEAD", "POST"])
def service_purge(request: PanelRequest, pk: str) -> HttpResponse:
    """Drop stored answers: of the service, or by URL, prefix or tag."""
    row = ServiceConfig.objects.filter(pk=pk).first()
    if row is None:
        return not_found(request, "service")
    context: dict[str, Any] = {"row": row, "url": request.path, "kind": "service", "value": ""}
    if request.method != "POST":
        return fragment(request, "admin_panel/services/purge.html", context)
    kind, typed = request.POST.get("kind", ""), request.POST.get("value", "").strip()
    value = row.name if kind == CachePurge.Kind.SERVICE else typed
    try:
        if kind not in (CachePurge.Kind.SERVICE, CachePurge.Kind.URL, CachePurge.Kind.PREFIX, CachePurge.Kind.TAG):
            raise ClientFault("invalid_field", "Choose what to drop.")
        made = purge_cache(kind=kind, value=value, **signature(request, request.POST.get("reason", "")))
    except ClientFault as fault:
        context |= {"fault": fault, "kind": kind, "value": typed}
        return fragment(request, "admin_panel/services/purge.html", context, status=fault.status)
    return fragment(request, "admin_panel/services/purged.html", context | {"purge": made})


# --- registration --------------------------------------------------------------------------------------------------
@require_http_methods(["GET", "HEAD", "POST"])
def service_token(request: PanelRequest, pk: str) -> HttpResponse:
    """A new registration token, which is in this one answer and nowhere else."""
    row = ServiceConfig.objects.filter(pk=pk).first()
    if row is None:
        return not_found(request, "service")
    context: dict[str, Any] = {"row": row, "url": request.path}
    if request.method == "POST":
        signed = signature(request, request.POST.get("reason", ""))
        context["token"], _ = registration.create_token(service=row, **signed)
    else:
        context["has_one"] = hasattr(row, "registration_token")
    return fragment(request, "admin_panel/services/token.html", context)

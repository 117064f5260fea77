"""What holds for everything that is routed, whatever its service: maintenance of the whole gateway."""

from typing import Any

from django.http import HttpResponse
from django.views.decorators.http import require_http_methods

from admin_panel.pages import PanelRequest, go_to
from admin_panel.policies import policy_form, summary
from admin_panel.policy_words import TITLES
from admin_panel.saving import Signature, confirm, edit
from core.models import ConfigChange
from routing import services as use_cases
from routing.models import GatewayPolicies, Route, ServiceConfig
from routing.policies import GATEWAY_POLICIES

_RECENT = 6


@require_http_methods(["GET", "HEAD", "POST"])
def gateway(request: PanelRequest) -> HttpResponse:
    row = use_cases.gateway_policies()

    def save(changes: dict[str, Any], began: int | None, signed: Signature) -> GatewayPolicies:
        return use_cases.update_gateway(changes=changes, if_revision=began, **signed)

    form = policy_form("maintenance", GATEWAY_POLICIES["maintenance"])
    context = {
        "title": TITLES["maintenance"][0],
        "is_on": row.maintenance is not None,
        "services": ServiceConfig.objects.filter(is_active=True).count(),
        "routes": Route.objects.filter(is_active=True).count(),
        "recent": _recent(),
        "addresses": summary(GATEWAY_POLICIES["ip_access"], row.ip_access),
    }
    return edit(
        request,
        form,
        "admin_panel/gateway/form.html",
        row=row,
        save=save,
        done=lambda _: go_to("gateway"),
        context=context,
    )


@require_http_methods(["GET", "HEAD", "POST"])
def gateway_addresses(request: PanelRequest) -> HttpResponse:
    """Whose requests are taken at all. Empty lists are none."""
    row = use_cases.gateway_policies()

    def save(changes: dict[str, Any], began: int | None, signed: Signature) -> GatewayPolicies:
        return use_cases.update_gateway(
            changes={"ip_access": changes["ip_access"] or None}, if_revision=began, **signed
        )

    title, purpose = TITLES["ip_access"]
    return edit(
        request,
        policy_form("ip_access", GATEWAY_POLICIES["ip_access"]),
        "admin_panel/gateway/addresses.html",
        row=row,
        save=save,
        done=lambda _: go_to("gateway"),
        context={"title": title, "purpose": purpose},
    )


@require_http_methods(["GET", "HEAD", "POST"])
def gateway_end(request: PanelRequest) -> HttpResponse:
    """Maintenance ends."""
    return confirm(
        request,
        "admin_panel/gateway/end.html",
        act=lambda signed: use_cases.update_gateway(changes={"maintenance": None}, **signed),
        done=lambda: go_to("gateway"),
        context={},
    )


def _recent() -> list[ConfigChange]:
    changes = ConfigChange.objects.filter(kind=GatewayPolicies.kind).select_related("revision")
    return list(changes.order_by("-pk")[:_RECENT])

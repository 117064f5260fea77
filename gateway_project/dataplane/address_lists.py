"""Step 5, lists of addresses (A12): each raises PolicyDenied ``ip_not_allowed``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from access.addresses import is_loopback
from access.networks import AddressRules, refusal
from access.records import ApplicationRecord
from core.context import Exchange

if TYPE_CHECKING:
    from gateway_project.dataplane.matching import Match

_HEALTH = frozenset((b"/health", b"/ready"))


def check_gateway(rules: AddressRules, exchange: Exchange) -> None:
    """Of everything on the ports of clients, but for what this host asks after its own health."""
    client = exchange.identity.client
    if not rules.permits(client) and not (exchange.raw_path in _HEALTH and is_loopback(client)):
        raise refusal("the gateway")


def check_lists(match: Match, client: str) -> None:
    """Of the route and of the services that it leads to."""
    for whose, rules in match.addresses:
        if not rules.permits(client):
            raise refusal(whose)


def check_application(application: ApplicationRecord, client: str) -> None:
    """Of the application that a request turns out to be of."""
    if application.addresses is not None and not application.addresses.permits(client):
        raise refusal(f"the application {application.name}")

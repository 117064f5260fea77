"""The plain port when HTTPS_REDIRECT is on: it leads clients to the TLS port, and serves who watches the gateway."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from core.context import Exchange
from core.faults import ClientFault, GatewayFault
from gateway_project.dataplane.protocol import ClientProtocol
from gateway_project.dataplane.tracing import begin_trace
from routing.paths import canonical

if TYPE_CHECKING:
    from gateway_project.dataplane.app import Gateway

SERVED = frozenset((b"/health", b"/ready", b"/metrics"))  # probes and scrapers follow no redirects


class RedirectingProtocol(ClientProtocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.handle = self._redirect

    def _redirect(self, exchange: Exchange) -> None:
        redirect(self.gateway, exchange)


def redirect(gateway: Gateway, exchange: Exchange) -> None:
    """308 keeps method and body (RFC 9110 section 15.4.9)."""
    if exchange.raw_path in SERVED or _came_by_https(exchange):
        gateway.handle(exchange)
        return
    begin_trace(exchange)
    exchange.own_template = "redirect"
    try:
        location = _location(exchange, gateway.settings.https_redirect_port)
    except GatewayFault as fault:
        gateway.refuse(exchange, fault)
    else:
        gateway.answer(exchange, 308, [(b"location", location)], b"")


def _came_by_https(exchange: Exchange) -> bool:
    """A trusted proxy in front of the plain port has ended the client's TLS."""
    return exchange.identity.is_proxied and exchange.noted.get(b"x-forwarded-proto") == b"https"


def _location(exchange: Exchange, port: int) -> bytes:
    canonical(exchange.raw_path)  # raises ClientFault for what no redirect should repeat
    host = exchange.identity.host
    if not host:
        raise ClientFault("bad_request", "The gateway is reached by https:// here.")
    where = b"https://" + host + (b"" if port == 443 else b":%d" % port) + exchange.raw_path
    return where if exchange.query is None else where + b"?" + exchange.query

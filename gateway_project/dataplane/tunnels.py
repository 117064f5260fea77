"""WebSockets of a worker (rule 12): who may open one, how many are open, and their last line in the log."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from access.cors import CorsPolicy
from core.context import Exchange
from core.faults import PolicyDenied
from gateway_project.dataplane.matching import Match
from gateway_project.dataplane.socket_exchange import SocketExchange
from routing.policies import WebSockets
from routing.upstream.connection import UpstreamConnection
from routing.websocket import Tunnel
from routing.websocket_handshake import Handshake, take_key_from_query, without_handshake

if TYPE_CHECKING:
    from gateway_project.dataplane.app import Gateway

_DEFAULT = WebSockets()


class Tunnels:
    """``open_ones`` are looked at again when the configuration changes."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self.open_ones: set[Tunnel] = set()

    def admit(self, exchange: Exchange, match: Match) -> None:
        """Before authentication: is it a handshake, and may it be one here? Raises GatewayFault. Where no service
        answers, or the protocol has no socket to hand over, the upgrade is ignored (RFC 9110 section 7.8)."""
        service, route = match.service, match.route
        if service is None:
            exchange.upgrade = None
            return
        handshake: Handshake = exchange.upgrade
        policy = (route.websockets if route is not None else None) or service.websockets or _DEFAULT
        handshake.check()
        if not policy.enabled:
            raise PolicyDenied("blocked", "WebSockets are switched off here.")
        self._check_origin(exchange, match, policy)
        if policy.query_key is not None:
            take_key_from_query(exchange, policy.query_key, self._gateway.key_header)
        handshake.policy, handshake.opener = policy, self
        handshake.complete(exchange)

    def _check_origin(self, exchange: Exchange, match: Match, policy: WebSockets) -> None:
        """Browsers let any page open a WebSocket to anywhere, and say from where (RFC 6455 section 10.2). Who sends
        no Origin is none."""
        origin = exchange.noted.get(b"origin")
        if origin is None:
            return
        if policy.origins is not None:
            allowed, named = _origins(policy.origins), "the origins of the websockets policy do"
        elif match.origins is not None:
            allowed, named = match.origins, "the cors policy does"
        else:
            allowed, named = self._gateway.cors, "CORS_ORIGINS does"
        if not allowed.allows(origin):
            raise PolicyDenied("blocked", f"A WebSocket from this origin is not allowed: {named} not name it.")

    def open(self, exchange: SocketExchange, connection: UpstreamConnection, rest: bytes) -> None:
        """The upstream has agreed: join the two connections."""
        handshake: Handshake = exchange.upgrade
        tunnel = Tunnel(
            exchange,
            exchange.connection.transport,
            connection.transport,
            idle_s=handshake.policy.idle_s,
            max_message_bytes=handshake.policy.max_message_bytes,
            is_compressed=handshake.is_compressed,
            now=self._gateway.now,
            ended=self._ended,
        )
        self.open_ones.add(tunnel)
        is_stopping = exchange.connection.closes  # the worker told the connection while the upstream was asked
        via = self._gateway.forwarder.via
        lines = handshake.answer + without_handshake(connection.lines) + via + exchange.answer_lines
        held = exchange.switch(lines, tunnel)
        self._forget_request(exchange)
        connection.transport.set_protocol(tunnel.upstream)
        tunnel.client.transport.resume_reading()
        if held:
            tunnel.client.data_received(held)
        if rest:
            tunnel.upstream.data_received(rest)
        if is_stopping:
            tunnel.shutdown()

    def _forget_request(self, exchange: SocketExchange) -> None:
        """Sockets stay for long: none may keep a key, or the whole of the keys, in memory. An opaque token stays on the
        user, for its issuer to be asked again."""
        exchange.noted, exchange.passed, exchange.upgrade = {}, [], None
        exchange.query = None
        session = exchange.session
        session.credential, session.keys, session.applications = b"", None, None
        session.token, session.issuers, session.token_applications, session.recognised = b"", None, None, None

    def _ended(self, tunnel: Tunnel) -> None:
        self.open_ones.discard(tunnel)
        gateway, exchange = self._gateway, tunnel.exchange
        gateway.connections.discard(tunnel)
        exchange.bytes_in, exchange.bytes_out = tunnel.client.arrived, tunnel.upstream.arrived
        gateway.account_tunnel(exchange)


@lru_cache(256)
def _origins(origins: tuple[str, ...]) -> CorsPolicy:
    return CorsPolicy(origins)

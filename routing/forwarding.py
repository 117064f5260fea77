"""Forwarding one exchange to its upstream and the answer back.

Two connections, two directions, and back-pressure between them: a side that cannot take more pauses the reading of
the other. Nothing is buffered beyond one read, except up to 64 KiB of an idempotent request's body, which may have to
be sent again (rule 8). Everything happens in callbacks: no task runs per request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace

from core.context import Exchange
from core.faults import ConnectFault, GatewayFault, UpstreamFault
from routing.records import TargetRecord
from routing.rewriting import upstream_target
from routing.upstream.connection import PANEL_COOKIES, UpstreamConnection
from routing.upstream.errors import (
    connect_fault,
    connect_timeout,
    connection_terminated,
    invalid_response,
    response_timeout,
)
from routing.upstream.pool import Connector

IDEMPOTENT = frozenset((b"GET", b"HEAD", b"OPTIONS", b"PUT", b"DELETE", b"QUERY", b"PROPFIND", b"REPORT", b"SEARCH"))
REPLAY_LIMIT = 64 * 1024
IDLE_TIMEOUT_S = 30.0
_BODILESS = (204, 304)
_NEVER = float("inf")


@dataclass(frozen=True, slots=True)
class Terms:
    """On what terms an exchange is forwarded: time limits in seconds (rule 9), and what its route declares."""

    first_byte_s: float
    total_s: float | None = None
    may_resend: bool = False  # non-idempotent methods are safe to send again (rule 8)
    pass_credentials: bool = False


class Forwarder:
    """What all forwardings of a worker share: connections, the clock, and the sweep that enforces time limits."""

    def __init__(
        self, connector: Connector, key_header: bytes, via: bytes, refuse: Callable[[Exchange, GatewayFault], None]
    ) -> None:
        self.connector = connector
        self.now = connector.now
        self.key_header = key_header
        self.via = via
        self.refuse = refuse
        self.date = b""  # a field line, renewed by the sweep
        self.active: set[Forwarding] = set()

    def forward(self, exchange: Exchange, target: TargetRecord, request_target: bytes, terms: Terms) -> None:
        """Send the exchange to ``target``, asking for ``request_target``; answer it with what comes back."""
        Forwarding(self, exchange, target, request_target, terms).begin()

    def sweep(self, now: float) -> None:
        for forwarding in [each for each in self.active if each.deadline <= now or each.last_call <= now]:
            forwarding.expire()
        self.connector.sweep(now)


class Forwarding:
    """One exchange on its way. It is the sink of the request's body and the handler of the upstream's answer."""

    __slots__ = (
        "_body_done",
        "_connecting",
        "_connection",
        "_forwarder",
        "_is_answering",
        "_pool",
        "_reads_body",
        "_replay",
        "_request_target",
        "_sent",
        "_target",
        "_terms",
        "_tries",
        "deadline",
        "exchange",
        "last_call",
    )

    def __init__(
        self, forwarder: Forwarder, exchange: Exchange, target: TargetRecord, request_target: bytes, terms: Terms
    ) -> None:
        self._forwarder = forwarder
        self.exchange = exchange
        self._target = target
        self._request_target = request_target
        self._terms = terms
        self._pool = forwarder.connector.pool(target.origin)
        self._connection: UpstreamConnection | None = None
        self._connecting: asyncio.Task[None] | None = None
        self.deadline = exchange.started + terms.first_byte_s
        self.last_call = _NEVER if terms.total_s is None else exchange.started + terms.total_s
        self._tries = 0
        self._sent = False  # a byte of the request may have reached the target
        self._is_answering = False  # the client has been sent the beginning of an answer
        self._reads_body = False
        self._body_done = not exchange.has_body
        # What to send again if a reused connection turns out to be dead; None: too large, or not allowed.
        self._replay: list[bytes] | None = [] if terms.may_resend or exchange.method in IDEMPOTENT else None

    # --- towards the upstream ---
    def begin(self) -> None:
        self._forwarder.active.add(self)
        self.exchange.sink = self
        connection = self._pool.take()
        if connection is not None:
            self._send(connection)
        else:
            self._connect()

    def _connect(self) -> None:
        self._connecting = self._pool.connect(self)

    def connected(self, connection: UpstreamConnection) -> None:
        self._connecting = None
        self._send(connection)

    def connect_failed(self, error: BaseException) -> None:
        self._connecting = None
        self._fail(connect_fault(error, self._next_hop()))

    def _send(self, connection: UpstreamConnection) -> None:
        self._connection = connection
        self._tries += 1
        self._sent = True
        exchange = self.exchange
        head = request_head(self._forwarder, exchange, self._target, self._request_target, self._terms)
        connection.send(self, head, is_head=exchange.method == b"HEAD")
        if not exchange.has_body:
            return
        for data in self._replay or ():
            connection.write(data)
        if not self._body_done:
            self.deadline = _NEVER  # how long the client may take is its own connection's matter
        if self._reads_body:
            exchange.resume_body()
        else:
            self._reads_body = True
            exchange.read_body(self)

    def body_data(self, data: bytes) -> None:
        if self.exchange.content_length is None:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        self._send_body(data)

    def body_end(self) -> None:
        self._body_done = True
        if self.exchange.content_length is None:
            self._send_body(b"0\r\n\r\n")
        if not self._is_answering:
            self.deadline = self._forwarder.now() + self._terms.first_byte_s

    def _send_body(self, data: bytes) -> None:
        if self._replay is not None:
            self._replay.append(data)
            if sum(map(len, self._replay)) > REPLAY_LIMIT:
                self._replay = None
        if self._connection is not None:
            self._connection.write(data)

    def refuse_body(self, fault: GatewayFault) -> None:
        """The body turned out to be too large or malformed while it was passed on."""
        self._finish_upstream(close=True)
        if self._is_answering:
            self.exchange.abort()
        else:
            self._forwarder.refuse(self.exchange, fault)

    def client_gone(self) -> None:
        self._finish_upstream(close=True)

    def upstream_busy(self) -> None:
        if not self._body_done:
            self.exchange.pause_body()
            self.deadline = self._forwarder.now() + IDLE_TIMEOUT_S

    def upstream_ready(self) -> None:
        if not self._body_done:
            self.exchange.resume_body()
            self.deadline = _NEVER

    # --- towards the client ---
    def response_whole(self, connection: UpstreamConnection, body: bytes) -> None:
        exchange = self.exchange
        pieces = self._answer_pieces(connection)
        if not connection.is_sized and not connection.is_head and connection.status not in _BODILESS:
            pieces.append(b"content-length: %d\r\n" % len(body))
        self._is_answering = True
        exchange.upstream_s = self._forwarder.now() - exchange.started
        self._finish_upstream(close=False)
        exchange.answer(connection.status, b"".join(pieces), body)

    def response_started(self, connection: UpstreamConnection) -> None:
        exchange = self.exchange
        now = self._forwarder.now()
        exchange.upstream_s = now - exchange.started
        self.deadline = now + IDLE_TIMEOUT_S
        self._is_answering = True
        self._replay = None
        lines = b"".join(self._answer_pieces(connection))
        exchange.start(connection.status, lines, is_sized=connection.is_sized)

    def _answer_pieces(self, connection: UpstreamConnection) -> list[bytes]:
        """The upstream's fields and ours, as lines."""
        exchange, forwarder = self.exchange, self._forwarder
        pieces = connection.lines
        if not connection.has_date:
            pieces.append(forwarder.date)
        if exchange.is_fallback:
            pieces.append(b"x-gateway-fallback: true\r\n")
        pieces += (forwarder.via, exchange.answer_lines)
        return pieces

    def response_data(self, data: bytes) -> None:
        self.deadline = self._forwarder.now() + IDLE_TIMEOUT_S
        if not self.exchange.write(data) and self._connection is not None:
            self._connection.transport.pause_reading()

    def client_ready(self) -> None:
        self.deadline = self._forwarder.now() + IDLE_TIMEOUT_S
        if self._connection is not None:
            self._connection.transport.resume_reading()

    def response_ended(self, connection: UpstreamConnection) -> None:
        self._finish_upstream(close=False)
        self.exchange.end()

    def response_failed(self, connection: UpstreamConnection, *, is_garbage: bool) -> None:
        self._connection = None
        if self._is_answering:
            self._finish_upstream(close=True)
            self.exchange.abort()
        elif is_garbage:
            self._fail(invalid_response(self._next_hop()))
        elif connection.is_reused and not connection.heard_since_sent and self._may_send_again():
            self.exchange.pause_body()
            self.deadline = self._forwarder.now() + self._terms.first_byte_s
            self._connect()
        else:
            self._fail(connection_terminated(self._next_hop()))

    def _may_send_again(self) -> bool:
        # The server may have closed the connection just as we reused it. Once, and on a fresh connection (rule 8).
        return self._replay is not None and self._tries == 1

    # --- ends ---
    def expire(self) -> None:
        """A time limit has passed."""
        if self._is_answering:
            self._finish_upstream(close=True)
            self.exchange.abort()
        elif self._connection is None:
            self._fail(connect_timeout(self._next_hop()))
        else:
            self._fail(response_timeout(self._next_hop()))

    def _fail(self, fault: UpstreamFault) -> None:
        exchange = self.exchange
        if isinstance(fault, ConnectFault) and not self._sent and self._fall_back():
            return
        self._finish_upstream(close=True)
        exchange.upstream_s = self._forwarder.now() - exchange.started
        self._forwarder.refuse(exchange, fault)

    def _fall_back(self) -> bool:
        """Rule 7: once, only because no byte of the request has reached a target, and without upstream credentials."""
        exchange = self.exchange
        match = exchange.match
        if match is None or match.service.fallback is None or exchange.is_fallback:
            return False
        self._stop_connecting()
        self._target, base_path = match.service.fallback
        self._request_target = upstream_target(match.route, base_path, exchange.raw_path, exchange.query)
        self._terms = replace(self._terms, pass_credentials=False)
        self.deadline = self._forwarder.now() + self._terms.first_byte_s
        exchange.is_fallback = True
        self._pool = self._forwarder.connector.pool(self._target.origin)
        self.begin()
        return True

    def _next_hop(self) -> str:
        """A name for messages and Proxy-Status: the service's, since its address is nobody's business."""
        match = self.exchange.match
        return match.destination if match is not None else "control"

    def _stop_connecting(self) -> None:
        if self._connecting is not None:
            self._connecting.cancel()
            self._connecting = None

    def _finish_upstream(self, *, close: bool) -> None:
        self._forwarder.active.discard(self)
        self.exchange.sink = None
        self._stop_connecting()
        connection, self._connection = self._connection, None
        if connection is None:
            return
        if close or not self._body_done:  # an answer that came before the request was whole ends the connection
            connection.close()
        else:
            connection.release()


def request_head(
    forwarder: Forwarder, exchange: Exchange, target: TargetRecord, request_target: bytes, terms: Terms
) -> bytes:
    """The request line and fields as the upstream gets them (rules 3, 24; RFC 9110 section 7.6)."""
    noted = exchange.noted
    application = exchange.application
    pieces = [
        exchange.method,
        b" ",
        request_target,
        b" HTTP/1.1\r\nhost: ",
        target.host_header,
        b"\r\n",
        *exchange.passed,
        exchange.identity.forwarding_lines,
        exchange.trace_lines,
        application.upstream_line if application is not None else b"",
    ]
    if exchange.content_length is not None:
        pieces.append(b"content-length: %d\r\n" % exchange.content_length)
    elif exchange.has_body:
        pieces.append(b"transfer-encoding: chunked\r\n")
    via = noted.get(b"via")
    pieces.append(forwarder.via if via is None else b"via: " + via + b", " + forwarder.via[5:])
    if b"cookie" in noted or b"authorization" in noted or terms.pass_credentials:
        pieces += _credential_lines(forwarder, exchange, terms)
    connection = noted.get(b"connection")
    if connection is not None and connection not in (b"keep-alive", b"close", b"Keep-Alive"):
        _drop_named(pieces, exchange.passed, connection)
    pieces.append(b"\r\n")
    return b"".join(pieces)


def _credential_lines(forwarder: Forwarder, exchange: Exchange, terms: Terms) -> list[bytes]:
    """Cookies but the panel's; Authorization unless it is for the gateway; the key where the route says so.
    A fallback gets none of it (rule 7)."""
    noted = exchange.noted
    if exchange.is_fallback:
        return []
    named = {token.strip().lower() for token in noted.get(b"connection", b"").split(b",")}
    lines = []
    if b"cookie" in noted and b"cookie" not in named:
        lines.append(_cookie_line(noted[b"cookie"]))
    authorization = noted.get(b"authorization")
    is_ours = authorization is None or authorization[:7].lower() == b"bearer "
    if authorization is not None and b"authorization" not in named and (terms.pass_credentials or not is_ours):
        lines.append(b"authorization: " + authorization + b"\r\n")
    if terms.pass_credentials and forwarder.key_header in noted:
        lines.append(forwarder.key_header + b": " + noted[forwarder.key_header] + b"\r\n")
    return lines


def _cookie_line(cookie: bytes) -> bytes:
    """The client's cookies without the panel's, which know no ports (rule 15)."""
    if b"portcullis_" not in cookie:
        return b"cookie: " + cookie + b"\r\n"
    kept = [pair for pair in cookie.split(b";") if not pair.strip().startswith(PANEL_COOKIES)]
    return b"cookie: " + b";".join(kept).strip() + b"\r\n" if kept else b""


def _drop_named(pieces: list[bytes], passed: list[bytes], connection: bytes) -> None:
    """Take out the fields that Connection names: they were meant for us alone (RFC 9110 section 7.6.1)."""
    named = {token.strip().lower() for token in connection.split(b",")}
    kept: list[bytes] = []
    for i in range(0, len(passed), 4):
        if passed[i] not in named:
            kept += passed[i : i + 4]
    pieces[6 : 6 + len(passed)] = kept

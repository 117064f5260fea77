"""One request and its answer on a client's HTTP/1.1 connection: its framing, its body as it arrives, its answer."""

from __future__ import annotations

import re
import socket
import struct
from http import HTTPStatus
from typing import TYPE_CHECKING

from httptools import HttpRequestParser

from core.context import CLIENT_LEFT, BodySink, Exchange
from core.faults import ClientFault, GatewayFault
from gateway_project.dataplane.options import METHODS
from routing.websocket import Tunnel
from routing.websocket_handshake import Handshake, is_for_websocket

if TYPE_CHECKING:
    from gateway_project.dataplane.app import Gateway
    from gateway_project.dataplane.protocol import ClientProtocol

BODY_IDLE_S = 30.0
BUFFER_LIMIT = 64 * 1024  # of a request's body while nobody takes it
MOST_AHEAD = 16  # requests that wait behind one that is refused late
DRAIN_LIMIT = 64 * 1024  # of a body that nobody wants: read and forget, so that the connection can go on
REFUSED_METHODS = (b"CONNECT", b"TRACE")
_AUTHORITY = re.compile(rb"[^/?#@]+(?=[/?]|$)")


def _status_line(status: int) -> bytes:
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = ""
    return f"HTTP/1.1 {status} {phrase}\r\n".encode("ascii")


STATUS_LINES = {status: _status_line(status) for status in range(200, 600)}


class Discard:
    """Takes the body of a request that is refused in a moment."""

    def __init__(self, gateway: Gateway, exchange: Exchange) -> None:
        self._gateway, self._exchange = gateway, exchange

    def body_data(self, data: bytes) -> None:
        pass

    def body_end(self) -> None:
        pass

    def client_gone(self) -> None:
        pass

    def client_ready(self) -> None:
        pass

    def refuse_body(self, fault: GatewayFault) -> None:
        if self._exchange.left is not None:  # whoever holds it
            self._exchange.left()
        self._gateway.refuse(self._exchange, fault)


class SocketExchange(Exchange):
    """An exchange on a client's socket."""

    connection: ClientProtocol
    closes = False  # the connection, after this answer
    is_last = False  # the client will send no other request
    refusal: GatewayFault | None = None  # of what turned out to be malformed while earlier requests were answered
    is_http10 = False
    awaits_continue = False
    is_chunked_answer = False
    is_answered = False
    is_body_complete = False
    _is_taken = False  # the sink takes the body as it arrives
    _buffer: list[bytes] | None = None  # what has arrived of the body while nobody took it
    _buffered = 0

    def __init__(self, connection: ClientProtocol) -> None:
        self.connection = connection
        self.noted = connection.noted
        self.passed = connection.passed
        self.started = connection.now()

    def begin(self, parser: HttpRequestParser) -> None:
        """Take over a parsed head. Raises ClientFault for what is ambiguous or not served."""
        connection, noted = self.connection, self.noted
        self.method = parser.get_method()
        keeps_alive = parser.should_keep_alive()
        if not keeps_alive or b"connection" in noted:
            version = parser.get_http_version()
            if version not in ("1.1", "1.0"):
                raise ClientFault("bad_request", f"HTTP/{version} is not served here.")
            if version == "1.0":
                self.is_http10, self.protocol = True, b"HTTP/1.0"
            self.closes = self.is_last = self.is_http10 or not keeps_alive
            if b"upgrade" in noted and parser.should_upgrade():
                self._begin_upgrade(noted)
        target = connection.target
        host = noted.get(b"host")
        if host is None:
            if not self.is_http10:  # absolute-form is no excuse (RFC 9112 section 3.2)
                raise ClientFault("bad_request", "The Host field is missing.")
            host = b""
        if target[:1] != b"/":
            self._refuse_tunnels()
            target, host = _other_form(self.method, target, host)
        path, mark, query = target.partition(b"?")
        self.raw_path = path
        if mark:
            self.query = query
        identity = connection.identity
        if identity is None or identity.host_field != host or identity.is_proxied:
            identity = connection.gateway.identify(connection.peer, connection.scheme, host, noted)
            connection.identity = identity
        self.identity = identity
        self.session = connection.session
        if self.method in REFUSED_METHODS:
            self._refuse_tunnels()
        if b"content-length" in noted or b"transfer-encoding" in noted:
            self._begin_body()
        if b"expect" in noted:
            self._expect(noted[b"expect"])

    def _refuse_tunnels(self) -> None:
        if self.method in REFUSED_METHODS:
            allowed = ((b"allow", METHODS),)
            raise ClientFault("method_not_allowed", "The gateway does not serve this method.", headers=allowed)

    def _begin_upgrade(self, noted: dict[bytes, bytes]) -> None:
        """A handshake keeps the parser from what follows it: that may be another protocol's. Other upgrades are
        ignored (RFC 9110 section 7.8)."""
        if (
            self.method == b"GET"
            and not self.is_http10
            and is_for_websocket(noted[b"upgrade"])
            and b"transfer-encoding" not in noted
            and noted.get(b"content-length", b"0") == b"0"
        ):
            handshake = Handshake(noted, self.passed, self.connection.key_header)
            if handshake.is_one:
                self.upgrade = handshake
                self.connection.handshake = self

    def begin_malformed(self, target: bytes) -> None:
        """Enough of an exchange to carry a refusal of bytes that are no request."""
        self.method = b"-"
        self.raw_path = target.partition(b"?")[0]
        self.identity = self.connection.gateway.identify(self.connection.peer, "http", b"", {})
        self.session = self.connection.session
        self.noted = {}
        self.passed = []
        self.closes = True
        self.is_body_complete = False
        self.has_body = True  # the rest of whatever it is must be read and forgotten

    def _begin_body(self) -> None:
        coding = self.noted.get(b"transfer-encoding")
        length = self.noted.get(b"content-length")
        if coding is not None:
            # The parser refuses both at once; only "chunked" alone is a framing that all readers agree on.
            if length is not None or coding.lower() != b"chunked":
                raise ClientFault("bad_request", "The only transfer coding that is served is chunked, by itself.")
            if self.is_http10:
                raise ClientFault("bad_request", "HTTP/1.0 knows no transfer codings.")
            self.has_body = True
        elif length is not None:
            if not length.isdigit():
                raise ClientFault("bad_request", "Content-Length is no number.")
            self.content_length = int(length)
            self.has_body = self.content_length > 0

    def _expect(self, value: bytes) -> None:
        if value.lower() != b"100-continue":
            raise ClientFault("bad_request", "The only expectation that is served is 100-continue.")
        self.awaits_continue = self.has_body and not self.is_http10

    # --- the body ---
    def body_arrived(self, data: bytes) -> None:
        if self.is_answered and self.sink is None:
            self._forget(data)
            return
        self.bytes_in += len(data)
        limit = self.max_body_bytes
        if limit is not None and self.bytes_in > limit:
            self.body_failed(too_large(limit))
            return
        if self._is_taken and self.sink is not None:
            self.connection.deadline = self.connection.now() + BODY_IDLE_S
            self.sink.body_data(data)
            return
        if self._buffer is None:
            self._buffer = []
        self._buffer.append(data)
        self._buffered += len(data)
        if self._buffered > BUFFER_LIMIT:
            self.connection.pause_reading()

    def _forget(self, data: bytes) -> None:
        self._buffered += len(data)
        if self._buffered > DRAIN_LIMIT and not self.connection.is_lingering:
            self.connection.linger()

    def body_complete(self) -> None:
        self.is_body_complete = True
        if self.is_answered:
            if self.connection.current is self:
                self.connection.exchange_done(self)
        elif self._is_taken and self.sink is not None:
            self.sink.body_end()

    def read_body(self, sink: BodySink) -> None:
        self.sink = sink
        self._is_taken = True
        if self.awaits_continue and not self._buffer and not self.is_body_complete:
            self.connection.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self.awaits_continue = False
        chunks, self._buffer = self._buffer or (), None
        self._buffered = 0
        for data in chunks:
            sink.body_data(data)
        if self.is_body_complete:
            sink.body_end()
        else:
            self.connection.deadline = self.connection.now() + BODY_IDLE_S
            self.connection.resume_reading()

    def forget_body(self) -> None:
        if self.has_body and not self.awaits_continue:
            self.read_body(Discard(self.connection.gateway, self))

    def stop_ahead(self) -> None:
        if len(self.connection.waiting) > MOST_AHEAD:
            self.closes = True

    def replace_body(self, body: bytes) -> None:
        self._buffer = [body]
        self._buffered = len(body)
        self.content_length = len(body)

    def pause_body(self) -> None:
        if not self.is_body_complete:
            self.connection.pause_reading()

    def resume_body(self) -> None:
        if not self.is_body_complete:
            self.connection.deadline = self.connection.now() + BODY_IDLE_S
            self.connection.resume_reading()

    def body_failed(self, fault: GatewayFault) -> None:
        """The body is too large, too slow or malformed: nothing after it on this connection can be trusted."""
        self.closes = True
        sink = self.sink
        if sink is not None:
            sink.refuse_body(fault)
        elif not self.is_answered:
            if self.left is not None:  # whoever holds it
                self.left()
            self.connection.gateway.refuse(self, fault)
        else:
            self.connection.linger()

    def client_left(self) -> None:
        """The connection is gone."""
        if self.is_answered:
            return
        self.is_answered = True
        self.status = CLIENT_LEFT
        sink, self.sink = self.sink, None
        if sink is not None:
            sink.client_gone()
        if self.left is not None:
            self.left()
        self.connection.gateway.account(self)

    # --- the answer ---
    def answer(self, status: int, lines: bytes, body: bytes) -> None:
        transport = self.connection.transport
        if self.is_answered or transport.is_closing():
            return
        if self.method == b"HEAD":
            body = b""
        self.status = status
        self.bytes_out = len(body)
        transport.write(b"".join((STATUS_LINES[status], lines, self._last_lines(), body)))
        self._answered()

    def _last_lines(self) -> bytes:
        """The fields that the connection decides, and the end of the header section."""
        if self.has_body and not self.is_body_complete and not self._can_drain():
            self.closes = True
        connection = self.connection
        if not self.closes and (connection.closes or connection.gateway.is_draining):
            self.closes = not connection.waiting  # requests that have arrived whole are answered first
        return b"connection: close\r\n" + connection.end_of_head if self.closes else connection.end_of_head

    def _can_drain(self) -> bool:
        """Whether the rest of the body is small enough to read and forget; a client that awaits a 100 may never
        send it."""
        if self.awaits_continue:
            return False
        return self.content_length is not None and self.content_length - self.bytes_in <= DRAIN_LIMIT

    def start(self, status: int, lines: bytes, *, is_sized: bool) -> None:
        connection = self.connection
        self.status = status
        bodiless = self.method == b"HEAD" or status in (204, 304)
        if not is_sized and not bodiless:
            if self.is_http10:
                self.closes = True
            else:
                self.is_chunked_answer = True
                lines += b"transfer-encoding: chunked\r\n"
        connection.transport.write(b"".join((STATUS_LINES[status], lines, self._last_lines())))

    def write(self, data: bytes) -> bool:
        connection = self.connection
        self.bytes_out += len(data)
        if self.is_chunked_answer:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        connection.transport.write(data)
        return not connection.is_write_paused

    def is_taking(self) -> bool:
        return self.connection.is_write_paused and self.connection.is_taking()

    def end(self) -> None:
        if self.is_chunked_answer:
            self.connection.transport.write(b"0\r\n\r\n")
        self._answered()

    def switch(self, lines: bytes, tunnel: Tunnel) -> bytes:
        """Answer 101 and hand the connection over to the tunnel's client side, which gets whatever else arrives.
        Returns what the client has sent already."""
        connection = self.connection
        transport, held = connection.transport, connection.give_up()
        self.is_answered = True
        self.status = 101
        self.sink = None
        del self.connection
        connection.connections.add(tunnel)
        transport.set_protocol(tunnel.client)
        transport.write(b"HTTP/1.1 101 Switching Protocols\r\n" + lines + b"\r\n")
        return held

    def _answered(self) -> None:
        self.is_answered = True
        self.sink = None
        if self._buffer is not None:
            self._buffer = None
            self._buffered = 0
        connection = self.connection
        connection.gateway.account(self)
        if not self.has_body or self.is_body_complete:
            if connection.incoming is not self:
                connection.exchange_done(self)
            # else the parser is inside this very request: `body_complete` follows and goes on from there
        elif self.closes:
            connection.linger()
        else:
            connection.deadline = connection.now() + BODY_IDLE_S
            connection.resume_reading()

    def abort(self) -> None:
        if self.is_answered:
            return
        self.is_answered = True
        self.sink = None
        self.fault_code = self.fault_code or "aborted"
        connection = self.connection
        connection.gateway.account(self)
        if self.is_http10:
            # Without a length and without chunks only a reset tells a cut answer from a whole one.
            peer: socket.socket = connection.transport.get_extra_info("socket")
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.transport.abort()


def too_large(limit: int) -> ClientFault:
    return ClientFault("payload_too_large", f"The body is over the limit of {limit} bytes.")


def _other_form(method: bytes, target: bytes, host: bytes) -> tuple[bytes, bytes]:
    """Absolute-form (RFC 9112 section 3.2.2): its authority replaces Host. Asterisk-form (section 3.2.4) is for OPTIONS
    alone. Nothing else is served."""
    if target == b"*" and method == b"OPTIONS":
        return target, host
    scheme, _, rest = target.partition(b"://")
    authority = _AUTHORITY.match(rest)
    if scheme.lower() not in (b"http", b"https") or authority is None:
        raise ClientFault("bad_path", "The request target must be an absolute path.")
    rest = rest[authority.end() :]
    if not rest and method == b"OPTIONS":
        return b"*", authority[0]
    return rest if rest[:1] == b"/" else b"/" + rest, authority[0]

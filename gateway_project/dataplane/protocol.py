"""HTTP/1.1 with clients: a protocol class for uvicorn's server that speaks to the pipeline directly.

uvicorn's own class has no limit on the header section, none on its time, accepts ambiguous framing, and runs a task
for every request. This one parses with the same parser, enforces rule 29 and RFC 9112 sections 3.2 and 6, and hands
each request to the pipeline as an `Exchange` whose answer goes straight to the socket (docs/adr/0005).
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser

from core.context import MAX_HEAD, MAX_TARGET, BodySink, Exchange, RequestHead, Session
from core.faults import ClientFault, GatewayFault

if TYPE_CHECKING:
    from gateway_project.dataplane.app import Gateway
    from gateway_project.dataplane.identity import Identity

HEAD_TIMEOUT_S = 10.0
BODY_IDLE_S = 30.0
KEEP_ALIVE_S = 75.0
LINGER_S = 2.0
FLUSH_S = 30.0  # for the client to take what has been written
NEWCOMER_S = 1.0  # for the first request of a connection that was made while the worker stopped
BUFFER_LIMIT = 64 * 1024  # of a request's body while nobody takes it
DRAIN_LIMIT = 64 * 1024  # of a body that nobody wants: read and forget, so that the connection can go on
MAX_WAITING = 1000  # pipelined requests: each takes memory before it is looked at
_NEVER = float("inf")
_REFUSED_METHODS = (b"CONNECT", b"TRACE")


def _status_line(status: int) -> bytes:
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = ""
    return f"HTTP/1.1 {status} {phrase}\r\n".encode("ascii")


STATUS_LINES = {status: _status_line(status) for status in range(200, 600)}


class ClientProtocol(RequestHead, asyncio.Protocol):
    """One client's connection: parses requests and runs their exchanges one after another, in order."""

    def __init__(self, config: Any, server_state: Any, app_state: dict[str, Any], _loop: Any = None) -> None:
        gateway: Gateway = config.loaded_app
        self.gateway = gateway
        self.key_header = gateway.key_header
        self.max_field_bytes = gateway.settings.max_header_field_bytes
        self.now = gateway.now
        self.connections = server_state.connections
        self.parser = HttpRequestParser(self)
        self.begin_head()
        self.transport: asyncio.Transport = None  # type: ignore[assignment]  # set in connection_made
        self.peer = ""
        self.scheme = "http"
        self.identity: Identity | None = None  # of the last request
        self.session = Session()
        # the request being parsed
        self.target = b""
        self.incoming: SocketExchange | None = None  # its head is whole; its body may be arriving
        self.head_bytes = 0  # of a head that has not ended, as far as reads tell; -1: one ended in this read
        # the request being answered, and those that wait for it
        self.current: SocketExchange | None = None
        self.waiting: deque[SocketExchange] = deque()
        self.is_paused = False
        self.is_write_paused = False
        self.closes = False  # after the current answer
        self.is_lingering = False
        self.flush_by = 0.0
        self.is_resuming = False
        self.deadline = self.now() + HEAD_TIMEOUT_S

    # --- the connection ---
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]  # a Transport for stream protocols
        self.connections.add(self)
        peer = transport.get_extra_info("peername")
        self.peer = peer[0] if isinstance(peer, tuple) else ""
        if transport.get_extra_info("sslcontext") is not None:
            self.scheme = "https"

    def connection_lost(self, exc: Exception | None) -> None:
        self.connections.discard(self)
        self.deadline = _NEVER
        current, self.current = self.current, None
        self.waiting.clear()
        if current is not None:
            current.client_left()

    def eof_received(self) -> bool:
        # A client that has sent all and shut its side may still want the answer (RFC 9112 section 9.6).
        if self.current is not None and not self.is_lingering and self.incoming is None:
            self.closes = True
            return True
        return False

    def shutdown(self) -> None:
        """uvicorn asks every connection to end: idle ones now, others after their answer. A client that has just
        connected is about to send a request: it gets a moment for that."""
        self.closes = True
        if self.identity is None and self.current is None:
            self.deadline = self.now() + NEWCOMER_S
        elif self.current is None and self.head_bytes <= 0 and not self.is_lingering:
            self._close()

    def sweep(self, now: float) -> None:
        """A time limit has passed: rule 29's for the head, the idle limit for the body, keep-alive, lingering, or the
        client's time for taking its answers."""
        self.deadline = _NEVER
        incoming = self.incoming
        if self.is_lingering and self.transport.get_write_buffer_size() and now < self.flush_by:
            self.deadline = now + LINGER_S
        elif self.is_lingering or self.is_write_paused or self.transport.is_closing():
            self.transport.abort()
        elif incoming is not None:
            incoming.body_failed(ClientFault("request_timeout", "The body did not arrive in time."))
        elif self.head_bytes > 0:
            self.refuse_connection(ClientFault("request_timeout", "The header section did not arrive in time."))
        else:
            self._close()

    # --- bytes in ---
    def data_received(self, data: bytes) -> None:
        if self.is_lingering:
            return
        try:
            self.parser.feed_data(data)
        except HttpParserUpgrade as upgrade:
            rest = memoryview(data)[upgrade.args[0] :]
        except HttpParserError as error:
            self._parsing_failed(error)
            return
        else:
            if self.incoming is None and (self.target or self.head_bytes > 0):
                self._head_continues(len(data))
            return
        self._ignore_upgrades(rest)

    def _ignore_upgrades(self, rest: memoryview) -> None:
        """An upgrade that we do not follow is ignored (RFC 9110 section 7.8). ``rest`` is what came after its head: its
        body, the next request, and maybe thousands more, so this is a loop."""
        while True:
            if self.incoming is not None:
                self._resume_body(self.incoming)
            if not rest or self.is_lingering:
                return
            try:
                self.parser.feed_data(rest)
            except HttpParserUpgrade as upgrade:
                rest = rest[upgrade.args[0] :]
            except HttpParserError as error:
                self._parsing_failed(error)
                return
            else:
                if self.incoming is None and (self.target or self.head_bytes > 0):
                    self._head_continues(len(rest))
                return

    def _resume_body(self, exchange: SocketExchange) -> None:
        """The parser stops at a request to upgrade as if its body were another protocol's. We stay with HTTP, so
        another parser reads the body, told by a head of our own how it is framed."""
        self.parser = HttpRequestParser(self)
        self.is_resuming = True
        length = exchange.content_length
        framing = b"transfer-encoding: chunked" if length is None else b"content-length: %d" % length
        self.parser.feed_data(b"POST / HTTP/1.1\r\n" + framing + b"\r\n\r\n")

    def _head_continues(self, size: int) -> None:
        """The head did not end with this read. Reads are counted: the parser keeps a field back until it is whole."""
        if self.head_bytes <= 0:
            if self.identity is not None:  # the first head has had its time since the connection was made
                self.deadline = self.now() + HEAD_TIMEOUT_S
            self.head_bytes = 1 if self.head_bytes < 0 else size  # after the end of another it is only this read's rest
        else:
            self.head_bytes += size
        if self.head_bytes > MAX_HEAD:
            limit = ClientFault("header_too_large", f"The header section is over the limit of {MAX_HEAD} bytes.")
            self.refuse_connection(limit)

    def _parsing_failed(self, error: HttpParserError) -> None:
        if self.is_lingering:  # answered already, within this very read
            return
        cause = error.__context__  # what one of our callbacks raised, if one did
        if isinstance(cause, GatewayFault):
            fault: GatewayFault = cause
        elif cause is not None:
            fault = self.gateway.unexpected(cause)
        else:
            fault = ClientFault("bad_request", f"The request is no valid HTTP/1.1: {error}.")
        incoming = self.incoming
        if incoming is None:
            self.refuse_connection(fault)
        elif incoming is self.current:
            incoming.body_failed(incoming.refusal or fault)
        else:
            incoming.refusal = fault
            self._stop_parsing()

    def refuse_connection(self, fault: GatewayFault) -> None:
        """What arrived is no request that could be answered in its own right: say so, after the answers to the
        requests before it, and end the connection."""
        exchange = SocketExchange(self)
        exchange.begin_malformed(self.target)
        self.incoming = exchange
        if self.current is None:
            self.current = exchange
            self.gateway.refuse(exchange, fault)
        else:
            exchange.refusal = fault
            self.waiting.append(exchange)
            self._stop_parsing()

    def _stop_parsing(self) -> None:
        self.parser = HttpRequestParser(_Nobody())
        self.pause_reading()

    # --- parser callbacks ---
    on_header = RequestHead.add_field

    def on_url(self, url: bytes) -> None:
        self.target += url
        if len(self.target) > MAX_TARGET:
            raise ClientFault("uri_too_long", f"The request target is over the limit of {MAX_TARGET} bytes.")

    def on_headers_complete(self) -> None:
        if self.is_resuming:
            self.is_resuming = False
            return
        self.deadline = _NEVER
        self.head_bytes = -1
        exchange = SocketExchange(self)
        exchange.begin(self.parser)
        self.is_head_whole = True
        self.incoming = exchange
        if self.current is None:
            self.current = exchange
            self.gateway.handle(exchange)
        elif len(self.waiting) < MAX_WAITING:
            self.waiting.append(exchange)
            self.pause_reading()
        else:
            self.incoming = None
            raise ClientFault("bad_request", f"More than {MAX_WAITING} requests wait on this connection.")

    def on_body(self, data: bytes) -> None:
        incoming = self.incoming
        if incoming is not None:
            incoming.body_arrived(data)

    def on_message_complete(self) -> None:
        incoming = self.incoming
        if incoming is not None and incoming.has_body:
            if b"upgrade" in incoming.noted and self.parser.should_upgrade():
                return  # the body is still to come: `_resume_body`
            self.deadline = _NEVER  # from here on the upstream's time counts
        self.incoming = None
        self.target = b""
        self.begin_head()
        if incoming is not None:
            incoming.body_complete()

    # --- flow ---
    def pause_reading(self) -> None:
        if not self.is_paused:
            self.is_paused = True
            self.deadline = _NEVER
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        if self.is_paused:
            self.is_paused = False
            self.transport.resume_reading()

    def pause_writing(self) -> None:
        self.is_write_paused = True

    def resume_writing(self) -> None:
        self.is_write_paused = False
        current = self.current
        if current is None:
            return
        if current.is_answered:
            if current.is_body_complete or not current.has_body:
                self.exchange_done(current)
        elif current.sink is not None:
            current.sink.client_ready()

    # --- after an answer ---
    def exchange_done(self, exchange: SocketExchange) -> None:
        """The answer is out and the request is read to its end: on to the next, or close."""
        if self.is_write_paused:  # no further answer for a client that does not take this one: `resume_writing`
            self.pause_reading()
            self.deadline = self.now() + FLUSH_S
            return
        self.current = None
        if exchange.closes:
            if exchange.is_last:
                self._close()
            else:
                self.linger()
        elif self.waiting:
            self.current = following = self.waiting.popleft()
            if not self.waiting:
                self.resume_reading()
            # Not at once: a read may hold thousands of pipelined requests, and the stack would hold them all.
            self.gateway.loop.call_soon(self._run, following)
        elif self.closes:
            self.linger()
        else:
            self.deadline = self.now() + (KEEP_ALIVE_S if self.head_bytes <= 0 else HEAD_TIMEOUT_S)
            self.resume_reading()

    def _run(self, exchange: SocketExchange) -> None:
        if exchange.is_answered:  # the client has gone meanwhile
            return
        if exchange.refusal is not None:
            self.gateway.refuse(exchange, exchange.refusal)
        else:
            self.gateway.handle(exchange)

    def _close(self) -> None:
        """Close when the client has taken what is written, but do not wait for ever."""
        self.deadline = self.now() + FLUSH_S
        self.transport.close()

    def linger(self) -> None:
        """Close without destroying the answer: a client that is still sending would get a reset and lose it
        (RFC 9112 section 9.6). So: end our side, read and forget for a moment, then close."""
        self.current = None
        self.is_lingering = True
        self.resume_reading()
        now = self.now()
        self.deadline, self.flush_by = now + LINGER_S, now + FLUSH_S
        if self.transport.can_write_eof():
            self.transport.write_eof()


class _Nobody:
    """Parses on behalf of no one: for bytes after a request that could not be understood."""


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
            self.is_http10 = version == "1.0"
            self.closes = self.is_last = self.is_http10 or not keeps_alive
        target = connection.target
        host = noted.get(b"host")
        if target[:1] != b"/":
            target, host = _other_form(target, host)
        path, mark, query = target.partition(b"?")
        self.raw_path = path
        if mark:
            self.query = query
        if host is None:
            if not self.is_http10:
                raise ClientFault("bad_request", "The Host field is missing.")
            host = b""
        identity = connection.identity
        if identity is None or identity.host_field != host or identity.is_proxied:
            identity = connection.gateway.identify(connection.peer, connection.scheme, host, noted)
            connection.identity = identity
        self.identity = identity
        self.session = connection.session
        if self.method in _REFUSED_METHODS:
            allowed = ((b"allow", b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"),)
            raise ClientFault("method_not_allowed", "The gateway does not serve this method.", headers=allowed)
        if b"content-length" in noted or b"transfer-encoding" in noted:
            self._begin_body()
        if b"expect" in noted:
            self._expect(noted[b"expect"])

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
            self.connection.gateway.refuse(self, fault)
        else:
            self.connection.linger()

    def client_left(self) -> None:
        """The connection is gone."""
        if self.is_answered:
            return
        self.is_answered = True
        sink, self.sink = self.sink, None
        if sink is not None:
            sink.client_gone()
        self.status = 499
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
        return b"connection: close\r\n\r\n" if self.closes else b"\r\n"

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

    def end(self) -> None:
        if self.is_chunked_answer:
            self.connection.transport.write(b"0\r\n\r\n")
        self._answered()

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


def _other_form(target: bytes, host: bytes | None) -> tuple[bytes, bytes | None]:
    """Absolute-form (RFC 9112 section 3.2.2): its authority replaces Host. Nothing else is served."""
    for scheme in (b"http://", b"https://"):
        if target[: len(scheme)].lower() == scheme:
            authority, slash, rest = target[len(scheme) :].partition(b"/")
            if authority and not authority.count(b"@") and not authority.count(b"?"):
                return (slash + rest) or b"/", authority
    raise ClientFault("bad_path", "The request target must be an absolute path.")

"""One request and its answer on a stream of an HTTP/2 connection."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING

from core.context import MAX_TARGET, BodySink, Exchange, RequestHead
from core.faults import ClientFault, GatewayFault
from core.outflow import NOTHING_KNOWN, taken_bytes
from gateway_project.dataplane import http2_frames as h2
from gateway_project.dataplane.http2_frames import StreamFault
from gateway_project.dataplane.socket_exchange import BODY_IDLE_S, DRAIN_LIMIT, REFUSED_METHODS, Discard, too_large
from routing.answers import BODILESS

if TYPE_CHECKING:
    from gateway_project.dataplane.http2 import Http2Protocol

FLUSH_S = 30.0  # for the client to take the next piece of an answer that is whole
_NEVER = float("inf")
_PSEUDO = frozenset((b":method", b":scheme", b":authority", b":path"))
# RFC 9113 section 8.2.2. "te" may say "trailers".
_OF_CONNECTIONS = frozenset((b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade"))
_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9a-z-]+").fullmatch  # lower case (section 8.2.1)
_METHOD = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,32}").fullmatch
_BAD_VALUE = re.compile(rb"\A[ \t]|[ \t]\Z|[\x00-\x08\x0a-\x1f\x7f]").search
_TARGET = re.compile(rb"/[!$-~\"]*").fullmatch  # no blank, no control, no "#", nothing beyond ASCII
_good_names: set[bytes] = set()
_MAX_GOOD_NAMES = 1024
_WITH_CONTENT = frozenset((b"POST", b"PUT", b"PATCH"))


def _malformed(reason: str) -> StreamFault:
    """Section 8.1.1."""
    return StreamFault(h2.PROTOCOL_ERROR, reason)


class Http2Exchange(RequestHead, Exchange):
    """An exchange on a stream. What it receives is credited to the client's windows when it has been passed on."""

    protocol = b"HTTP/2"
    awaits_continue = False
    is_answered = False
    is_body_complete = False
    ends = False  # nothing follows what waits to be sent
    is_blocked = False  # whoever writes the answer waits for `client_ready`
    deadline = _NEVER
    uncredited = 0  # bytes passed on, and not yet credited to the stream
    out_size = 0
    _is_taken = False
    _is_paused = False
    _replaced: bytes | None = None
    _taken = NOTHING_KNOWN

    def __init__(self, connection: Http2Protocol, stream: int) -> None:
        self.connection = connection
        self.stream = stream
        self.key_header = connection.key_header
        self.max_field_bytes = connection.max_field_bytes
        self.started = connection.now()
        self.session = connection.session
        self.send_window = connection.peer_window
        self.receive_window = connection.stream_window
        self.method = b"-"
        self.raw_path = b""
        self.out: deque[memoryview] = deque()  # of the answer's body, what no window admits yet
        self._buffer: deque[bytes] = deque()  # of the request's body, what nobody takes yet

    # --- the head ---
    def begin(self, fields: Iterable[tuple[bytes, bytes]], *, ended: bool) -> None:
        """Take over a decoded header section. Raises StreamFault for what is malformed, ClientFault for what is well
        formed and not served."""
        self.begin_head()
        self.is_body_complete = ended
        connection = self.connection
        self.identity = connection.last_identity()
        pseudo: dict[bytes, bytes] = {}
        refusal = None
        for name, value in fields:
            if _BAD_VALUE(value):
                raise _malformed("a field value with control characters or blanks around it")
            if name[:1] == b":":
                if self.field_count or name in pseudo or name not in _PSEUDO:
                    raise _malformed("pseudo-header fields that are doubled, unknown or late")
                pseudo[name] = value
                continue
            _check_name(name, value)
            try:
                self.add_field(name, value)
            except ClientFault as fault:
                refusal = refusal or fault
        self.is_head_whole = True
        self._read_pseudo(pseudo)
        if refusal is not None:
            raise refusal
        self._begin_body(ended=ended)

    def _read_pseudo(self, pseudo: dict[bytes, bytes]) -> None:
        """Section 8.3.1."""
        method, authority, noted = pseudo.get(b":method", b""), pseudo.get(b":authority"), self.noted
        if not _METHOD(method):
            raise _malformed("no method")
        self.method = method
        host = noted.get(b"host")
        if authority is not None:
            if host is not None and host.lower() != authority.lower():
                raise _malformed(":authority and Host that differ")
            noted[b"host"] = host = authority
        connection = self.connection
        self.identity = connection.identify(host or b"", noted)
        if method in REFUSED_METHODS:  # CONNECT has neither scheme nor path
            allowed = ((b"allow", b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"),)
            raise ClientFault("method_not_allowed", "The gateway does not serve this method.", headers=allowed)
        target = pseudo.get(b":path", b"")
        if not target or not pseudo.get(b":scheme"):
            raise _malformed("no path or no scheme")
        if len(target) > MAX_TARGET:
            raise ClientFault("uri_too_long", f"The request target is over the limit of {MAX_TARGET} bytes.")
        path, mark, query = target.partition(b"?")
        if not _TARGET(target):
            raise ClientFault("bad_path", "The request target must be an absolute path.")
        self.raw_path = path
        if mark:
            self.query = query
        if not host:
            raise ClientFault("bad_request", "The Host field is missing.")

    def _begin_body(self, *, ended: bool) -> None:
        noted = self.noted
        length = noted.get(b"content-length")
        if length is not None:
            if not length.isdigit() or len(length) > 18:
                raise _malformed("a Content-Length that is no number")
            self.content_length = int(length)
        if ended:
            if self.content_length:
                raise _malformed("a body that is shorter than its Content-Length")
            if self.method in _WITH_CONTENT:
                self.content_length = 0  # HTTP/1.1 upstreams want to know (RFC 9110 section 8.6)
        else:
            self.has_body = True
        expect = noted.get(b"expect")
        if expect is not None:
            if expect.lower() != b"100-continue":
                raise ClientFault("bad_request", "The only expectation that is served is 100-continue.")
            self.awaits_continue = self.has_body

    # --- the body ---
    def body_arrived(self, data: bytes) -> None:
        """Raises StreamFault when it is longer than it was to be."""
        size = len(data)
        self.bytes_in += size
        if self.content_length is not None and self.bytes_in > self.content_length:
            self.connection.credit(size)
            raise _malformed("a body that is longer than its Content-Length")
        if self.is_answered:
            self.connection.credit(size)
            return
        limit = self.max_body_bytes
        if limit is not None and self.bytes_in > limit:
            self.connection.credit(size)
            self.body_failed(too_large(limit))
            return
        self._buffer.append(data)
        self._deliver()

    def body_complete(self) -> None:
        """Raises StreamFault when it is shorter than it was to be."""
        if self.content_length is not None and self.bytes_in != self.content_length:
            raise _malformed("a body that is shorter than its Content-Length")
        self.is_body_complete = True
        self.deadline = _NEVER if not self.out else self.deadline
        self._deliver()

    def _deliver(self) -> None:
        """Pass on what has arrived, as long as it is taken."""
        buffer = self._buffer
        while self._is_taken and not self._is_paused and self.sink is not None:
            if not buffer:
                if self.is_body_complete:
                    self._is_taken = False  # said once
                    self.sink.body_end()
                else:
                    self._await(BODY_IDLE_S)
                return
            data = buffer.popleft()
            self.connection.credit(len(data), self)
            self.sink.body_data(data)

    def _await(self, seconds: float) -> None:
        connection = self.connection
        self.deadline = deadline = connection.now() + seconds
        if deadline < connection.deadline:
            connection.deadline = deadline

    def read_body(self, sink: BodySink) -> None:
        self.sink = sink
        if self._replaced is not None:
            sink.body_data(self._replaced)
            sink.body_end()
            return
        self._is_taken, self._is_paused = True, False
        if self.awaits_continue and not self._buffer and not self.is_body_complete:
            self.connection.send_head(self, 100, b"", ends=False)
        self.awaits_continue = False
        self._deliver()

    def forget_body(self) -> None:
        if self.has_body and not self.awaits_continue:
            self.read_body(Discard(self.connection.gateway, self))

    def replace_body(self, body: bytes) -> None:
        self._replaced = body
        self.content_length = len(body)

    def pause_body(self) -> None:
        self._is_paused = True
        self.deadline = _NEVER

    def resume_body(self) -> None:
        self._is_paused = False
        self._deliver()

    def body_failed(self, fault: GatewayFault) -> None:
        """The body is too large or too slow."""
        sink = self.sink
        if sink is not None:
            sink.refuse_body(fault)
        else:
            if self.left is not None:  # whoever holds it
                self.left()
            self.connection.gateway.refuse(self, fault)

    def expire(self) -> None:
        """A time limit has passed: of the body, or of an answer that the client does not take."""
        self.deadline = _NEVER
        if self.is_answered and self.connection.is_write_paused:
            self._await(FLUSH_S)  # it is not this stream that is held up, and the connection has its own time
        elif self.is_answered:
            self.connection.reset(self, h2.CANCEL)
        else:
            self.body_failed(ClientFault("request_timeout", "The body did not arrive in time."))

    def _forget_body(self) -> None:
        self._is_taken = False
        waiting = sum(map(len, self._buffer))
        self._buffer.clear()
        if waiting:
            self.connection.credit(waiting)

    def client_left(self, fault_code: str = "", status: int = 499) -> None:
        """The client has reset the stream, or the connection is gone, or what it sent was malformed."""
        self._forget_body()
        self.out.clear()
        if self.is_answered:
            return
        self.is_answered = True
        self.status = status
        sink, self.sink = self.sink, None
        if sink is not None:
            sink.client_gone()
        if self.left is not None:
            self.left()
        self.fault_code = self.fault_code or fault_code
        self.connection.gateway.account(self)

    # --- the answer ---
    def answer(self, status: int, lines: bytes, body: bytes) -> None:
        if self.is_answered:
            return
        self.status = status
        if self.method == b"HEAD" or status in BODILESS:
            body = b""
        self.bytes_out = len(body)
        self.connection.send_head(self, status, lines, ends=not body, body=body)
        self._answered()

    def start(self, status: int, lines: bytes, *, is_sized: bool) -> None:
        self.status = status
        self.connection.send_head(self, status, lines, ends=False)

    def write(self, data: bytes) -> bool:
        self.bytes_out += len(data)
        if data and not self.is_answered:
            self.is_blocked = not self.connection.send_data(self, data)
            self._taken = NOTHING_KNOWN  # more was written since that was looked at
        return not self.is_blocked

    def is_taking(self) -> bool:
        taken = taken_bytes(self.connection.transport) - self.out_size
        before, self._taken = self._taken, taken
        return self.is_blocked and taken > before

    def end(self) -> None:
        if not self.is_answered:
            self.connection.send_data(self, b"", ends=True)
            self._answered()

    def _answered(self) -> None:
        self.is_answered = True
        self.sink = None
        self._forget_body()
        connection = self.connection
        connection.gateway.account(self)
        if self.out:
            self._await(FLUSH_S)
        else:
            connection.finished(self)

    def drains(self) -> bool:
        """Whether so little of the body is left that it may as well arrive."""
        if self.awaits_continue or self.content_length is None or self.content_length - self.bytes_in > DRAIN_LIMIT:
            return False
        self._await(BODY_IDLE_S)
        return True

    def progressed(self) -> None:
        """The client has taken some of what waited."""
        if self.is_answered:
            if self.out:
                self._await(FLUSH_S)
            else:
                self.connection.finished(self)
        elif self.is_blocked and not self.out:
            self.is_blocked = False
            if self.sink is not None:
                self.sink.client_ready()

    def abort(self) -> None:
        if self.is_answered:
            return
        self.is_answered = True
        self.sink = None
        self.fault_code = self.fault_code or "aborted"
        self._forget_body()
        self.connection.gateway.account(self)
        self.connection.reset(self, h2.INTERNAL_ERROR)


def _check_name(name: bytes, value: bytes) -> None:
    if name not in _good_names:
        if not _NAME(name):
            raise _malformed("a field name that is none, or not in lower case")
        if name in _OF_CONNECTIONS:
            raise _malformed("a field that belongs to a connection of HTTP/1.1")
        if name != b"te" and len(_good_names) < _MAX_GOOD_NAMES and len(name) < 64:
            _good_names.add(name)
    if name == b"te" and value.lower() != b"trailers":
        raise _malformed("a te field that says something else than trailers")

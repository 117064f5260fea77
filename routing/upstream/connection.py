"""One HTTP/1.1 connection to a target: requests out, answers in, one exchange at a time.

The parser's callbacks only collect; when a read has been parsed, `data_received` tells the handler what came of it,
so that an answer that arrived whole is passed on whole. Framing follows RFC 9112 section 6: what is ambiguous is an
error, and bytes beyond an answer never reach anybody.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from core.outflow import NOTHING_KNOWN, taken_bytes

if TYPE_CHECKING:
    from routing.upstream.pool import Pool

MAX_HEAD = 64 * 1024

# Fields of an answer that are not simply passed on. Hop-by-hop ones end here (RFC 9110 section 7.6.1), CORS is the
# gateway's own (rule 18), Alt-Svc would lead clients past the gateway, the request id is ours.
_DROPPED = frozenset(
    b"keep-alive proxy-connection proxy-authenticate proxy-authorization te trailer upgrade alt-svc x-request-id "
    b"access-control-allow-origin access-control-allow-methods access-control-allow-headers "
    b"access-control-allow-credentials access-control-expose-headers access-control-max-age "
    b"access-control-allow-private-network".split()
)
# The panel's cookies know no ports: an upstream on the same host must not be able to set them (rule 15).
PANEL_COOKIES = (b"portcullis_session=", b"portcullis_csrf=", b"portcullis_device=", b"saml-acs-session=")

# What a field line says to the connection itself; a line may say several things.
_CLOSES, _SIZED, _CHUNKED, _DATED, _NAMES, _BAD = 1, 2, 4, 8, 16, 32

# Most field lines of an upstream are the same in every answer, so what is known of one is remembered: looking a line
# up costs a twentieth of taking it apart. Lines that carry secrets or differ each time are not worth remembering.
_remembered: dict[bytes, tuple[int, bytes]] = {}
_MAX_REMEMBERED = 2048
_MAX_LINE = 120
_NOT_REMEMBERED = frozenset((b"set-cookie", b"location", b"etag", b"www-authenticate", b"authorization"))


def _field(line: bytes) -> tuple[int, bytes]:
    """What a field line of an answer says to us, and the line to pass on (empty: none)."""
    known = _remembered.get(line)
    if known is not None:
        return known
    name, _, value = line.partition(b":")
    name = name.lower()
    known = _judged(name, value.strip(b" \t"), line + b"\r\n")
    if len(line) <= _MAX_LINE and name not in _NOT_REMEMBERED:
        if len(_remembered) >= _MAX_REMEMBERED:
            _remembered.clear()
        _remembered[line] = known
    return known


def _judged(name: bytes, value: bytes, line: bytes) -> tuple[int, bytes]:
    if name in _DROPPED:
        return 0, b""
    if name == b"connection":
        tokens = {token.strip().lower() for token in value.split(b",")}
        says = _CLOSES if b"close" in tokens else 0
        return says | (_NAMES if tokens - {b"close", b"keep-alive", b""} else 0), b""
    if name == b"transfer-encoding":
        return (_CHUNKED if value.lower() == b"chunked" else _BAD), b""
    if name == b"content-length":
        return _SIZED, line
    if name == b"date":
        return _DATED, line
    if name == b"set-cookie" and b"portcullis_" in value and _is_panels(value):
        return 0, b""
    return 0, line


def _is_panels(set_cookie: bytes) -> bool:
    """As browsers read it (RFC 6265 section 5.2): blanks around the name do not count, and a cookie without a name
    comes back as its value alone, which may look like another one's name and value."""
    name, _, value = set_cookie.partition(b";")[0].partition(b"=")
    return ((name.strip() or value.partition(b"=")[0].strip()) + b"=") in PANEL_COOKIES


class ResponseHandler(Protocol):
    """Whoever uses the connection for one exchange."""

    def response_whole(self, connection: UpstreamConnection, body: bytes) -> None: ...
    def response_started(self, connection: UpstreamConnection) -> None: ...
    def response_data(self, data: bytes) -> None: ...
    def response_ended(self, connection: UpstreamConnection) -> None: ...
    def response_failed(self, connection: UpstreamConnection, *, is_garbage: bool) -> None: ...
    def may_switch(self, lines: list[bytes]) -> bool: ...  # of a 101 with these field lines: is it what was asked for?
    def response_switched(self, connection: UpstreamConnection, rest: bytes) -> None: ...  # the transport is theirs
    def upstream_busy(self) -> None: ...
    def upstream_ready(self) -> None: ...


class UpstreamConnection(asyncio.Protocol):
    """State is grouped by lifetime: of the connection, then of the answer being read."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.parser = HttpResponseParser(self)
        self.transport: asyncio.Transport = None  # type: ignore[assignment]  # set in connection_made
        self.handler: ResponseHandler | None = None
        self.idle_since = 0.0
        self.taken = NOTHING_KNOWN
        self.is_reused = False
        self.is_busy = False  # it takes less than was written
        self.is_closed = False
        self.error: Exception | None = None  # what ended it
        self._begin_response(is_head=False)

    def _begin_response(self, *, is_head: bool) -> None:
        self.is_head = is_head
        self.status = 0
        self.lines: list[bytes] = []  # field lines to pass on
        self.has_date = self.is_sized = self.is_chunked = self.is_http10 = False
        self.heard_since_sent = False
        self._head = b""  # the answer's head, as far as it has arrived
        self._chunks: list[bytes] = []
        self._closes = self._has_head = self._is_announced = self._is_whole = self._is_tainted = False
        self._is_switched = False

    # --- requests out ---
    def send(self, handler: ResponseHandler, head: bytes, *, is_head: bool) -> None:
        """Begin an exchange. The body, if any, follows by `write`."""
        self.handler = handler
        self._begin_response(is_head=is_head)
        self.transport.write(head)

    def write(self, data: bytes) -> None:
        self.transport.write(data)

    def is_taking(self) -> bool:
        """Of a target that holds up a request's body: has it taken some of it since this was last asked?"""
        taken = taken_bytes(self.transport)
        before, self.taken = self.taken, taken
        return taken > before

    def pause_writing(self) -> None:
        self.is_busy = True
        self.taken = NOTHING_KNOWN  # more was written since that was looked at
        if self.handler is not None:
            self.handler.upstream_busy()

    def resume_writing(self) -> None:
        self.is_busy = False
        if self.handler is not None:
            self.handler.upstream_ready()

    def pause(self) -> None:
        """Read no further until whoever takes the answer is ready. One that has arrived whole leaves nothing to read,
        and the next exchange would wait for ever."""
        if not self._is_whole:
            self.transport.pause_reading()

    def release(self) -> None:
        """The exchange is over: back to the pool if another may follow, else closed."""
        self.handler = None
        is_fit = self._is_whole and not self._is_tainted and not self._closes
        if is_fit and not self.is_closed and not self.is_busy:
            self.pool.give_back(self)
        else:
            self.close()

    def close(self) -> None:
        """End it at once; whatever was being exchanged is void."""
        self.handler = None
        self.is_closed = True
        self.transport.abort()

    # --- answers in ---
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]  # a Transport for stream protocols

    def data_received(self, data: bytes) -> None:
        self.heard_since_sent = True
        if not self._has_head:
            self._head = self._head + data if self._head else data
        try:
            self.parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade):
            if self._is_switched:
                self._switch()
                return
            if not self._is_whole:
                self._fail(is_garbage=True)
                return
            self._is_tainted = True  # bytes after an answer: this connection ends with it
        if not self._has_head and len(self._head) > MAX_HEAD:
            self._fail(is_garbage=True)
            return
        handler = self.handler
        if handler is None:
            self.close()  # nobody asked
        elif self._is_whole and not self._is_announced:
            handler.response_whole(self, b"".join(self._chunks))
        elif self._has_head:
            self._pass_on(handler)

    def _pass_on(self, handler: ResponseHandler) -> None:
        if not self._is_announced:
            self._is_announced = True
            handler.response_started(self)
            if self.handler is not handler:  # which has given up on this answer
                return
        if self._chunks:
            data = b"".join(self._chunks)
            self._chunks.clear()
            handler.response_data(data)
        # The handler may have given up on hearing that.
        if self._is_whole and self.handler is handler:
            handler.response_ended(self)

    def eof_received(self) -> None:
        if self.handler is None:
            self.is_closed = True  # nobody takes it from the pool any more
        # An answer without a length ends with the connection (RFC 9112 section 6.3, item 8).
        elif self._has_head and not (self._is_whole or self.is_sized or self.is_chunked):
            self._is_whole = self._closes = True
            self._pass_on(self.handler)

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_closed = True
        self.error = exc
        if self.handler is not None:
            self._fail(is_garbage=False)
        else:
            self.pool.forget(self)

    def _fail(self, *, is_garbage: bool) -> None:
        handler, self.handler = self.handler, None
        self.is_closed = True
        self.transport.abort()
        if handler is not None:
            handler.response_failed(self, is_garbage=is_garbage)

    # --- parser callbacks ---
    def on_message_begin(self) -> None:
        if self._is_whole or self.handler is None:
            self._is_tainted = True

    def on_headers_complete(self) -> None:
        if self._is_tainted:
            return
        status = self.status = self.parser.get_status_code()
        if status < 200:
            if status < 100:
                raise ValueError("no valid status code")
            if status == 101:
                self._judge_switch()
            return
        if status > 599:
            raise ValueError("no valid status code")
        self._has_head = True
        self._read_fields()
        if self.is_head:
            # The parser does not know that no body follows; it is replaced before anything else is read.
            self._is_whole = True
            self._closes = self._closes or self.parser.get_http_version() != "1.1"
            self.parser = HttpResponseParser(self)

    def _judge_switch(self) -> None:
        """Of a 101: it must be one that was asked for. The parser stops behind its head."""
        head, _, rest = self._head.lstrip(b"\r\n").partition(b"\r\n\r\n")
        fields = head.split(b"\r\n")[1:]
        if self.handler is None or not self.handler.may_switch(fields):
            raise ValueError("a switch of protocols that nobody asked for")
        self._is_switched = True
        self.lines = [passed for line in fields if (passed := _field(line)[1])]
        self._head = rest

    def _switch(self) -> None:
        """From here on the connection speaks another protocol, for whoever asked for that."""
        handler, self.handler = self.handler, None
        self.is_closed = True  # for HTTP
        rest, self._head = self._head, b""
        if handler is not None:
            handler.response_switched(self, rest)

    def _read_fields(self) -> None:
        """Take the head apart. The parser has vouched for its form: CRLF ends each line, none is folded."""
        received, self._head = self._head, b""
        if received.startswith((b"\r", b"\n")):  # empty lines before an answer are none of it
            received = received.lstrip(b"\r\n")
        head = received[: received.find(b"\r\n\r\n")]
        if received[5:8] != b"1.1":
            self._judge_version(received[5:8])
        if len(head) > MAX_HEAD:
            raise ValueError("the answer's header section is too large")
        says = 0
        lines = self.lines
        for line in head.split(b"\r\n")[1:]:
            meaning, passed = _remembered.get(line) or _field(line)
            if meaning:
                if meaning & says & _CHUNKED:
                    meaning |= _BAD
                says |= meaning
            if passed:
                lines.append(passed)
        if says & _BAD:
            raise ValueError("a transfer coding that was not asked for")
        self.is_sized = says & _SIZED != 0
        self.is_chunked = says & _CHUNKED != 0
        self.has_date = says & _DATED != 0
        # A chunked HTTP/1.0 answer has passed somebody who did not understand it (RFC 9112 section 6.1).
        self._closes = says & _CLOSES != 0 or (self.is_http10 and self.is_chunked)
        if self.is_sized and self.status == 204:  # which has no length (RFC 9110 section 8.6)
            self.lines = [line for line in lines if line[:15].lower() != b"content-length:"]
        if says & _NAMES:
            self._drop_named_fields(head)

    def _judge_version(self, version: bytes) -> None:
        if version != b"1.0":
            raise ValueError("not HTTP/1.1, nor 1.0")
        self.is_http10 = True

    def _drop_named_fields(self, head: bytes) -> None:
        """Fields that Connection names were meant for us alone (RFC 9110 section 7.6.1)."""
        fields = [line.partition(b":") for line in head.split(b"\r\n")[1:]]
        values = [value for name, _, value in fields if name.lower() == b"connection"]
        named = {token.strip().lower() for value in values for token in value.split(b",")}
        named.discard(b"content-length")  # it is no hop-by-hop field, and without it the body had no end
        self.lines = [line for line in self.lines if line.partition(b":")[0].lower() not in named]

    def on_body(self, data: bytes) -> None:
        if self.is_head or self._is_tainted:
            self._is_tainted = True
        else:
            self._chunks.append(data)

    def on_message_complete(self) -> None:
        if self._is_tainted or self._is_switched:
            return
        if not self._has_head:  # 1xx: the final answer follows; interim ones end here
            self._head = self._head.partition(b"\r\n\r\n")[2]
            return
        self._is_whole = True
        # The verdict must be taken here: afterwards the parser is reset and always says no.
        self._closes = self._closes or not self.parser.should_keep_alive()

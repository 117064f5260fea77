"""HTTP/1.1 with clients: a protocol class for uvicorn's server that speaks to the pipeline directly.

uvicorn's own class has no limit on the header section, none on its time, accepts ambiguous framing, and runs a task
for every request. This one parses with the same parser, enforces rule 29 and RFC 9112 sections 3.2 and 6, and hands
each request to the pipeline as an `Exchange` whose answer goes straight to the socket (docs/adr/0005).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser

from core.context import MAX_HEAD, MAX_TARGET, Exchange, RequestHead, Session
from core.faults import ClientFault, GatewayFault
from core.outflow import NOTHING_KNOWN, taken_bytes, unsent_bytes
from gateway_project.dataplane.listening import Admitted
from gateway_project.dataplane.socket_exchange import SocketExchange

if TYPE_CHECKING:
    from gateway_project.dataplane.app import Gateway
    from gateway_project.dataplane.identity import Identity

HEAD_TIMEOUT_S = 10.0
KEEP_ALIVE_S = 75.0
LINGER_S = 2.0
FLUSH_S = 30.0  # for the client to take what has been written
NEWCOMER_S = 1.0  # for the first request of a connection that was made while the worker stopped
MAX_WAITING = 1000  # pipelined requests: each takes memory before it is looked at
TURN_BYTES = 8 * 1024  # of heads that are looked at in one turn of the loop
TURN_BODY_BYTES = 64 * 1024  # of a chunked body, behind which further requests may stand
_NEVER = float("inf")


class ClientProtocol(RequestHead, Admitted):
    """One client's connection: parses requests and runs their exchanges one after another, in order.

    ``handle`` takes a request whose head is whole. ``end_of_head`` ends the header section of every answer, and may
    hold fields that all answers of the port have.
    """

    end_of_head = b"\r\n"

    def __init__(self, config: Any, server_state: Any, app_state: dict[str, Any], _loop: Any = None) -> None:
        gateway: Gateway = config.loaded_app
        self.gateway = gateway
        self.handle: Callable[[Exchange], None] = gateway.handle
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
        # an opening handshake; nothing after it is parsed before it is answered
        self.handshake: SocketExchange | None = None
        self.held = b""
        self.is_paused = False
        self.unread: bytes | memoryview = b""  # of a read that takes several turns; `_read_on` is due until it is read
        self.has_turns = False
        self.is_write_paused = False
        self.closes = False  # after the current answer
        self.is_lingering = False
        self.flush_by = 0.0
        self.taken = NOTHING_KNOWN
        self.skips_heads = False  # the next one is our own (`_resume_body`), or nobody's
        self.deadline = self.now() + HEAD_TIMEOUT_S

    # --- the connection ---
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]  # a Transport for stream protocols
        self.connections.add(self)
        peer = transport.get_extra_info("peername")
        self.peer = self.told_peer or (peer[0] if isinstance(peer, tuple) else "")
        if transport.get_extra_info("sslcontext") is not None:
            self.scheme = "https"
            if self.gateway.read_certificate is not None:
                self.session.certificate = self.gateway.read_certificate(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.connections.discard(self)
        self.deadline = _NEVER
        current, self.current = self.current, None
        self.waiting.clear()
        self.unread = b""
        if current is not None:
            current.client_left()

    def eof_received(self) -> bool:
        # A client that has sent all and shut its side may still want the answer (RFC 9112 section 9.6).
        if self.current is not None and not self.is_lingering and self.incoming is None:
            self.closes = True
            return self.transport.can_write_eof()  # not over TLS, which knows no half of an end
        return False

    def shutdown(self) -> None:
        """uvicorn asks every connection to end: idle ones now, others after their answer. A client that has just
        connected is about to send a request: it gets a moment for that."""
        self.closes = True
        if self.identity is None and self.current is None:
            self.deadline = self.now() + NEWCOMER_S
        elif self.current is None and self.head_bytes <= 0 and not self.is_lingering and not self.unread:
            self._close()

    def sweep(self, now: float) -> None:
        """A time limit has passed: rule 29's for the head, the idle limit for the body, keep-alive, lingering, or the
        client's time for taking its answers."""
        self.deadline = _NEVER
        incoming = self.incoming
        if self.is_lingering or self.is_write_paused or self.transport.is_closing():
            self._await_flush(now)
        elif incoming is not None:
            incoming.body_failed(ClientFault("request_timeout", "The body did not arrive in time."))
        elif self.head_bytes > 0:
            self.refuse_connection(ClientFault("request_timeout", "The header section did not arrive in time."))
        else:
            self._close()

    def _begin_flush(self) -> None:
        now = self.now()
        self.deadline, self.flush_by = now + LINGER_S, now + FLUSH_S

    def _await_flush(self, now: float) -> None:
        """How long it takes is the client's matter, as long as it takes something. The kernel's buffer counts too: what
        TLS has handed down and waits for it shows nowhere else."""
        if unsent_bytes(self.transport):
            if self.is_taking():
                self.flush_by = now + FLUSH_S
            if now < self.flush_by:
                self.deadline = now + LINGER_S
                return
        self.transport.abort()

    def is_taking(self) -> bool:
        """Whether the client has taken some of what was written since this was last asked."""
        taken = taken_bytes(self.transport)
        before, self.taken = self.taken, taken
        return taken > before

    # --- bytes in ---
    def data_received(self, data: bytes | memoryview) -> None:
        if self.is_lingering:
            return
        if len(data) > TURN_BYTES or self.has_turns:
            data = self._turn_of(memoryview(data))
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

    def _turn_of(self, data: memoryview) -> memoryview:
        """A read may hold thousands of requests that are answered at once, and everybody else would wait for all of
        them: what is more than a turn's worth is for the next one."""
        if self.unread:  # more has come all the same
            self.unread = bytes(self.unread) + data
            return data[:0]
        most, incoming = TURN_BYTES, self.incoming
        if incoming is not None:  # what is left of a body is no work
            length = incoming.content_length
            most = max(most, TURN_BODY_BYTES if length is None else length - incoming.bytes_in)
        if len(data) > most:
            self.unread = data[most:]
            if not self.has_turns:
                self.has_turns = True
                if not self.is_paused:
                    self.transport.pause_reading()
                self.gateway.loop.call_soon(self._read_on)
        return data[:most]

    def _read_on(self) -> None:
        unread, self.unread = self.unread, b""
        if unread:
            self.data_received(unread)
        if self.unread:
            self.gateway.loop.call_soon(self._read_on)
            return
        self.has_turns = False
        if not self.is_paused and not self.transport.is_closing():
            self.transport.resume_reading()

    def _ignore_upgrades(self, rest: memoryview) -> None:
        """An upgrade that we do not follow is ignored (RFC 9110 section 7.8). ``rest`` is what came after its head: its
        body, the next request, and maybe thousands more, so this is a loop."""
        while True:
            if self.handshake is not None:
                self.held = bytes(rest) + self.unread
                self.unread = b""
                self.pause_reading()
                return
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
        self.skips_heads = True
        length = exchange.content_length
        framing = b"transfer-encoding: chunked" if length is None else b"content-length: %d" % length
        self.parser.feed_data(b"POST / HTTP/1.1\r\n" + framing + b"\r\n\r\n")

    def give_up(self) -> bytes:
        """The connection goes to another protocol. Returns what has been read of that."""
        self.connections.discard(self)
        self.deadline = _NEVER
        self.current = self.handshake = None
        held, self.held = self.held, b""
        return held

    def _refused_to_switch(self) -> None:
        """The handshake was answered otherwise: what follows it is HTTP after all."""
        held, self.held = self.held, b""
        self.handshake = None
        self.resume_reading()
        self._ignore_upgrades(memoryview(held))

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
        self.handshake = None
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
        self.unread = b""
        self.pause_reading()

    # --- parser callbacks ---
    on_header = RequestHead.add_field

    def on_url(self, url: bytes) -> None:
        self.target += url
        if len(self.target) > MAX_TARGET:
            raise ClientFault("uri_too_long", f"The request target is over the limit of {MAX_TARGET} bytes.")

    def on_headers_complete(self) -> None:
        if self.skips_heads:
            self.skips_heads = self.is_lingering
            return
        self.deadline = _NEVER
        self.head_bytes = -1
        exchange = SocketExchange(self)
        exchange.begin(self.parser)
        self.is_head_whole = True
        self.incoming = exchange
        if self.current is None:
            self.current = exchange
            self.handle(exchange)
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
            if not self.has_turns:
                self.transport.pause_reading()

    def resume_reading(self) -> None:
        if self.is_paused and self.handshake is None:
            self.is_paused = False
            if not self.has_turns:
                self.transport.resume_reading()

    def pause_writing(self) -> None:
        self.is_write_paused = True
        self.taken = NOTHING_KNOWN  # more was written since that was looked at

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
            self._begin_flush()
            return
        self.current = None
        if self.handshake is exchange:
            self._handshake_done(exchange)
        if exchange.closes:
            if exchange.is_last:
                self._close()
            else:
                self.linger()
        elif self.waiting:
            self.deadline = _NEVER  # that for taking the last answer is no matter of the next
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

    def _handshake_done(self, exchange: SocketExchange) -> None:
        if exchange.closes or self.closes:
            self.handshake = None
        else:
            self.gateway.loop.call_soon(self._refused_to_switch)

    def _run(self, exchange: SocketExchange) -> None:
        if exchange.is_answered:  # the client has gone meanwhile
            return
        if exchange.refusal is not None:
            self.gateway.refuse(exchange, exchange.refusal)
        else:
            self.handle(exchange)

    def _close(self) -> None:
        """Close when the client has taken what is written, but do not wait for ever."""
        self._begin_flush()
        self.transport.close()

    def linger(self) -> None:
        """Close without destroying the answer: a client that is still sending would get a reset and lose it
        (RFC 9112 section 9.6). So: end our side, read and forget for a moment, then close."""
        self.current = None
        self.is_lingering = self.skips_heads = True  # the read that ends here may hold further requests
        self.resume_reading()
        self._begin_flush()
        if self.transport.can_write_eof():
            self.transport.write_eof()


class _Nobody:
    """Parses on behalf of no one: for bytes after a request that could not be understood."""

"""HTTP/2 with clients (RFC 9113): one connection, its streams, and what keeps either from being abused.

Each request goes to the pipeline as an `Exchange`, exactly as over HTTP/1.1. Framing is done here, since no library
lets the receiver hold a stream back, or costs as little (docs/adr/0009); only header sections are decoded by `hpack`.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from hpack import Decoder
from hpack.exceptions import HPACKError, OversizedHeaderListError

from core.context import MAX_HEAD, Session
from core.faults import ClientFault
from core.outflow import NOTHING_KNOWN, taken_bytes, unsent_bytes
from gateway_project.dataplane import http2_frames as h2
from gateway_project.dataplane.http2_exchange import Http2Exchange
from gateway_project.dataplane.http2_frames import ConnectionFault, StreamFault
from gateway_project.dataplane.listening import Admitted
from gateway_project.dataplane.protocol import FLUSH_S, HEAD_TIMEOUT_S, KEEP_ALIVE_S, NEWCOMER_S, ClientProtocol
from gateway_project.dataplane.tracing import begin_trace

if TYPE_CHECKING:
    from gateway_project.dataplane.app import Gateway
    from gateway_project.dataplane.identity import Identity

logger = logging.getLogger("portcullis")


class ChosenProtocol(Admitted):
    """Stands for a TLS connection until the handshake has said which protocol follows (ALPN, RFC 7301)."""

    def __init__(self, config: Any, server_state: Any, end_of_head: bytes) -> None:
        self._config = config
        self._server_state = server_state
        self._end_of_head = end_of_head

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        chosen: Admitted
        if transport.get_extra_info("ssl_object").selected_alpn_protocol() == "h2":
            chosen = Http2Protocol(self._config, self._server_state, self._end_of_head)
        else:
            chosen = ClientProtocol(self._config, self._server_state, {})
            chosen.end_of_head = self._end_of_head
        chosen.told_peer, chosen.deadline = self.told_peer, self.deadline
        transport.set_protocol(chosen)
        chosen.connection_made(transport)


MAX_STREAMS = 100
TURN_STREAMS = 20  # that begin in one turn of the loop
STREAM_WINDOW = 256 * 1024  # of a request's body that nobody has taken yet, for each stream
CONNECTION_WINDOW = 1024 * 1024  # and for all of a connection together
MAX_BLOCK = MAX_HEAD + 1024  # bytes of a header section as it is sent
MAX_BLOCK_FRAMES = 32
MAX_DECODED = 2 * MAX_HEAD  # with 32 bytes for each field (section 6.5.2); beyond MAX_HEAD of fields it is 431
# Frames that cost us more than the client: each takes one, and so many come back a second. Browsers that leave a page
# cancel dozens of requests at once; whoever goes on like that is no browser (CVE-2023-44487, CVE-2019-9511 to 9518).
PATIENCE = 200.0
PATIENCE_PER_S = 20.0
MAX_UNSENT = 512 * 1024  # of what the client does not take; header sections know no windows
_OPENING_WINDOW = 65_535  # section 6.9.2
_REMEMBERED_RESETS = 256
_REFERENCES = bytes(range(0x81, 0xFF))  # each an indexed field by itself (RFC 7541 section 6.1)
_MAX_RECALLED = 16
_MAX_RECALLED_BLOCK = 64
Fields = list[tuple[bytes, bytes]]
_NEVER = float("inf")


class Http2Protocol(Admitted):
    """State is grouped by what it is about: the connection, its streams, the header section being received."""

    stream_window = STREAM_WINDOW

    def __init__(self, config: Any, server_state: Any, end_of_head: bytes) -> None:
        gateway: Gateway = config.loaded_app
        self.gateway = gateway
        self.key_header = gateway.key_header
        self.max_field_bytes = gateway.settings.max_header_field_bytes
        self.now = gateway.now
        self.connections = server_state.connections
        self.transport: asyncio.Transport = None  # type: ignore[assignment]  # set in connection_made
        self.peer = ""
        self.scheme = "https"
        self.identity: Identity | None = None
        self.session = Session()
        self.port_lines = end_of_head[:-2]  # of every answer of the port
        self._received = b""
        self._outgoing: list[bytes] | None = None
        self._has_preface = self._has_settings = False
        self._is_dead = False  # an error has ended it
        self._is_leaving = False  # no stream is accepted any more
        self.is_write_paused = False
        self._is_reading_paused = False
        self._has_turns = False  # what was received takes several; `_read_on` is due
        self._begun = 0  # streams, in this turn
        self._stalled_by = _NEVER  # for a client that takes nothing
        self._taken = NOTHING_KNOWN
        self._patience = PATIENCE
        self._patience_at = self.now()
        # streams
        self.streams: dict[int, Http2Exchange] = {}
        self._blocked: dict[int, Http2Exchange] = {}  # those whose answer waits for a window
        self._last_stream = 0
        self._reset: dict[int, None] = {}  # by us, of late: the client may not have heard of it yet
        # windows
        self.peer_window = _OPENING_WINDOW
        self._send_window = _OPENING_WINDOW
        self._receive_window = CONNECTION_WINDOW
        self._uncredited = 0
        # header sections
        self._decoder = Decoder()
        self._decoder.max_header_list_size = MAX_DECODED
        self._recalled: dict[bytes, Fields] = {}  # sections that were decoded, by their bytes
        self._opening = h2.NO_TABLE  # stands before the first answer's header section
        self._block: list[bytes] | None = None
        self._block_stream = self._block_flags = 0
        self._block_by = _NEVER
        self.deadline = self._idle_by = self.now() + HEAD_TIMEOUT_S  # for the first request
        self._take = (
            *(self._take_data, self._take_headers, self._take_priority, self._take_reset, self._take_settings),
            *(self._take_push, self._take_ping, self._take_goaway, self._take_window_update, self._take_continuation),
        )

    # --- the connection ---
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]  # a Transport for stream protocols
        self._idle_by = self.deadline
        self.connections.add(self)
        if self.gateway.read_certificate is not None:
            self.session.certificate = self.gateway.read_certificate(transport)
        peer = transport.get_extra_info("peername")
        self.peer = self.told_peer or (peer[0] if isinstance(peer, tuple) else "")
        ours = {
            h2.MAX_CONCURRENT_STREAMS: MAX_STREAMS,
            h2.INITIAL_WINDOW_SIZE: STREAM_WINDOW,
            h2.MAX_HEADER_LIST_SIZE: MAX_HEAD,
            h2.NO_RFC7540_PRIORITIES: 1,
        }
        self.transport.write(h2.settings(ours) + h2.window_update(0, CONNECTION_WINDOW - _OPENING_WINDOW))

    def connection_lost(self, exc: Exception | None) -> None:
        self.connections.discard(self)
        self.deadline = _NEVER
        self._is_dead = True
        streams, self.streams = self.streams, {}
        self._blocked.clear()
        for exchange in streams.values():
            exchange.client_left()

    def shutdown(self) -> None:
        """uvicorn asks every connection to end. Streams that have begun are finished."""
        self._leave()

    def _leave(self) -> None:
        """What the client sends after this it may send again elsewhere, since it learns the last stream that was taken
        (section 6.8). Some libraries take GOAWAY for the end of the streams that are open, too: while the worker only
        drains, it is sent between two requests."""
        if not self._is_leaving:
            self._is_leaving = True
            self._write(h2.goaway(self._last_stream, h2.NO_ERROR))
            self._look_idle(NEWCOMER_S)

    def _look_idle(self, keep_s: float) -> None:
        if not self.streams:
            self._idle_by = self.now() + keep_s
            self.deadline = min(self.deadline, self._idle_by)

    def sweep(self, now: float) -> None:
        is_ending = self._is_dead or self.transport.is_closing()
        if is_ending or self._stalled_by <= now:
            if not self._is_taking():
                self.transport.abort()
                return
            self._stalled_by = now + FLUSH_S  # it is slow, but it goes on
            if is_ending:
                self.deadline = self._stalled_by
                return
        if self._block_by <= now or (not self.streams and self._idle_by <= now):
            self._end(h2.NO_ERROR)
            return
        for exchange in [each for each in self.streams.values() if each.deadline <= now]:
            exchange.expire()
        waiting = min((each.deadline for each in self.streams.values()), default=self._idle_by)
        self.deadline = min(waiting, self._block_by, self._stalled_by)

    def _is_taking(self) -> bool:
        """Whether the client has taken some of what was written since this was last asked, and more is left."""
        taken = taken_bytes(self.transport)
        before, self._taken = self._taken, taken
        return taken > before and unsent_bytes(self.transport) > 0

    def _end(self, code: int) -> None:
        """Say why, and close when the client has taken what is written."""
        self._is_dead = self._is_leaving = True
        self._write(h2.goaway(self._last_stream, code))
        self.deadline = self.now() + FLUSH_S
        self.transport.close()

    def _write(self, data: bytes) -> None:
        """What is said while a read is taken goes out with its end: a TLS record for all of it."""
        if self._outgoing is not None:
            self._outgoing.append(data)
        elif not self.transport.is_closing():
            self.transport.write(data)

    def _write_gathered(self) -> None:
        outgoing, self._outgoing = self._outgoing, None
        if outgoing and not self.transport.is_closing():
            self.transport.write(b"".join(outgoing))

    def identify(self, host: bytes, noted: dict[bytes, bytes]) -> Identity:
        """Most requests of a connection have the same client and host."""
        identity = self.identity
        if identity is None or identity.host_field != host or identity.is_proxied:
            identity = self.identity = self.gateway.identify(self.peer, self.scheme, host, noted)
        return identity

    def last_identity(self) -> Identity:
        """For a request that turns out to be none."""
        return self.identity or self.gateway.identify(self.peer, self.scheme, b"", {})

    # --- bytes in ---
    def data_received(self, data: bytes) -> None:
        if self._is_dead:
            return
        received = self._received + data if self._received else data
        if self._has_turns:
            self._received = received
            return
        self._take_turn(received)

    def _take_turn(self, received: bytes) -> None:
        self._outgoing, self._begun = [], 0
        code = None
        try:
            self._received = self._read(received)
        except ConnectionFault as fault:
            logger.debug("HTTP/2 with %s ends: %s", self.peer, fault)
            code = fault.code
        except Exception as error:
            self.gateway.unexpected(error)
            code = h2.INTERNAL_ERROR
        self._write_gathered()
        if code is not None:
            self._end(code)
        elif self._begun >= TURN_STREAMS:
            self._wait_for_turn()
        elif self.is_write_paused and self.transport.get_write_buffer_size() > MAX_UNSENT:
            self._is_reading_paused = True
            self.transport.pause_reading()

    def _wait_for_turn(self) -> None:
        """A read may hold thousands of requests that are answered at once, and everybody else would wait for all of
        them: the rest is for the next turn of the loop."""
        if not self._has_turns:
            self._has_turns = True
            self.transport.pause_reading()
        self.gateway.loop.call_soon(self._read_on)

    def _read_on(self) -> None:
        if self._is_dead:
            return
        self._take_turn(self._received)
        if self._begun < TURN_STREAMS:
            self._has_turns = False
            if not self._is_reading_paused and not self.transport.is_closing():
                self.transport.resume_reading()

    def _read(self, received: bytes) -> bytes:
        """Take every whole frame; what is left of them."""
        start, size = 0, len(received)
        if not self._has_preface:
            if not h2.PREFACE.startswith(received[: len(h2.PREFACE)]):
                raise ConnectionFault(h2.PROTOCOL_ERROR, "no preface")
            if size < len(h2.PREFACE):
                return received
            self._has_preface = True
            start = len(h2.PREFACE)
        while size - start >= 9 and self._begun < TURN_STREAMS and not self._is_dead:
            length = int.from_bytes(received[start : start + 3], "big")
            if length > h2.MAX_FRAME:
                raise ConnectionFault(h2.FRAME_SIZE_ERROR, "a frame above the limit")
            end = start + 9 + length
            if end > size:
                break
            kind, flags = received[start + 3], received[start + 4]
            stream = int.from_bytes(received[start + 5 : start + 9], "big") & 0x7FFFFFFF
            self._take_frame(kind, flags, stream, received[start + 9 : end])
            start = end
        return received[start:]

    def _take_frame(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if self._block is not None and (kind != h2.CONTINUATION or stream != self._block_stream):
            raise ConnectionFault(h2.PROTOCOL_ERROR, "another frame within a header section")
        if not self._has_settings and kind != h2.SETTINGS:
            raise ConnectionFault(h2.PROTOCOL_ERROR, "SETTINGS must come first")
        if kind >= len(self._take):
            self._lose_patience(0.1)  # an extension that we do not know (section 5.5)
            return
        try:
            self._take[kind](flags, stream, payload)
        except StreamFault as fault:
            self._lose_patience()
            self._fail_stream(stream, fault)

    def _lose_patience(self, cost: float = 1.0) -> None:
        now = self.now()
        self._patience = min(PATIENCE, self._patience + (now - self._patience_at) * PATIENCE_PER_S) - cost
        self._patience_at = now
        if self._patience < 0:
            raise ConnectionFault(h2.ENHANCE_YOUR_CALM, "too many frames that only make work")

    # --- header sections ---
    def _take_headers(self, flags: int, stream: int, payload: bytes) -> None:
        if not stream & 1:
            raise ConnectionFault(h2.PROTOCOL_ERROR, "HEADERS on a stream that no client opens")
        payload = h2.unpadded(flags, payload)
        if flags & h2.HAS_PRIORITY:
            if len(payload) < 5:
                raise ConnectionFault(h2.FRAME_SIZE_ERROR, "HEADERS without its priority")
            payload = payload[5:]
        self._block_stream, self._block_flags = stream, flags
        if flags & h2.END_HEADERS:
            self._end_block(payload)
            return
        self._block = [payload]
        self._block_by = self.now() + HEAD_TIMEOUT_S
        self.deadline = min(self.deadline, self._block_by)

    def _take_continuation(self, flags: int, stream: int, payload: bytes) -> None:
        block = self._block
        if block is None:
            raise ConnectionFault(h2.PROTOCOL_ERROR, "CONTINUATION without HEADERS")
        block.append(payload)
        if len(block) > MAX_BLOCK_FRAMES or sum(map(len, block)) > MAX_BLOCK:
            raise ConnectionFault(h2.ENHANCE_YOUR_CALM, "a header section without end")
        if flags & h2.END_HEADERS:
            self._block = None
            self._block_by = _NEVER
            self._end_block(b"".join(block))

    def _end_block(self, block: bytes) -> None:
        """Decode it in any case: the table of later sections depends on it."""
        stream, ended = self._block_stream, bool(self._block_flags & h2.END_STREAM)
        if len(block) > MAX_BLOCK:
            raise ConnectionFault(h2.ENHANCE_YOUR_CALM, "a header section above the limit")
        fields = self._recalled.get(block) or self._decode(block)
        if stream > self._last_stream:
            self._begin(stream, fields, ended=ended)
            return
        exchange = self.streams.get(stream)
        if exchange is not None:
            self._take_trailers(exchange, fields, ended=ended)
        else:
            self._take_late(stream)

    def _decode(self, block: bytes) -> Fields:
        try:
            fields: Fields = list(self._decoder.decode(block, raw=True))
        except OversizedHeaderListError:
            raise ConnectionFault(h2.ENHANCE_YOUR_CALM, "a header section above the limit") from None
        except HPACKError as error:
            raise ConnectionFault(h2.COMPRESSION_ERROR, str(error)) from None
        # Clients that repeat a request send nothing but references to the table, which leave it as it is: then the
        # same bytes mean the same until something else comes (RFC 7541 section 2.3).
        if block.translate(None, _REFERENCES):
            self._recalled.clear()
        elif len(self._recalled) < _MAX_RECALLED and len(block) <= _MAX_RECALLED_BLOCK:
            self._recalled[block] = fields
        return fields

    def _begin(self, stream: int, fields: Fields, *, ended: bool) -> None:
        if self._is_leaving:
            return  # it has been told that nobody looks at it
        self._last_stream = stream
        self._begun += 1
        if len(self.streams) >= MAX_STREAMS:
            raise StreamFault(h2.REFUSED_STREAM, "more streams than were offered")
        exchange = self.streams[stream] = Http2Exchange(self, stream)
        try:
            exchange.begin(fields, ended=ended)
        except ClientFault as fault:
            self.gateway.refuse(exchange, fault)
        else:
            self.gateway.handle(exchange)

    def _take_trailers(self, exchange: Http2Exchange, fields: Fields, *, ended: bool) -> None:
        """Dropped: they must not pose as header fields (RFC 9110 section 6.5.1)."""
        if exchange.is_body_complete:
            raise StreamFault(h2.STREAM_CLOSED, "HEADERS after the end")
        if not ended or any(name[:1] == b":" for name, _ in fields):
            raise StreamFault(h2.PROTOCOL_ERROR, "trailers that are none")
        self._complete(exchange)

    def _take_late(self, stream: int) -> None:
        """A frame on a stream that is closed. If we have reset it, the client may not have known (section 5.1)."""
        if self._is_leaving and stream > self._last_stream:
            return  # it was told that nobody looks at it
        self._lose_patience(0.1)
        if stream not in self._reset:
            raise ConnectionFault(h2.STREAM_CLOSED, "a frame on a stream that has ended")

    # --- bodies in ---
    def _take_data(self, flags: int, stream: int, payload: bytes) -> None:
        size = len(payload)
        self._receive_window -= size
        if self._receive_window < 0:
            raise ConnectionFault(h2.FLOW_CONTROL_ERROR, "more than the connection's window")
        exchange = self.streams.get(stream)
        if exchange is None:
            self._check_idle(stream)
            self.credit(size)
            self._take_late(stream)
            return
        if exchange.is_body_complete:
            self.credit(size)
            raise StreamFault(h2.STREAM_CLOSED, "DATA after the end")
        exchange.receive_window -= size
        if exchange.receive_window < 0:
            self.credit(size)
            raise StreamFault(h2.FLOW_CONTROL_ERROR, "more than the stream's window")
        data = h2.unpadded(flags, payload)
        if len(data) < size:
            self.credit(size - len(data), exchange)
        if data:
            exchange.body_arrived(data)
        elif not flags & h2.END_STREAM:
            self._lose_patience()
        if flags & h2.END_STREAM and self.streams.get(stream) is exchange:
            self._complete(exchange)

    def _complete(self, exchange: Http2Exchange) -> None:
        exchange.body_complete()
        if exchange.is_answered and not exchange.out:
            self._forget(exchange)

    def _check_idle(self, stream: int) -> None:
        if not stream & 1 or stream > self._last_stream:
            if self._is_leaving and stream & 1:
                return  # of a stream that was not accepted any more
            raise ConnectionFault(h2.PROTOCOL_ERROR, "a frame on a stream that nobody has opened")

    def credit(self, size: int, exchange: Http2Exchange | None = None) -> None:
        """So much has been passed on or dropped: the client may send as much again. Told in large steps."""
        self._uncredited += size
        updates = b""
        if self._uncredited >= CONNECTION_WINDOW // 2:
            updates = h2.window_update(0, self._uncredited)
            self._receive_window += self._uncredited
            self._uncredited = 0
        if exchange is not None and not exchange.is_body_complete:
            exchange.uncredited += size
            if exchange.uncredited >= STREAM_WINDOW // 2:
                updates += h2.window_update(exchange.stream, exchange.uncredited)
                exchange.receive_window += exchange.uncredited
                exchange.uncredited = 0
        if updates:
            self._write(updates)

    # --- other frames ---
    def _take_priority(self, _flags: int, stream: int, payload: bytes) -> None:
        """Ignored (section 5.3.2)."""
        if not stream:
            raise ConnectionFault(h2.PROTOCOL_ERROR, "PRIORITY of the connection")
        if len(payload) != 5:
            raise StreamFault(h2.FRAME_SIZE_ERROR, "PRIORITY of a broken size")
        self._lose_patience(0.1)

    def _take_reset(self, _flags: int, stream: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise ConnectionFault(h2.FRAME_SIZE_ERROR, "RST_STREAM of a broken size")
        self._lose_patience()
        exchange = self.streams.pop(stream, None)
        if exchange is None:
            self._check_idle(stream)
            return
        self._blocked.pop(stream, None)
        exchange.client_left()
        self._look_idle(NEWCOMER_S if self._is_leaving else KEEP_ALIVE_S)

    def _take_settings(self, flags: int, stream: int, payload: bytes) -> None:
        if stream:
            raise ConnectionFault(h2.PROTOCOL_ERROR, "SETTINGS of a stream")
        if flags & h2.ACK:
            if payload:
                raise ConnectionFault(h2.FRAME_SIZE_ERROR, "an acknowledgement with a payload")
            return
        if self._has_settings:
            self._lose_patience()
        self._has_settings = True
        for setting, value in h2.read_settings(payload):
            self._set(setting, value)
        self._write(h2.frame(h2.SETTINGS, h2.ACK, 0))
        self._pump()

    def _set(self, setting: int, value: int) -> None:
        if setting == h2.INITIAL_WINDOW_SIZE:
            if value > h2.MAX_WINDOW:
                raise ConnectionFault(h2.FLOW_CONTROL_ERROR, "a window above the limit")
            change, self.peer_window = value - self.peer_window, value
            for exchange in self.streams.values():  # may become negative (section 6.9.2)
                exchange.send_window += change
                if exchange.send_window > h2.MAX_WINDOW:
                    raise ConnectionFault(h2.FLOW_CONTROL_ERROR, "a window above the limit")
                if exchange.out:
                    self._blocked[exchange.stream] = exchange
        elif setting == h2.ENABLE_PUSH:
            if value > 1:
                raise ConnectionFault(h2.PROTOCOL_ERROR, "ENABLE_PUSH is 0 or 1")
        elif setting == h2.MAX_FRAME_SIZE and not h2.MAX_FRAME <= value < 2**24:
            raise ConnectionFault(h2.PROTOCOL_ERROR, "MAX_FRAME_SIZE out of bounds")

    def _take_push(self, _flags: int, _stream: int, _payload: bytes) -> None:
        raise ConnectionFault(h2.PROTOCOL_ERROR, "clients do not push")

    def _take_ping(self, flags: int, stream: int, payload: bytes) -> None:
        if stream:
            raise ConnectionFault(h2.PROTOCOL_ERROR, "PING of a stream")
        if len(payload) != 8:
            raise ConnectionFault(h2.FRAME_SIZE_ERROR, "PING of a broken size")
        if not flags & h2.ACK:
            self._lose_patience()
            self._write(h2.frame(h2.PING, h2.ACK, 0, payload))

    def _take_goaway(self, _flags: int, stream: int, payload: bytes) -> None:
        if stream:
            raise ConnectionFault(h2.PROTOCOL_ERROR, "GOAWAY of a stream")
        if len(payload) < 8:
            raise ConnectionFault(h2.FRAME_SIZE_ERROR, "GOAWAY of a broken size")
        self._look_idle(NEWCOMER_S)  # it opens no further streams

    def _take_window_update(self, _flags: int, stream: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise ConnectionFault(h2.FRAME_SIZE_ERROR, "WINDOW_UPDATE of a broken size")
        increment = int.from_bytes(payload, "big") & 0x7FFFFFFF
        if not stream:
            self._send_window += increment
            if not increment or self._send_window > h2.MAX_WINDOW:
                raise ConnectionFault(h2.FLOW_CONTROL_ERROR if increment else h2.PROTOCOL_ERROR, "a bad increment")
            self._pump()
            return
        exchange = self.streams.get(stream)
        if exchange is None:
            self._check_idle(stream)
            return
        exchange.send_window += increment
        if not increment or exchange.send_window > h2.MAX_WINDOW:
            raise StreamFault(h2.FLOW_CONTROL_ERROR if increment else h2.PROTOCOL_ERROR, "a bad increment")
        if exchange.out:
            self._blocked[stream] = exchange
            self._pump()

    # --- answers ---
    def send_head(self, exchange: Http2Exchange, status: int, lines: bytes, *, ends: bool, body: bytes = b"") -> None:
        """HEADERS, and a whole body where there is one."""
        opening, self._opening = self._opening, b""
        block = opening + h2.header_block(status, lines + self.port_lines if status >= 200 else lines)
        frames = h2.header_frames(exchange.stream, block, ends=ends)
        size = len(body)
        if size and size <= h2.MAX_FRAME and size <= min(exchange.send_window, self._send_window):
            exchange.send_window -= size
            self._send_window -= size
            self._write(frames + h2.frame(h2.DATA, h2.END_STREAM, exchange.stream, body))
            return
        self._write(frames)
        if body:
            self.send_data(exchange, body, ends=True)

    def send_data(self, exchange: Http2Exchange, data: bytes, *, ends: bool = False) -> bool:
        """A piece of an answer's body. False: the client is slower, `progressed` follows."""
        exchange.ends = exchange.ends or ends
        if ends and not data and not exchange.out:
            self._write(h2.frame(h2.DATA, h2.END_STREAM, exchange.stream))
            return True
        if data:
            exchange.out.append(memoryview(data))  # which is cut into frames without being copied each time
            exchange.out_size += len(data)
        self._blocked[exchange.stream] = exchange
        self._send(exchange)
        return not exchange.out and not self.is_write_paused

    def _send(self, exchange: Http2Exchange, limit: int = h2.MAX_WINDOW) -> None:
        """As much of what waits as windows and socket admit, at most ``limit`` bytes."""
        out, stream = exchange.out, exchange.stream
        frames: list[bytes] = []
        while out and not self.is_write_paused and limit > 0:
            piece = out[0]
            room = min(exchange.send_window, self._send_window, h2.MAX_FRAME, limit)
            if room <= 0:
                break
            if len(piece) <= room:
                out.popleft()
            else:
                out[0], piece = piece[room:], piece[:room]
            size = len(piece)
            limit -= size
            exchange.out_size -= size
            exchange.send_window -= size
            self._send_window -= size
            is_last = exchange.ends and not out
            frames.append(h2.frame(h2.DATA, h2.END_STREAM if is_last else 0, stream, piece))
            if len(frames) >= 8:
                self._write(b"".join(frames))
                frames.clear()
        if frames:
            self._write(b"".join(frames))
        if not out or exchange.send_window <= 0:  # a stream without a window waits for its own WINDOW_UPDATE
            self._blocked.pop(stream, None)

    def _pump(self) -> None:
        """Windows or socket have room again: a frame for each stream in turn."""
        while self._blocked and self._send_window > 0 and not self.is_write_paused:
            for exchange in list(self._blocked.values()):
                before = exchange.out_size
                self._send(exchange, h2.MAX_FRAME)
                if exchange.out_size < before:
                    exchange.progressed()

    def pause_writing(self) -> None:
        self.is_write_paused = True
        self._taken = taken_bytes(self.transport)
        self._stalled_by = self.now() + FLUSH_S
        self.deadline = min(self.deadline, self._stalled_by)

    def resume_writing(self) -> None:
        self.is_write_paused = False
        self._stalled_by = _NEVER
        if self._is_reading_paused:
            self._is_reading_paused = False
            if not self._has_turns:
                self.transport.resume_reading()
        self._pump()
        for exchange in list(self.streams.values()):
            if exchange.is_blocked and not exchange.out:
                exchange.progressed()

    # --- ends of streams ---
    def finished(self, exchange: Http2Exchange) -> None:
        """The answer is out. What is left of the request is forgotten when it comes, or need not be sent (section
        8.1); not all clients expect to be told so."""
        if exchange.is_body_complete:
            self._forget(exchange)
        elif not exchange.drains():
            self.reset(exchange, h2.NO_ERROR)

    def reset(self, exchange: Http2Exchange, code: int) -> None:
        self._remember_reset(exchange.stream)
        self._write(h2.reset(exchange.stream, code))
        exchange.out.clear()
        self._forget(exchange)

    def _forget(self, exchange: Http2Exchange) -> None:
        self.streams.pop(exchange.stream, None)
        self._blocked.pop(exchange.stream, None)
        if not self.streams and self.gateway.is_draining:
            self._leave()
        self._look_idle(NEWCOMER_S if self._is_leaving else KEEP_ALIVE_S)

    def _fail_stream(self, stream: int, fault: StreamFault) -> None:
        logger.debug("stream %d of %s ends: %s", stream, self.peer, fault)
        self._remember_reset(stream)
        self._write(h2.reset(stream, fault.code))
        exchange = self.streams.get(stream)
        if exchange is not None:
            self._forget(exchange)
            if not exchange.request_id:
                begin_trace(exchange)
            exchange.client_left("bad_request", 400)

    def _remember_reset(self, stream: int) -> None:
        self._reset[stream] = None
        if len(self._reset) > _REMEMBERED_RESETS:
            del self._reset[next(iter(self._reset))]

"""A client that speaks HTTP/2 over TLS, by the library h2, and raw frames where the library would refuse to."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Self

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    InformationalResponseReceived,
    ResponseReceived,
    StreamEnded,
    StreamReset,
)
from hpack import Decoder, Encoder

from gateway_project.dataplane import http2_frames as frames
from tests.tls_clients import TlsClient

Fields = Sequence[tuple[str, str]]


@dataclass
class Http2Answer:
    """What has arrived on one stream."""

    status: int = 0
    interim: list[int] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    pieces: list[bytes] = field(default_factory=list)
    is_whole: bool = False
    reset: int | None = None  # the error code

    @property
    def body(self) -> bytes:
        """As far as it has arrived."""
        return b"".join(self.pieces)

    @property
    def is_over(self) -> bool:
        return self.is_whole or self.reset is not None


class Http2Client:
    """One connection. Use it in a ``with`` statement."""

    def __init__(self, port: int, context: ssl.SSLContext, key: str = "", **options: Any) -> None:
        self.transport = TlsClient(port, context, **options)
        assert self.transport.socket.selected_alpn_protocol() == "h2"
        self.key = key
        self.connection = H2Connection(
            H2Configuration(client_side=True, header_encoding="latin-1", validate_outbound_headers=False,
                            normalize_outbound_headers=False)
        )  # fmt: skip
        self.connection.initiate_connection()
        self.answers: dict[int, Http2Answer] = {}
        self.goaways: list[tuple[int, int]] = []  # last stream, error code
        self.credits = True  # windows are opened as answers arrive
        self.is_closed = False
        self.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.transport.socket.close()

    # --- out ---
    def flush(self) -> None:
        self.raw(self.connection.data_to_send())

    def raw(self, data: bytes) -> None:
        try:
            self.transport.socket.sendall(data)
        except OSError:
            self.is_closed = True

    def head(self, method: str, path: str, *fields: tuple[str, str], authority: str = "gateway.test") -> Fields:
        credentials = [("x-api-key", self.key)] if self.key else []
        start = [(":method", method), (":scheme", "https"), (":authority", authority), (":path", path)]
        return [*start, *credentials, *fields]

    def request(self, method: str, path: str, *fields: tuple[str, str], body: bytes | None = None) -> int:
        """The stream of a request; a body is sent as far as windows admit at once, the rest as they open."""
        stream = self.begin(self.head(method, path, *fields), ended=body is None)
        if body is not None:
            self.send_body(stream, body)
        return stream

    def begin(self, fields: Fields, *, ended: bool = True) -> int:
        stream: int = self.connection.get_next_available_stream_id()
        self.answers[stream] = Http2Answer()
        self.connection.send_headers(stream, fields, end_stream=ended)
        self.flush()
        return stream

    def send_body(self, stream: int, body: bytes) -> None:
        view = memoryview(body)
        answer = self.answers[stream]
        while view and not answer.is_over:
            room = min(self.connection.local_flow_control_window(stream), self.connection.max_outbound_frame_size)
            if not room:
                self.receive()
                continue
            self.connection.send_data(stream, view[:room].tobytes())
            self.flush()
            view = view[room:]
        if not answer.is_over:
            self.connection.end_stream(stream)
            self.flush()

    # --- in ---
    def receive(self) -> list[Event]:
        """What the next read brings; nothing when the connection has ended. Raises TimeoutError."""
        try:
            data = self.transport.socket.recv(65536)
        except (ConnectionError, ssl.SSLError):
            data = b""
        if not data:
            self.is_closed = True
            return []
        events = self.connection.receive_data(data)
        for event in events:
            self._take(event)
        self.flush()
        return events

    def _take(self, event: Event) -> None:
        if isinstance(event, ConnectionTerminated):
            self.goaways.append((event.last_stream_id or 0, int(event.error_code or 0)))
            return
        answer = self.answers.get(getattr(event, "stream_id", None) or 0)
        if answer is None:
            return
        if isinstance(event, InformationalResponseReceived):
            answer.interim.append(int(next(iter(event.headers))[1]))
        elif isinstance(event, ResponseReceived):
            headers = [(str(name), str(value)) for name, value in event.headers]
            answer.status = int(headers[0][1])
            answer.headers = dict(headers[1:])
        elif isinstance(event, DataReceived):
            answer.pieces.append(event.data)
            if self.credits:
                self.connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, StreamEnded):
            answer.is_whole = True
        elif isinstance(event, StreamReset):
            answer.reset = int(event.error_code)

    def answer(self, stream: int) -> Http2Answer:
        """The whole answer, or how the stream ended. Raises AssertionError when the connection ends before."""
        answer = self.answers[stream]
        while not answer.is_over:
            assert not self.is_closed, f"the connection ended before the answer: {self.goaways}"
            self.receive()
        return answer

    def ask(self, method: str, path: str, *fields: tuple[str, str], body: bytes | None = None) -> Http2Answer:
        return self.answer(self.request(method, path, *fields, body=body))

    def end(self) -> tuple[int, int] | None:
        """Reads until the connection ends; the last GOAWAY: last stream and error code."""
        while not self.is_closed:
            self.receive()
        return self.goaways[-1] if self.goaways else None

    def ends_with(self, code: ErrorCodes) -> bool:
        last = self.end()
        return last is not None and last[1] == code


class RawHttp2:
    """Frames by hand, in both directions. Use it in a ``with`` statement."""

    def __init__(self, port: int, context: ssl.SSLContext, *, start: bytes | None = None, **options: Any) -> None:
        self.transport = TlsClient(port, context, **options)
        self._encoder, self._decoder = Encoder(), Decoder()
        self._encoder.header_table_size = 0
        self._buffer = b""
        self.send(frames.PREFACE + frames.settings({}) if start is None else start)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.transport.socket.close()

    def send(self, *data: bytes) -> None:
        with suppress(OSError):
            self.transport.socket.sendall(b"".join(data))

    def head(self, stream: int, fields: Fields, *, ended: bool = True) -> bytes:
        """HEADERS."""
        flags = frames.END_HEADERS | (frames.END_STREAM if ended else 0)
        return frames.frame(frames.HEADERS, flags, stream, self.block(fields))

    def block(self, fields: Fields) -> bytes:
        return bytes(self._encoder.encode(fields))

    def frame(self) -> tuple[int, int, int, bytes] | None:
        """The next one: kind, flags, stream, payload. None when the connection has ended."""
        while len(self._buffer) < 9 or len(self._buffer) < 9 + int.from_bytes(self._buffer[:3], "big"):
            try:
                data = self.transport.socket.recv(65536)
            except (ConnectionError, ssl.SSLError):
                data = b""
            if not data:
                return None
            self._buffer += data
        end = 9 + int.from_bytes(self._buffer[:3], "big")
        frame, self._buffer = self._buffer[:end], self._buffer[end:]
        return frame[3], frame[4], int.from_bytes(frame[5:9], "big"), frame[9:]

    def until(self, kind: int, stream: int = 0) -> tuple[int, bytes]:
        """Flags and payload of the next frame of the kind. Raises AssertionError when none comes."""
        while (frame := self.frame()) is not None:
            if (frame[0], frame[2]) == (kind, stream):
                return frame[1], frame[3]
        raise AssertionError("the connection has ended")

    def status(self, stream: int) -> int:
        """Of the answer on a stream. The streams must be asked for in the order of their answers."""
        _, block = self.until(frames.HEADERS, stream)
        name, value = next(iter(self._decoder.decode(block, raw=True)))
        assert name == b":status"
        return int(value)

    def reset_code(self, stream: int) -> int:
        return int.from_bytes(self.until(frames.RST_STREAM, stream)[1], "big")

    def goaway_code(self) -> int:
        """Of the last GOAWAY before the connection ends."""
        code = None
        while (frame := self.frame()) is not None:
            if frame[0] == frames.GOAWAY:
                code = int.from_bytes(frame[3][4:8], "big")
        assert code is not None, "the connection has ended without a word"
        return code

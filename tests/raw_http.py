"""HTTP/1.1 from the client's side, byte by byte: exact requests out, answers read as strictly as the RFC allows."""

from __future__ import annotations

import json
import re
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Self

TIMEOUT_S = 20.0
_STATUS_LINE = re.compile(rb"HTTP/1\.1 ([1-5][0-9][0-9]) ([ -~]*)")
_FIELD_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\r\n\0]*?)[ \t]*")


class CutShort(Exception):
    """The connection ended, by FIN or reset, before the answer was whole. ``received`` is what came of it."""

    def __init__(self, received: bytes) -> None:
        super().__init__(f"the connection ended after {len(received)} bytes: {received[:200]!r}")
        self.received = received


@dataclass(frozen=True, slots=True)
class Answer:
    """Field names are in lower case, in the order received."""

    status: int
    fields: list[tuple[str, str]]
    body: bytes = b""

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.fields if key == name]

    def field(self, name: str) -> str | None:
        """The value of a field that stands at most once."""
        values = self.all(name)
        assert len(values) <= 1, f"{name} stands {len(values)} times: {values}"
        return values[0] if values else None

    @property
    def problem(self) -> dict[str, Any]:
        """The problem document (RFC 9457)."""
        assert self.field("content-type") == "application/problem+json", self
        document: dict[str, Any] = json.loads(self.body)
        assert document["status"] == self.status
        return document

    @property
    def code(self) -> str:
        return str(self.problem["code"])


def request(
    method: str, target: str | bytes, *fields: str | bytes, body: bytes | None = None, host: str | None = "gateway.test"
) -> bytes:
    """The bytes of a request; ``fields`` are whole lines without CRLF."""
    lines = [method.encode() + b" " + _bytes(target) + b" HTTP/1.1"]
    lines += [b"Host: " + host.encode()] if host is not None else []
    lines += map(_bytes, fields)
    lines += [b"Content-Length: %d" % len(body)] if body is not None else []
    return b"\r\n".join(lines) + b"\r\n\r\n" + (body or b"")


def _bytes(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode("latin-1")


def chunked(*chunks: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in (*chunks, b""))


class Client:
    """One connection. Use it in a ``with`` statement."""

    def __init__(
        self,
        port: int,
        source: str = "127.0.0.1",
        *,
        receive_buffer: int | None = None,
        segment_size: int | None = None,  # bytes; small ones have the gateway's kernel keep less for us
    ) -> None:
        self.socket = socket.socket()
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        if segment_size is not None:
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, segment_size)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.settimeout(TIMEOUT_S)
        try:
            self.socket.bind((source, 0))
            self.socket.connect(("127.0.0.1", port))
            if self.socket.getsockname() == self.socket.getpeername():  # nobody listens, and we have met ourselves
                raise ConnectionRefusedError
        except BaseException:
            self.socket.close()
            raise
        self._buffer = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    # --- out ---
    def send(self, data: bytes) -> Self:
        self.socket.sendall(data)
        return self

    def send_what_is_taken(self, data: bytes) -> Self:
        """Send to a server that may have stopped listening."""
        with suppress(BrokenPipeError, ConnectionResetError):
            self.socket.sendall(data)
        return self

    def half_close(self) -> Self:
        self.socket.shutdown(socket.SHUT_WR)
        return self

    def reset(self) -> None:
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    # --- in ---
    def answer(self, method: str = "GET") -> Answer:
        """The next answer (also an interim one). Raises CutShort when the connection ends before it is whole."""
        answer, body = self.begin_answer(method)
        return Answer(answer.status, answer.fields, b"".join(body))

    def begin_answer(self, method: str = "GET") -> tuple[Answer, Iterator[bytes]]:
        """The head of the next answer, and its body in pieces as they arrive."""
        head = self._until(b"\r\n\r\n")
        status_line, *lines = head.split(b"\r\n")
        matched = _STATUS_LINE.fullmatch(status_line)
        assert matched, f"no status line: {status_line!r}"
        fields = [_field(line) for line in lines]
        answer = Answer(int(matched[1]), fields)
        return answer, self._body(answer, method)

    def _body(self, answer: Answer, method: str) -> Iterator[bytes]:
        length, coding = answer.field("content-length"), answer.field("transfer-encoding")
        assert length is None or coding is None, "Content-Length and Transfer-Encoding"
        if answer.status < 200 or answer.status in (204, 304) or method == "HEAD":
            assert coding is None or method == "HEAD", "an answer without a body has a transfer coding"
            return iter(())
        if coding is not None:
            assert coding == "chunked"
            return self._chunks()
        return self._sized(int(length)) if length is not None else self._until_end()

    def _chunks(self) -> Iterator[bytes]:
        while size := int(self._until(b"\r\n"), 16):
            yield from self._sized(size)
            assert self.exactly(2) == b"\r\n"
        assert self._until(b"\r\n") == b"", "the gateway sends no trailers"

    def _sized(self, size: int) -> Iterator[bytes]:
        while size:
            if not self._buffer:
                self._fill()
            piece, self._buffer = self._buffer[:size], self._buffer[size:]
            size -= len(piece)
            yield piece

    def _until_end(self) -> Iterator[bytes]:
        while True:
            piece, self._buffer = self._buffer, b""
            yield piece
            try:
                data = self.socket.recv(65536)
            except ConnectionResetError:
                raise CutShort(b"") from None
            if not data:
                return
            self._buffer = data

    def _until(self, mark: bytes) -> bytes:
        while mark not in self._buffer:
            self._fill()
        found, _, self._buffer = self._buffer.partition(mark)
        return found

    def exactly(self, size: int) -> bytes:
        while len(self._buffer) < size:
            self._fill()
        found, self._buffer = self._buffer[:size], self._buffer[size:]
        return found

    def _fill(self) -> None:
        try:
            data = self.socket.recv(65536)
        except ConnectionResetError:
            data = b""
        if not data:
            raise CutShort(self._buffer)
        self._buffer += data

    def is_at_end(self) -> bool:
        """Waits for the server to end the connection; False when it sends something instead."""
        if self._buffer:
            return False
        try:
            self._buffer = self.socket.recv(65536)
        except ConnectionResetError:
            return True
        return not self._buffer

    def received_within(self, timeout_s: float) -> bytes:
        """Whatever arrives in that time: for what must not come."""
        with self._timeout(timeout_s):
            try:
                while True:
                    self._fill()
            except (TimeoutError, CutShort):
                return self._buffer

    @contextmanager
    def _timeout(self, timeout_s: float) -> Iterator[None]:
        self.socket.settimeout(timeout_s)
        try:
            yield
        finally:
            self.socket.settimeout(TIMEOUT_S)


def _field(line: bytes) -> tuple[str, str]:
    matched = _FIELD_LINE.fullmatch(line)
    assert matched, f"no field line: {line!r}"
    return matched[1].lower().decode(), matched[2].decode("latin-1")

"""Upstreams that do what a test says: a server whose connections each run a script, and that remembers requests."""

from __future__ import annotations

import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

from tests.gateway_process import eventually

TIMEOUT_S = 20.0
OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nok"


@dataclass(frozen=True, slots=True)
class Seen:
    """A request as it arrived. Field names are as they were sent."""

    line: bytes
    fields: list[tuple[bytes, bytes]]
    body: bytes
    connection: int  # which of the upstream's connections, from 1

    @property
    def method(self) -> bytes:
        return self.line.split(b" ")[0]

    @property
    def target(self) -> bytes:
        return self.line.split(b" ")[1]

    @property
    def names(self) -> set[str]:
        return {name.lower().decode() for name, _ in self.fields}

    def all(self, name: str) -> list[bytes]:
        return [value for key, value in self.fields if key.lower() == name.encode()]

    def field(self, name: str) -> bytes | None:
        values = self.all(name)
        assert len(values) <= 1, f"{name} stands {len(values)} times"
        return values[0] if values else None


class Peer:
    """The upstream's side of one connection."""

    def __init__(self, upstream: Upstream, sock: socket.socket, number: int) -> None:
        self.socket = sock
        self.number = number
        self.upstream = upstream
        self._buffer = b""

    # --- in ---
    def read_request(self) -> Seen | None:
        """The next request, whole; None when the gateway has ended the connection before it."""
        seen = self.read_head()
        if seen is None:
            return None
        length = seen.field("content-length")
        if seen.field("transfer-encoding") is not None:
            body = b"".join(self.chunks())
        else:
            body = self.read(int(length)) if length is not None else b""
        seen = Seen(seen.line, seen.fields, body, seen.connection)
        self.upstream.requests.append(seen)
        return seen

    def read_head(self) -> Seen | None:
        """The next request's head; it does not count among the upstream's ``requests``."""
        while b"\r\n\r\n" not in self._buffer:
            if not self._fill():
                return None
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        line, *lines = head.split(b"\r\n")
        assert b"\n" not in head.replace(b"\r\n", b""), "a line ends with a bare LF"
        parts = [each.partition(b": ") for each in lines]
        return Seen(line, [(name, value) for name, _, value in parts], b"", self.number)

    def read(self, size: int) -> bytes:
        """Exactly that many bytes. Raises ConnectionAbortedError, which ends the script, when the gateway leaves."""
        while len(self._buffer) < size:
            if not self._fill():
                raise ConnectionAbortedError
        data, self._buffer = self._buffer[:size], self._buffer[size:]
        return data

    def read_piece(self) -> bytes:
        """What has arrived, at least a byte; nothing when the connection has ended."""
        if not self._buffer:
            self._fill()
        data, self._buffer = self._buffer, b""
        return data

    def chunks(self) -> Iterator[bytes]:
        """A chunked body, a chunk at a time."""
        while size := int(self._line(), 16):
            yield self.read(size)
            assert self._line() == b""
        assert self._line() == b"", "the gateway passes on trailers"

    def _line(self) -> bytes:
        while b"\r\n" not in self._buffer:
            if not self._fill():
                raise ConnectionAbortedError
        line, _, self._buffer = self._buffer.partition(b"\r\n")
        return line

    def _fill(self) -> bool:
        try:
            data = self.socket.recv(65536)
        except (ConnectionError, ssl.SSLError):
            data = b""
        self._buffer += data
        return bool(data)

    def wait_for_end(self) -> None:
        """Until the gateway ends the connection. Raises TimeoutError."""
        while self.read_piece():
            pass

    # --- out ---
    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def close(self) -> None:
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()

    def reset(self) -> None:
        with suppress(OSError):
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


Script = Callable[[Peer], None]


def replying(*answers: bytes) -> Script:
    """Answers the requests of each connection in turn; the last answer goes on for ever."""

    def script(peer: Peer) -> None:
        number = 0
        while peer.read_request() is not None:
            peer.send(answers[min(number, len(answers) - 1)])
            number += 1

    return script


def closing(*pieces: bytes) -> Script:
    """Answers the first request of each connection in pieces, with a moment between them, and closes."""

    def script(peer: Peer) -> None:
        if peer.read_request() is not None:
            for number, piece in enumerate(pieces):
                if number:
                    time.sleep(0.05)  # so that the pieces are read apart; nothing depends on it
                peer.send(piece)

    return script


@dataclass
class Upstream:
    """Serves on a free port of the loopback interface until it is closed."""

    script: Script = field(default_factory=lambda: replying(OK))
    tls: ssl.SSLContext | None = None
    host: str = "127.0.0.1"
    receive_buffer: int = 0  # what the kernel takes for a script that reads slowly; 0: its own choice
    segment_size: int = 0  # bytes of a TCP segment towards it, of which others keep fewer; 0: the interface's

    def __post_init__(self) -> None:
        self.requests: list[Seen] = []
        self.failures: list[AssertionError] = []  # what scripts found wrong
        self.path = ""  # where the gateway serves it, once it does
        self._peers: list[Peer] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        if self.receive_buffer:
            # Before the first connection: where a window shrinks later, the sender is left to its probes.
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self.receive_buffer)
        if self.segment_size:
            self._listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, self.segment_size)
        self.port: int = self._listener.getsockname()[1]
        self._spawn(self._accept)

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://{self.host}:{self.port}"

    @property
    def connections(self) -> int:
        """How many there have been."""
        return len(self._peers)

    @property
    def open_connections(self) -> int:
        return sum(peer.socket.fileno() >= 0 for peer in self._peers)

    def wait_for(self, count: int = 1) -> Seen:
        """The latest request, when ``count`` of them have come."""
        eventually(lambda: len(self.requests) >= count, TIMEOUT_S, f"request {count} at the upstream")
        return self.requests[-1]

    def _spawn(self, target: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self._spawn(self._serve, sock)

    def _serve(self, sock: socket.socket) -> None:
        sock.settimeout(TIMEOUT_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.tls is not None:
            try:
                sock = self.tls.wrap_socket(sock, server_side=True)
            except (OSError, ssl.SSLError):
                sock.close()
                return
        peer = Peer(self, sock, len(self._peers) + 1)
        self._peers.append(peer)
        try:
            self.script(peer)
        except AssertionError as error:
            self.failures.append(error)
        except OSError:
            pass  # the gateway has left, or the test is over
        finally:
            peer.close()

    def stop_listening(self) -> None:
        """New connections are refused from now on; what is open goes on."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def close(self) -> None:
        self.stop_listening()
        for peer in self._peers:
            with suppress(OSError):
                peer.socket.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(TIMEOUT_S)

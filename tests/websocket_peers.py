"""WebSockets frame by frame (RFC 6455): for tests that send what no library would."""

from __future__ import annotations

import os
from base64 import b64encode
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha1

from tests.dataplane import DataPlane
from tests.raw_http import Answer, Client, CutShort
from tests.scripted_upstream import Peer, Script, Seen

NONCE = "dGhlIHNhbXBsZSBub25jZQ=="
CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
VERSION = "Sec-WebSocket-Version: 13"
ASKS = ("Connection: Upgrade", "Upgrade: websocket", VERSION, f"Sec-WebSocket-Key: {NONCE}")


def accept_of(key: bytes) -> bytes:
    return b64encode(sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())


def frame(
    opcode: int,
    payload: bytes = b"",
    *,
    final: bool = True,
    masked: bool = True,
    reserved: int = 0,
    length: bytes = b"",
) -> bytes:
    """``length`` replaces the length octets that the payload would get (the second octet without its mask bit, and
    what follows)."""
    size = len(payload)
    if not length and size < 126:
        length = bytes((size,))
    elif not length:
        length = b"\x7e" + size.to_bytes(2) if size < 65536 else b"\x7f" + size.to_bytes(8)
    head = bytes((final << 7 | reserved << 4 | opcode, length[0] | masked << 7)) + length[1:]
    if not masked:
        return head + payload
    mask = os.urandom(4)
    return head + mask + xored(payload, mask)


def xored(payload: bytes, mask: bytes) -> bytes:
    size = len(payload)
    whole = int.from_bytes((mask * (size // 4 + 1))[:size])
    return (int.from_bytes(payload) ^ whole).to_bytes(size)


def close(code: int, reason: str = "", *, masked: bool = True) -> bytes:
    return frame(CLOSE, code.to_bytes(2) + reason.encode(), masked=masked)


@dataclass(frozen=True, slots=True)
class Frame:
    opcode: int
    payload: bytes
    is_final: bool = True
    is_masked: bool = False
    reserved: int = 0

    @property
    def code(self) -> int:
        """Of a Close frame."""
        assert self.opcode == CLOSE, self
        return int.from_bytes(self.payload[:2])


class Ended(Exception):
    """The connection ended where a frame was awaited."""


def read_frame(read: Callable[[int], bytes]) -> Frame:
    """``read`` returns exactly as many bytes as it is asked for."""
    try:
        first, second = read(2)
        length = second & 127
        if length == 126:
            length = int.from_bytes(read(2))
        elif length == 127:
            length = int.from_bytes(read(8))
        mask = read(4) if second & 128 else b""
        payload = read(length)
    except (CutShort, ConnectionAbortedError):
        raise Ended from None
    payload = xored(payload, mask) if mask else payload
    return Frame(first & 15, payload, bool(first & 128), bool(mask), first >> 4 & 7)


class Socket:
    """A client of the gateway's. Use it in a ``with`` statement."""

    def __init__(self, client: Client, answer: Answer) -> None:
        self.client = client
        self.answer = answer

    def __enter__(self) -> Socket:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.socket.close()

    def send(self, data: bytes) -> None:
        self.client.send(data)

    def read(self) -> Frame:
        return read_frame(self.client.exactly)


def ask(plane: DataPlane, path: str, *fields: str, key: str | None = "", without: tuple[str, ...] = ()) -> bytes:
    """The bytes of an opening handshake. ``without``: lines of the usual ones that are left out."""
    return plane.request("GET", path, *(line for line in ASKS if line not in without), *fields, key=key)


def open_socket(plane: DataPlane, path: str, *fields: str, **options: str | None) -> Socket:
    client = plane.connect()
    try:
        client.send(ask(plane, path, *fields, **options))  # type: ignore[arg-type]  # key alone
        answer = client.answer()
        assert answer.status == 101, answer
    except BaseException:
        client.socket.close()
        raise
    return Socket(client, answer)


class UpstreamEnd:
    """The upstream's end, after it has agreed."""

    def __init__(self, peer: Peer, asked: Seen) -> None:
        self.peer = peer
        self.asked = asked

    def send(self, data: bytes) -> None:
        self.peer.send(data)

    def read(self) -> Frame:
        return read_frame(self.peer.read)


def agreeing(then: Callable[[UpstreamEnd], None] | None = None, *fields: bytes, after: bytes = b"") -> Script:
    """Accepts the handshake with these further field lines, and ``after`` in the same breath; then does ``then``:
    to echo every frame by default."""

    def script(peer: Peer) -> None:
        asked = peer.read_request()
        if asked is None:
            return
        lines = [b"HTTP/1.1 101 Switching Protocols", b"Upgrade: websocket", b"Connection: Upgrade"]
        lines += [b"Sec-WebSocket-Accept: " + accept_of(asked.field("sec-websocket-key") or b""), *fields]
        peer.send(b"\r\n".join(lines) + b"\r\n\r\n" + after)
        (then or echo)(UpstreamEnd(peer, asked))

    return script


def echo(end: UpstreamEnd) -> None:
    try:
        while True:
            got = end.read()
            end.send(frame(got.opcode, got.payload, final=got.is_final, masked=False, reserved=got.reserved))
            if got.opcode == CLOSE:
                return
    except Ended:
        return

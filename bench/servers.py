"""Upstreams that nginx cannot be: ``python -m bench.servers sink|echo|slow PORT [MS]``, each a protocol on uvloop.

``sink`` reads a body and answers with its size; ``echo`` accepts WebSockets and sends every message back; ``slow``
answers each request after so many milliseconds.
"""

from __future__ import annotations

import asyncio
import base64
import re
import sys
from hashlib import sha1

import uvloop

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_KEY = re.compile(rb"\r\nsec-websocket-key: *(\S+)", re.IGNORECASE)
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 section 1.3
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"


class Server(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]  # a Transport for stream protocols
        self.buffer = b""


class Sink(Server):
    left = 0

    def data_received(self, data: bytes) -> None:
        if not self.left:
            self.buffer += data
            head, end, data = self.buffer.partition(b"\r\n\r\n")
            if not end:
                return
            self.buffer = b""
            length = _LENGTH.search(head)
            self.left = int(length[1]) if length else 0
        self.left -= len(data)
        if self.left <= 0:
            self.left = 0
            self.transport.write(ANSWER)


class Echo(Server):
    is_open = False

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        if not self.is_open:
            head, end, rest = self.buffer.partition(b"\r\n\r\n")
            key = _KEY.search(head)
            if not end or key is None:
                return
            accept = base64.b64encode(sha1(key[1] + _GUID).digest())  # what RFC 6455 asks for
            fields = b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "
            self.transport.write(b"HTTP/1.1 101 Switching Protocols\r\n" + fields + accept + b"\r\n\r\n")
            self.is_open, self.buffer = True, rest
        while len(self.buffer) >= 6:  # small masked frames alone
            size = self.buffer[1] & 127
            if len(self.buffer) < 6 + size:
                return
            mask, payload = self.buffer[2:6], self.buffer[6 : 6 + size]
            plain = bytes(octet ^ mask[place & 3] for place, octet in enumerate(payload))
            self.transport.write(bytes((self.buffer[0], size)) + plain)
            self.buffer = self.buffer[6 + size :]


class Slow(Server):
    delay_s = 0.0

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while b"\r\n\r\n" in self.buffer:
            self.buffer = self.buffer.partition(b"\r\n\r\n")[2]
            if self.delay_s:
                asyncio.get_running_loop().call_later(self.delay_s, self.transport.write, ANSWER)
            else:
                self.transport.write(ANSWER)


async def main(kind: str, port: int, delay_ms: float) -> None:
    Slow.delay_s = delay_ms / 1000
    protocol = {"sink": Sink, "echo": Echo, "slow": Slow}[kind]
    server = await asyncio.get_running_loop().create_server(protocol, "127.0.0.1", port, backlog=8192)
    print("ready", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]) if len(sys.argv) > 3 else 0.0))

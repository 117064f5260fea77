"""A target that fails on demand: ``python -m tests.faults.target PORT JOURNAL``; modes come as lines on standard input.

It answers with the request's id and a digest of its body. Before it answers it writes method and id to the journal,
which is what "done" means here.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import sys
import time
from hashlib import sha256

MODES = ("well", "hung", "slow", "flapping", "resetting", "garbage", "truncated")
SLOW_S = 0.15
FLAP_S = 0.5


class Target(asyncio.Protocol):
    mode = "well"
    journal = -1

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.buffer = b""

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while True:
            head, end, rest = self.buffer.partition(b"\r\n\r\n")
            if not end:
                return
            fields = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:])
            length = int(fields.get(b"content-length", b"0"))
            if len(rest) < length:
                return
            self.buffer = rest[length:]
            self.serve(head.split(b" ", 1)[0], fields[b"x-id"], rest[:length])

    def serve(self, method: bytes, request_id: bytes, body: bytes) -> None:
        mode = Target.mode
        if mode == "hung":
            return
        if mode == "flapping" and int(time.monotonic() / FLAP_S) % 2:
            self.transport.write(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\n\r\ndown")
            return
        os.write(Target.journal, method + b" " + request_id + b"\n")
        answer = request_id + b" " + sha256(body).hexdigest().encode()
        if mode == "resetting":
            peer: socket.socket = self.transport.get_extra_info("socket")
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.transport.abort()
        elif mode == "garbage":
            self.transport.write(b"\x00\xff HTTP/9 nonsense\r\n\r\n" + answer)
        elif mode == "truncated":
            self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + answer)
            self.transport.close()
        elif mode == "slow":
            asyncio.get_running_loop().call_later(SLOW_S, self.answer, answer)
        else:
            self.answer(answer)

    def answer(self, body: bytes) -> None:
        self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))


async def main(port: int, journal: str) -> None:
    Target.journal = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Target, "127.0.0.1", port)
    orders = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    print("ready", flush=True)
    while line := await orders.readline():
        Target.mode = line.decode().strip()
        print(Target.mode, flush=True)
    server.close()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), sys.argv[2]))

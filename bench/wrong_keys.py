"""Somebody who sends wrong keys: ``python -m bench.wrong_keys --port … --rate …`` prints its report as JSON.

Each request has another key and goes out on a connection that waits for no answer. When all of them wait, what is due
is not sent; that is the gateway's doing. wrk cannot keep to a rate, and takes the core from those who are measured.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import socket
import sys
import time
from collections import deque
from dataclasses import asdict, dataclass

_PAUSE_S = 0.001


@dataclass(frozen=True, slots=True)
class Report:
    """Per second. ``bad`` counts answers other than 4xx, and connections that ended, in all."""

    due: float
    answered: float
    bad: int


class Intruder:
    """``told`` is the address that a trusted proxy would name."""

    def __init__(self, port: int, path: str, source: str, told: str, connections: int) -> None:
        self._begin = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n".encode()
        if told:
            self._begin += f"X-Forwarded-For: {told}\r\n".encode()
        self._epoll = select.epoll()
        self._sockets: dict[int, socket.socket] = {}
        for _ in range(connections):
            connection = socket.create_connection(("127.0.0.1", port), source_address=(source, 0))
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._sockets[connection.fileno()] = connection
            self._epoll.register(connection, select.EPOLLIN)
        self._idle = deque(self._sockets)
        self.answered = self.bad = 0

    def run(self, rate: float, seconds: float) -> Report:
        start, due = time.perf_counter(), 0
        while (passed_s := time.perf_counter() - start) < seconds:
            before, due = due, int(passed_s * rate)
            for number in range(before, min(due, before + len(self._idle))):
                descriptor = self._idle.popleft()
                self._sockets[descriptor].send(b"%bX-API-Key: km_%048d\r\n\r\n" % (self._begin, number))
            for descriptor, _ in self._epoll.poll(_PAUSE_S):
                self._receive(descriptor)
        return Report(due / seconds, self.answered / seconds, self.bad)

    def _receive(self, descriptor: int) -> None:
        try:
            data = self._sockets[descriptor].recv(65536)
        except OSError:
            data = b""
        if not data:
            self._epoll.unregister(descriptor)
            self.bad += 1
        elif data.startswith(b"HTTP/1.1 "):  # else the rest of an answer
            self.answered += 1
            self.bad += data[9:10] != b"4"
            self._idle.append(descriptor)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--path", default="/")
    parser.add_argument("--source", default="127.0.0.1")
    parser.add_argument("--told", default="")
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--connections", type=int, default=32)
    options = parser.parse_args()
    os.nice(19)  # whoever is measured goes first
    intruder = Intruder(options.port, options.path, options.source, options.told, options.connections)
    json.dump(asdict(intruder.run(options.rate, options.seconds)), sys.stdout)


if __name__ == "__main__":
    main()

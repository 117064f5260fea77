"""An open-loop load generator: ``python -m bench.open_loop --port … --rate …`` prints its report as JSON.

Requests are due at random times (a Poisson process), whether or not earlier ones have been answered, and latency counts
from the moment when a request was due. wrk cannot do that: it sends a request when the one before is answered, so a
proxy that stalls is asked less often, and the requests that would have met the stall are never sent.

One thread, one epoll, no event loop: what the generator itself adds is in both figures, with and without the proxy,
and ``late_p99_ms`` (how long after its due time a request was sent) says how much it is.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import random
import re
import select
import socket
import sys
import time
from collections import deque
from dataclasses import asdict, dataclass

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_PATIENCE_S = 5.0  # for the last answers


@dataclass(frozen=True, slots=True)
class Report:
    """Latencies in milliseconds. ``bad`` counts answers other than 2xx, broken connections and missing answers."""

    requests: int
    bad: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    max_ms: float
    late_p99_ms: float


class Generator:
    """Keep-alive connections over which requests are sent when they are due, each on one that is idle."""

    def __init__(self, port: int, request: bytes, connections: int, source: str) -> None:
        self._request = request
        self._epoll = select.epoll()
        self._sockets: dict[int, socket.socket] = {}
        for _ in range(connections):
            connection = socket.create_connection(("127.0.0.1", port), source_address=(source, 0))
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.setblocking(False)
            self._sockets[connection.fileno()] = connection
            self._epoll.register(connection, select.EPOLLIN)
        self._idle = deque(self._sockets)
        self._due: dict[int, float] = {}  # by descriptor: when the request under way was due
        self._partial: dict[int, bytes] = {}  # by descriptor: the beginning of an answer
        self._waiting: deque[float] = deque()  # due, and no connection is idle
        self.latencies_s: list[float] = []
        self.delays_s: list[float] = []
        self.bad = 0

    def run(self, schedule: list[float]) -> None:
        """``schedule``: seconds from now, ascending."""
        start = time.perf_counter()
        times = deque(start + each for each in schedule)
        give_up = start + schedule[-1] + _PATIENCE_S
        while (times or self._due or self._waiting) and (now := time.perf_counter()) < give_up:
            while times and times[0] <= now:
                self._waiting.append(times.popleft())
            self._send_waiting()
            events = self._epoll.poll(0)
            for descriptor, _ in events:
                self._receive(descriptor)
            if not events:
                self._wait(times[0] if times else give_up)
        self.bad += len(times) + len(self._due) + len(self._waiting)

    def _wait(self, until: float) -> None:
        # epoll itself rounds to milliseconds; select waits for it with microseconds.
        pause_s = until - time.perf_counter()
        if pause_s > 0:
            select.select([self._epoll], [], [], pause_s)

    def _send_waiting(self) -> None:
        while self._waiting and self._idle:
            descriptor = self._idle.popleft()
            due = self._due[descriptor] = self._waiting.popleft()
            try:
                self._sockets[descriptor].send(self._request)
            except OSError:
                self._lose(descriptor)
            self.delays_s.append(time.perf_counter() - due)

    def _receive(self, descriptor: int) -> None:
        try:
            data = self._sockets[descriptor].recv(65536)
        except OSError:
            data = b""
        if not data:
            self._lose(descriptor)
            return
        answer = self._partial.pop(descriptor, b"") + data
        if not _is_whole(answer):
            self._partial[descriptor] = answer
            return
        self.latencies_s.append(time.perf_counter() - self._due.pop(descriptor))
        if answer[9:10] != b"2":
            self.bad += 1
        self._idle.append(descriptor)

    def _lose(self, descriptor: int) -> None:
        """The connection has ended, which no party should do."""
        self._epoll.unregister(descriptor)
        self._sockets.pop(descriptor).close()
        if self._due.pop(descriptor, None) is None:
            self._idle.remove(descriptor)
        self.bad += 1

    def close(self) -> None:
        self._epoll.close()
        for connection in self._sockets.values():
            connection.close()


def _is_whole(answer: bytes) -> bool:
    """Whether an answer with Content-Length has arrived to its end."""
    end = answer.find(b"\r\n\r\n")
    length = _LENGTH.search(answer, 0, end) if end >= 0 else None
    return length is not None and len(answer) >= end + 4 + int(length[1])


def poisson(rate: float, seconds: float, seed: int) -> list[float]:
    """Times of arrivals of a Poisson process of ``rate`` per second; the same for the same seed."""
    random_gaps = random.Random(seed)
    times, now = [], 0.0
    while (now := now + random_gaps.expovariate(rate)) < seconds:
        times.append(now)
    return times


def percentile(values: list[float], share: float) -> float:
    """The smallest value that is not below ``share`` of the values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else float("nan")


def generate(
    port: int, request: bytes, *, rate: float, seconds: float, connections: int, seed: int, source: str
) -> Report:
    """Half a second to warm up, then what counts."""
    generator = Generator(port, request, connections, source)
    gc.disable()
    try:
        generator.run(poisson(rate, 0.5, seed + 1))
        bad = generator.bad
        generator.latencies_s.clear()
        generator.delays_s.clear()
        generator.run(poisson(rate, seconds, seed))
    finally:
        gc.enable()
        generator.close()
    latencies, delays = generator.latencies_s, generator.delays_s
    ms = {name: 1000 * percentile(latencies, share) for name, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99))}
    return Report(
        len(latencies),
        max(bad, generator.bad),
        ms["p50"],
        ms["p90"],
        ms["p99"],
        1000 * max(latencies, default=float("nan")),
        1000 * percentile(delays, 0.99),
    )


def _go_first() -> None:
    """Whenever something is due, before whatever else runs on this core, if we may (sched(7)). Then other work of the
    machine is not taken for latency."""
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--path", default="/")
    parser.add_argument("--source", default="127.0.0.1")
    parser.add_argument("--header", action="append", default=[])
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    _go_first()
    lines = [f"GET {options.path} HTTP/1.1", f"Host: 127.0.0.1:{options.port}", *options.header, "", ""]
    report = generate(
        options.port,
        "\r\n".join(lines).encode(),
        rate=options.rate,
        seconds=options.seconds,
        connections=options.connections,
        seed=options.seed,
        source=options.source,
    )
    json.dump(asdict(report), sys.stdout)


if __name__ == "__main__":
    main()

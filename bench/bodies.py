"""Large bodies both ways: throughput beside nginx, and that memory stays flat."""

from __future__ import annotations

import socket
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

from bench.load import memory_mb
from bench.lone_worker import HEADER, LoneWorker, service
from bench.machine import GATEWAY_CORE, LOAD_CORE, CannotMeasure, Stage, eventually, free_port
from bench.peers import nginx_conf
from bench.plain_http import answers
from bench.report import TIMES, Bar, report, say, table

MIB = 2**20
SIZES = {"1 MiB": 1, "100 MiB": 100}
_MOVED_MIB = 200  # by each measurement
_FLAT_MB = 24.0
_PIECE = bytes(256 * 1024)


@dataclass(frozen=True, slots=True)
class Place:
    """Somebody who forwards; ``pid`` None where memory is not looked at."""

    name: str
    port: int
    down: str
    up: str
    pid: int | None = None


def run(*, rounds: int) -> None:
    """Raises CannotMeasure."""
    say("Large bodies: throughput beside nginx")
    with ExitStack() as stages:
        ours, nginx = _places(stages.enter_context(Stage()))
        assert ours.pid is not None
        before_mb, _ = memory_mb(ours.pid)
        ratios: dict[str, list[float]] = {}
        speeds: dict[str, list[tuple[float, float]]] = {}
        for number in range(1, rounds + 1):
            say(f"  round {number} of {rounds}")
            for size, mib in SIZES.items():
                for way, move in (("down", _down), ("up", _up)):
                    pair = (_speed(ours, way, move, mib), _speed(nginx, way, move, mib))
                    speeds.setdefault(f"{size} {way}", []).append(pair)
                    ratios.setdefault(f"{size} {way}", []).append(pair[0] / pair[1])
        after_mb, _ = memory_mb(ours.pid)
    medians = {
        name: tuple(statistics.median(column) for column in zip(*each, strict=True)) for name, each in speeds.items()
    }
    shares = {name: statistics.median(each) for name, each in ratios.items()}
    say()
    rows: list[list[str | float]] = [
        [name, *(f"{speed:.0f}" for speed in medians[name]), shares[name]] for name in medians
    ]
    say(table(("MiB per second", "gateway", "nginx", "of nginx"), rows))
    say(f"Memory of the worker: {before_mb:.0f} MB before, {after_mb:.0f} MB after.")
    bars = [Bar(f"nginx's throughput, {name}, of ours", 1 / shares[name], 2.0, TIMES) for name in shares]
    bars.append(Bar("growth of the worker's memory", after_mb - before_mb, _FLAT_MB, "MB"))
    results = {"mib_per_s": medians, "of_nginx": shares, "memory_mb": {"before": before_mb, "after": after_mb}}
    report("bodies", results, bars)


def _places(stage: Stage) -> tuple[Place, Place]:
    files, sink = free_port(), free_port()
    for mib in SIZES.values():
        with (stage.directory / f"{mib}.bin").open("wb") as file:
            file.truncate(mib * MIB)
    server = f"listen 127.0.0.1:{files}; root {stage.directory}; sendfile off;"
    stage.start(LOAD_CORE, "nginx", "-c", nginx_conf(stage.directory, "files", server))
    stage.start(LOAD_CORE, sys.executable, "-m", "bench.servers", "sink", str(sink))
    eventually(lambda: answers(files, "/1.bin"), "a file of the upstream")
    worker = LoneWorker(
        stage, [service("files", f"http://127.0.0.1:{files}"), service("sink", f"http://127.0.0.1:{sink}")]
    ).wait("sink")
    ours = Place("gateway", worker.port, "/api/v1/files/{}.bin", "/api/v1/sink/x", worker.process.pid)
    port = free_port()
    proxy = (
        f"listen 127.0.0.1:{port}; client_max_body_size 0; proxy_http_version 1.1; proxy_set_header Connection '';"
        " proxy_request_buffering off; proxy_max_temp_file_size 0;"
        f" location /files/ {{ proxy_pass http://127.0.0.1:{files}/; }}"
        f" location /sink/ {{ proxy_pass http://127.0.0.1:{sink}/; }}"
    )
    stage.start(GATEWAY_CORE, "nginx", "-c", nginx_conf(stage.directory, "proxy", proxy))
    nginx = Place("nginx", port, "/files/{}.bin", "/sink/x")
    eventually(lambda: answers(port, "/files/1.bin"), "a file through nginx")
    return ours, nginx


def _speed(place: Place, way: str, move: Callable[[socket.socket, str, int], None], mib: int) -> float:
    """MiB per second over one kept connection. Raises CannotMeasure."""
    times = max(1, _MOVED_MIB // mib // (1 if mib > 1 else 4))
    path = place.down.format(mib) if way == "down" else place.up
    with socket.create_connection(("127.0.0.1", place.port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        move(connection, path, mib * MIB)
        began = time.perf_counter()
        for _ in range(times):
            move(connection, path, mib * MIB)
        return times * mib / (time.perf_counter() - began)


def _down(connection: socket.socket, path: str, size: int) -> None:
    connection.sendall(f"GET {path} HTTP/1.1\r\nHost: bench\r\n{HEADER}\r\n\r\n".encode())
    head = _head(connection)
    left = size - len(head.partition(b"\r\n\r\n")[2])
    buffer = bytearray(len(_PIECE))
    while left > 0:
        received = connection.recv_into(buffer, min(left, len(buffer)))
        if not received:
            raise CannotMeasure("an answer broke off")
        left -= received


def _up(connection: socket.socket, path: str, size: int) -> None:
    head = f"POST {path} HTTP/1.1\r\nHost: bench\r\n{HEADER}\r\nContent-Length: {size}\r\n\r\n"
    connection.sendall(head.encode())
    for _ in range(size // len(_PIECE)):
        connection.sendall(_PIECE)
    answer = _head(connection)
    while not answer.endswith(b"{}"):
        answer += connection.recv(4096)


def _head(connection: socket.socket) -> bytes:
    received = b""
    while b"\r\n\r\n" not in received:
        piece = connection.recv(65536)
        if not piece:
            raise CannotMeasure("the connection was closed before an answer")
        received += piece
    if not received.startswith(b"HTTP/1.1 200 "):
        raise CannotMeasure(f"the answer is {received[:120]!r}")
    return received

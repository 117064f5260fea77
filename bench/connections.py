"""Many connections: 10,000 that are idle while others work, and 1,000 WebSockets that echo."""

from __future__ import annotations

import os
import select
import socket
import statistics
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass

from bench.load import Party, cpu_s, memory_mb, run_wrk
from bench.lone_worker import HEADER, LoneWorker, service
from bench.machine import GATEWAY_CORE, LOAD_CORE, CannotMeasure, Stage, eventually, free_port
from bench.peers import nginx_conf, start_upstream
from bench.plain_http import answers
from bench.report import Bar, report, say, table

IDLE, ACTIVE, SOCKETS = 10_000, 1_000, 1_000
MESSAGES = 20  # of each socket
_UPGRADE = (
    "GET {} HTTP/1.1\r\nHost: bench\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    f"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n{HEADER}\r\n\r\n"
)
_FRAME = b"\x81\x8a\0\0\0\0" + b"0123456789"  # masked with zeros
_PATIENCE_S = 60.0


@dataclass(frozen=True, slots=True)
class Echoed:
    """``cpu_us`` of the proxy for each message, there and back."""

    cpu_us: float
    p50_ms: float
    p99_ms: float
    kib_each: float


def run() -> None:
    """Raises CannotMeasure."""
    say("Many connections")
    with ExitStack() as stages:
        stage = stages.enter_context(Stage())
        upstream, echo = start_upstream(stage), free_port()
        stage.start(LOAD_CORE, sys.executable, "-m", "bench.servers", "echo", str(echo))
        services = [service("plain", f"http://127.0.0.1:{upstream}"), service("echo", f"http://127.0.0.1:{echo}")]
        idle_kib, per_second = _idle(LoneWorker(stage, services).wait())
        say(
            f"  {IDLE:,} idle clients: {idle_kib:.1f} KiB each; {ACTIVE:,} active ones beside them: {per_second:,.0f}/s"
        )
        worker = LoneWorker(stage, services).wait()
        ours = _echo(worker.party("gateway", "echo"))
        port = free_port()
        proxy = (
            f"listen 127.0.0.1:{port} backlog=8192; location / {{ proxy_http_version 1.1;"
            f" proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection Upgrade;"
            f" proxy_pass http://127.0.0.1:{echo}; }}"
        )
        process = stage.start(GATEWAY_CORE, "nginx", "-c", nginx_conf(stage.directory, "websockets", proxy))
        eventually(lambda: _is_open(port), "a socket at nginx")
        nginx = _echo(Party("nginx", process.pid, port, "/api/v1/echo/abc", (HEADER,)))
    say()
    rows = [
        (name, each.cpu_us, each.p50_ms, each.p99_ms, each.kib_each)
        for name, each in (("gateway", ours), ("nginx", nginx))
    ]
    say(table((f"{SOCKETS:,} WebSockets", "CPU µs per echo", "p50 ms", "p99 ms", "KiB each"), rows))
    results = {
        "idle": {"clients": IDLE, "kib_each": idle_kib, "active": ACTIVE, "active_per_second": per_second},
        "websockets": {
            "count": SOCKETS,
            "gateway_cpu_us": ours.cpu_us,
            "nginx_cpu_us": nginx.cpu_us,
            "p99_ms": ours.p99_ms,
        },
    }
    report("connections", results, [Bar("memory of an idle client", idle_kib, 16.0, "KiB")])


def _is_open(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), 1):
            return True
    except OSError:
        return False


def _idle(worker: LoneWorker) -> tuple[float, float]:
    """KiB for each idle client, and the requests per second of the active ones meanwhile."""
    active = worker.party("active", "plain")
    run_wrk(active, 2, ACTIVE)  # so that what they need is there before
    before_mb, _ = memory_mb(worker.process.pid)
    request = f"GET {worker.path('plain')} HTTP/1.1\r\nHost: bench\r\n{HEADER}\r\n\r\n".encode()
    clients = []
    try:
        for _ in range(IDLE):
            client = socket.create_connection(("127.0.0.1", worker.port), 10)
            clients.append(client)
            client.sendall(request)
            if not client.recv(4096).startswith(b"HTTP/1.1 200"):
                raise CannotMeasure("an idle client was not served")
        time.sleep(1.0)
        after_mb, _ = memory_mb(worker.process.pid)
        per_second = run_wrk(active, 3, ACTIVE).per_second
        if not answers(worker.port, worker.path("plain"), (HEADER,)):
            raise CannotMeasure("the worker serves nobody any more")
    finally:
        for client in clients:
            client.close()
    return (after_mb - before_mb) * 1024 / IDLE, per_second


def _echo(party: Party) -> Echoed:
    """Each socket sends a message as soon as the one before has come back."""
    before_mb, _ = memory_mb(_served_by(party.pid))
    sockets = {connection.fileno(): connection for connection in (_opened(party) for _ in range(SOCKETS))}
    after_mb, _ = memory_mb(_served_by(party.pid))
    poll = select.epoll()
    sent_at, left, latencies = dict.fromkeys(sockets, 0.0), dict.fromkeys(sockets, MESSAGES), []
    for descriptor in sockets:
        poll.register(descriptor, select.EPOLLIN)
    spent_s, give_up = cpu_s(party.pid), time.monotonic() + _PATIENCE_S
    for descriptor, connection in sockets.items():
        sent_at[descriptor] = time.perf_counter()
        connection.send(_FRAME)
    while any(left.values()):
        if time.monotonic() > give_up:
            raise CannotMeasure(f"{sum(left.values())} messages did not come back through {party.name}")
        for descriptor, _ in poll.poll(1.0):
            if not sockets[descriptor].recv(4096):
                raise CannotMeasure(f"{party.name} has closed a socket")
            now = time.perf_counter()
            latencies.append(1000 * (now - sent_at[descriptor]))
            left[descriptor] -= 1
            if left[descriptor]:
                sent_at[descriptor] = now
                sockets[descriptor].send(_FRAME)
    spent_s = cpu_s(party.pid) - spent_s
    for connection in sockets.values():
        connection.close()
    return Echoed(
        1e6 * spent_s / (SOCKETS * MESSAGES),
        statistics.median(latencies),
        sorted(latencies)[int(0.99 * len(latencies))],
        (after_mb - before_mb) * 1024 / SOCKETS,
    )


def _served_by(pid: int) -> int:
    """The process that has the connections: nginx's worker is a child."""
    children = [
        child
        for task in os.listdir(f"/proc/{pid}/task")
        for child in _read(f"/proc/{pid}/task/{task}/children").split()
    ]
    return int(children[0]) if children else pid


def _read(path: str) -> str:
    with open(path) as file:
        return file.read()


def _opened(party: Party) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", party.port), 10)
    connection.sendall(_UPGRADE.format(party.path).encode())
    answer = b""
    while b"\r\n\r\n" not in answer:
        piece = connection.recv(4096)
        answer += piece
        if not piece or not b"HTTP/1.1 101".startswith(answer[:12]):
            raise CannotMeasure(f"{party.name} opens no WebSocket: {answer[:100]!r}")
    return connection

"""What a slow target does to everybody: p99 by strategy when one target of ten is slow."""

from __future__ import annotations

import statistics
import sys
from contextlib import ExitStack

from bench.latency import generate
from bench.load import run_wrk
from bench.lone_worker import HEADER, LoneWorker, service
from bench.machine import LOAD_CORE, Stage, eventually, free_port
from bench.open_loop import Report
from bench.plain_http import answers
from bench.report import Bar, report, say, table

STRATEGIES = ("round_robin", "weighted", "ip_hash", "least_connections", "peak_ewma")
TARGETS, SLOW_MS, RATE = 10, 60, 500.0


def run(*, rounds: int, seconds: int) -> None:
    """Raises CannotMeasure."""
    say(f"One of {TARGETS} targets takes {SLOW_MS} ms: {RATE:,.0f} requests/s by each strategy")
    with ExitStack() as stages:
        stage = stages.enter_context(Stage())
        ports = [free_port() for _ in range(TARGETS)]
        for place, port in enumerate(ports):
            delay = str(SLOW_MS) if place == 0 else "0"
            stage.start(LOAD_CORE, sys.executable, "-m", "bench.servers", "slow", str(port), delay)
        for port in ports:
            eventually(lambda port=port: answers(port, "/"), "an answer of a target")  # type: ignore[misc]
        urls = [f"http://127.0.0.1:{port}" for port in ports]
        services = [
            service(name.replace("_", "-"), urls[0], *urls, load_balancing={"strategy": name}) for name in STRATEGIES
        ]
        worker = LoneWorker(stage, services).wait()
        reports: dict[str, list[Report]] = {name: [] for name in STRATEGIES}
        for number in range(1, rounds + 1):
            say(f"  round {number} of {rounds}")
            for name in STRATEGIES:
                reports[name].append(_generate(worker, name.replace("_", "-"), seconds, number))
    medians = {
        name: tuple(
            statistics.median(getattr(each, field) for each in made) for field in ("p50_ms", "p90_ms", "p99_ms")
        )
        for name, made in reports.items()
    }
    say()
    say(table(("ms", "p50", "p90", "p99"), [(name, *figures) for name, figures in medians.items()]))
    best = medians["peak_ewma"]
    bars = [Bar("p90 of peak EWMA, of round robin's p99", best[1] / medians["round_robin"][2], 0.5, "x")]
    report("balancers", {"targets": TARGETS, "slow_ms": SLOW_MS, "rate": RATE, "ms": medians}, bars)


def _generate(worker: LoneWorker, name: str, seconds: int, seed: int) -> Report:
    run_wrk(worker.party(name, name), 1, 16)  # so that what is slow is known
    return generate(worker.port, RATE, seconds, seed, [HEADER], worker.path(name))

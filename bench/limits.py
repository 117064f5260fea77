"""What limits cost: decisions in process, and requests of a worker without sockets with further limits or none."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args

import uvloop

from access.limits.charges import Algorithm, Charge, LimitPolicy, compiled
from access.limits.local import LocalLimiter
from access.policies import LimitRule
from bench import in_process
from bench.report import Bar, report, say, table
from tests.wires import limit_wire

_DECISIONS = 100_000
_BUCKETS = 10_000
_REQUESTS = 4_000
_ROUNDS = 7
_LEAST = 100_000  # decisions/s
_FURTHER: dict[str, list[dict[str, Any]]] = {
    "no further limit": [],
    "1 further limit": [limit_wire("lim_1", name="burst", limit=100_000_000)],
    "3 further limits": [
        limit_wire("lim_1", name="burst", limit=100_000_000),
        limit_wire("lim_2", name="smooth", limit=100_000_000, algorithm="sliding_window", per=["key", "endpoint"]),
        limit_wire("lim_3", name="open", limit=1_000, algorithm="concurrency", per=["application"]),
    ],
    "10,000 limits elsewhere": [
        limit_wire(f"lim_{number}", name=f"limit {number}", services=[f"s{number % 900}"]) for number in range(10_000)
    ],
}


def run() -> None:
    """Raises CannotMeasure."""
    say(f"Decisions in process on {_BUCKETS:,} budgets, one core")
    decisions = _decisions()
    say(table(("decisions/s", "admitted", "refused"), [(name, *pair) for name, pair in decisions.items()]))
    say()
    say("A worker without sockets")
    with TemporaryDirectory(prefix="bench-") as directory:
        requests_us = uvloop.run(_requests(Path(directory)))
    base = requests_us["no further limit"]
    say(table(("µs for each request", "", "of none"), [(name, us, us / base) for name, us in requests_us.items()]))
    slowest = min(min(pair) for pair in decisions.values())
    bars = [
        Bar("100,000 decisions/s, of the slowest algorithm's", _LEAST / slowest, 1.0, "x"),
        Bar("10,000 limits that hold elsewhere, of none", requests_us["10,000 limits elsewhere"] / base, 1.05, "x"),
    ]
    report("limits", {"decisions_per_s": decisions, "requests_us": requests_us}, bars)


def _decisions() -> dict[str, tuple[float, float]]:
    """By algorithm; the fastest round counts."""
    found = {"base limit": _rates(_base)}
    for algorithm in get_args(Algorithm):
        if algorithm != "quota":  # which the worker counts in a book of its own
            found[algorithm] = _rates(lambda limit, algorithm=algorithm: _further(algorithm, limit))  # type: ignore[misc]
    return found


def _rates(decider: Callable[[int], Callable[[str, int], Any]]) -> tuple[float, float]:
    """Per second, of a limit that admits all and of one that admits one request."""
    return tuple(round(_rate(decider(limit))) for limit in (100_000, 1))  # type: ignore[return-value]


def _rate(decide: Callable[[str, int], Any]) -> float:
    buckets = [f"key:key_{number:08}" for number in range(_BUCKETS)]
    best, now = float("inf"), time.monotonic_ns()
    for _ in range(3):
        gc.collect()
        began = time.process_time()
        for number in range(_DECISIONS):
            decide(buckets[number % _BUCKETS], now)
        best = min(best, time.process_time() - began)
    return _DECISIONS / best


def _base(limit: int) -> Callable[[str, int], Any]:
    limiter, policy = LocalLimiter(), LimitPolicy.of("app_1", "default", limit, 86_400)
    return lambda bucket, now: limiter.charge(policy, bucket, now / 1e9)


def _further(algorithm: Algorithm, limit: int) -> Callable[[str, int], Any]:
    limiter = LocalLimiter()
    rule = LimitRule(limit=limit, window_s=86_400, algorithm=algorithm, queue=10_000 if limit > 1 else 0)
    policy = compiled("lim_1", "burst", rule)
    return lambda bucket, now: limiter.charge_all((Charge(policy, bucket, 1),), now)


async def _requests(directory: Path) -> dict[str, float]:
    """The workers take turns; the fastest batch of each counts, since whatever makes one slower is the machine."""
    best = dict.fromkeys(_FURTHER, float("inf"))
    async with AsyncExitStack() as stack:
        workers: dict[str, in_process.Worker] = {}
        for name, limits in _FURTHER.items():
            place = directory / str(len(workers))
            place.mkdir()
            workers[name] = await stack.enter_async_context(in_process.worker(place, limits))
        request = in_process.request()
        for _ in range(_ROUNDS):
            for name, worker in workers.items():
                began = time.process_time_ns()
                for _ in range(_REQUESTS):
                    worker.serve(request)
                best[name] = min(best[name], (time.process_time_ns() - began) / _REQUESTS / 1000)
    return {name: round(us, 2) for name, us in best.items()}

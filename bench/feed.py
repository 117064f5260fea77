"""The way of a change: from the admin API's answer to the first request that sees it, and what it costs a worker."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass
from pathlib import Path

from bench.changes import Changes
from bench.databases import LARGE, Database, Databases, run_seed
from bench.gateways import WORKER, Gateway
from bench.machine import Stage, eventually
from bench.open_loop import percentile
from bench.probed_worker import THRESHOLD_S
from bench.report import Bar, report, say, table

PROBED = "bench.probed_worker"
RELOADED = 600  # services in one revision: so many that workers load everything anew
_SETTLE_S = 0.02
_TITLES = ("ms", "changes", "write p50", "seen p50", "p99", "max", "waiting write p50", "p99", "pending", "stale")
_AFTERMATH_S = 3.0  # in which a worker lets go of the former configuration


@dataclass(frozen=True, slots=True)
class Propagation:
    """``seen``: from the answer of a write that did not wait to the end of the first request that sees the change.
    ``stale``: requests after the answer of a write that waited which do not see it; ``pending``: such answers that
    named a node which has not applied it."""

    changes: int
    write_p50_ms: float
    seen_p50_ms: float
    seen_p99_ms: float
    seen_max_ms: float
    waiting_write_p50_ms: float
    waiting_write_p99_ms: float
    pending: int
    stale: int


@dataclass(frozen=True, slots=True)
class Gap:
    """A turn of the loop that ended at ``at_s`` (monotonic)."""

    at_s: float
    wall_ms: float
    cpu_ms: float


_NO_GAP = Gap(0.0, THRESHOLD_S * 1000, THRESHOLD_S * 1000)


@dataclass(frozen=True, slots=True)
class Blockage:
    """The longest turns of a worker's loop: by the wall clock, and in CPU time of the loop's thread."""

    wall_p50_ms: float
    wall_p99_ms: float
    wall_max_ms: float
    cpu_p50_ms: float
    cpu_p99_ms: float
    cpu_max_ms: float

    @classmethod
    def of(cls, gaps: Sequence[Gap]) -> Blockage:
        wall, cpu = [gap.wall_ms for gap in gaps], [gap.cpu_ms for gap in gaps]
        return cls(
            *(statistics.median(wall), percentile(wall, 0.99), max(wall)),
            *(statistics.median(cpu), percentile(cpu, 0.99), max(cpu)),
        )


def run(databases: Databases, *, changes: int) -> None:
    """Raises CannotMeasure."""
    say(f"The way of a change among {LARGE}")
    propagations = {kind: _propagation(databases.get(LARGE, kind), changes) for kind in databases.kinds}
    change, reload = _blockage(databases.get(LARGE), changes)
    say()
    say(table(_TITLES, [(kind, *astuple(each)) for kind, each in propagations.items()]))
    say()
    rows = [("by one change", *astuple(change)), ("by a full load", *astuple(reload))]
    say(table(("loop blocked, ms", "wall p50", "p99", "max", "CPU p50", "p99", "max"), rows))
    results = {
        "scale": str(LARGE),
        "propagation": {kind: asdict(each) for kind, each in propagations.items()},
        "blockage": {"change": asdict(change), "full_load": asdict(reload)},
    }
    report("feed", results, _bars(propagations, change, reload))


def _bars(propagations: dict[str, Propagation], change: Blockage, reload: Blockage) -> list[Bar]:
    bars = []
    for kind, each in propagations.items():
        bars.append(Bar(f"from the admin's answer to the first request, p99, {kind}", each.seen_p99_ms, 100.0, "ms"))
        bars.append(Bar(f"stale requests after a write that waited, {kind}", float(each.stale), 0.0, ""))
    bars.append(Bar("loop blocked by one change, the longest", change.cpu_max_ms, 2.0, "ms"))
    bars.append(Bar("loop blocked by a full load, the longest", reload.cpu_max_ms, 2.0, "ms"))
    return bars


@contextmanager
def _running(database: Database, worker: str, *arguments: str) -> Iterator[tuple[Gateway, Changes]]:
    with Stage() as stage:
        gateway = Gateway(stage, database)
        gateway.start_agent()
        gateway.start_control()
        gateway.start_worker(worker, *arguments)
        gateway.wait_until_it_serves()
        eventually(gateway.control_answers, "an answer of the admin API")
        changes = Changes(gateway)
        try:
            yield gateway, changes
        finally:
            changes.close()


def _propagation(database: Database, count: int) -> Propagation:
    with _running(database, WORKER) as (_, changes):
        say(f"  {count} changes on {database.kind} without waiting")
        writes, seen = [], []
        for number in range(count):
            began = time.perf_counter()
            changes.write(number, "wait=0")
            answered = time.perf_counter()
            changes.wait_until_seen(number)
            seen.append(1000 * (time.perf_counter() - answered))
            writes.append(1000 * (answered - began))
        say(f"  {count} changes on {database.kind} with waiting")
        waiting, pending, stale = [], 0, 0
        for number in range(count, 2 * count):
            began = time.perf_counter()
            pending += not changes.write(number)
            waiting.append(1000 * (time.perf_counter() - began))
            if not changes.is_seen(number):
                stale += 1
                changes.wait_until_seen(number)
    return Propagation(
        count,
        statistics.median(writes),
        statistics.median(seen),
        percentile(seen, 0.99),
        max(seen),
        statistics.median(waiting),
        percentile(waiting, 0.99),
        pending,
        stale,
    )


def _blockage(database: Database, count: int) -> tuple[Blockage, Blockage]:
    """By single changes, and by everything being loaded anew."""
    with Stage() as stage:
        path = stage.directory / "gaps"
        with _running(database, PROBED, str(path)) as (gateway, changes):
            say(f"  {count} changes with a probe in the worker's loop")
            windows = []
            for number in range(count):
                began = time.monotonic()
                changes.write(number, "wait=0")
                changes.wait_until_seen(number)
                time.sleep(_SETTLE_S)
                windows.append((began, time.monotonic()))
            say("  a full load with a probe in the worker's loop")
            began = time.monotonic()
            made = run_seed(gateway.environment, "touch", "--services", str(RELOADED))
            eventually(lambda: changes.revision() >= int(made["revision"]), "the full load")
            time.sleep(_AFTERMATH_S)
            reload = (began, time.monotonic())
        gaps = _read(path)
    return Blockage.of([_longest(gaps, window) for window in windows]), Blockage.of(_within(gaps, reload))


def _read(path: Path) -> list[Gap]:
    return [Gap(*map(float, line.split())) for line in path.read_text().splitlines()]


def _within(gaps: Sequence[Gap], window: tuple[float, float]) -> list[Gap]:
    began, ended = window
    return [gap for gap in gaps if began <= gap.at_s <= ended] or [_NO_GAP]


def _longest(gaps: Sequence[Gap], window: tuple[float, float]) -> Gap:
    return max(_within(gaps, window), key=lambda gap: gap.cpu_ms)

"""Measures the gateway on this machine: ``python -m bench [cpu|latency|memory|feed|start|steps|all]``.

Tables and bars are printed; ``bench/results/`` keeps the newest run of each kind. ``docs/benchmarks.md`` says what is
measured, and why. The exit code is 1 when something could not be measured, which any answer other than 2xx brings
about; a bar that is not met is a figure, not a failure.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

from bench import (
    balancers,
    bodies,
    connections,
    cpu,
    feed,
    intruders,
    latency,
    limits,
    logins,
    memory,
    shared_limits,
    start,
    steps,
    tokens,
    traffic,
    workers,
)
from bench.databases import Databases
from bench.machine import LOAD_AT_START, CannotMeasure, Stage, check_programs, prepared
from bench.peers import PROGRAMS, start_upstream
from bench.report import say

KINDS = (
    "cpu",
    "latency",
    "memory",
    "feed",
    "start",
    "steps",
    "traffic",
    "bodies",
    "connections",
    "balancers",
    "limits",
    "workers",
    "shared-limits",
    "intruders",
    "tokens",
    "logins",
)
_NEEDS = {"cpu": PROGRAMS, "all": PROGRAMS, "feed": ("taskset", "nginx"), "start": ("taskset", "nginx")}
_IDLE = 0.5
_NEEDS_OTHERWISE = ("taskset", "nginx", "wrk")


def main() -> None:
    options = _options()
    began = time.monotonic()
    try:
        check_programs(_NEEDS.get(options.kind, _NEEDS_OTHERWISE))
        if LOAD_AT_START > _IDLE:
            say(f"The machine has other work (load average {LOAD_AT_START:.1f}): latencies will say little.")
        with prepared(), Stage() as stage:
            upstream_port = start_upstream(stage)
            with Databases(f"http://127.0.0.1:{upstream_port}") as databases:
                for measure in _measurements(options, databases, upstream_port):
                    measure()
                    say()
    except CannotMeasure as error:
        sys.exit(f"bench: {error}")
    except KeyboardInterrupt:
        sys.exit("bench: interrupted")
    say(f"done in {time.monotonic() - began:.0f} s")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", nargs="?", default="all", choices=(*KINDS, "all"))
    parser.add_argument("--rounds", type=int, default=5, help="of cpu and latency; medians of them count")
    parser.add_argument("--seconds", type=int, default=3, help="of load in one measurement")
    parser.add_argument("--changes", type=int, default=201, help="of each kind of feed")
    options = parser.parse_args()
    if min(options.rounds, options.seconds, options.changes) < 1:
        parser.error("rounds, seconds and changes are at least 1")
    return options


def _measurements(options: argparse.Namespace, databases: Databases, upstream_port: int) -> list[Callable[[], None]]:
    effort = {"rounds": options.rounds, "seconds": options.seconds}
    by_kind: dict[str, Callable[[], None]] = {
        "cpu": lambda: cpu.run(databases, upstream_port, **effort),
        "latency": lambda: latency.run(databases, upstream_port, **effort),
        "memory": lambda: memory.run(databases, seconds=options.seconds),
        "feed": lambda: feed.run(databases, changes=options.changes),
        "start": lambda: start.run(databases),
        "steps": steps.run,
        "traffic": lambda: traffic.run(**effort),
        "bodies": lambda: bodies.run(rounds=options.rounds),
        "connections": connections.run,
        "balancers": lambda: balancers.run(**effort),
        "limits": limits.run,
        "workers": lambda: workers.run(**effort),
        "logins": lambda: logins.run(databases, seconds=options.seconds),
        "shared-limits": lambda: shared_limits.run(**effort),
        "intruders": lambda: intruders.run(**effort),
        "tokens": lambda: tokens.run(**effort),
    }
    return [by_kind[kind] for kind in (KINDS if options.kind == "all" else (options.kind,))]


if __name__ == "__main__":
    main()

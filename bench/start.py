"""How long it takes from starting the gateway until it serves, with a large configuration."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable

from bench.databases import LARGE, POSTGRES, Databases
from bench.gateways import READY_S, Gateway
from bench.machine import CannotMeasure, Stage, end, eventually, free_port
from bench.report import Bar, report, say

_POLL_S = 0.01
_STOP_S = 60.0


def run(databases: Databases) -> None:
    """Raises CannotMeasure."""
    say("Start until the first answer")
    database = databases.get(LARGE)
    with Stage() as stage:
        gateway = Gateway(stage, database)
        seconds = {f"the whole gateway, from {database.kind}": _timed(gateway, gateway.start_all)}
        snapshot_mb = _snapshot_mb(gateway)
        gateway.worker_settings()  # not part of what is timed: the supervisor has them
        seconds["a worker, from the last good snapshot, the agent away"] = _timed(gateway, gateway.start_worker)
        if database.kind == POSTGRES:
            without = Gateway(stage, database, DATABASE_URL=f"postgres://nobody@127.0.0.1:{free_port()}/none")
            name = "the whole gateway, from the last good snapshot, the database away"
            seconds[name] = _timed(without, without.start_all)
    say()
    for name, taken_s in seconds.items():
        say(f"{taken_s:6.2f} s  {name}")
    from_database_s, from_snapshot_s, *_ = seconds.values()
    bars = [
        Bar(f"ready from the database with {LARGE}", from_database_s, 15.0, "s"),
        Bar("worker ready from the last good snapshot of these", from_snapshot_s, 2.0, "s"),
    ]
    report("start", {"scale": str(LARGE), "seconds": seconds, "snapshot_mb": snapshot_mb}, bars)


def _timed(gateway: Gateway, start: Callable[[], subprocess.Popen[bytes]]) -> float:
    """Seconds from starting to the first answer of the service that is measured; then everything is stopped."""
    began = time.monotonic()
    process = start()
    try:
        eventually(gateway.serves, "an answer of the gateway", READY_S, _POLL_S)
        return time.monotonic() - began
    except CannotMeasure as error:
        raise CannotMeasure(f"{error}:\n{gateway.output()}") from None
    finally:
        end(process, _STOP_S)


def _snapshot_mb(gateway: Gateway) -> float:
    """The size of what the agent has left behind when it ended. Raises CannotMeasure when it has left nothing."""
    path = gateway.var_dir / "snapshot.bin"
    if not path.exists():
        raise CannotMeasure(f"the agent has left no snapshot:\n{gateway.output()}")
    return path.stat().st_size / 2**20

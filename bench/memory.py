"""Memory of a worker, by how much configuration it holds."""

from __future__ import annotations

from dataclasses import asdict, astuple, dataclass

from bench.databases import LARGE, SMALL, Database, Databases
from bench.gateways import Gateway
from bench.load import memory_mb, run_wrk
from bench.machine import Stage
from bench.report import Bar, report, say, table

_BARS_MB = {SMALL: 60.0, LARGE: 200.0}


@dataclass(frozen=True, slots=True)
class Footprint:
    """MB of 2**20 bytes; ``pss``: what is shared with other processes counts in part."""

    rss_mb: float
    pss_mb: float
    rss_after_load_mb: float
    pss_after_load_mb: float


def run(databases: Databases, *, seconds: int) -> None:
    """Raises CannotMeasure."""
    say("Memory of a worker")
    footprints = {scale: _measure(databases.get(scale), seconds) for scale in _BARS_MB}
    say()
    rows = [(str(scale), *astuple(each)) for scale, each in footprints.items()]
    say(table(("MB", "RSS", "PSS", "RSS after load", "PSS after load"), rows))
    results = {str(scale): asdict(each) for scale, each in footprints.items()}
    bars = [
        Bar(f"RSS with {scale}", max(each.rss_mb, each.rss_after_load_mb), _BARS_MB[scale], "MB")
        for scale, each in footprints.items()
    ]
    report("memory", results, bars)


def _measure(database: Database, seconds: int) -> Footprint:
    with Stage() as stage:
        gateway = Gateway(stage, database)
        gateway.start_agent()
        worker = gateway.start_worker()
        gateway.wait_until_it_serves()
        before = memory_mb(worker.pid)
        run_wrk(gateway.party("gateway", worker), seconds)
        return Footprint(*before, *memory_mb(worker.pid))

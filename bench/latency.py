"""How much latency the gateway adds: the same open-loop load straight to the upstream and through the gateway."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from bench.databases import SMALL, Databases
from bench.gateways import Gateway
from bench.load import Party, run_wrk
from bench.machine import LOAD_CORE, ROOT, CannotMeasure, Stage, plain_environment
from bench.open_loop import Report
from bench.peers import PATH
from bench.report import Bar, report, say, table

RATE = 2_000.0  # requests per second
SHARE = 0.7  # of saturation
_BARS_MS = {"2,000 requests/s": 2.0, "70 % of saturation": 5.0}


@dataclass(frozen=True, slots=True)
class Pair:
    """One run of each, one right after the other."""

    direct: Report
    gateway: Report

    @property
    def added_p99_ms(self) -> float:
        return self.gateway.p99_ms - self.direct.p99_ms


def run(databases: Databases, upstream_port: int, *, rounds: int, seconds: int) -> None:
    """Raises CannotMeasure when anybody answers other than 2xx."""
    say("Latency: open loop, from the time when a request was due")
    with Stage() as stage:
        gateway = Gateway(stage, databases.get(SMALL))
        gateway.start_agent()
        party = gateway.party("gateway", gateway.start_worker())
        gateway.wait_until_it_serves()
        saturation = _saturation(party, seconds)
        rates = dict(zip(_BARS_MS, (RATE, SHARE * saturation), strict=True))
        pairs = {name: _pairs(gateway, upstream_port, rate, rounds, seconds) for name, rate in rates.items()}
    say()
    titles = ("ms", "requests/s", "direct p50", "p99", "gateway p50", "p99", "added p99", "sent late p99")
    say(table(titles, [(name, f"{rate:.0f}", *_figures(pairs[name])) for name, rate in rates.items()]))
    results = {
        "rounds": rounds,
        "seconds": seconds,
        "saturation_per_second": saturation,
        "rates": rates,
        "pairs": {name: [asdict(pair) for pair in each] for name, each in pairs.items()},
    }
    bars = [Bar(f"added p99 at {name}", _added(pairs[name]), limit, "ms") for name, limit in _BARS_MS.items()]
    report("latency", results, bars)


def _saturation(party: Party, seconds: int) -> float:
    """Requests per second that the gateway answers when asked as fast as it can, the median of three."""
    run_wrk(party, 1)
    return statistics.median(run_wrk(party, seconds).per_second for _ in range(3))


def _pairs(gateway: Gateway, upstream_port: int, rate: float, rounds: int, seconds: int) -> list[Pair]:
    pairs = []
    for number in range(1, rounds + 1):
        say(f"  {rate:,.0f} requests/s, run {number} of {rounds}")
        direct = generate(upstream_port, rate, seconds, number, [])
        pairs.append(Pair(direct, generate(gateway.port, rate, seconds, number, [gateway.key_header])))
    return pairs


def generate(
    port: int, rate: float, seconds: int, seed: int, headers: Sequence[str], path: str = PATH, source: str = "127.0.0.1"
) -> Report:
    """What the open loop sees from the load's core. Raises CannotMeasure when an answer is other than 2xx."""
    command = ["taskset", "-c", str(LOAD_CORE), sys.executable, "-m", "bench.open_loop", "--path", path]
    values = (("source", source), ("port", port), ("rate", rate), ("seconds", seconds), ("seed", seed))
    for name, value in values:
        command += [f"--{name}", str(value)]
    for header in headers:
        command += ["--header", header]
    done = subprocess.run(command, cwd=ROOT, env=plain_environment(), capture_output=True, text=True)
    if done.returncode != 0:
        raise CannotMeasure(f"the load generator fails: {done.stderr.strip()[-300:]}")
    made = Report(**json.loads(done.stdout))
    if made.bad:
        raise CannotMeasure(f"{made.bad} of {made.requests} answers were missing or other than 2xx")
    return made


def _added(pairs: Sequence[Pair]) -> float:
    return statistics.median(pair.added_p99_ms for pair in pairs)


def _figures(pairs: Sequence[Pair]) -> list[float]:
    """Medians, in the order of the table."""
    columns = [
        [pair.direct.p50_ms for pair in pairs],
        [pair.direct.p99_ms for pair in pairs],
        [pair.gateway.p50_ms for pair in pairs],
        [pair.gateway.p99_ms for pair in pairs],
        [pair.added_p99_ms for pair in pairs],
        [pair.gateway.late_p99_ms for pair in pairs],
    ]
    return [statistics.median(column) for column in columns]

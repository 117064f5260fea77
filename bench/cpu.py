"""CPU time per proxied request, beside nginx, HAProxy and Envoy in the same run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace

from bench.databases import LARGE, SMALL, Database, Databases
from bench.gateways import Gateway
from bench.load import Measurement, Party, cpu_s, measure
from bench.machine import Stage
from bench.peers import Peers
from bench.report import TIMES, Bar, report, say

OURS = "gateway"
OURS_LARGE = "gateway-10k"
OURS_NEW_PATHS = "gw-new-paths"

Runs = Mapping[str, Sequence[Measurement]]


def run(databases: Databases, upstream_port: int, *, rounds: int, seconds: int) -> None:
    """Each round measures every party once, in turn. Raises CannotMeasure when one answers other than 2xx."""
    say("CPU time per request: the gateway beside nginx, HAProxy and Envoy")
    with ExitStack() as stages:
        ours, agent = _start(stages, OURS, databases.get(SMALL))
        ours_large, _ = _start(stages, OURS_LARGE, databases.get(LARGE))
        # What a path leads to is remembered for a while, so paths that come back make it too easy.
        new_paths = replace(ours, name=OURS_NEW_PATHS, script="new_paths.lua")
        peers = Peers(stages.enter_context(Stage()), upstream_port).start()
        began, agent_before_s = time.monotonic(), cpu_s(agent)
        runs = _measure([ours, ours_large, new_paths, *peers], rounds, seconds)
        agent_ms_per_s = 1000 * (cpu_s(agent) - agent_before_s) / (time.monotonic() - began)
    say()
    say(table(runs))
    say(f"Beside it, the agent of 1,000 services takes {agent_ms_per_s:.1f} ms of CPU time per second.")
    results = {
        "rounds": rounds,
        "seconds": seconds,
        "cpu_us": medians(runs),
        "agent_ms_per_s": agent_ms_per_s,
        "measurements": {name: [asdict(each) for each in measured] for name, measured in runs.items()},
    }
    report("cpu", results, bars(medians(runs)))


def _start(stages: ExitStack, name: str, database: Database) -> tuple[Party, int]:
    """A gateway that serves, and the process id of its agent."""
    gateway = Gateway(stages.enter_context(Stage()), database)
    agent = gateway.start_agent()
    worker = gateway.start_worker()
    gateway.wait_until_it_serves()
    return gateway.party(name, worker), agent.pid


def _measure(parties: Sequence[Party], rounds: int, seconds: int) -> Runs:
    runs: dict[str, list[Measurement]] = {party.name: [] for party in parties}
    for number in range(1, rounds + 1):
        say(f"  round {number} of {rounds}")
        for party in parties:
            runs[party.name].append(measure(party, seconds))
    return runs


def medians(runs: Runs) -> dict[str, float]:
    """CPU µs per request, by party."""
    return {name: statistics.median(each.cpu_us for each in measured) for name, measured in runs.items()}


def table(runs: Runs) -> str:
    by_party = medians(runs)
    lines = [f"{'party':12} {'CPU µs/req':>10} {'gateway/it':>10} {'req/s':>9} {'p99':>9}  not 2xx, socket errors"]
    for name, measured in runs.items():
        us = by_party[name]
        load = sorted(measured, key=lambda each: each.cpu_us)[len(measured) // 2].load
        bad = sum(each.load.bad for each in measured)
        figures = f"{us:10.1f} {by_party[OURS] / us:10.2f} {load.per_second:9.0f} {load.p99:>9}"
        lines.append(f"{name:12} {figures}  {bad} {load.errors}")
    return "\n".join(line.rstrip() for line in lines)


def bars(us: Mapping[str, float]) -> list[Bar]:
    """``us``: CPU µs per request, by party."""
    ours, linear, tree = us[OURS], us["envoy-1000"], us["envoy-tree"]
    new_paths = us[OURS_NEW_PATHS]
    return [
        Bar("CPU time, of that of Envoy over 1,000 prefix routes", ours / linear, 0.68, TIMES, aim=0.58),
        Bar("CPU time, of that of Envoy with its matcher tree", ours / tree, 1.45, TIMES, aim=1.2),
        Bar("CPU time, of that of bare Envoy", ours / us["envoy-bare"], 1.6, TIMES),
        Bar("CPU time with 10,000 services, of that with 1,000", us[OURS_LARGE] / ours, 1.1, TIMES),
        Bar("with new paths, of Envoy over 1,000 prefix routes", new_paths / linear, 0.68, TIMES, aim=0.58),
        Bar("with new paths, of Envoy with its matcher tree", new_paths / tree, 1.45, TIMES, aim=1.2),
    ]

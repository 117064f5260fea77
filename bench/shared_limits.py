"""What limits cost that workers count together in Redis: CPU time per request, beside those that each counts alone."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

from bench.load import Measurement, Party, measure
from bench.lone_worker import LoneWorker, service
from bench.machine import LOAD_CORE, Stage, check_programs, eventually, free_port
from bench.peers import start_upstream
from bench.report import TIMES, Bar, report, say, table
from tests.private_servers import redis_answers

LOCAL, STRICT, LEASED = "counted by the worker", "strict", "leased"
_MODES: dict[str, dict[str, Any]] = {
    LOCAL: {},
    STRICT: {"rate_limit_mode": "strict"},
    LEASED: {"rate_limit_mode": "leased"},
}


def run(*, rounds: int, seconds: int) -> None:
    """Raises CannotMeasure."""
    say("Limits in Redis: CPU time of the worker per request with a key and a limit")
    check_programs(("redis-server",))
    with ExitStack() as stages:
        stage = stages.enter_context(Stage())
        url = _start_redis(stage)
        upstream = start_upstream(stage)
        parties = [_party(stage, name, url, upstream) for name in _MODES]
        runs: dict[str, list[Measurement]] = {party.name: [] for party in parties}
        for number in range(1, rounds + 1):
            say(f"  round {number} of {rounds}")
            for party in parties:
                runs[party.name].append(measure(party, seconds))
    us = {name: statistics.median(each.cpu_us for each in measured) for name, measured in runs.items()}
    rates = {name: statistics.median(each.load.per_second for each in measured) for name, measured in runs.items()}
    say()
    titles = ("the limit is", "CPU µs per request", "of counted alone", "requests/s")
    say(table(titles, [(name, us[name], us[name] / us[LOCAL], f"{rates[name]:.0f}") for name in us]))
    results = {"cpu_us": us, "measurements": {name: [asdict(each) for each in runs[name]] for name in runs}}
    report("shared_limits", results, bars(us))


def bars(us: Mapping[str, float]) -> list[Bar]:
    return [
        Bar("a strict limit in Redis, of the keyed request", us[STRICT] / us[LOCAL], 1.6, TIMES),
        Bar("µs that a strict limit adds", us[STRICT] - us[LOCAL], 20.0, "µs"),
        Bar("a leased limit, of the keyed request", us[LEASED] / us[LOCAL], 1.1, TIMES),
    ]


def _start_redis(stage: Stage) -> str:
    port = free_port()
    where = ("--bind", "127.0.0.1", "--port", str(port), "--dir", str(stage.directory))
    stage.start(LOAD_CORE, "redis-server", *where, "--save", "", "--appendonly", "no")
    url = f"redis://127.0.0.1:{port}/0"
    eventually(lambda: redis_answers(url), "an answer of Redis")
    return url


def _party(stage: Stage, name: str, url: str, upstream: int) -> Party:
    services = [service("plain", f"http://127.0.0.1:{upstream}")]
    settings = _MODES[name] and {"redis_url": url, "rate_limit_wait_s": 5.0, **_MODES[name]}
    worker = LoneWorker(stage, services, **settings).wait()
    return worker.party(name, "plain")

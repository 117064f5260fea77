"""What clients notice of somebody who would send 10,000 wrong keys a second from one address."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field

from bench.latency import generate
from bench.load import cpu_s
from bench.lone_worker import HEADER, LoneWorker, service
from bench.machine import LOAD_CORE, ROOT, CannotMeasure, Stage, plain_environment
from bench.open_loop import Report
from bench.peers import start_upstream
from bench.report import TIMES, Bar, report, say, table
from bench.wrong_keys import Report as Attack

RATE = 1_000.0  # requests per second with a right key, from another address
_WANTED = 10_000.0  # wrong keys per second
_HEAD_START_S = 1
_CLIENT, _PROXY = "127.0.0.2", "127.0.0.3"


@dataclass(frozen=True, slots=True)
class _Way:
    """How the wrong keys come."""

    source: str
    connections: int
    told: str = ""  # the address that a trusted proxy names


_WAYS = {
    "from an address": _Way("127.0.0.4", 1_000),
    "by a trusted proxy": _Way(_PROXY, 32, told="203.0.113.9"),
}


@dataclass(frozen=True, slots=True)
class _Run:
    """What whoever has a right key has seen; what the worker has taken of a core meanwhile."""

    seen: Report
    cpu_s: float
    took_s: float


@dataclass(frozen=True, slots=True)
class _Runs:
    runs: list[_Run] = field(default_factory=list)
    attacks: list[Attack] = field(default_factory=list)

    @property
    def p99_ms(self) -> float:
        return statistics.median(each.seen.p99_ms for each in self.runs)

    @property
    def answered(self) -> float:
        """Wrong keys per second."""
        return statistics.median(each.answered for each in self.attacks) if self.attacks else 0.0

    def figures(self) -> tuple[float | str, ...]:
        seen = [each.seen for each in self.runs]
        return (
            statistics.median(each.p50_ms for each in seen),
            self.p99_ms,
            statistics.median(each.late_p99_ms for each in seen),
            f"{statistics.median(each.cpu_s / each.took_s for each in self.runs):.0%}",
            f"{self.answered:.0f}" if self.attacks else "",
        )


def run(*, rounds: int, seconds: int) -> None:
    """Raises CannotMeasure, also when a right key is answered other than 2xx, or a wrong one other than 4xx."""
    say(f"Intruders: {RATE:,.0f} requests/s with a right key, while {_WANTED:,.0f} wrong ones a second are due")
    quiet, attacked = _Runs(), {name: _Runs() for name in _WAYS}
    with ExitStack() as stages:
        stage = stages.enter_context(Stage())
        upstream = start_upstream(stage)
        services = [service("plain", f"http://127.0.0.1:{upstream}")]
        worker = LoneWorker(stage, services, trusted_proxies=(_PROXY,)).wait()
        for number in range(1, rounds + 1):
            say(f"  round {number} of {rounds}")
            quiet.runs.append(_ask(worker, seconds, number))
            for name, way in _WAYS.items():
                process = _attack(worker, way, seconds)
                time.sleep(_HEAD_START_S)
                attacked[name].runs.append(_ask(worker, seconds, number))
                attacked[name].attacks.append(_told_by(process))
    say()
    titles = ("", "p50 ms", "p99 ms", "sent late p99", "of a core", "wrong keys answered/s")
    say(table(titles, [(name, *runs.figures()) for name, runs in {"quiet": quiet, **attacked}.items()]))
    results = {"rate": RATE, "wanted": _WANTED, "quiet": asdict(quiet)}
    results |= {name: asdict(runs) for name, runs in attacked.items()}
    report("intruders", results, bars(quiet, attacked))


def bars(quiet: _Runs, attacked: dict[str, _Runs]) -> list[Bar]:
    found = [
        Bar(f"p99 of others while wrong keys come {name}, of quiet", runs.p99_ms / quiet.p99_ms, 2.0, TIMES)
        for name, runs in attacked.items()
    ]
    missing = max(0.0, _WANTED - attacked["by a trusted proxy"].answered) / _WANTED
    return [*found, Bar(f"of {_WANTED:,.0f} wrong keys/s by a trusted proxy were missing", missing, 0.2, TIMES)]


def _ask(worker: LoneWorker, seconds: int, seed: int) -> _Run:
    began, before_s = time.monotonic(), cpu_s(worker.process.pid)
    seen = generate(worker.port, RATE, seconds, seed, (HEADER,), worker.path("plain"), _CLIENT)
    return _Run(seen, cpu_s(worker.process.pid) - before_s, time.monotonic() - began)


def _attack(worker: LoneWorker, way: _Way, seconds: int) -> subprocess.Popen[str]:
    """On the load's core, for as long as the others ask and a moment before and after."""
    command = ["taskset", "-c", str(LOAD_CORE), sys.executable, "-m", "bench.wrong_keys", "--told", way.told]
    values: Sequence[tuple[str, object]] = (
        *(("port", worker.port), ("path", worker.path("plain")), ("source", way.source)),
        *(("connections", way.connections), ("rate", _WANTED), ("seconds", seconds + 2 * _HEAD_START_S)),
    )
    for name, value in values:
        command += [f"--{name}", str(value)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=plain_environment())


def _told_by(process: subprocess.Popen[str]) -> Attack:
    output, _nothing = process.communicate(timeout=60)
    if process.returncode != 0:
        raise CannotMeasure("whoever sends wrong keys has failed")
    attack = Attack(**json.loads(output))
    if attack.bad:
        raise CannotMeasure(f"{attack.bad} wrong keys were answered other than 4xx, or not at all")
    return attack

"""What clients notice of somebody who sends 10,000 wrong keys a second from one address."""

from __future__ import annotations

import statistics
import subprocess
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.latency import generate
from bench.load import Load, Party, cpu_s, parse_wrk
from bench.lone_worker import HEADER, LoneWorker, service
from bench.machine import LOAD_CORE, CannotMeasure, Stage, plain_environment
from bench.open_loop import Report
from bench.peers import start_upstream
from bench.report import TIMES, Bar, report, say, table

RATE = 1_000.0  # requests per second with a right key, from another address
_WANTED = 10_000.0  # wrong keys per second
_CONNECTIONS = 32
_HEAD_START_S = 1.0
_CLIENT = "X-Forwarded-For: 198.51.100.1"


def run(*, rounds: int, seconds: int) -> None:
    """Raises CannotMeasure, also when a right key is answered other than 2xx."""
    say(f"Intruders: {RATE:,.0f} requests/s with a right key, while wrong ones come from another address")
    quiet: list[_Run] = []
    attacked: list[_Run] = []
    wrong_keys: list[float] = []
    with ExitStack() as stages:
        stage = stages.enter_context(Stage())
        upstream = start_upstream(stage)
        services = [service("plain", f"http://127.0.0.1:{upstream}")]
        worker = LoneWorker(stage, services, trusted_proxies=("127.0.0.1",)).wait()
        for number in range(1, rounds + 1):
            say(f"  round {number} of {rounds}")
            quiet.append(_ask(worker, seconds, number))
            with _Attack(worker.party("worker", "plain"), seconds) as attack:
                attacked.append(_ask(worker, seconds, number))
            wrong_keys.append(attack.load().per_second)
    costs = [_wrong_us(*each) for each in zip(quiet, attacked, wrong_keys, strict=True)]
    per_second = statistics.median(wrong_keys)
    say()
    titles = ("", "p50 ms", "p99 ms", "sent late p99", "wrong keys/s", "CPU \N{MICRO SIGN}s per wrong key")
    rows = [
        ("quiet", *_figures(quiet), "0", ""),
        ("under attack", *_figures(attacked), f"{per_second:.0f}", f"{statistics.median(costs):.1f}"),
    ]
    say(table(titles, rows))
    results = {
        "rate": RATE,
        "quiet": [asdict(each) for each in quiet],
        "attacked": [asdict(each) for each in attacked],
        "wrong_keys_per_second": wrong_keys,
        "cpu_us_per_wrong_key": costs,
    }
    report("intruders", results, bars(_figures(quiet)[1], _figures(attacked)[1], per_second))


@dataclass(frozen=True, slots=True)
class _Run:
    """What whoever has a right key has seen; what the worker has taken of a core meanwhile."""

    seen: Report
    cpu_s: float
    took_s: float


def _figures(runs: Sequence[_Run]) -> tuple[float, float, float]:
    seen = [each.seen for each in runs]
    return (
        statistics.median(each.p50_ms for each in seen),
        statistics.median(each.p99_ms for each in seen),
        statistics.median(each.late_p99_ms for each in seen),
    )


def _wrong_us(quiet: _Run, attacked: _Run, per_second: float) -> float:
    """CPU time that one wrong key takes: beyond what the right ones take alone."""
    of_right_ones_s = quiet.cpu_s / quiet.seen.requests * attacked.seen.requests
    return 1e6 * (attacked.cpu_s - of_right_ones_s) / (per_second * attacked.took_s)


def bars(quiet_ms: float, attacked_ms: float, per_second: float) -> list[Bar]:
    return [
        Bar("p99 of others under attack, of quiet", attacked_ms / quiet_ms, 2.0, TIMES),
        Bar(f"of {_WANTED:,.0f} wrong keys/s were missing", max(0.0, _WANTED - per_second) / _WANTED, 0.2, TIMES),
    ]


def _ask(worker: LoneWorker, seconds: int, seed: int) -> _Run:
    began, before_s = time.monotonic(), cpu_s(worker.process.pid)
    seen = generate(worker.port, RATE, seconds, seed, (HEADER, _CLIENT), worker.path("plain"))
    return _Run(seen, cpu_s(worker.process.pid) - before_s, time.monotonic() - began)


class _Attack:
    """wrk with `wrong_keys.lua` on the load's core, for as long as the block and a moment before."""

    def __init__(self, party: Party, seconds: int) -> None:
        script = str(Path(__file__).with_name("wrong_keys.lua"))
        duration = f"-d{seconds + round(_HEAD_START_S) + 1}s"
        load = ("wrk", "-t1", f"-c{_CONNECTIONS}", duration, "--latency", "-s", script, party.url)
        self._command = ("taskset", "-c", str(LOAD_CORE), *load)

    def __enter__(self) -> _Attack:
        self._process = subprocess.Popen(
            self._command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=plain_environment()
        )
        time.sleep(_HEAD_START_S)
        return self

    def __exit__(self, *_: object) -> None:
        self._output, _nothing = self._process.communicate(timeout=60)

    def load(self) -> Load:
        """What wrk has seen."""
        load = parse_wrk(self._output)
        if load.bad < load.requests:
            raise CannotMeasure("a wrong key was answered with success")
        return load

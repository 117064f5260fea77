"""Two workers against one, on the same two cores: they share one port, and load and upstream take their part too."""

from __future__ import annotations

import statistics
from contextlib import ExitStack

from bench.load import cpu_s, run_wrk
from bench.lone_worker import LoneWorker, service
from bench.machine import Stage
from bench.peers import start_upstream
from bench.report import TIMES, Bar, report, say, table


def run(*, rounds: int, seconds: int) -> None:
    """Raises CannotMeasure."""
    say("Two workers against one, on all cores")
    with ExitStack() as stages:
        stage = stages.enter_context(Stage())
        services = [service("plain", f"http://127.0.0.1:{start_upstream(stage)}")]
        one = [LoneWorker(stage, services, core=None).wait()]
        first = LoneWorker(stage, services, core=None).wait()
        two = [first, LoneWorker(stage, services, port=first.port, core=None, slot=1).wait()]
        runs: dict[str, list[tuple[float, float]]] = {"one worker": [], "two workers": []}
        for number in range(1, rounds + 1):
            say(f"  round {number} of {rounds}")
            for name, workers in (("one worker", one), ("two workers", two)):
                runs[name].append(_measure(workers, seconds))
    medians = {
        name: tuple(statistics.median(column) for column in zip(*made, strict=True)) for name, made in runs.items()
    }
    say()
    rows = [(name, f"{per_second:.0f}", us) for name, (per_second, us) in medians.items()]
    say(table(("on two cores", "requests/s", "CPU µs per request"), rows))
    (_, us_of_one), (_, us_of_two) = medians["one worker"], medians["two workers"]
    bars = [Bar("CPU time per request with two workers, of that with one", us_of_two / us_of_one, 1.25, TIMES)]
    report("workers", {"medians": medians}, bars)


def _measure(workers: list[LoneWorker], seconds: int) -> tuple[float, float]:
    """Requests per second, and CPU µs of the workers for each."""
    party = workers[0].party("workers", "plain")
    run_wrk(party, 1, 64, core=None)
    before = sum(cpu_s(worker.process.pid) for worker in workers)
    load = run_wrk(party, seconds, 64, core=None)
    spent_s = sum(cpu_s(worker.process.pid) for worker in workers) - before
    return load.per_second, 1e6 * spent_s / load.requests

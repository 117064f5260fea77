"""Where the microseconds go: the steps of a request, timed within a worker that has no sockets.

Functions are wrapped by stopwatches whose own cost is taken out again. What the CPU time per request (`bench.cpu`) is
above the sum are the sockets: the kernel and the event loop.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import uvloop

from bench import in_process
from bench.peers import PATH
from bench.report import report, say, table
from gateway_project.dataplane import app, matching, pipeline
from gateway_project.dataplane.access_log import AccessLog
from gateway_project.dataplane.metrics import Metrics
from gateway_project.dataplane.protocol import ClientProtocol
from gateway_project.dataplane.socket_exchange import SocketExchange
from routing import forwarding
from routing.upstream.connection import UpstreamConnection

_BATCH = 5_000
_BATCHES = 5


@dataclass(frozen=True, slots=True)
class Step:
    """A function, by the object that it is looked up in; ``depth``: within which of those before it it runs."""

    depth: int
    title: str
    owner: Any
    name: str


_STEPS = (
    Step(0, "from the client: bytes to forwarded request", ClientProtocol, "data_received"),
    Step(1, "begin the exchange", SocketExchange, "begin"),
    Step(1, "handle", app.Gateway, "handle"),
    Step(2, "request id and trace", app, "begin_trace"),
    Step(2, "recall what the path leads to", matching.MatchMemory, "recall"),
    Step(2, "canonical path", pipeline, "canonical"),
    Step(2, "match", matching.MatchMemory, "find"),
    Step(2, "authenticate and authorize", pipeline.Pipeline, "_admit"),
    Step(2, "limit", pipeline.Pipeline, "_limit"),
    Step(2, "select version and target", pipeline.Pipeline, "_select"),
    Step(2, "forward", forwarding.Forwarder, "forward"),
    Step(3, "request head", forwarding, "request_head"),
    Step(0, "from the upstream: bytes to accounted answer", UpstreamConnection, "data_received"),
    Step(1, "answer's fields", UpstreamConnection, "_read_fields"),
    Step(1, "answer", SocketExchange, "answer"),
    Step(2, "account", app.Gateway, "account"),
    Step(3, "metrics", Metrics, "count"),
    Step(3, "access log", AccessLog, "add"),
)


@dataclass(slots=True)
class Stopwatch:
    """Of one function. ``nested``: how many stopwatches were started while it ran."""

    spent_ns: int = 0
    nested: int = 0
    calls: int = 0


class Stopwatches:
    """Time spent in wrapped functions, those that they call included.

    ``own_ns`` is what a stopwatch costs whoever calls the function; ``inner_ns`` is the part of it that the stopwatch
    itself sees.
    """

    def __init__(self) -> None:
        self._started = 0
        self._by_step: dict[Step, Stopwatch] = {}
        self._own_ns, self._inner_ns = self._calibrated()

    def wrapped(self, watch: Stopwatch, function: Callable[..., Any]) -> Callable[..., Any]:
        clock = time.perf_counter_ns

        @wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            self._started += 1
            before = self._started
            began = clock()
            try:
                return function(*args, **kwargs)
            finally:
                watch.spent_ns += clock() - began
                watch.nested += self._started - before
                watch.calls += 1

        return timed

    def _calibrated(self) -> tuple[float, float]:
        def nothing(one: int, two: int) -> None: ...

        watch = Stopwatch()
        plain_ns, timed_ns = _fastest_ns(nothing), _fastest_ns(self.wrapped(watch, nothing))
        return timed_ns - plain_ns, min(timed_ns, watch.spent_ns / watch.calls) - plain_ns

    def reset(self) -> None:
        for watch in self._by_step.values():
            watch.spent_ns = watch.nested = watch.calls = 0

    def us(self, step: Step, requests: int) -> float:
        """For each of so many requests."""
        watch = self._by_step[step]
        spent_ns = watch.spent_ns - watch.nested * self._own_ns - watch.calls * self._inner_ns
        return max(0.0, spent_ns / requests / 1000)

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Raises AttributeError for a step that is no more."""
        former = [(step, getattr(step.owner, step.name)) for step in _STEPS]
        for step, function in former:
            self._by_step[step] = watch = Stopwatch()
            setattr(step.owner, step.name, self.wrapped(watch, function))
        try:
            yield
        finally:
            for step, function in former:
                setattr(step.owner, step.name, function)


def _fastest_ns(function: Callable[[int, int], Any], count: int = 20_000) -> float:
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter_ns()
        for _ in range(count):
            function(1, 2)
        best = min(best, (time.perf_counter_ns() - began) / count)
    return best


def run(*, batch: int = _BATCH) -> None:
    """Raises CannotMeasure."""
    say("Where the time goes within a worker, without sockets")
    with TemporaryDirectory(prefix="bench-") as directory:
        whole, steps = uvloop.run(_measure(Path(directory), batch))
    say()
    titles = ("µs for each request", "the same path", "new paths")
    rows: list[tuple[str | float, ...]] = [("everything", *whole.values())]
    rows += [("  " * step.depth + step.title, *(steps[kind][step] for kind in whole)) for step in _STEPS]
    say(table(titles, rows))
    results = {
        kind: {"everything": us, "steps": {step.title: round(steps[kind][step], 3) for step in _STEPS}}
        for kind, us in whole.items()
    }
    report("steps", results, [])


async def _measure(directory: Path, batch: int) -> tuple[dict[str, float], dict[str, dict[Step, float]]]:
    """µs for each request, with requests for one path and with requests for paths not seen before. The fastest batch
    counts: whatever makes one slower is the machine."""
    paths: dict[str, Callable[[int], str]] = {"same path": lambda _: PATH, "new paths": "/api/v1/s977/item-{}".format}
    whole, steps = {}, {}
    for kind, path in paths.items():
        requests = [in_process.request(path(number)) for number in range(batch * _BATCHES)]
        batches = [requests[start : start + batch] for start in range(0, len(requests), batch)]
        async with in_process.worker(directory) as worker:
            whole[kind] = min(_serve_us(worker, each) for each in batches)
        watches = Stopwatches()
        with watches.attached():
            async with in_process.worker(directory) as worker:
                steps[kind] = _fastest([_steps_us(watches, worker, each) for each in batches])
    return whole, steps


def _steps_us(watches: Stopwatches, worker: in_process.Worker, requests: Sequence[bytes]) -> dict[Step, float]:
    watches.reset()
    _serve_us(worker, requests)
    return {step: watches.us(step, len(requests)) for step in _STEPS}


def _fastest(batches: Sequence[dict[Step, float]]) -> dict[Step, float]:
    return {step: min(batch[step] for batch in batches) for step in _STEPS}


def _serve_us(worker: in_process.Worker, requests: Sequence[bytes]) -> float:
    serve = worker.serve
    began = time.perf_counter_ns()
    for each in requests:
        serve(each)
    return (time.perf_counter_ns() - began) / len(requests) / 1000

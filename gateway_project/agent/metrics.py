"""Sums what the workers of this host count, and serves it as Prometheus text on ``METRICS_BIND:METRICS_PORT``."""

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from hmac import compare_digest
from pathlib import Path
from typing import Any

import uvicorn
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from core.wire import Message

_Series = tuple[str, tuple[tuple[str, str], ...]]  # name, labels

_HELP = {
    "api_gateway_requests_total": "Requests answered, by method, route, status and service",
    "api_gateway_request_duration_seconds": "Seconds from a request's head to the end of its answer",
    "api_gateway_upstream_latency_seconds": "Seconds from forwarding a request to the head of the upstream's answer",
    "api_gateway_request_size_bytes": "Bytes of request bodies",
    "api_gateway_response_size_bytes": "Bytes of answer bodies",
    "api_gateway_errors_total": "Errors that the gateway itself reported, by code and service",
    "api_gateway_rate_limit_hits_total": "Requests refused by a rate limit, by route",
    "api_gateway_limit_refusals_total": "Requests refused by a limit, by its name",
    "api_gateway_limit_outages_total": "Requests that limits could not count together, since Redis was away",
    "portcullis_limits_redis_up": "Workers that reach Redis for limits",
    "portcullis_limits_slices": "Slices of budgets that workers have taken in advance",
    "portcullis_limits_redis_calls_total": "What workers have asked Redis for limits",
    "portcullis_limits_redis_writes_total": "Writes in which that left, one for each turn of the event loop",
    "portcullis_limits_redis_failures_total": "Calls without an answer: Redis was away, late, or refused them",
    "api_gateway_limits_degraded": "Workers whose limits cannot be counted together at the moment",
    "api_gateway_requests_awaiting_turn": "Requests that wait for their turn in a leaky bucket",
    "api_gateway_cache_requests_total": "Requests to services that are cached, by what the cache did",
    "api_gateway_mirrored_requests_total": "Copies of requests for another version, by what became of them",
    "api_gateway_retries_total": "Further tries of requests, and those that the budget did not allow",
    "api_gateway_shed_requests_total": "Requests refused by a limit that adapts, by their application's priority",
    "api_gateway_concurrency_limit": "Requests that may be with a service at once, the limits of all workers summed",
    "api_gateway_cache_bytes": "Bytes of stored answers in all workers",
    "api_gateway_cache_entries": "Stored answers in all workers",
    "api_gateway_tls_certificate_expiry_seconds": "Seconds until a certificate of TLS_PORT expires, by its name",
    "api_gateway_tls_certificate_failures": "Certificates that could not be taken, summed over workers",
}
# Gauges of which the least of all workers is told, in place of the sum.
_LEAST = frozenset(("api_gateway_tls_certificate_expiry_seconds",))


@dataclass(slots=True)
class _Histogram:
    counts: list[int]
    total: float = 0.0
    count: int = 0


@dataclass(slots=True)
class Totals:
    """What one worker has counted since it started, or several together."""

    counters: dict[_Series, float] = field(default_factory=dict)
    histograms: dict[_Series, _Histogram] = field(default_factory=dict)
    gauges: dict[_Series, float] = field(default_factory=dict)

    @classmethod
    def from_message(cls, message: Message) -> "Totals":
        """``counters`` [[name, labels, number], …], ``histograms`` [[name, labels, counts, sum, count], …] with the
        observations of each bucket alone (the last one has no upper bound), ``gauges`` like counters."""
        totals = cls()
        for name, labels, number in message.get("counters", ()):
            totals.counters[_series(name, labels)] = float(number)
        for name, labels, counts, total, count in message.get("histograms", ()):
            totals.histograms[_series(name, labels)] = _Histogram(
                [int(each) for each in counts], float(total), int(count)
            )
        for name, labels, number in message.get("gauges", ()):
            totals.gauges[_series(name, labels)] = float(number)
        return totals

    def add(self, other: "Totals", *, with_gauges: bool) -> None:
        for series, number in other.counters.items():
            self.counters[series] = self.counters.get(series, 0) + number
        for series, histogram in other.histograms.items():
            known = self.histograms.setdefault(series, _Histogram([0] * len(histogram.counts)))
            if len(known.counts) == len(histogram.counts):  # else two versions of the worker disagree on the buckets
                known.counts = [a + b for a, b in zip(known.counts, histogram.counts, strict=True)]
                known.total += histogram.total
                known.count += histogram.count
        if with_gauges:
            for series, number in other.gauges.items():
                if series[0] in _LEAST:
                    self.gauges[series] = min(self.gauges.get(series, number), number)
                else:
                    self.gauges[series] = self.gauges.get(series, 0) + number


def _series(name: str, labels: dict[str, str]) -> _Series:
    return name, tuple(sorted(labels.items()))


class WorkerMetrics(Collector):
    """Totals by worker process. Those of a process that is gone stay in the sums, so that no counter goes down.

    ``own_gauges`` gives the agent's own: name, help, value; ``own_metrics`` those that have labels.
    """

    def __init__(
        self,
        own_gauges: Callable[[], Iterable[tuple[str, str, float]]],
        own_metrics: Callable[[], Iterable[Metric]] = tuple,
    ) -> None:
        self._own_gauges = own_gauges
        self._own_metrics = own_metrics
        self._by_pid: dict[int, Totals] = {}
        self._retired = Totals()
        self._bounds: dict[str, list[float]] = {}
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def take(self, pid: int, message: Message) -> None:
        """A worker's ``metrics`` message (`core.wire`)."""
        self._bounds.update(message.get("bounds", {}))
        if pid not in self._by_pid:
            self._retire_dead()
        self._by_pid[pid] = Totals.from_message(message)

    def _retire_dead(self) -> None:
        for pid in [pid for pid in self._by_pid if not _is_alive(pid)]:
            self._retired.add(self._by_pid.pop(pid), with_gauges=False)

    def text(self) -> bytes:
        return generate_latest(self._registry)

    def describe(self) -> Iterable[Metric]:
        return ()  # collecting at registration would be too early

    def collect(self) -> Iterator[Metric]:
        self._retire_dead()
        sums = Totals()
        sums.add(self._retired, with_gauges=False)
        for totals in self._by_pid.values():
            sums.add(totals, with_gauges=True)
        yield from self._counters(sums)
        yield from self._histograms(sums)
        for name, help_text, value in self._own_gauges():
            metric = Metric(name, help_text, "gauge")
            metric.add_sample(name, {}, value)
            yield metric
        yield from self._own_metrics()

    @staticmethod
    def _counters(sums: Totals) -> Iterator[Metric]:
        metrics: dict[str, Metric] = {}
        for kind, numbers in (("counter", sums.counters), ("gauge", sums.gauges)):
            for (name, labels), number in numbers.items():
                family = name.removesuffix("_total") if kind == "counter" else name
                metric = metrics.setdefault(family, Metric(family, _HELP.get(name, name), kind))
                metric.add_sample(name, dict(labels), number)
        yield from metrics.values()

    def _histograms(self, sums: Totals) -> Iterator[Metric]:
        metrics: dict[str, Metric] = {}
        for (name, labels), histogram in sums.histograms.items():
            bounds = [*map(str, self._bounds.get(name, ())), "+Inf"]
            if len(bounds) != len(histogram.counts):
                continue
            metric = metrics.setdefault(name, Metric(name, _HELP.get(name, name), "histogram"))
            seen = 0
            for bound, count in zip(bounds, histogram.counts, strict=True):
                seen += count
                metric.add_sample(f"{name}_bucket", {**dict(labels), "le": bound}, seen)
            metric.add_sample(f"{name}_count", dict(labels), histogram.count)
            metric.add_sample(f"{name}_sum", dict(labels), histogram.total)
        yield from metrics.values()


def _is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """The agent handles signals itself."""
        yield


async def serve_metrics(listener: socket.socket, metrics: WorkerMetrics, token: str) -> None:
    """``/metrics`` (with ``Authorization: Bearer`` if there is a token) and ``/health``, until cancelled."""

    async def application(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/health":
            status, content_type, body = 200, "application/json", b'{"status":"healthy"}'
        elif scope["path"] != "/metrics":
            status, content_type, body = 404, "text/plain", b"There is /metrics and /health.\n"
        elif token and not _is_authorized(scope["headers"], token):
            status, content_type, body = 401, "text/plain", b"The metrics need the token.\n"
        else:
            status, content_type, body = 200, CONTENT_TYPE_LATEST, metrics.text()
        headers = [(b"content-type", content_type.encode()), (b"content-length", b"%d" % len(body))]
        if status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    quiet: dict[str, Any] = {"log_config": None, "log_level": "warning", "access_log": False, "server_header": False}
    # h11 refuses a head beyond 64 KiB; httptools would take it into memory, however large.
    server = _Server(uvicorn.Config(application, interface="asgi3", http="h11", lifespan="off", ws="none", **quiet))
    serving = asyncio.create_task(server.serve([listener]))
    try:
        await asyncio.shield(serving)
    finally:
        server.should_exit = server.force_exit = True
        await serving


def _is_authorized(headers: Iterable[tuple[bytes, bytes]], token: str) -> bool:
    expected = b"Bearer " + token.encode()
    return any(name == b"authorization" and compare_digest(value, expected) for name, value in headers)

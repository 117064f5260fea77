"""What a worker counts: plain integers, pushed to the agent once a second, which makes them Prometheus text.

Names and labels are those of the requirements. The label ``path`` is a route's template, never a client's path, and
the number of series is capped: beyond `MAX_TEMPLATES` templates everything counts under ``other`` (rule 28).
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Any

from core.context import Exchange

MAX_TEMPLATES = 1000
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
BYTES = (256.0, 1024.0, 4096.0, 16384.0, 65536.0, 262144.0, 1048576.0, 10485760.0, 104857600.0)
_OTHER = "other"


class Histogram:
    """Observations by bucket; whoever observes does so in place, without a call."""

    __slots__ = ("counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0


class Series:
    """All that is counted of one template."""

    __slots__ = ("answers", "duration", "request_size", "response_size", "service", "template", "upstream")

    def __init__(self, template: str, service: str) -> None:
        self.template = template
        self.service = service
        self.answers: dict[tuple[bytes, int], int] = {}  # by method and status
        self.duration = Histogram(SECONDS)
        self.upstream = Histogram(SECONDS)
        self.request_size = Histogram(BYTES)
        self.response_size = Histogram(BYTES)


_METHODS = frozenset((b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS"))


class Metrics:
    """Counts exchanges; `message` renders the totals since the worker started."""

    def __init__(self) -> None:
        self._series: dict[str, Series] = {}
        self._errors: dict[tuple[str, str], int] = {}  # by code and service
        self._limited: dict[str, int] = {}  # by template

    def count(self, exchange: Exchange, duration_s: float) -> None:
        match = exchange.match
        template = exchange.own_template if match is None else match.template
        series = self._series.get(template)
        if series is None:
            series = self._add(template, exchange)
        method = exchange.method
        answer = (method if method in _METHODS else b"OTHER", exchange.status)
        series.answers[answer] = series.answers.get(answer, 0) + 1
        histogram = series.duration
        histogram.counts[bisect_left(SECONDS, duration_s)] += 1
        histogram.total += duration_s
        histogram, size = series.response_size, exchange.bytes_out
        histogram.counts[bisect_left(BYTES, size)] += 1
        histogram.total += size
        upstream_s = exchange.upstream_s
        if upstream_s is not None:
            histogram = series.upstream
            histogram.counts[bisect_left(SECONDS, upstream_s)] += 1
            histogram.total += upstream_s
        if size := exchange.bytes_in:
            histogram = series.request_size
            histogram.counts[bisect_left(BYTES, size)] += 1
            histogram.total += size
        if exchange.fault_code:
            self._count_fault(exchange.fault_code, series)

    def _add(self, template: str, exchange: Exchange) -> Series:
        service = exchange.match.destination if exchange.match is not None else ""
        if len(self._series) >= MAX_TEMPLATES:
            template = service = _OTHER
            if template in self._series:
                return self._series[template]
        series = self._series[template] = Series(template, service)
        return series

    def _count_fault(self, code: str, series: Series) -> None:
        error = (code, series.service)
        self._errors[error] = self._errors.get(error, 0) + 1
        if code in ("rate_limited", "quota_exceeded"):
            self._limited[series.template] = self._limited.get(series.template, 0) + 1

    def message(self, gauges: list[tuple[str, dict[str, str], float]]) -> dict[str, Any]:
        """The ``metrics`` message for the agent."""
        counters: list[Any] = []
        histograms: list[Any] = []
        for series in self._series.values():
            for (method, status), number in series.answers.items():
                labels = {
                    "method": method.decode("ascii"),
                    "path": series.template,
                    "status_code": str(status),
                    "service": series.service,
                }
                counters.append(["api_gateway_requests_total", labels, number])
            labels = {"path": series.template, "service": series.service}
            for name, histogram in (
                ("api_gateway_request_duration_seconds", series.duration),
                ("api_gateway_upstream_latency_seconds", series.upstream),
                ("api_gateway_request_size_bytes", series.request_size),
                ("api_gateway_response_size_bytes", series.response_size),
            ):
                if any(histogram.counts):
                    histograms.append([name, labels, histogram.counts, histogram.total, sum(histogram.counts)])
        for (code, service), number in self._errors.items():
            counters.append(["api_gateway_errors_total", {"type": code, "service": service}, number])
        for template, number in self._limited.items():
            counters.append(["api_gateway_rate_limit_hits_total", {"endpoint": template}, number])
        return {"counters": counters, "histograms": histograms, "gauges": [list(gauge) for gauge in gauges]}

    @staticmethod
    def bounds() -> dict[str, tuple[float, ...]]:
        return {
            "api_gateway_request_duration_seconds": SECONDS,
            "api_gateway_upstream_latency_seconds": SECONDS,
            "api_gateway_request_size_bytes": BYTES,
            "api_gateway_response_size_bytes": BYTES,
        }

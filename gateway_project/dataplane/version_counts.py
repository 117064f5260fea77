"""What a worker counts of versions: who calls the deprecated ones, and how those fare that share a service's traffic.

Both are sums since the last report to the agent, kept while the agent is away, and bounded: what is beyond the bound is
not counted. A version that is neither pays one attribute check for this (`VersionRecord.is_plain`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from core.context import CLIENT_LEFT, Exchange
from core.wire import Message
from routing.judging import LATENCY_S, latency_bucket
from routing.records import ServiceRecord, VersionRecord

MAX_CALLERS = 10_000
MAX_VERSIONS = 1_000

Send = Callable[[Message], bool]


class _Uses:
    """Of one deprecated version by one caller; ``last`` is monotonic."""

    __slots__ = ("address", "last", "requests")

    def __init__(self) -> None:
        self.requests = 0
        self.last = 0.0
        self.address = ""


class _Traffic:
    """Of one version."""

    __slots__ = ("errors", "latency", "requests")

    def __init__(self) -> None:
        self.requests = self.errors = 0
        self.latency = [0] * (len(LATENCY_S) + 1)


class VersionCounts:
    def __init__(self) -> None:
        self._uses: dict[tuple[str, str, str, str], _Uses] = {}
        self._traffic: dict[tuple[str, str, str], _Traffic] = {}

    def chosen(self, exchange: Exchange, service: ServiceRecord, version: VersionRecord) -> None:
        """A version that is not plain will answer the exchange."""
        exchange.measured = version.measured
        if version.notice:
            exchange.answer_lines += version.notice
            self._note(exchange, service, version)

    def _note(self, exchange: Exchange, service: ServiceRecord, version: VersionRecord) -> None:
        key, application = exchange.key, exchange.application
        caller = service.id, version.name, application.id if application else "", key.id if key is not None else ""
        uses = self._uses.get(caller)
        if uses is None:
            if len(self._uses) >= MAX_CALLERS:
                return
            uses = self._uses[caller] = _Uses()
        uses.requests += 1
        uses.last = exchange.started
        uses.address = exchange.identity.client

    def count(self, exchange: Exchange, duration_s: float) -> None:
        """The exchange of a measured version is over. A client that left says nothing of the version, and neither does
        an answer from memory."""
        upstream_s = exchange.upstream_s
        if exchange.status == CLIENT_LEFT or (upstream_s is None and exchange.status < 500):
            return
        traffic = self._traffic.get(exchange.measured)
        if traffic is None:
            if len(self._traffic) >= MAX_VERSIONS:
                return
            traffic = self._traffic[exchange.measured] = _Traffic()
        traffic.requests += 1
        if exchange.status >= 500 or exchange.is_fallback or exchange.fault_code == "aborted":
            traffic.errors += 1
        traffic.latency[latency_bucket(duration_s if upstream_s is None else upstream_s)] += 1

    # --- to the agent ---
    def report(self, send: Send, epoch: float) -> None:
        """``epoch``: what makes monotonic seconds epoch seconds."""
        if self._uses:
            self._report_uses(send, epoch)
        if self._traffic:
            self._report_traffic(send)

    def _report_uses(self, send: Send, epoch: float) -> None:
        rows: list[Any] = [
            [*caller, uses.requests, epoch + uses.last, uses.address] for caller, uses in self._uses.items()
        ]
        if send({"type": "version_uses", "rows": rows}):
            self._uses = {}

    def _report_traffic(self, send: Send) -> None:
        rows: list[Any] = [
            [*version, traffic.requests, traffic.errors, traffic.latency] for version, traffic in self._traffic.items()
        ]
        if send({"type": "version_traffic", "rows": rows}):
            self._traffic = {}

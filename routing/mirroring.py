"""R21: copies of requests for another version, whose answers nobody waits for.

A copy is made of what is forwarded, after the original is on its way: what is refused or answered from memory is not
copied, and nobody is charged (rule 10). It goes to one address of the version, without retries, fallback or circuit
breaker, and so says nothing about the targets that real requests depend on. What a dead version can cost is bounded: so
many copies of a service are under way in each worker, and what comes beyond is dropped.
"""

from __future__ import annotations

import logging
from asyncio import AbstractEventLoop
from collections.abc import Callable, Iterator
from dataclasses import replace
from random import choices, random
from typing import Any

from core.context import BodySink, Exchange, Forwarded
from core.faults import GatewayFault
from routing.forwarding import Forwarder
from routing.inner_exchange import InnerExchange
from routing.policies import Mirroring
from routing.records import ServiceRecord, TargetRecord, VersionRecord
from routing.rewriting import upstream_target
from routing.target_registry import TargetRegistry
from routing.terms import Terms, forwarding_terms

logger = logging.getLogger("portcullis")

MAX_IN_FLIGHT = 50
LONGEST_S = 60.0  # a copy's whole life
_MARK = (b"x-gateway-mirrored", b": ", b"true", b"\r\n")  # clients cannot send it (rule 24)


class MirroredExchange(InnerExchange):
    """A copy. Its answer's body is read and forgotten."""

    def answer(self, status: int, lines: bytes, body: bytes) -> None:
        super().answer(status, lines, b"")

    def write(self, data: bytes) -> bool:
        return True


class _Mirror:
    """One service's: what is under way, and what became of copies. ``results`` by the word of the metric's label."""

    __slots__ = ("in_flight", "results")

    def __init__(self) -> None:
        self.in_flight = 0
        self.results = {"answered": 0, "failed": 0, "dropped": 0, "too_large": 0}

    def count(self, result: str) -> None:
        self.results[result] += 1

    def ended(self, copy: InnerExchange) -> None:
        self.in_flight -= 1
        is_answered = copy.is_whole and not copy.fault_code and copy.status < 500
        self.count("answered" if is_answered else "failed")


class Mirrors:
    """Of one worker."""

    def __init__(
        self, loop: AbstractEventLoop, forwarder: Forwarder, registry: TargetRegistry, request_timeout_s: float
    ) -> None:
        self._loop = loop
        self._forwarder = forwarder
        self._registry = registry
        self._request_timeout_s = request_timeout_s
        self._mirrors: dict[str, _Mirror] = {}  # by the service's name

    def step(self, service: ServiceRecord | None) -> Callable[[Exchange, Any], bool] | None:
        """The step of the pipeline where the service mirrors requests to a version that is there."""
        policy = service.mirroring if service is not None else None
        if service is None or policy is None or policy.percent <= 0:
            return None
        version = service.versions.get(policy.version)
        if version is None or version.is_retired:
            return None
        mirror = self._mirrors.setdefault(service.name, _Mirror())

        def step(exchange: Exchange, match: Any) -> bool:
            if policy.percent >= 100 or random() * 100 < policy.percent:
                self._prepare(exchange, policy, service, version, mirror)
            return False  # it answers nothing itself

        return step

    def counters(self) -> Iterator[list[Any]]:
        for service, mirror in self._mirrors.items():
            for result, number in mirror.results.items():
                if number:
                    labels = {"service": service, "result": result}
                    yield ["api_gateway_mirrored_requests_total", labels, number]

    # --- one request ---
    def _prepare(
        self, exchange: Exchange, policy: Mirroring, service: ServiceRecord, version: VersionRecord, mirror: _Mirror
    ) -> None:
        """Copy the request once the original is on its way, with its body once that is whole."""
        if exchange.upgrade is not None:
            return  # what follows is no request
        if not exchange.has_body:
            self._loop.call_soon(self._send, exchange, service, version, mirror, b"")
        elif (exchange.content_length or 0) > policy.max_body_bytes:
            mirror.count("too_large")
        elif mirror.in_flight >= MAX_IN_FLIGHT:
            mirror.count("dropped")
        else:
            exchange.body_tee = lambda sink: BodyCopy(
                sink,
                policy.max_body_bytes,
                lambda body: self._send(exchange, service, version, mirror, body),
                lambda: mirror.count("too_large"),
            )

    def _send(
        self, exchange: Exchange, service: ServiceRecord, version: VersionRecord, mirror: _Mirror, body: bytes
    ) -> None:
        chosen = exchange.version
        if chosen is None or chosen.name == version.name or (exchange.sink is None and not body):
            return  # refused, answered or to be answered without any upstream, or the version has had it itself
        if exchange.forwarded is None and exchange.match.transformer is not None:
            return  # it waits for what another is on its way for, so nobody has seen it as its route makes it
        if mirror.in_flight >= MAX_IN_FLIGHT:
            mirror.count("dropped")
            return
        mirror.in_flight += 1
        copy = self._copy(exchange, mirror, body)
        try:
            record = self._address(service, version)
            query = exchange.query if exchange.forwarded is None else exchange.forwarded.query
            target = upstream_target(exchange.match.route, version.base_path, exchange.raw_path, query)
            self._forwarder.forward_to(copy, record, target, self._terms(exchange, service))
        except GatewayFault as fault:
            copy.fault_code = fault.code
            mirror.ended(copy)
        except Exception:  # the client's request must not suffer for it
            logger.exception("a request could not be mirrored")
            mirror.in_flight -= 1
            mirror.count("failed")

    def _copy(self, exchange: Exchange, mirror: _Mirror, body: bytes) -> MirroredExchange:
        copy = MirroredExchange(
            exchange,
            mirror.ended,
            method=exchange.method,
            raw_path=exchange.raw_path,
            query=exchange.query,
            passed=[*exchange.passed, *_MARK],
            body=body,
            limit=0,
            started=self._forwarder.now(),
        )
        if exchange.forwarded is not None:
            copy.forwarded = Forwarded([*exchange.forwarded.passed, *_MARK], exchange.forwarded.query)
        copy.noted = exchange.noted  # cookies and authorization, as the version itself would get them
        copy.upstream_credentials = exchange.upstream_credentials
        if not body and not exchange.has_body:
            copy.content_length = exchange.content_length
        return copy

    def _address(self, service: ServiceRecord, version: VersionRecord) -> TargetRecord:
        """By weight, among the targets that are not known to be ill."""
        targets = self._registry.group(service, version).targets
        well = [target for target in targets if target.is_healthy] or targets
        weights = [target.weight for target in well]
        return choices(well, weights if any(weights) else None)[0].record

    def _terms(self, exchange: Exchange, service: ServiceRecord) -> Terms:
        match = exchange.match
        terms = match.terms or forwarding_terms(service, match.route, self._request_timeout_s)
        total_s = min(terms.total_s or LONGEST_S, LONGEST_S)
        return replace(terms, total_s=total_s, may_resend=False, retries=None)


class BodyCopy:
    """Stands between a request's body and its forwarding, and keeps a copy of up to ``limit`` bytes."""

    __slots__ = ("_left", "_pieces", "_sink", "_too_large", "_whole")

    def __init__(
        self, sink: BodySink, limit: int, whole: Callable[[bytes], None], too_large: Callable[[], None]
    ) -> None:
        self._sink = sink
        self._left = limit
        self._whole = whole
        self._too_large = too_large
        self._pieces: list[bytes] | None = []

    def body_data(self, data: bytes) -> None:
        if self._pieces is not None:
            self._left -= len(data)
            if self._left >= 0:
                self._pieces.append(data)
            else:
                self._pieces = None
                self._too_large()
        self._sink.body_data(data)

    def body_end(self) -> None:
        self._sink.body_end()
        if self._pieces is not None:
            self._whole(b"".join(self._pieces))

    def client_gone(self) -> None:
        self._sink.client_gone()

    def client_ready(self) -> None:
        self._sink.client_ready()

    def refuse_body(self, fault: GatewayFault) -> None:
        self._sink.refuse_body(fault)

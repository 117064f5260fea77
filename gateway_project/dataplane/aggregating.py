"""Makes the calls that an aggregate's answer consists of (`routing.aggregation`), and answers with what comes back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from access.records import Grant
from core.context import Exchange
from core.faults import GatewayFault, PolicyDenied
from gateway_project.dataplane.matching import AggregateMatch, Match
from gateway_project.dataplane.socket_exchange import too_large
from routing.aggregation import (
    PARTIAL_FIELD,
    Part,
    PartFailure,
    Result,
    failure_of,
    failures,
    fields_for_part,
    judge,
    merged,
    required_failure,
    whole_failure,
)
from routing.answers import AnswerHead, through_filters
from routing.inner_exchange import InnerExchange
from routing.records import ServiceRecord, VersionRecord
from routing.request_fields import RequestFields, vary_line
from routing.selection import choose_version
from routing.terms import forwarding_terms

if TYPE_CHECKING:
    from gateway_project.dataplane.app import Gateway

MAX_BODY = 1024 * 1024  # of a request whose body goes to parts: it is kept until all of them have it

Call = Callable[[bytes], InnerExchange]  # takes the client's body; raises GatewayFault


class Aggregating:
    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def begin(self, exchange: Exchange, match: AggregateMatch, grant: Grant, point: int) -> None:
        """Call all parts; answer when they have. Raises GatewayFault, before anything is called, for what the client
        may not have or has asked for wrongly."""
        fields = RequestFields(exchange, exchange.path, self._gateway.key_header)
        aggregation = _Aggregation(self._gateway, exchange, match)
        calls: list[Call | PartFailure] = []
        for place, part in enumerate(match.aggregate.parts):
            target = part.target.render(fields)
            try:
                service, version = self._choose(exchange, part, grant, point)
            except PolicyDenied:
                raise
            except GatewayFault as fault:
                calls.append(failure_of(fault))
                continue
            calls.append(partial(aggregation.call, place, part, service, version, target, point))
        exchange.answer_lines += vary_line(fields.names)
        if exchange.has_body and match.aggregate.takes_body:
            aggregation.gather(calls)
        else:
            aggregation.start(calls, b"")

    def _choose(self, exchange: Exchange, part: Part, grant: Grant, point: int) -> tuple[ServiceRecord, VersionRecord]:
        service = exchange.snapshot.services.get(part.service)
        if service is None or not service.is_active:
            raise _Missing("no_route", "The service does not exist, or is not active.")
        if service.maintenance is not None:
            raise _Missing("maintenance", "The service is being maintained.")
        return service, choose_version(service, grant.versions, None, point)


class _Missing(GatewayFault):
    """A part that cannot be called."""


class _Aggregation:
    """One aggregate under way: the sink of the client's request, and who hears of the calls' ends."""

    __slots__ = ("_begun", "_body", "_calls", "_exchange", "_gateway", "_is_over", "_left", "_match", "_results")

    def __init__(self, gateway: Gateway, exchange: Exchange, match: AggregateMatch) -> None:
        self._gateway = gateway
        self._exchange = exchange
        self._match = match
        self._results: list[Result | None] = [None] * len(match.aggregate.parts)
        self._left = len(self._results)
        self._begun: list[InnerExchange] = []
        self._calls: list[Call | PartFailure] = []
        self._body: list[bytes] = []
        self._is_over = False

    # --- the client's body ---
    def gather(self, calls: list[Call | PartFailure]) -> None:
        """Call when the body is there."""
        exchange = self._exchange
        limit = exchange.max_body_bytes = min(exchange.max_body_bytes or MAX_BODY, MAX_BODY)
        if (exchange.content_length or 0) > limit:
            raise too_large(limit)
        self._calls = calls
        exchange.sink = self
        exchange.read_body(self)

    def body_data(self, data: bytes) -> None:
        self._body.append(data)

    def body_end(self) -> None:
        calls, self._calls = self._calls, []
        if calls:  # else there was none to gather
            self.start(calls, b"".join(self._body))

    def refuse_body(self, fault: GatewayFault) -> None:
        self._stop()
        self._gateway.refuse(self._exchange, fault)

    # --- the calls ---
    def start(self, calls: list[Call | PartFailure], body: bytes) -> None:
        self._exchange.sink = self
        for place, call in enumerate(calls):
            if isinstance(call, PartFailure):
                self._take(place, call)
            else:
                try:
                    inner = call(body)
                except GatewayFault as fault:
                    self._take(place, failure_of(fault))
                else:
                    self._begun.append(inner)
            if self._is_over:
                self._cancel()  # what has begun since it was decided
                return

    def call(
        self,
        place: int,
        part: Part,
        service: ServiceRecord,
        version: VersionRecord,
        target: bytes,
        point: int,
        body: bytes,
    ) -> InnerExchange:
        """Begin one call. Raises GatewayFault."""
        gateway, exchange = self._gateway, self._exchange
        now = gateway.forwarder.now()
        path, mark, query = target.partition(b"?")
        inner = InnerExchange(
            exchange,
            partial(self._ended, place),
            method=part.method,
            raw_path=b"/api/v1/" + service.name.encode("ascii") + path,  # so that a fallback is asked for the same
            query=query if mark else None,
            passed=fields_for_part(exchange.passed, part.method),
            body=body if part.method == b"POST" else b"",
            limit=self._match.aggregate.max_bytes,
            started=now,
        )
        inner.match = Match(part.method, None, service, None, b"v1")
        inner.version, inner.part_of = version, exchange
        terms = forwarding_terms(service, None, gateway.settings.request_timeout_s)
        timeout_s = part.timeout_s
        terms = replace(terms, first_byte_s=min(terms.first_byte_s, timeout_s), total_s=timeout_s)
        group = gateway.targets.group(service, version)
        gateway.forwarder.forward(inner, group, version.base_path + target, terms, point)
        return inner

    def _ended(self, place: int, inner: InnerExchange) -> None:
        """A call has been answered, or has failed. Whoever tells us is the upstream's connection: it must not hear of
        our own mistakes."""
        try:
            self._take(place, self._result(place, inner))
        except Exception as error:
            if self._is_over:
                raise
            self._refuse(self._gateway.unexpected(error))

    def _result(self, place: int, inner: InnerExchange) -> Result:
        part = self._match.aggregate.parts[place]
        if inner.fault_code == "aborted":  # in the middle of its answer, by the upstream or by its time
            late = self._gateway.forwarder.now() - inner.started >= part.timeout_s
            return PartFailure(504, "upstream_timeout") if late else PartFailure(502, "upstream_reset")
        if inner.fault_code:
            return PartFailure(inner.status, inner.fault_code)
        if not inner.is_whole:
            return PartFailure(inner.status, "too_large")
        return judge(part, inner.status, inner.body)

    def _take(self, place: int, result: Result) -> None:
        if self._is_over:
            return
        self._results[place] = result
        self._left -= 1
        part = self._match.aggregate.parts[place]
        if part.is_required and isinstance(result, PartFailure):
            self._refuse(required_failure(part, result))  # the others need not be waited for
        elif not self._left:
            self._finish([each for each in self._results if each is not None])

    # --- the end ---
    def _finish(self, results: list[Result]) -> None:
        gateway, exchange, aggregate = self._gateway, self._exchange, self._match.aggregate
        fault = whole_failure(aggregate, results)
        if fault is not None:
            self._refuse(fault)
            return
        document = merged(aggregate, results)
        self._stop()
        exchange.upstream_s = gateway.forwarder.now() - exchange.started
        head = AnswerHead(200, [b"content-type: application/json\r\n", gateway.forwarder.date], is_sized=False)
        missing = failures(aggregate, results)
        if missing:
            head.add(PARTIAL_FIELD, ", ".join(missing).encode("ascii"))
            head.add(b"cache-control", b"no-store")  # the next one may be whole
        through_filters(exchange, gateway.forwarder.via).whole(head, document)

    def _refuse(self, fault: GatewayFault) -> None:
        self._stop()
        self._exchange.upstream_s = self._gateway.forwarder.now() - self._exchange.started
        self._gateway.refuse(self._exchange, fault)

    def _stop(self) -> None:
        self._is_over = True
        self._exchange.sink = None
        self._cancel()

    def _cancel(self) -> None:
        begun, self._begun = self._begun, []
        for inner in begun:
            inner.cancel()

    def client_gone(self) -> None:
        self._stop()

    def client_ready(self) -> None:
        """Nothing is written before the end."""

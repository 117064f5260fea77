"""Forwarding one exchange to its upstream and the answer back.

Two connections, two directions, and back-pressure between them: a side that cannot take more pauses the reading of
the other. Nothing is buffered beyond one read, except up to 64 KiB of a request's body that may have to be sent again
(rule 8). Everything happens in callbacks: no task runs per request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from random import random

from core.context import Exchange
from core.faults import GatewayFault, InternalFault, UpstreamFault
from core.secret_references import SecretReferences, SecretUnavailable
from routing.answers import BODILESS, AnswerHead, AnswerSink, through_filters
from routing.balancing import TargetGroup
from routing.circuit import CLOSED
from routing.records import TargetRecord
from routing.request_head import request_head, via_of
from routing.retrying import delay_s, may_retry
from routing.rewriting import upstream_target
from routing.shedding import AdaptiveLimit
from routing.target_registry import ServiceState
from routing.targets import FAILURE, NEUTRAL, SUCCESS, Target, verdict
from routing.terms import Terms
from routing.upstream.connection import UpstreamConnection
from routing.upstream.errors import (
    connect_fault,
    connect_timeout,
    connection_terminated,
    invalid_response,
    response_timeout,
)
from routing.upstream.pool import Connector
from routing.upstream_credentials import CredentialLines

IDEMPOTENT = frozenset((b"GET", b"HEAD", b"OPTIONS", b"PUT", b"DELETE", b"QUERY", b"PROPFIND", b"REPORT", b"SEARCH"))
REPLAY_LIMIT = 64 * 1024
SLOW_BODY_S = 5.0  # of a client that makes the target wait: for the request's body, or to take the answer
MAX_GATEWAYS = 8  # one behind the other
_NEVER = float("inf")
_FALLBACK = b"x-gateway-fallback: true\r\n"


class Forwarder:
    """What all forwardings of a worker share: connections, the clock, and the sweep that enforces time limits."""

    def __init__(
        self,
        connector: Connector,
        key_header: bytes,
        via: bytes,
        refuse: Callable[[Exchange, GatewayFault], None],
        secrets: SecretReferences,
    ) -> None:
        self.connector = connector
        self.now = connector.now
        self.key_header = key_header
        self.via = via
        self.refuse = refuse
        self._secrets = secrets
        self.date = b""  # a field line, renewed by the sweep
        self.active: set[Forwarding] = set()

    def forward(
        self, exchange: Exchange, group: TargetGroup, request_target: bytes, terms: Terms, point: int = 0
    ) -> None:
        """Send the exchange to a target of ``group``, asking for ``request_target``; answer it with what comes back.

        ``point`` (32 bits) stands for the client where the strategy goes by it. Raises InternalFault when no target
        may be asked and nothing else can answer, or a secret that the upstream wants is not to be had.
        """
        if b"via" in exchange.noted:
            _check_for_loop(exchange)
        credentials = group.state.record.credentials
        if credentials:
            try:
                exchange.upstream_credentials = CredentialLines(credentials, self._secrets)
            except SecretUnavailable as fault:
                rescue, exchange.rescue = exchange.rescue, None
                if rescue is not None and rescue(fault):
                    return
                raise
        Forwarding(self, exchange, group, request_target, terms, point).begin()

    def forward_to(self, exchange: Exchange, record: TargetRecord, request_target: bytes, terms: Terms) -> None:
        """Send the exchange to this one address, which no balancer and no circuit breaker looks after."""
        forwarding = Forwarding(self, exchange, None, request_target, terms, 0)
        forwarding.begin_at(record)

    def sweep(self, now: float) -> None:
        for forwarding in [each for each in self.active if each.is_late(now)]:
            if forwarding.is_late(now) and forwarding in self.active:  # the end of another may have moved this one on
                forwarding.expire(now)
        self.connector.sweep(now)


class Forwarding:
    """One exchange on its way. It is the sink of the request's body and the handler of the upstream's answer."""

    __slots__ = (
        "_began",
        "_body_done",
        "_connecting",
        "_connection",
        "_deadline_of_try",
        "_forwarder",
        "_gone_from",
        "_group",
        "_held_at",
        "_is_answering",
        "_is_held_up",
        "_is_judged",
        "_is_resent",
        "_is_sent",
        "_limit",
        "_out",
        "_point",
        "_pool",
        "_reads_body",
        "_ready_at",
        "_record",
        "_replay",
        "_replay_bytes",
        "_request_target",
        "_since",
        "_target",
        "_terms",
        "_ticket",
        "_timer",
        "_tried",
        "_waits_at",
        "deadline",
        "exchange",
        "last_call",
    )

    def __init__(
        self,
        forwarder: Forwarder,
        exchange: Exchange,
        group: TargetGroup | None,
        request_target: bytes,
        terms: Terms,
        point: int,
    ) -> None:
        self._forwarder = forwarder
        self.exchange = exchange
        self._group = group
        self._point = point
        self._request_target = request_target
        self._terms = terms
        self._target: Target | None = None  # where the request counts as being in flight
        self._limit: AdaptiveLimit | None = None  # that has admitted the request
        self._gone_from: AdaptiveLimit | None = None  # the same, while the client has yet to send the body
        self._waits_at: Target | None = None  # for a place there
        self._tried: tuple[Target, ...] = ()
        self._connection: UpstreamConnection | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None  # until the next try
        self._out: AnswerSink | None = None  # where the answer goes, if filters work on it
        self.last_call = _NEVER if terms.total_s is None else exchange.started + terms.total_s
        self._is_sent = False  # a byte of the request may have reached a target
        self._is_resent = False  # once more to the same target, on a fresh connection
        self._is_judged = False  # the target has been told what this answer says about it
        self._is_answering = False  # the client has been sent the beginning of an answer
        self._held_at = _NEVER  # when the client last took nothing more for now
        self._is_held_up = False  # it has made the target wait for long
        self._reads_body = False
        self._body_done = not exchange.has_body
        # What to send again if it must be; None: too large, or not allowed.
        self._replay: list[bytes] | None = [] if terms.may_resend or exchange.method in IDEMPOTENT else None
        self._replay_bytes = 0

    # --- choosing ---
    def begin(self) -> None:
        """Choose a target and begin. Raises InternalFault when there is none and nobody else has answered."""
        assert self._group is not None
        state = self._group.state
        # Not when the request came: it may have waited for its turn on the connection, for its body, or for another's
        # answer, and none of that is the target's time.
        now = self._since = self._ready_at = self._forwarder.now()
        try:
            if state.limit is not None:
                self._admit(state)
            affinity = None if state.sticky is None else self._affinity(state)
            target = self._group.choose(self._point, now, affinity)
        except InternalFault as fault:
            self._leave_limit(None, NEUTRAL)
            if self._degrade(fault):
                return
            raise
        self._begin_with(target, now, is_bound=affinity is not None and target.name == affinity)

    def _admit(self, state: ServiceState) -> None:
        """R22: whoever has the lowest priority is refused first. Raises InternalFault."""
        limit, application = state.limit, self.exchange.application
        assert limit is not None
        if not limit.admit(application.priority if application is not None else 0):
            name = self._next_hop()
            raise InternalFault("overloaded", f"{name} is busy, and others go first.", retry_after_s=1)
        self._limit = limit

    def _leave_limit(self, latency_s: float | None, outcome: int) -> None:
        """What the adaptive limit counts is over: the answer's head has come, or none will."""
        limit, self._limit = self._limit, None
        if limit is not None:
            limit.done(self._forwarder.now(), latency_s if outcome != NEUTRAL else None, outcome == SUCCESS)

    def _affinity(self, state: ServiceState) -> bytes | None:
        """The name of the target that the client had before, if it says so (R13)."""
        cookies = self.exchange.noted.get(b"cookie")
        return None if cookies is None else state.had_before(cookies)

    def begin_at(self, record: TargetRecord) -> None:
        self._record = record
        now = self._since = self._forwarder.now()
        self._begin_try(now)

    def _begin_with(self, target: Target, now: float, *, is_bound: bool = False) -> None:
        """``is_bound``: the client is to stay with this target, even if it has to wait."""
        if target.in_flight >= target.limit and not target.is_on_trial:
            group = self._group
            assert group is not None
            free = None if is_bound or group.by_address else group.with_place(now)
            if free is None:
                self._wait_for(target, now)
                return
            target = free
        self._record = target.record
        self._keep_place(target, now)
        self._begin_try(now)

    def _keep_place(self, target: Target, now: float) -> None:
        if not self._tried and self._group is not None:  # a retry pays nothing, and neither does who was refused
            self._group.state.budget.requests += 1
        self._target = target
        self._ticket = target.began(now)

    def _begin_try(self, now: float) -> None:
        forwarder, terms = self._forwarder, self._terms
        forwarder.active.add(self)
        if not self._reads_body:  # else whoever sees the body too stays in between
            self.exchange.sink = self
        self._began = now
        self._deadline_of_try = now + terms.first_byte_s
        pool = self._pool = forwarder.connector.pool(self._record)
        connection = pool.take()
        if connection is not None:
            self.deadline = self._deadline_of_try
            self._send(connection)
        else:
            self.deadline = min(self._deadline_of_try, now + terms.connect_s)
            self._connecting = pool.connect(self)

    # --- waiting for a place (bounded pools) ---
    def _wait_for(self, target: Target, now: float) -> None:
        """The target has as many requests as it may have: wait in line, for a bounded time."""
        line = target.line
        assert self._group is not None
        policy = self._group.state.concurrency
        if len(line) >= policy.max_waiting:
            detail = f"Too many requests wait for {self._next_hop()}."
            self._give_up(InternalFault("overloaded", detail, retry_after_s=1))
            return
        self._forwarder.active.add(self)
        self.exchange.sink = self
        self.deadline = now + policy.wait_ms / 1000
        self._waits_at = target
        line.append(self)

    def take_place(self, target: Target) -> None:
        """A place has become free, and nobody has waited longer."""
        self._waits_at = None
        self._record = target.record
        now = self._forwarder.now()
        if target.circuit is not None and target.circuit.state != CLOSED:
            self._choose_again(now)
            return
        self._keep_place(target, now)
        self._begin_try(now)

    def _choose_again(self, now: float) -> None:
        """The target has begun to fail while the request waited for it."""
        assert self._group is not None
        try:
            target = self._group.choose(self._point, now)
        except InternalFault as fault:
            self._give_up(fault)
        else:
            self._begin_with(target, now)

    # --- towards the upstream ---
    def connected(self, connection: UpstreamConnection) -> None:
        self._connecting = None
        self.deadline = self._deadline_of_try
        self._send(connection)

    def connect_failed(self, error: BaseException) -> None:
        self._connecting = None
        self._fail("connect", connect_fault(error, self._next_hop()))

    def _send(self, connection: UpstreamConnection) -> None:
        self._connection = connection
        self._is_sent = True
        exchange, forwarder = self.exchange, self._forwarder
        head = request_head(
            exchange,
            self._record,
            self._request_target,
            forwarder.via,
            forwarder.key_header,
            pass_credentials=self._terms.pass_credentials,
        )
        connection.send(self, head, is_head=exchange.method == b"HEAD")
        if not exchange.has_body:
            return
        for data in self._replay or ():
            connection.write(data)
        if self._replay_bytes > REPLAY_LIMIT:
            self._replay = None
        if not self._body_done:
            self.deadline = _NEVER  # how long the client may take is its own connection's matter
        if self._reads_body:
            exchange.resume_body()
        else:
            self._reads_body = True
            exchange.read_body(self if exchange.body_tee is None else exchange.body_tee(self))
            if self._limit is not None and not self._body_done:
                self._gone_from, self._limit = self._limit, None
                self._gone_from.leave()
        if connection.is_busy and self._connection is connection:  # it said so before the body went on
            self.upstream_busy()

    def body_data(self, data: bytes) -> None:
        if self.exchange.content_length is None:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        if self._is_answering:  # early: neither side is silent while the body goes on
            self.deadline = self._forwarder.now() + self._terms.idle_s
        self._send_body(data)

    def body_end(self) -> None:
        self._body_done = True
        self._began = self._ready_at = self._forwarder.now()  # what the client took is not the target's time
        limit, self._gone_from = self._gone_from, None
        if limit is not None and not self._is_answering:
            self._limit = limit
            limit.come_back()
        if self.exchange.content_length is None:
            self._send_body(b"0\r\n\r\n")
        if self._is_answering:
            self.deadline = self._ready_at + self._terms.idle_s
        elif self._connection is not None:
            self.deadline = self._deadline_of_try = self._ready_at + self._terms.first_byte_s

    def _send_body(self, data: bytes) -> None:
        if self._replay is not None:
            self._replay.append(data)
            self._replay_bytes += len(data)
            # Between two tries it is all that there is: some had been read before the client was paused.
            if self._replay_bytes > REPLAY_LIMIT and self._connection is not None:
                self._replay = None
        if self._connection is not None:
            self._connection.write(data)

    def refuse_body(self, fault: GatewayFault) -> None:
        """The body turned out to be too large or malformed while it was passed on."""
        self._finish(NEUTRAL, close=True)
        if self._is_answering:
            self._abort_answer()
        else:
            self._forwarder.refuse(self.exchange, fault)

    def client_gone(self) -> None:
        self._finish(NEUTRAL, close=True)
        if self._out is not None and self._is_answering:
            self._out.abort()

    def upstream_busy(self) -> None:
        if not self._body_done:
            self.exchange.pause_body()
            self.deadline = self._forwarder.now() + self._terms.idle_s

    def upstream_ready(self) -> None:
        if not self._body_done:
            self.exchange.resume_body()
            self.deadline = self._forwarder.now() + self._terms.idle_s if self._is_answering else _NEVER

    # --- towards the client ---
    def response_whole(self, connection: UpstreamConnection, body: bytes) -> None:
        exchange, status = self.exchange, connection.status
        outcome = SUCCESS
        if status >= 500:
            outcome = self._verdict(status)
            if self._retries(str(status), outcome, close=False):
                return
        exchange.upstream_s = self._forwarder.now() - self._since
        self._is_answering = True
        if exchange.filters:
            self._answer_filtered(connection, body, outcome)
            return
        pieces = self._answer_pieces(connection)
        if not connection.is_sized and not connection.is_head and status not in BODILESS:
            pieces.append(b"content-length: %d\r\n" % len(body))
        self._finish(outcome, close=False)
        exchange.answer(status, b"".join(pieces), body)

    def _answer_filtered(self, connection: UpstreamConnection, body: bytes, outcome: int) -> None:
        head, out = self._filtered_head(connection)
        self._finish(outcome, close=False)
        out.whole(head, body)

    def _filtered_head(self, connection: UpstreamConnection) -> tuple[AnswerHead, AnswerSink]:
        """The answer's head as filters see it, and the first of them. Its lines are the upstream's: a cache must not
        keep what we say about this one request."""
        lines = connection.lines
        if not connection.has_date:
            lines.append(self._forwarder.date)
        via = self._forwarder.via
        own_lines = via_of(b"HTTP/1.0", via) if connection.is_http10 else via
        if self.exchange.is_fallback:
            lines = _for_nobody_else(lines)
            own_lines += _FALLBACK
        out = self._out = through_filters(self.exchange, own_lines + self._affinity_line())
        has_body = connection.status not in BODILESS and not connection.is_head
        ends_by_close = has_body and not (connection.is_sized or connection.is_chunked)
        return AnswerHead(connection.status, lines, is_sized=connection.is_sized, ends_by_close=ends_by_close), out

    def response_started(self, connection: UpstreamConnection) -> None:
        exchange = self.exchange
        status = connection.status
        outcome = self._verdict(status)
        if status >= 500 and self._retries(str(status), outcome, close=True):
            return
        now = self._forwarder.now()
        exchange.upstream_s = now - self._since
        self.deadline = now + self._terms.idle_s
        self._is_answering = True
        self._replay = None
        if self._limit is not None:
            self._leave_limit(now - self._ready_at, outcome)
        if self._target is not None:
            self._is_judged = True
            self._target.answered(now, now - self._began, outcome, self._ticket)
        if exchange.filters:
            head, out = self._filtered_head(connection)
            out.start(head)
            return
        lines = b"".join(self._answer_pieces(connection))
        exchange.start(connection.status, lines, is_sized=connection.is_sized)

    def _answer_pieces(self, connection: UpstreamConnection) -> list[bytes]:
        """The upstream's fields and ours, as lines."""
        exchange, forwarder = self.exchange, self._forwarder
        pieces = connection.lines
        if not connection.has_date:
            pieces.append(forwarder.date)
        if exchange.is_fallback:
            pieces = [*_for_nobody_else(pieces), _FALLBACK]
        group = self._group
        if group is not None and group.state.sticky is not None:
            pieces.append(self._affinity_line())
        via = via_of(b"HTTP/1.0", forwarder.via) if connection.is_http10 else forwarder.via
        pieces += (via, exchange.answer_lines)
        return pieces

    def _affinity_line(self) -> bytes:
        """Set-Cookie, where the client is to come back to the target that has answered and does not know that yet."""
        group, target = self._group, self._target
        if group is None or target is None or group.state.sticky is None:
            return b""
        if self._affinity(group.state) == target.name:
            return b""
        return group.state.cookie_line(target, is_secure=self.exchange.identity.is_secure)

    def response_data(self, data: bytes) -> None:
        now = self._forwarder.now()
        self.deadline = now + self._terms.idle_s
        is_ready = self.exchange.write(data) if self._out is None else self._out.data(data)
        if not is_ready and self._connection is not None:
            self._held_at = now
            self._connection.pause()

    def client_ready(self) -> None:
        now = self._forwarder.now()
        if now - self._held_at > SLOW_BODY_S:
            self._is_held_up = True
        self._held_at = _NEVER
        self.deadline = now + self._terms.idle_s
        if self._connection is not None:
            self._connection.transport.resume_reading()

    def response_ended(self, connection: UpstreamConnection) -> None:
        self._finish(NEUTRAL, close=False)  # the verdict was told with the head
        if self._out is None:
            self.exchange.end()
        else:
            self._out.end()

    def may_switch(self, lines: list[bytes]) -> bool:
        upgrade = self.exchange.upgrade
        return upgrade is not None and upgrade.accepts(lines)

    def response_switched(self, connection: UpstreamConnection, rest: bytes) -> None:
        """101: both connections are a WebSocket's from here on."""
        self._connection = None
        exchange = self.exchange
        exchange.answer_lines += self._affinity_line()
        self._finish(SUCCESS, close=False)
        exchange.upstream_s = self._forwarder.now() - self._since
        exchange.upgrade.opener.open(exchange, connection, rest)

    def response_failed(self, connection: UpstreamConnection, *, is_garbage: bool) -> None:
        self._connection = None
        if self._is_answering:
            is_clients = self._is_held_up and not is_garbage  # a server gives up on those who take nothing
            if is_clients:
                self.exchange.measured = None
            self._finish(NEUTRAL if is_clients else FAILURE, close=True)
            self._abort_answer()
        elif is_garbage:
            self._fail("reset", invalid_response(self._next_hop()))
        elif connection.is_reused and not connection.heard_since_sent and self._replay is not None:
            self._send_again(connection)
        else:
            # A server that gives up on a body that does not come has not failed, or any client could open its circuit.
            is_clients = not self._body_done and self._forwarder.now() - self._began > SLOW_BODY_S
            if is_clients:
                self.exchange.measured = None
            fault = connection_terminated(self._next_hop(), connection.error)
            self._fail("reset", fault, outcome=NEUTRAL if is_clients else FAILURE)

    def _send_again(self, connection: UpstreamConnection) -> None:
        """The server may have closed the connection just as we reused it: that says nothing about the target. Once,
        and on a fresh connection (rule 8)."""
        if self._is_resent:
            self._fail("reset", connection_terminated(self._next_hop(), connection.error))
            return
        self._is_resent = True
        self.exchange.pause_body()
        now = self._forwarder.now()
        self._deadline_of_try = now + self._terms.first_byte_s
        self.deadline = min(self._deadline_of_try, now + self._terms.connect_s)
        self._connecting = self._pool.connect(self)

    def _abort_answer(self) -> None:
        if self._out is None:
            self.exchange.abort()
        else:
            self._out.abort()

    # --- other tries ---
    def _retries(self, reason: str, outcome: int, *, close: bool) -> bool:
        """Whether the request goes to another target in a while, rather than that this one's failure is answered
        (R10). If so, this target is parted with, and the next one keeps a place for it."""
        policy, group, target = self._terms.retries, self._group, self._target
        if policy is None or group is None or target is None or len(group.targets) < 2:
            return False
        if not may_retry(policy, reason, len(self._tried), sent=self._is_sent, repeatable=self._replay is not None):
            return False
        tried = (*self._tried, target)
        now = self._forwarder.now()
        if not group.state.budget.take(now, policy.budget_percent):
            return False
        following = group.another(now, tried)
        if following is None:
            group.state.budget.give_back()
            return False
        self._part_with(outcome, close=close)
        self._keep_place(following, now)
        self.exchange.pause_body()
        self.deadline = _NEVER
        wait_s = delay_s(policy, len(tried) - 1, random)
        self._timer = self._forwarder.connector.loop.call_later(wait_s, self._try_again)
        return True

    def _try_again(self) -> None:
        self._timer = None
        assert self._target is not None
        self._record = self._target.record
        self._begin_try(self._forwarder.now())

    # --- ends ---
    def is_late(self, now: float) -> bool:
        return self.deadline <= now or self.last_call <= now

    def expire(self, now: float) -> None:
        """A time limit has passed."""
        if self._is_answering:
            if self._is_body_taken(now) or (self.last_call > now and self.exchange.is_taking()):
                self.deadline = now + self._terms.idle_s  # a side is slow, but it goes on
                return
            if self._connection is not None and not self._connection.transport.is_reading():
                self.exchange.measured = None  # it is the client that takes nothing more
            self._finish(FAILURE if self._is_target_late(now) else NEUTRAL, close=True)
            self._abort_answer()
        elif self._waits_at is not None:
            detail = f"No place became free at {self._next_hop()} in time."
            self._give_up(InternalFault("overloaded", detail, retry_after_s=1))
        elif self._is_body_taken(now):
            self.deadline = now + self._terms.idle_s
        elif self._timer is not None:  # it is over before the next target was asked
            self._give_up(response_timeout(self._next_hop()), NEUTRAL)
        elif self._connection is None:
            self._fail("connect", connect_timeout(self._next_hop()), is_last=self.last_call <= now)
        else:
            self._fail("timeout", response_timeout(self._next_hop()), is_last=self.last_call <= now)

    def _is_target_late(self, now: float) -> bool:
        """Whether it is the target that is silent in the middle of its answer. A client that takes nothing more or
        sends nothing more, or a limit on all of it, must not count against the target, or any client could open its
        circuit (rule 27)."""
        connection = self._connection
        if connection is None or not self._body_done or self.last_call <= now:
            return False
        return connection.transport.is_reading()

    def _is_body_taken(self, now: float) -> bool:
        """Whether the target takes a body slowly, but goes on."""
        if self._body_done or self.last_call <= now:
            return False
        return self._connection is not None and self._connection.is_taking()

    def _fail(self, reason: str, fault: UpstreamFault, *, is_last: bool = False, outcome: int = FAILURE) -> None:
        """This try has failed before anything was answered."""
        if is_last or not self._retries(reason, outcome, close=True):
            self._give_up(fault, outcome)

    def _give_up(self, fault: GatewayFault, outcome: int = FAILURE) -> None:
        self._finish(outcome, close=True)
        exchange = self.exchange
        exchange.upstream_s = self._forwarder.now() - self._since
        if not self._degrade(fault):
            self._forwarder.refuse(exchange, fault)

    def _degrade(self, fault: GatewayFault) -> bool:
        """R12: the fallback URL, else whoever promised to help (the cache), else False."""
        if not self._is_sent and self._fall_back():
            return True
        rescue, self.exchange.rescue = self.exchange.rescue, None
        return rescue is not None and rescue(fault)

    def _fall_back(self) -> bool:
        """Rule 7: once, only because no byte of the request has reached a target, and without upstream credentials."""
        exchange = self.exchange
        match = exchange.match
        if match is None or self._group is None or match.service is None or match.service.fallback is None:
            return False
        if exchange.is_fallback or self.last_call <= self._forwarder.now():
            return False
        record, base_path = match.service.fallback
        query = exchange.query if exchange.forwarded is None else exchange.forwarded.query
        self._request_target = upstream_target(match.route, base_path, exchange.raw_path, query)
        self._terms = replace(self._terms, pass_credentials=False, retries=None)
        self._group = self._target = None
        exchange.is_fallback = True
        self._record = record
        self._begin_try(self._forwarder.now())
        return True

    def _verdict(self, status: int) -> int:
        """What the status says about the target (rule 27)."""
        group = self._group
        return SUCCESS if status < 500 or group is None else verdict(status, group.state.record.circuit_breaker)

    def _next_hop(self) -> str:
        """A name for messages and Proxy-Status: the service's, since its address is nobody's business."""
        match = self.exchange.match
        return match.destination if match is not None else "control"

    def _part_with(self, outcome: int, *, close: bool) -> None:
        """This target has done its part, well or badly."""
        if self._connecting is not None:
            self._connecting.cancel()
            self._connecting = None
        target = self._target
        if target is not None:
            self._target = None
            self._tried += (target,)
            now = self._forwarder.now()
            target.ended(now, None if self._is_judged else now - self._began, outcome, self._ticket)
            self._is_judged = False
        connection, self._connection = self._connection, None
        if connection is not None:
            if close or not self._body_done:  # an answer that came before the request was whole ends the connection
                connection.close()
            else:
                connection.release()
        if target is not None and target.line:
            _fill_place(target)

    def _finish(self, outcome: int, *, close: bool) -> None:
        self._forwarder.active.discard(self)
        self.exchange.sink = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._limit is not None:
            self._leave_limit(self._forwarder.now() - self._ready_at, outcome)
        if self._waits_at is not None:
            self._waits_at.line.remove(self)
            self._waits_at = None
        self._part_with(outcome, close=close)


def _for_nobody_else(lines: list[bytes]) -> list[bytes]:
    """What a fallback says of caches is about itself: on the way to the client nobody may keep it for what the service
    would have said (rule 7)."""
    said = (b"cache-control:", b"cdn-cache-control:", b"expires:")
    return [*(line for line in lines if not line.lower().startswith(said)), b"cache-control: no-store\r\n"]


def _check_for_loop(exchange: Exchange) -> None:
    """RFC 9110 section 7.6.3: a service that leads back here, maybe with several parts of an aggregate at each turn,
    would take every connection there is. Raises InternalFault."""
    if exchange.noted[b"via"].count(b" portcullis") > MAX_GATEWAYS:
        exchange.measured = None
        detail = f"The request has been through more than {MAX_GATEWAYS} gateways: a service leads back to this one."
        raise InternalFault("loop_detected", detail, proxy_error="proxy_loop_detected")


def _fill_place(target: Target) -> None:
    """Whoever has waited longest takes the place that has become free, or goes elsewhere."""
    while target.line and target.in_flight < target.limit:
        target.line.popleft().take_place(target)

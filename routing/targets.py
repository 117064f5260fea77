"""One target as a worker sees it: what is under way there, how fast it answers, and whether it may be used."""

from __future__ import annotations

from collections import deque
from math import exp
from typing import Protocol

from core.faults import GatewayFault, UpstreamFault
from routing.circuit import HALF_OPEN, Circuit
from routing.policies import CircuitBreaker, PassiveCheck
from routing.records import TargetRecord

SUCCESS, FAILURE, NEUTRAL = 0, 1, 2  # what a request's end says about its target
_DECAY_S = 10.0  # Finagle's default for peak EWMA
_UNKNOWN_COST = 1e6  # of a target that has a request and has never answered one
_LONGEST_S = 60.0


def verdict(result: int | GatewayFault, policy: CircuitBreaker | None) -> int:
    """What a response's status, or the fault of a forwarding, says about the target (rule 27).

    Failures are what the target did not do in time or at all: no connection, a broken or malformed answer, a timeout,
    502, 503, 504; 500 by the policy's ``count_500`` alone, or any client could trip the breaker. Every other answer is
    a success. Faults that are not the target's (the client left or sent nonsense, we failed) are neutral.
    """
    if isinstance(result, int):
        if result < 500 or result > 504 or result == 501:
            return SUCCESS
        return FAILURE if result != 500 or (policy is not None and policy.count_500) else SUCCESS
    return FAILURE if isinstance(result, UpstreamFault) else NEUTRAL


class Owner(Protocol):
    """Whoever must look again when it changes which targets may be used."""

    def refresh(self) -> None: ...


class Waiting(Protocol):
    """A request that waits for a place at a target."""

    def take_place(self, target: Target) -> None: ...


class Target:
    """``in_flight`` counts from `began` to `ended`. ``name`` is what affinity cookies call it, empty without sticky
    sessions. Each `began` is followed by exactly one `ended`."""

    __slots__ = (
        "_bad",
        "_bad_before",
        "_cost_s",
        "_half_ends",
        "_ok",
        "_ok_before",
        "_stamp",
        "circuit",
        "ejected_until",
        "ejections",
        "in_flight",
        "is_healthy",
        "limit",
        "line",
        "name",
        "owner",
        "passive",
        "record",
        "tracks_latency",
        "weight",
    )

    def __init__(self, record: TargetRecord, owner: Owner, weight: int = 1) -> None:
        self.record = record
        self.owner = owner
        self.weight = weight
        self.name = b""
        self.in_flight = 0
        self.limit = 1024  # requests at once; those beyond wait in ``line``
        self.line: deque[Waiting] = deque()
        self.is_healthy = True
        self.circuit: Circuit | None = None
        self.passive: PassiveCheck | None = None
        self.ejected_until = 0.0
        self.ejections = 0
        self.tracks_latency = False
        self._cost_s = 0.0  # peak EWMA at the time ``_stamp``
        self._stamp = 0.0
        self._ok = self._bad = self._ok_before = self._bad_before = 0  # in this half of the window, and the one before
        self._half_ends = 0.0

    @property
    def is_on_trial(self) -> bool:
        """Whoever has chosen the target just now is its trial, and must not wait for a place there: all of them may be
        held by requests that hang."""
        return self.circuit is not None and self.circuit.state == HALF_OPEN

    # --- a request's life ---
    def began(self, now: float) -> int:
        """A request goes to the target, or waits for a connection to it. Returns what its end has to show."""
        self.in_flight += 1
        circuit = self.circuit
        return 0 if circuit is None else circuit.generation

    def answered(self, now: float, latency_s: float | None, outcome: int, ticket: int) -> None:
        """The verdict of a request that goes on: the head of a streamed answer has come. Its `ended` then says NEUTRAL,
        or FAILURE if the answer breaks off. A circuit's trial must not last as long as an event stream."""
        circuit = self.circuit
        if circuit is not None:
            if ticket != circuit.generation:
                return  # it began before the circuit changed its state
            if outcome or circuit.failures_in_row:
                self._report(circuit, now, outcome)
        if self.passive is not None and outcome != NEUTRAL:
            self._watch(self.passive, now, outcome)
        if self.tracks_latency and latency_s is not None:
            self._observe(now, latency_s, outcome)

    def ended(self, now: float, latency_s: float | None, outcome: int, ticket: int) -> None:
        """The request is over. ``latency_s`` counts from `began` to the first byte of the answer, or to the failure;
        None where that is unknown or was told before. ``ticket`` is what `began` returned."""
        self.in_flight -= 1
        self.answered(now, latency_s, outcome, ticket)

    def _report(self, circuit: Circuit, now: float, outcome: int) -> None:
        before = circuit.state
        if outcome == SUCCESS:
            circuit.succeeded()
        elif outcome == FAILURE:
            circuit.failed(now)
        else:
            circuit.abandoned()
        if before or circuit.state:
            self._changed()

    def _changed(self) -> None:
        """The target may be used no more, or again: then how slow it was before it failed is no guide."""
        self._cost_s = 0.0
        self.owner.refresh()

    # --- latency ---
    def _observe(self, now: float, latency_s: float, outcome: int) -> None:
        """Peak EWMA (Finagle, linkerd): a slower answer counts at once and in full, faster ones within seconds. A
        failure, however fast, never makes a target look better."""
        if outcome == NEUTRAL or now < self.ejected_until or (self.circuit is not None and self.circuit.state):
            return
        decay = exp((self._stamp - now) / _DECAY_S)
        cost_s = self._cost_s * decay
        if outcome == FAILURE:
            latency_s = min(max(latency_s, 2 * self._cost_s), _LONGEST_S)
        if latency_s >= cost_s:
            self._cost_s = latency_s
        else:
            self._cost_s = cost_s + latency_s * (1 - decay)
        self._stamp = now

    def cost(self, now: float) -> float:
        """The wait that one more request must expect, in seconds by weight. It decays while nothing is heard, so that
        a target that was slow is tried again."""
        if self._cost_s == 0.0 and self.in_flight:
            return (_UNKNOWN_COST + self.in_flight) / self.weight
        return self._cost_s * exp((self._stamp - now) / _DECAY_S) * (self.in_flight + 1) / self.weight

    # --- passive health ---
    def _watch(self, policy: PassiveCheck, now: float, outcome: int) -> None:
        """Count over a window that slides by halves; eject on too many failures."""
        if now >= self._half_ends:
            half_s = policy.window_s / 2
            next_ends = self._half_ends + half_s
            if now < next_ends:
                self._ok_before, self._bad_before, self._half_ends = self._ok, self._bad, next_ends
            else:
                self._ok_before, self._bad_before, self._half_ends = 0, 0, now + half_s
            self._ok = self._bad = 0
        if outcome == SUCCESS:
            self._ok += 1
            return
        self._bad += 1
        bad = self._bad + self._bad_before
        total = bad + self._ok + self._ok_before
        if total >= policy.min_requests and bad * 100 >= policy.error_percent * total and now >= self.ejected_until:
            self.ejected_until = now + policy.eject_s
            self.ejections += 1
            self._ok = self._bad = self._ok_before = self._bad_before = 0
            self._changed()

    def is_ejected(self, now: float) -> bool:
        return now < self.ejected_until

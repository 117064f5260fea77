"""Which target of a version answers (R7, rule 27).

A `TargetGroup` keeps the list of targets that may be used now and looks through all of them again only when something
has changed: a request pays for its choice, not for the health of others.
"""

from __future__ import annotations

import random as _random
from bisect import bisect_right
from collections.abc import Callable, Sequence
from heapq import heapify, heapreplace
from itertools import accumulate
from math import log
from typing import TYPE_CHECKING
from zlib import crc32

from core.faults import InternalFault
from routing.circuit import CLOSED
from routing.targets import Target

if TYPE_CHECKING:
    from routing.target_registry import ServiceState

MAX_SCAN = 16  # targets that least_connections compares; among more it compares two
_NEVER = float("inf")
_NO_TARGET_RETRY_S = 5
_MASK = 0xFFFFFFFF
_MIN_BUCKETS = 4096


class TargetGroup:
    """The targets of one version. ``strategy`` is one of `LoadBalancing`'s. ``by_address``: choices depend on the
    client's address, and `choose` wants it as ``point``. Targets of weight 0 get nothing, unless all have it."""

    __slots__ = (
        "_buckets",
        "_candidates",
        "_has_trials",
        "_heap",
        "_pick",
        "_random",
        "_seeds",
        "_sole",
        "_stale_at",
        "_sums",
        "_turn",
        "_usable",
        "by_address",
        "names",
        "state",
        "strategy",
        "targets",
    )

    state: ServiceState  # of the service, for whoever got the group from a registry

    def __init__(self, strategy: str = "weighted", random: Callable[[], float] = _random.random) -> None:
        self._random = random
        self.targets: tuple[Target, ...] = ()
        self.names: dict[bytes, Target] = {}  # by what affinity cookies call them
        self._candidates: tuple[Target, ...] = ()
        self._usable: tuple[Target, ...] = ()
        self._turn = 0
        self.apply(strategy, ())

    def apply(self, strategy: str, targets: Sequence[Target]) -> None:
        """Balance over these targets from now on."""
        self.strategy = strategy
        self.by_address = strategy == "ip_hash"
        self.targets = tuple(targets)
        self.names = {target.name: target for target in targets if target.name}
        self._candidates = tuple(target for target in targets if target.weight) or self.targets
        if not any(target.weight for target in targets):
            for target in targets:
                target.weight = 1
        for target in targets:
            target.tracks_latency = strategy == "peak_ewma"
        self._has_trials = False
        self._sole: Target | None = None
        self.refresh()

    def refresh(self) -> None:
        """Which targets may be used has changed."""
        self._stale_at = 0.0

    # --- choosing ---
    def choose(self, point: int, now: float, affinity: bytes | None = None) -> Target:
        """The target for a request, whose `began` must be called at once: in a circuit that is half open, the request
        is its one trial.

        ``affinity`` is the name of the target that the client had before; it is preferred while it may be used. Raises
        `InternalFault` ``circuit_open`` when the circuits of all targets are open, ``no_healthy_target`` when nothing
        is left for other reasons.
        """
        if now >= self._stale_at:
            self._renew(now)
        target = self._sole
        if target is not None:
            return target
        if affinity is not None:
            target = self.names.get(affinity)
            if target is not None and target not in self._usable:
                target = None
        if target is None:
            if not self._usable:
                raise self._nothing_left(now)
            target = self._pick(point, now)
        if self._has_trials:
            self._take(target, now)
        return target

    def another(self, now: float, tried: Sequence[Target]) -> Target | None:
        """The target for a further try: one that was not tried if there is any, never the one tried last, and none that
        has no place free. None when there is no such target. As with `choose`, `began` must follow."""
        if now >= self._stale_at:
            self._renew(now)
        others = [target for target in self._usable if target is not tried[-1] and target.in_flight < target.limit]
        others = [target for target in others if target not in tried] or others
        if not others:
            return None
        target = self._least(others)
        self._take(target, now)
        return target

    def with_place(self, now: float) -> Target | None:
        """Who can take a request in place of the one that was chosen just now and is full; None: nobody. As with
        `choose`, `began` must follow."""
        free = [target for target in self._usable if target.in_flight < target.limit]
        if not free:
            return None
        target = self._least(free)
        self._take(target, now)
        return target

    def _take(self, target: Target, now: float) -> None:
        circuit = target.circuit
        if circuit is not None and circuit.state != CLOSED:
            circuit.allows(now)
            self.refresh()  # one trial at a time

    def _least(self, targets: Sequence[Target]) -> Target:
        """Whom a further try goes to: the one with the least to do, by weight."""
        start = int(self._random() * len(targets))
        turned = (*targets[start:], *targets[:start])
        return min(turned, key=lambda target: target.in_flight / target.weight)

    # --- who may be used ---
    def _renew(self, now: float) -> None:
        candidates = self._candidates
        stale_at = _NEVER
        fit = []
        for target in candidates:
            if not target.is_healthy:
                continue
            if now < target.ejected_until:
                stale_at = min(stale_at, target.ejected_until)
            else:
                fit.append(target)
        if len(fit) * 2 < len(candidates):  # rule 27: so many cannot be ill; the probes are, or the network
            fit = list(candidates)
        usable = []
        self._has_trials = False
        for target in fit:
            circuit = target.circuit
            if circuit is None or circuit.state == CLOSED:
                usable.append(target)
            elif circuit.would_allow(now):
                usable.append(target)
                self._has_trials = True
            else:
                stale_at = min(stale_at, circuit.open_until)
        self._stale_at = stale_at
        self._usable = tuple(usable)
        self._sole = usable[0] if len(usable) == 1 and not self._has_trials else None
        if len(usable) > 1:
            self._prepare()
        elif usable:
            self._pick = self._first

    def _nothing_left(self, now: float) -> InternalFault:
        circuits = [target.circuit for target in self._candidates if target.circuit is not None]
        waits = [circuit.retry_after_s(now) for circuit in circuits if not circuit.would_allow(now)]
        if waits and len(waits) == len(self._candidates):
            detail = "Every target of the service has been failing; the next try is made in a while."
            return InternalFault("circuit_open", detail, retry_after_s=min(waits))
        detail = "No target of the service is fit to take the request."
        return InternalFault("no_healthy_target", detail, retry_after_s=min(waits, default=_NO_TARGET_RETRY_S))

    # --- strategies ---
    def _prepare(self) -> None:
        """Compute what the strategy needs to choose among the usable targets."""
        usable, strategy = self._usable, self.strategy
        is_even = len({target.weight for target in usable}) == 1
        self._sums: list[int] = [] if is_even else list(accumulate(target.weight for target in usable))
        if strategy == "ip_hash":
            self._seeds = [_seed(target) for target in usable]
            self._buckets: list[Target | None] = [None] * max(_MIN_BUCKETS, 64 << len(self.targets).bit_length())
            self._pick = self._by_point
        elif strategy == "peak_ewma":
            self._pick = self._by_cost
        elif strategy == "least_connections":
            self._pick = (
                self._by_load_of_two if len(usable) > MAX_SCAN else self._by_count if is_even else self._by_load
            )
        elif strategy == "round_robin" or is_even:
            self._turn = int(self._random() * len(usable))  # workers that start together do not go in step
            self._pick = self._in_turn
        else:
            self._begin_strides()
            self._pick = self._by_stride

    def _first(self, point: int, now: float) -> Target:
        return self._usable[0]

    def _in_turn(self, point: int, now: float) -> Target:
        usable = self._usable
        turn = self._turn + 1
        if turn >= len(usable):
            turn = 0
        self._turn = turn
        return usable[turn]

    def _begin_strides(self) -> None:
        # Stride scheduling (Waldspurger 1995; Envoy's EDF scheduler): each turn moves a target on by 1 / weight, and
        # the one that is furthest behind is next. Exact for any weights, spread evenly, O(log n).
        self._heap: list[tuple[float, int, float, Target]] = []
        for place, target in enumerate(self._usable):
            stride = 1 / target.weight
            self._heap.append((stride * self._random(), place, stride, target))
        heapify(self._heap)

    def _by_stride(self, point: int, now: float) -> Target:
        heap = self._heap
        passed, place, stride, target = heap[0]
        heapreplace(heap, (passed + stride, place, stride, target))
        return target

    def _by_count(self, point: int, now: float) -> Target:
        """As `_by_load`, where all weigh the same."""
        counts = [target.in_flight for target in self._usable]
        least = min(counts)
        if counts.count(least) == 1:
            return self._usable[counts.index(least)]
        equal = [target for target in self._usable if target.in_flight == least]
        return equal[int(self._random() * len(equal))]

    def _by_load(self, point: int, now: float) -> Target:
        """The one with the least under way, by weight; among equals a random one, by weight."""
        usable = self._usable
        best = usable[0]
        least = best.in_flight / best.weight
        equal_weight = best.weight
        for target in usable[1:]:
            load = target.in_flight / target.weight
            if load < least:
                best, least, equal_weight = target, load, target.weight
            elif load == least:
                equal_weight += target.weight
                if self._random() * equal_weight < target.weight:
                    best = target
        return best

    def _by_load_of_two(self, point: int, now: float) -> Target:
        one, other = self._two()
        return other if other.in_flight * one.weight < one.in_flight * other.weight else one

    def _by_cost(self, point: int, now: float) -> Target:
        one, other = self._two()
        return other if other.cost(now) < one.cost(now) else one

    def _two(self) -> tuple[Target, Target]:
        """Two different ones at random, by weight: nearly as good as the best of all (Mitzenmacher 2001)."""
        usable, random, sums = self._usable, self._random, self._sums
        count = len(usable)
        if sums:
            first = bisect_right(sums, random() * sums[-1], 0, count - 1)
            second = bisect_right(sums, random() * sums[-1], 0, count - 1)
        else:
            first = int(random() * count)
            second = int(random() * count)
        if first == second:
            second = first + 1 if first + 1 < count else 0
        return usable[first], usable[second]

    def _by_point(self, point: int, now: float) -> Target:
        """Rendezvous hashing (Thaler and Ravishankar 1998) of buckets of points, each computed when first asked for."""
        bucket = point % len(self._buckets)
        target = self._buckets[bucket]
        if target is None:
            target = self._buckets[bucket] = self._rendezvous(_mixed(bucket))
        return target

    def _rendezvous(self, number: int) -> Target:
        """The target whose own hash of the number is greatest, so that losing one moves only those who were there. By
        weight it is the first to ring of alarms with exponential times."""
        scores = [((number ^ seed) * 0x9E3779B1 & _MASK) * seed & _MASK for seed in self._seeds]
        if not self._sums:
            return self._usable[scores.index(max(scores))]
        times = [
            -log((score + 0.5) / (_MASK + 1)) / target.weight
            for score, target in zip(scores, self._usable, strict=True)
        ]
        return self._usable[times.index(min(times))]


def _seed(target: Target) -> int:
    """Odd, 32 bits, and the same in every worker of every host."""
    scheme, host, port = target.record.origin
    return _mixed(crc32(f"{scheme}://{host}:{port}".encode())) | 1


def _mixed(number: int) -> int:
    """MurmurHash3's finaliser."""
    number = (number ^ number >> 16) * 0x85EBCA6B & _MASK
    number = (number ^ number >> 13) * 0xC2B2AE35 & _MASK
    return number ^ number >> 16

"""Limits that all workers of all hosts count together, in Redis (`access.limits.charges.SharedBackend`)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from access.limits.charges import Charge, LimitPolicy, Mode, Verdict
from access.limits.shared import commands
from access.limits.shared.address import RedisAddress
from access.limits.shared.commands import EncodedPolicy, Worker
from access.limits.shared.link import RedisLink
from access.limits.shared.places import Places
from access.limits.shared.slices import Slice, Slices, can_be_sliced
from core.ids import new_request_id

LEASE_S = 15.0  # how long places outlive a worker that was killed
_TICK_S = 1.0
_RENEWALS = 3  # in one lease
_TOGETHER = 100  # buckets in one command
_MOST_POLICIES = 20_000
_BUDGET = 2_000  # slices looked at in one tick
_PROBE = LimitPolicy.of("probe", "probe", 1000, 1)

Done = Callable[[list[Verdict] | None], None]
Gauge = tuple[str, dict[str, str], float]


class SharedLimits:
    """One per worker. Connects at once and needs a running event loop.

    ``mode`` holds for policies that name none. ``digest_key`` makes the names of buckets unreadable, and is the same
    for all workers. No call waits longer than ``wait_s``.
    """

    def __init__(
        self, url: str, *, wait_s: float, digest_key: bytes, mode: Mode = "strict", lease_s: float = LEASE_S
    ) -> None:
        """Raises ValueError for a URL that is none."""
        self._worker = Worker(new_request_id()[:16], lease_s, digest_key)
        self._policies: dict[str, EncodedPolicy] = {}
        self._slices = Slices()
        self._places = Places()
        self._mode = mode
        self._next_renewal = 0.0
        probe = EncodedPolicy(_PROBE, self._worker).charge_one("probe")
        self._link = RedisLink(RedisAddress.from_url(url), commands.SCRIPT, probe, wait_s, self._came_up)
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(_TICK_S, self._tick)

    @property
    def is_up(self) -> bool:
        """Whether a call would be answered, as far as is known."""
        return self._link.is_up

    # --- all together ---
    def strict(self, charges: Sequence[Charge], done: Done) -> None:
        """All charges are made or none, see `SharedBackend`. One that is ``leased`` takes a slice with it."""
        if len(charges) == 1:
            policy, bucket, cost = charges[0]
            encoded = self._encoded(policy)
            if cost == 1 and encoded.is_plain:
                self._link.call(encoded.charge_one(bucket), partial(_tell_one, policy, done))
                return
        self._ask(charges, done)

    def _ask(self, charges: Sequence[Charge], done: Done) -> None:
        now = time.monotonic()
        slices: list[Slice | None] = []  # those that are taken with it
        buckets: list[tuple[bytes, bytes]] = []
        for charge in charges:
            encoded = self._encoded(charge.policy)
            slice_ = self._slices.get_or_add(charge, now) if encoded.is_leased else None
            extra = slice_.wants(now) if slice_ is not None else 0
            if slice_ is not None and extra:
                slice_.asking(now)
            slices.append(slice_ if extra else None)
            if charge.policy.algorithm == "concurrency":
                self._places.asking(charge)
            buckets.append((encoded.key(charge.bucket), encoded.arguments(charge.cost, extra)))
        self._link.call(commands.charge(buckets), partial(self._judge, charges, slices, done))

    def _judge(self, charges: Sequence[Charge], slices: list[Slice | None], done: Done, reply: Any) -> None:
        if type(reply) is not list:
            self._miss(charges, slices)
            done(None)
            return
        is_made = all(reply[::5])
        verdicts = []
        for place, charge in enumerate(charges):
            policy = charge.policy
            allowed, remaining, wait, reset, taken = reply[5 * place : 5 * place + 5]
            verdict = Verdict(bool(allowed), remaining, wait / 1e6, reset / 1e6, None if allowed else policy)
            verdicts.append(verdict)
            slice_ = slices[place]
            if slice_ is not None:
                slice_.filled(taken, remaining, verdict.reset_s)
            if not allowed and (slice_ := self._slices.find(charge)) is not None:
                slice_.refused(charge.cost, verdict.wait_s, time.monotonic())
            if policy.algorithm == "concurrency":
                self._places.answered(charge, is_held=is_made)
        done(verdicts)

    def _miss(self, charges: Sequence[Charge], slices: Iterable[Slice | None]) -> None:
        for slice_ in slices:
            if slice_ is not None:
                slice_.failed()
        for charge in charges:
            if charge.policy.algorithm == "concurrency":
                self._places.missed(charge)

    # --- from slices ---
    def leased(self, charge: Charge, now: float) -> Verdict | None:
        """See `SharedBackend`; ``now`` is `time.monotonic`."""
        slice_ = self._slices.find(charge)
        if slice_ is None:
            return None
        verdict = slice_.take(charge.cost, now)
        if slice_.tokens <= slice_.low and not slice_.is_asking and verdict is not None and verdict.allowed:
            self._renew(slice_, now)
        return verdict

    def take_one(self, policy: LimitPolicy, bucket: str, now: float) -> Slice | None:
        """One out of a slice, for what nearly every request asks: the slice that it came from. None: see `leased`."""
        slice_ = self._slices.by_bucket.get((policy.key, bucket))
        if slice_ is None or slice_.policy is not policy or not slice_.tokens or now >= slice_.until:
            return None
        slice_.used_at = now
        slice_.tokens -= 1
        if slice_.tokens <= slice_.low and not slice_.is_asking:
            self._renew(slice_, now)
        return slice_

    def _renew(self, slice_: Slice, now: float) -> None:
        extra = slice_.wants(now)
        if not extra or not self._link.is_up:
            return
        slice_.asking(now)
        encoded = self._encoded(slice_.policy)
        command = commands.charge([(encoded.key(slice_.bucket), encoded.arguments(0, extra))])
        self._link.call(command, partial(_fill, slice_))

    # --- back ---
    def give_back(self, charge: Charge) -> None:
        """See `SharedBackend`. A slice takes it where there is one; what Redis does not hear is lost."""
        if charge.policy.algorithm == "concurrency":
            if self._places.left(charge):
                self._return([charge], partial(self._doubt_one, charge))
            return
        slice_ = self._slices.find(charge)
        if slice_ is None or not slice_.put_back(charge.cost):
            self._return([charge], _ignore)

    def _doubt_one(self, charge: Charge, reply: Any) -> None:
        if reply is None:
            self._places.doubt(charge)

    def _return(self, charges: Sequence[Charge], taken: Callable[[Any], None]) -> None:
        self._link.call(commands.give_back(self._addressed(charges)), taken)

    # --- time ---
    def _tick(self) -> None:
        self._timer = self._loop.call_later(_TICK_S, self._tick)
        now = time.monotonic()
        self._return_slices(self._slices.idle(now, _BUDGET))
        if now >= self._next_renewal and self._link.is_up:
            self._next_renewal = now + self._worker.lease_s / _RENEWALS
            certain, others = self._places.held()
            self._hold(certain, is_certain=True)
            self._hold(others, is_certain=False)

    def _came_up(self) -> None:
        self._hold(self._places.after_absence(), is_certain=True)

    def _hold(self, charges: Sequence[Charge], *, is_certain: bool) -> None:
        for some in _batches(charges):
            self._link.call(commands.hold(self._addressed(some), is_certain=is_certain), _ignore)

    def _return_slices(self, slices: Iterable[Slice]) -> None:
        for some in _batches([Charge(each.policy, each.bucket, each.returnable) for each in slices if each.returnable]):
            self._return(some, _ignore)

    async def close(self) -> None:
        """Gives back what the worker has taken and does not use. Waits no longer than any call."""
        self._timer.cancel()
        if self._link.is_up:
            self._return_slices(self._slices.all())
            for some in _batches([charge._replace(cost=0) for charge in self._places.all()]):
                self._link.call(commands.hold(self._addressed(some), is_certain=True), _ignore)
        await self._link.close()

    # --- encoded ---
    def _encoded(self, policy: LimitPolicy) -> EncodedPolicy:
        encoded = self._policies.get(policy.key)
        if encoded is None or encoded.policy is not policy:
            encoded = self._encode(policy, encoded)
        return encoded

    def _encode(self, policy: LimitPolicy, known: EncodedPolicy | None) -> EncodedPolicy:
        if known is not None and known.policy == policy:
            known.policy = policy  # compiled anew
            return known
        if len(self._policies) >= _MOST_POLICIES:
            self._policies.clear()  # most have left the configuration
        is_leased = (policy.mode or self._mode) == "leased" and can_be_sliced(policy)
        encoded = self._policies[policy.key] = EncodedPolicy(policy, self._worker, is_leased=is_leased)
        return encoded

    def _addressed(self, charges: Iterable[Charge]) -> Iterator[tuple[bytes, bytes]]:
        for policy, bucket, cost in charges:
            encoded = self._encoded(policy)
            yield encoded.key(bucket), encoded.arguments(cost)

    # --- figures ---
    def gauges(self) -> list[Gauge]:
        return [
            ("portcullis_limits_redis_up", {}, float(self._link.is_up)),
            ("portcullis_limits_slices", {}, float(len(self._slices))),
        ]

    def counters(self) -> list[Any]:
        """Calls by writes is how many leave together."""
        link = self._link
        return [
            ["portcullis_limits_redis_calls_total", {}, link.calls],
            ["portcullis_limits_redis_writes_total", {}, link.writes],
            *(
                ["portcullis_limits_redis_failures_total", {"reason": reason}, number]
                for reason, number in link.failures.items()
            ),
        ]


def _tell_one(policy: LimitPolicy, done: Done, reply: Any) -> None:
    if type(reply) is not list:
        done(None)
        return
    allowed, remaining, wait, reset, _ = reply
    done([Verdict(allowed == 1, remaining, wait / 1e6, reset / 1e6, None if allowed else policy)])


def _fill(slice_: Slice, reply: Any) -> None:
    if type(reply) is not list:
        slice_.failed()
    else:
        _, remaining, _, reset, taken = reply
        slice_.filled(taken, remaining, reset / 1e6)


def _batches(charges: Sequence[Charge]) -> Iterator[Sequence[Charge]]:
    for start in range(0, len(charges), _TOGETHER):
        yield charges[start : start + _TOGETHER]


def _ignore(reply: Any) -> None: ...

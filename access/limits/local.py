"""Buckets in the memory of one worker."""

from __future__ import annotations

from collections.abc import Sequence
from random import uniform
from typing import NamedTuple

from access.addresses import failure_bucket
from access.limits.algorithms import (
    Log,
    Windows,
    fixed_window,
    gcra,
    leaky_bucket,
    sliding_log,
    sliding_window,
)
from access.limits.buckets import Buckets
from access.limits.charges import SECOND_NS, Charge, LimitPolicy

_MAX_BUCKETS = 250_000
_REFUSAL_NS = SECOND_NS // 100  # from one refusal of an address that is blocked to the next
_LONGEST_PAUSE_NS = 5 * SECOND_NS
_State = int | Windows | Log


class Look(NamedTuple):
    """What a charge would do: nothing has been charged yet. ``wait_ns`` and ``reset_ns`` as in `charges.Verdict`;
    ``state`` is the bucket's when it is made, where it is a value."""

    allowed: bool
    remaining: int
    wait_ns: int
    reset_ns: int
    state: int | Windows | None


class LocalLimiter:
    """A bucket for each subject of each policy. Buckets outlive the snapshot that their policy came with.

    ``now`` is in seconds, ``now_ns`` in nanoseconds, on any clock that seldom jumps; ``epoch_ns`` added to it gives the
    time since the epoch, so that windows begin when everybody's do.
    """

    __slots__ = ("_buckets", "_epoch_ns", "_states", "_under_way")

    def __init__(self, max_buckets: int = _MAX_BUCKETS, epoch_ns: int = 0) -> None:
        self._buckets: Buckets[int] = Buckets(max_buckets)  # the time, in ns, at which the bucket is full again
        self._states: Buckets[_State] = Buckets(max_buckets)  # of all but token buckets
        self._under_way: dict[tuple[str, str], int] = {}  # of concurrency policies
        self._epoch_ns = epoch_ns

    def charge(self, policy: LimitPolicy, subject: str, now: float) -> tuple[bool, int, int]:
        """One request on a token bucket: whether it is admitted, how many more would be, and whole seconds (rounded
        up).

        The seconds last until the bucket is full when it is admitted, until the next request would be when it is
        refused, which costs nothing.
        """
        bucket = (policy.key, subject)
        tat = self._buckets.young.get(bucket)
        if tat is None:
            tat = self._buckets.adopt(bucket) or 0
        allowed, tat, remaining, wait_ns = gcra(tat, int(now * 1e9), policy.interval_ns, policy.span_ns)
        self._buckets.young[bucket] = tat
        return allowed, remaining, -(-wait_ns // SECOND_NS)

    def wait_s(self, policy: LimitPolicy, subject: str, now: float) -> int:
        """Whole seconds until a request would be admitted, 0 when it would be now. Charges nothing."""
        tat = self._buckets.peek((policy.key, subject)) or 0
        allowed, _, _, wait_ns = gcra(tat, int(now * 1e9), policy.interval_ns, policy.span_ns)
        return 0 if allowed else -(-wait_ns // SECOND_NS)

    # --- several charges: all are made or none ---
    def look(self, charge: Charge, now_ns: int) -> Look:
        """What would become of a charge of any policy but a quota."""
        policy, bucket, cost = charge
        if policy.is_bucket:
            tat = self._buckets.young.get((policy.key, bucket))
            if tat is None:
                tat = self._buckets.peek((policy.key, bucket)) or 0
            allowed, tat, remaining, ns = gcra(tat, now_ns, policy.interval_ns, policy.span_ns, cost)
            return Look(allowed, remaining, 0 if allowed else ns, ns, tat)
        algorithm = policy.algorithm
        if algorithm == "concurrency":
            left = policy.limit - self._under_way.get((policy.key, bucket), 0)
            return Look(cost <= left, max(left - cost if cost <= left else left, 0), 0, 0, None)
        now_ns += self._epoch_ns
        state = self._states.peek((policy.key, bucket))
        if algorithm == "leaky_bucket":
            next_at = state if isinstance(state, int) else 0
            turn = leaky_bucket(next_at, now_ns, policy.interval_ns, policy.longest_wait_ns, cost)
            return Look(turn.allowed, turn.remaining, turn.wait, turn.reset, turn.next_at)
        length = policy.window_s * SECOND_NS
        if algorithm == "sliding_log":
            log = state if isinstance(state, Log) else Log()
            logged = sliding_log(log, now_ns, length, policy.limit, cost)
            return Look(logged.allowed, logged.remaining, logged.wait, logged.reset, None)
        count = sliding_window if algorithm == "sliding_window" else fixed_window
        windows = state if isinstance(state, Windows) else None
        counted = count(windows, now_ns, length, policy.limit, cost)
        return Look(counted.allowed, counted.remaining, counted.wait, counted.reset, counted.windows)

    def make(self, charge: Charge, look: Look, now_ns: int) -> None:
        """Make a charge whose `look`, at the same moment and with nothing in between, said that it is allowed."""
        policy, subject, cost = charge
        bucket = (policy.key, subject)
        algorithm = policy.algorithm
        if policy.is_bucket and bucket in self._buckets.young:
            assert isinstance(look.state, int)
            self._buckets.young[bucket] = look.state
        elif algorithm == "concurrency":
            self._under_way[bucket] = self._under_way.get(bucket, 0) + cost
        elif algorithm == "sliding_log":
            log = self._states.peek(bucket)
            if not isinstance(log, Log):
                log = Log()
            log.add(now_ns + self._epoch_ns, policy.window_s * SECOND_NS, cost)
            self._states.keep(bucket, log)
        else:
            self.remember(charge, look)

    def charge_all(self, charges: Sequence[Charge], now_ns: int) -> tuple[bool, list[Look]]:
        """All charges are made, or none is: whether they are, and what was seen."""
        looks = [self.look(charge, now_ns) for charge in charges]
        for look in looks:
            if not look.allowed:
                self._remember_refusals(charges, looks)
                return False, looks
        for place, charge in enumerate(charges):
            self.make(charge, looks[place], now_ns)
        return True, looks

    def _remember_refusals(self, charges: Sequence[Charge], looks: Sequence[Look]) -> None:
        for charge, look in zip(charges, looks, strict=True):
            if not look.allowed:
                self.remember(charge, look)

    def remember(self, charge: Charge, look: Look) -> None:
        """The bucket is as it was looked at. After a refusal too: what that saw of a clock that jumped holds from now
        on, and so does the time that it told."""
        bucket = (charge.policy.key, charge.bucket)
        if look.state is not None:
            if charge.policy.is_bucket:
                assert isinstance(look.state, int)
                self._buckets.keep(bucket, look.state)
            else:
                self._states.keep(bucket, look.state)

    def give_back(self, charge: Charge) -> None:
        """Undo a charge that was made: its request was then refused by another limit, or, of a concurrency policy, it
        has ended. A leaky bucket's turn is lost."""
        policy, subject, cost = charge
        bucket = (policy.key, subject)
        algorithm = policy.algorithm
        if algorithm == "concurrency":
            left = self._under_way.get(bucket, 0) - cost
            if left > 0:
                self._under_way[bucket] = left
            else:
                self._under_way.pop(bucket, None)
        elif policy.is_bucket:
            tat = self._buckets.peek(bucket)
            if tat is not None:
                self._buckets.keep(bucket, tat - cost * policy.interval_ns)
        else:
            state = self._states.peek(bucket)
            if isinstance(state, Log):
                state.take_back(cost)
            elif isinstance(state, Windows):
                self._states.keep(bucket, state._replace(current=max(state.current - cost, 0)))

    def sweep(self, now: float, budget: int) -> None:
        """Look at up to ``budget`` buckets of each kind. A timer calls this often, so that no call takes long."""
        now_ns = int(now * 1e9)
        self._buckets.sweep(now_ns, budget)
        if self._states:
            self._states.sweep(now_ns + self._epoch_ns, budget)

    def __len__(self) -> int:
        return len(self._buckets) + len(self._states)


class FailureBuckets:
    """Failed authentications by address (rule 10): looked at before anything costly, charged only by failures."""

    __slots__ = ("_has_failures", "_limiter", "_next_refusals", "_policy")

    def __init__(self, per_minute: int, max_buckets: int = _MAX_BUCKETS) -> None:
        self._policy = LimitPolicy.of("failures", "failures", per_minute, 60)
        self._limiter = LocalLimiter(max_buckets)
        self._next_refusals: Buckets[int] = Buckets(max_buckets)  # when the next one is due, in ns
        self._has_failures = False

    def is_blocked(self, address: str, now: float) -> int:
        """Seconds until the address may try again, 0 when it may now."""
        if not self._has_failures:
            return 0
        return self._limiter.wait_s(self._policy, failure_bucket(address), now)

    def charge(self, address: str, now: float) -> None:
        """Count a failure."""
        self._has_failures = True
        self._limiter.charge(self._policy, failure_bucket(address), now)

    def pause_s(self, address: str, now: float) -> float:
        """How long to hold the next refusal of an address, so that it gets few a second; seconds. Those that would
        have to wait for longer than five are spread, or all of them would come back at once."""
        bucket = ("refusals", failure_bucket(address))
        turn = leaky_bucket(self._next_refusals.peek(bucket) or 0, int(now * 1e9), _REFUSAL_NS, _LONGEST_PAUSE_NS)
        self._next_refusals.keep(bucket, turn.next_at)
        wait_ns = turn.wait if turn.allowed else uniform(_LONGEST_PAUSE_NS / 2, _LONGEST_PAUSE_NS)
        return wait_ns / SECOND_NS

    def sweep(self, now: float, budget: int) -> None:
        """Forget up to ``budget`` addresses whose failures are long past."""
        self._limiter.sweep(now, budget)
        self._next_refusals.sweep(int(now * 1e9), budget)
        self._has_failures = len(self._limiter) > 0

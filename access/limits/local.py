"""Buckets in the memory of one worker."""

from __future__ import annotations

from access.addresses import failure_bucket
from access.limits.algorithms import gcra
from access.records import LimitPolicy

_SECOND_NS = 1_000_000_000
_MAX_BUCKETS = 250_000


class LocalLimiter:
    """A token bucket for each subject of each policy. Buckets outlive the snapshot that their policy came with.

    They live in two generations. `sweep` empties the old one in slices, dropping full buckets (they say nothing) and
    moving the others; when it is empty, the young one takes its place. Past ``max_buckets`` in the young one the old
    one is forgotten at once, which bounds memory whatever clients do.
    """

    __slots__ = ("_max_buckets", "_old", "_young")

    def __init__(self, max_buckets: int = _MAX_BUCKETS) -> None:
        self._max_buckets = max_buckets
        self._young: dict[tuple[str, str], int] = {}  # the time, in ns, at which the bucket is full again
        self._old: dict[tuple[str, str], int] = {}

    def charge(self, policy: LimitPolicy, subject: str, now: float) -> tuple[bool, int, int]:
        """Whether the request is admitted, how many more would be, and whole seconds (rounded up).

        The seconds last until the bucket is full when it is admitted, until the next request would be when it is
        refused, which costs nothing. ``now`` is in seconds on any clock that seldom jumps.
        """
        bucket = (policy.key, subject)
        tat = self._young.get(bucket)
        if tat is None:
            tat = self._adopt(bucket)
        allowed, tat, remaining, wait_ns = gcra(tat, int(now * 1e9), policy.interval_ns, policy.span_ns)
        self._young[bucket] = tat
        return allowed, remaining, -(-wait_ns // _SECOND_NS)

    def wait_s(self, policy: LimitPolicy, subject: str, now: float) -> int:
        """Whole seconds until a request would be admitted, 0 when it would be now. Charges nothing."""
        bucket = (policy.key, subject)
        tat = self._young.get(bucket) or self._old.get(bucket, 0)
        allowed, _, _, wait_ns = gcra(tat, int(now * 1e9), policy.interval_ns, policy.span_ns)
        return 0 if allowed else -(-wait_ns // _SECOND_NS)

    def _adopt(self, bucket: tuple[str, str]) -> int:
        if len(self._young) >= self._max_buckets:
            self._old, self._young = self._young, {}
        return self._old.pop(bucket, 0)

    def sweep(self, now: float, budget: int) -> None:
        """Look at up to ``budget`` buckets. A timer calls this often, so that no call takes long."""
        now_ns = int(now * 1e9)
        if not self._old:
            self._old, self._young = self._young, {}  # a new one: an emptied dict keeps the room of its best days
        for _ in range(min(budget, len(self._old))):
            bucket, tat = self._old.popitem()
            if tat > now_ns:
                self._young.setdefault(bucket, tat)

    def __len__(self) -> int:
        return len(self._young) + len(self._old)


class FailureBuckets:
    """Failed authentications by address (rule 10): looked at before anything costly, charged only by failures."""

    __slots__ = ("_has_failures", "_limiter", "_policy")

    def __init__(self, per_minute: int, max_buckets: int = _MAX_BUCKETS) -> None:
        self._policy = LimitPolicy.of("failures", "failures", per_minute, 60)
        self._limiter = LocalLimiter(max_buckets)
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

    def sweep(self, now: float, budget: int) -> None:
        """Forget up to ``budget`` addresses whose failures are long past."""
        self._limiter.sweep(now, budget)
        self._has_failures = len(self._limiter) > 0

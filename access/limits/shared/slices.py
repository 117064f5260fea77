"""Slices of budgets that a worker has taken in advance, to answer out of at once (``leased``).

A slice holds as much as is used in about a second, and never more than a twentieth of what the bucket takes (at least
one): all workers together admit at most as many slices too many. A slice of a fixed window or a quota ends with it, so
there it is not even that.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from access.limits.charges import Charge, LimitPolicy, Verdict

SHARE = 20  # a slice is at most one part in so many
FIRST = 4
LASTS_S = 1.0  # about
IDLE_S = 5.0  # after which an unused slice goes back
MOST = 50_000  # slices of one worker; further buckets are asked for one by one
_SLICED = frozenset(("token_bucket", "sliding_window", "sliding_log", "fixed_window", "quota"))
_BY_WINDOW = frozenset(("fixed_window", "quota"))
_NEVER = float("inf")


def can_be_sliced(policy: LimitPolicy) -> bool:
    """What smooths or counts what is under way, each request must ask for."""
    return policy.algorithm in _SLICED


class Slice:
    """Of one bucket. Times are monotonic seconds."""

    __slots__ = (
        "asked_at", "blocked_until", "bucket", "is_asking", "largest", "low", "policy", "refused_cost", "remaining",
        "reset_at", "size", "tokens", "until", "used_at",
    )  # fmt: skip

    def __init__(self, policy: LimitPolicy, bucket: str, now: float) -> None:
        self.policy = policy
        self.bucket = bucket
        self.largest = max(1, policy.most // SHARE)
        self.size = min(FIRST, self.largest)
        self.low = 0  # with so much left more is asked for
        self.tokens = 0
        self.until = _NEVER
        self.remaining = 0  # beyond the slice
        self.reset_at = now
        self.is_asking = False
        self.asked_at = now - LASTS_S
        self.used_at = now
        self.blocked_until = 0.0
        self.refused_cost = 0

    def take(self, cost: int, now: float) -> Verdict | None:
        """None: Redis must be asked."""
        self.used_at = now
        if now >= self.until:
            self.tokens, self.until = 0, _NEVER
        reset_s = self.reset_at - now
        if self.tokens >= cost:
            self.tokens -= cost
            return Verdict(True, self.remaining + self.tokens, 0.0, reset_s if reset_s > 0 else 0.0, None)
        if now < self.blocked_until and cost >= self.refused_cost:
            return Verdict(False, self.tokens, self.blocked_until - now, max(reset_s, 0.0), self.policy)
        return None

    def wants(self, now: float) -> int:
        """How much to ask for. Whoever asks says so by `asking`, and what came of it by `filled` or `failed`."""
        if self.is_asking:
            return 0
        last_s = now - self.asked_at
        if last_s < LASTS_S / 2:
            self.size = min(2 * self.size, self.largest)
        elif last_s > 2 * LASTS_S:
            self.size = max(self.size // 2, 1)
        return max(self.size - self.tokens, 0)

    def asking(self, now: float) -> None:
        self.is_asking = True
        self.asked_at = now

    def failed(self) -> None:
        self.is_asking = False

    def filled(self, taken: int, remaining: int, reset_s: float) -> None:
        """With the reply to what was asked. What Redis says began to hold after that, so nothing lasts too long."""
        self.is_asking = False
        self.reset_at = self.asked_at + reset_s
        if self.policy.algorithm in _BY_WINDOW:
            if self.until == _NEVER or self.reset_at > self.until + self.policy.window_s / 2:
                self.tokens = 0  # of a window that has ended
            self.until = self.reset_at
        self.tokens += taken
        self.low = self.size // 2
        self.remaining = remaining

    def refused(self, cost: int, wait_s: float, now: float) -> None:
        """Nobody needs to ask again before the time that the client is told."""
        self.blocked_until, self.refused_cost = now + wait_s, cost

    def put_back(self, cost: int) -> bool:
        """False: it would not be known when that ends."""
        if self.policy.algorithm in _BY_WINDOW and self.until == _NEVER:
            return False
        self.tokens += cost
        return True

    @property
    def returnable(self) -> int:
        return self.tokens if self.until == _NEVER else 0


class Slices:
    """Those of one worker, by policy and bucket."""

    __slots__ = ("by_bucket",)

    def __init__(self) -> None:
        self.by_bucket: OrderedDict[tuple[str, str], Slice] = OrderedDict()

    def find(self, charge: Charge) -> Slice | None:
        """None: there is none, or it is another policy's."""
        policy = charge.policy
        slice_ = self.by_bucket.get((policy.key, charge.bucket))
        if slice_ is None or slice_.policy is policy:
            return slice_
        if slice_.policy != policy:
            return None
        slice_.policy = policy  # compiled anew
        return slice_

    def get_or_add(self, charge: Charge, now: float) -> Slice | None:
        """None: there are too many. One of a policy that has changed is void."""
        found = self.find(charge)
        if found is None and len(self.by_bucket) < MOST:
            found = self.by_bucket[charge.policy.key, charge.bucket] = Slice(charge.policy, charge.bucket, now)
        return found

    def idle(self, now: float, budget: int) -> Iterator[Slice]:
        """Looks at up to ``budget`` slices and takes those out that nobody uses."""
        for _ in range(min(budget, len(self.by_bucket))):
            name, slice_ = self.by_bucket.popitem(last=False)
            if slice_.is_asking or now < slice_.used_at + IDLE_S or now < slice_.blocked_until:
                self.by_bucket[name] = slice_
            else:
                yield slice_

    def all(self) -> list[Slice]:
        """Takes all out."""
        slices, self.by_bucket = list(self.by_bucket.values()), OrderedDict()
        return slices

    def __len__(self) -> int:
        return len(self.by_bucket)

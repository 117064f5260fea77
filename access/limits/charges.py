"""What every way of counting shares: a policy, what a request asks of it, and the answer.

Buckets are counted in one worker (`access.limits.local`) or by all of them together (`SharedBackend`). Times are
nanoseconds where they are compared and seconds where people read them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal, NamedTuple, Protocol

from access.policies import LimitRule

Algorithm = Literal[
    "token_bucket", "sliding_window", "sliding_log", "fixed_window", "leaky_bucket", "spike_arrest", "concurrency",
    "quota",
]  # fmt: skip
Mode = Literal["local", "strict", "leased"]
Outage = Literal["share", "open", "closed"]

SECOND_NS = 1_000_000_000
_PERIOD_S = {"day": 86_400, "month": 2_678_400}  # of a month: its longest; clients read whole seconds


@dataclass(frozen=True, slots=True)
class LimitPolicy:
    """``limit`` requests per ``window_s`` seconds for each bucket.

    What the algorithms take from it, by ``algorithm``:

    ``token_bucket``    ``interval_ns`` from one request to the next at a steady pace, ``span_ns`` what a full bucket is
                        worth (``interval_ns`` times ``burst``)
    ``spike_arrest``    the same with a burst of 1, unless the rule names one
    ``leaky_bucket``    ``interval_ns`` between departures; at most ``queue`` wait, none longer than ``max_wait_ns``
    ``sliding_window``  ``limit`` and ``window_s``: the present window and the weighted rest of the one before it
    ``sliding_log``     ``limit`` and ``window_s``: the time of each request
    ``fixed_window``    ``limit`` and ``window_s``: windows begin at multiples of ``window_s`` since the epoch
    ``concurrency``     ``limit`` requests under way, each with its cost, until they are released
    ``quota``           ``limit`` per ``period`` (a UTC day or month); ``window_s`` is that period's length
    """

    key: str  # unique per application, entry or limit, and unchanged by changes of the policy: so is the bucket
    name: str  # what clients read: "default", "application", "endpoint" or the limit's own name
    limit: int
    window_s: int
    interval_ns: int
    span_ns: int
    item: str  # the policy as a member of RateLimit-Policy
    fields: bytes  # the RateLimit-Policy line, and the RateLimit line up to the number that remains
    state: bytes  # a member of RateLimit up to that number
    algorithm: Algorithm = "token_bucket"
    is_bucket: bool = True  # a token bucket, or a spike arrest: one of a burst of 1
    burst: int = 1
    per: tuple[str, ...] = ("key",)  # what has a bucket of its own (`access.policies.Subject`)
    mode: Mode | None = None  # None: as RATE_LIMIT_MODE says
    outage: Outage = "share"
    period: Literal["day", "month"] = "day"
    queue: int = 0
    max_wait_ns: int = 0
    id: str = ""  # of the row, where there is one: under it, use and violations are reported
    alert: bool = False

    @classmethod
    def of(cls, key: str, name: str, limit: int, window_s: int) -> LimitPolicy:
        """A token bucket that holds as much as its limit. Raises ValueError."""
        return compiled(key, name, LimitRule(limit=max(limit, 0), window_s=window_s))

    @property
    def most(self) -> int:
        """What one request may take at most: a cost beyond it takes all there is."""
        return self.burst if self.is_bucket else self.limit

    @property
    def longest_wait_ns(self) -> int:
        """Of a leaky bucket: no request waits longer for its turn."""
        return min(self.max_wait_ns, self.queue * self.interval_ns)


def compiled(key: str, name: str, rule: LimitRule, *, limit_id: str = "") -> LimitPolicy:
    """A rule as the algorithms take it. Raises ValueError for one that admits nothing."""
    if rule.limit < 1:
        raise ValueError("The rate limit must be at least one request.")
    window_s = _PERIOD_S[rule.period] if rule.algorithm == "quota" else rule.window_s
    interval_ns = -(-window_s * SECOND_NS // rule.limit)  # rounded up: never more than the limit
    burst = rule.burst or (1 if rule.algorithm == "spike_arrest" else rule.limit)
    unit = 'qu="concurrent-requests"' if rule.algorithm == "concurrency" else f"w={window_s}"
    item = f'"{name}";q={rule.limit};{unit}'
    return LimitPolicy(
        key=key,
        name=name,
        limit=rule.limit,
        window_s=window_s,
        interval_ns=interval_ns,
        span_ns=interval_ns * burst,
        item=item,
        fields=f'RateLimit-Policy: {item}\r\nRateLimit: "{name}";r='.encode(),
        state=f'"{name}";r='.encode(),
        algorithm=rule.algorithm,
        is_bucket=rule.algorithm in ("token_bucket", "spike_arrest"),
        burst=burst,
        per=rule.per,
        mode=rule.mode,
        outage=rule.outage,
        period=rule.period,
        queue=rule.queue,
        max_wait_ns=rule.max_wait_ms * 1_000_000,
        id=limit_id,
        alert=rule.alert,
    )


def quota_policy(key: str, limit: int, period: Literal["day", "month"], *, name: str = "quota") -> LimitPolicy:
    """A quota for one subject, such as a key's own (K6): ``key`` makes its bucket unique. Raises ValueError."""
    rule = LimitRule(limit=limit, algorithm="quota", period=period, per=("key",))
    return compiled(key, name, rule)


@lru_cache(maxsize=4096)
def share_of(policy: LimitPolicy, workers: int) -> LimitPolicy:
    """What one of the workers may admit on its own while they cannot count together."""
    limit, burst = max(policy.limit // workers, 1), max(policy.burst // workers, 1)
    interval_ns = -(-policy.window_s * SECOND_NS // limit)
    return replace(
        policy,
        key=policy.key + "/share",
        item=policy.item.replace(f"q={policy.limit};", f"q={limit};"),
        limit=limit,
        burst=burst,
        interval_ns=interval_ns,
        span_ns=interval_ns * burst,
        algorithm="fixed_window" if policy.algorithm == "quota" else policy.algorithm,
    )


class Charge(NamedTuple):
    """``cost`` of ``policy``'s budget for ``bucket``, which is unique within ``policy.key``."""

    policy: LimitPolicy
    bucket: str
    cost: int


class Verdict(NamedTuple):
    """The answer to one charge.

    ``remaining`` is what the bucket would still admit now. ``wait_s``: refused, until the same charge would be admitted
    if nobody else came; admitted by a leaky bucket, until it is this request's turn; else 0. ``reset_s`` is what
    RateLimit's ``t`` says: until more of the budget is available, or all of it is back. ``violated``: the policy, where
    the charge is refused.
    """

    allowed: bool
    remaining: int
    wait_s: float
    reset_s: float
    violated: LimitPolicy | None


class SharedBackend(Protocol):
    """Buckets that all workers count in together. One per worker, made when REDIS_URL is set and a policy needs it."""

    def strict(self, charges: Sequence[Charge], done: Callable[[list[Verdict] | None], None]) -> None:
        """All charges are made or, when one is refused, none: the verdicts in the order of ``charges``, of which the
        admitted ones then say what would remain. None: Redis is away, or too slow. ``done`` is called once, later."""

    def leased(self, charge: Charge, now: float) -> Verdict | None:
        """At once, from this worker's slice of the budget. None: there is no slice, so that `strict` must decide."""

    def give_back(self, charge: Charge) -> None:
        """Undo a charge that was admitted, by `leased` or `strict`, whose request was then refused by another limit; of
        a ``concurrency`` policy: the request has ended."""

    async def close(self) -> None: ...

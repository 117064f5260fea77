"""Whether and when a request is tried again (R10, rule 8)."""

from __future__ import annotations

from collections.abc import Callable

from routing.policies import Retries

RESERVE = 10.0  # retries that a service may make before any request has paid for them
FLOOR_PER_S = 1.0  # what accrues where requests are too few to pay
MAX_SAVED = 50.0  # retries that a long calm can pay for: the burst beyond the share


class RetryBudget:
    """Bounds the retries of a service to a share of its requests, so that they cannot add to an outage (Finagle's
    RetryBudget). Every request that is sent pays in its share by adding 1 to ``requests``, every retry takes a token.

    Over any stretch of time: retries ≤ `MAX_SAVED` + the larger of share x requests and `FLOOR_PER_S` x seconds.
    """

    __slots__ = ("_saved", "_seen", "_since", "refused", "requests", "taken")

    def __init__(self, now: float) -> None:
        self.requests = 0  # of the service, retries not counted
        self.taken = 0
        self.refused = 0
        self._saved = RESERVE
        self._seen = 0
        self._since = now

    def take(self, now: float, percent: float) -> bool:
        """Take a token for one retry, if there is one; ``percent`` of requests may be retries."""
        paid = (self.requests - self._seen) * percent / 100
        floor = min((now - self._since) * FLOOR_PER_S, RESERVE - self._saved) if percent else 0.0
        self._saved = min(self._saved + max(paid, floor, 0.0), MAX_SAVED)
        self._seen = self.requests
        self._since = now
        if self._saved < 1.0 or not percent:
            self.refused += 1
            return False
        self._saved -= 1.0
        self.taken += 1
        return True

    def give_back(self) -> None:
        """There was nobody to try."""
        self._saved += 1.0
        self.taken -= 1


def may_retry(policy: Retries, reason: str, retries: int, *, sent: bool, repeatable: bool) -> bool:
    """Whether one more try is allowed; the budget is asked after this.

    ``reason`` is a `RetryReason`, or a status as text; ``retries`` have been made. ``sent``: a byte of the request may
    have reached a target. ``repeatable``: the method is idempotent, or the route declares the request safe to repeat,
    and all that was read of its body is still there (rule 8). Nobody asks once the client has been sent a byte.
    """
    return retries < policy.attempts and reason in policy.on and (repeatable or not sent)


def delay_s(policy: Retries, retries: int, random: Callable[[], float]) -> float:
    """How long to wait before the next try, when ``retries`` have been made: full jitter, so that those who failed
    together do not come back together (https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/)."""
    return random() * min(policy.max_ms, policy.base_ms << retries) / 1000

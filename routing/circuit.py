"""The circuit breaker of one target (rule 27), as Nygard describes it in "Release It!".

Closed → open after so many failures in a row → half-open once the period has passed, with one trial at a time →
closed when the trial succeeds, open again when it fails. A trial that takes longer than the period, and than a few
seconds, gets company: its client may send a body as slowly as it likes, and must not hold the circuit half-open.

Requests outlive states: what began before the circuit opened may end while the trial runs, and says nothing about the
target as it is now. So each change of state begins a new ``generation`` (as in Sony's gobreaker), and whoever reports
an outcome compares the generation in which the request began with the present one.
"""

from __future__ import annotations

from math import ceil

CLOSED, OPEN, HALF_OPEN = 0, 1, 2  # the values of the metric (rule 28)
LONG_TRIAL_S = 5.0


class Circuit:
    """``failures`` in a row open it, for ``open_s`` seconds; ``now`` is a monotonic clock's.

    ``failures_in_row`` is 0 only in a closed circuit whose last outcome was a success: then a success changes nothing,
    and need not be reported.
    """

    __slots__ = ("failures", "failures_in_row", "generation", "open_s", "open_until", "state", "times_opened")

    def __init__(self, failures: int, open_s: float) -> None:
        self.failures = failures
        self.open_s = open_s
        self.state = CLOSED
        self.failures_in_row = 0
        self.generation = 0
        self.open_until = 0.0  # from then on a trial may begin
        self.times_opened = 0

    def would_allow(self, now: float) -> bool:
        """Whether `allows` would say so; takes nothing."""
        return self.state == CLOSED or now >= self.open_until

    def allows(self, now: float) -> bool:
        """Whether a request may go to the target. Where the answer is yes in a circuit that is not closed, the request
        is the trial, and its end must be reported."""
        if self.state == CLOSED:
            return True
        if now < self.open_until:
            return False
        if self.state == OPEN:
            self.state = HALF_OPEN
            self.generation += 1
        self.open_until = now + max(self.open_s, LONG_TRIAL_S)
        return True

    def succeeded(self) -> None:
        if self.state == CLOSED:
            self.failures_in_row = 0
        elif self.state == HALF_OPEN:
            self.reset()

    def failed(self, now: float) -> None:
        if self.state == OPEN:
            return
        self.failures_in_row += 1
        if self.state == HALF_OPEN or self.failures_in_row >= self.failures:
            self.state = OPEN
            self.generation += 1
            self.open_until = now + self.open_s
            self.times_opened += 1

    def abandoned(self) -> None:
        """A request ended without a verdict: the client left. If it was the trial, the next request is another."""
        if self.state == HALF_OPEN:
            self.open_until = 0.0

    def reset(self) -> None:
        self.state = CLOSED
        self.failures_in_row = 0
        self.generation += 1
        self.open_until = 0.0

    def retry_after_s(self, now: float) -> int:
        """Whole seconds until it may be worth asking again, at least 1."""
        return max(1, ceil(self.open_until - now)) if self.state == OPEN else 1

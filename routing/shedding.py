"""How many requests of a service may be with its upstreams at once, found by watching (R22).

The limit follows a gradient, as Netflix's concurrency-limits ("Gradient2") and Envoy's adaptive concurrency filter do:
what requests take now is compared with a baseline, what they take when nothing waits, and the limit shrinks by that
ratio as soon as a queue shows. Additive increase with multiplicative decrease would need an admin to say which latency
is too much, which is just what nobody knows; it is kept for failures, where latency says nothing: timeouts and
refusals shrink the limit by a tenth.

The models differ in where the baseline comes from, and both have a flaw. Gradient2's long average climbs along during
a lasting overload, and the limit with it. Envoy chokes the service to three requests every minute to measure it. Here
the baseline is the lowest average of any window, and while latency holds the limit down, every ten seconds half of
the limit is given up for a moment. If that makes answers faster, there was a queue. If it does not, the
latency is the service's own, and becomes the baseline: a service that has become slower for good is not refused its
traffic for ever. The moments are the same for all workers of a host, or the others would fill what one gives up; but
a limit that has lost much since asks at once.
"""

from __future__ import annotations

from math import sqrt

from routing.policies import Concurrency

PRIORITIES = 10
WINDOW_S = 0.25  # at least; and twice the latency, so that what the last step did can be seen
MAX_WINDOW_S = 2.0
MIN_SAMPLES = 25  # fewer say nothing: the window goes on
TOLERANCE = 1.5  # times the baseline that a request may take before the limit shrinks
PROBE_EVERY_S = 10.0
_PROBE_SHARE = 0.5  # of the limit, while giving way is tried: below 1 / TOLERANCE, or a baseline too high would hold
_PROBE_WINDOWS = 2  # the first is full of requests from before
_FALLEN = 0.6  # of the limit at the last probe: it has lost so much that it asks before its time
_HELPED = 0.85  # of the latency before: less, and giving way has helped
_LEAST_GRADIENT = 0.5
_FAILURE_FACTOR = 0.9
_FAILURE_SHARE = 0.05  # of a window's requests, from which on failures shrink the limit
_LEARNING = 0.1  # of the way to a higher baseline, in each window whose latency cannot be due to us
_FIRST_LIMIT = 20.0


class AdaptiveLimit:
    """One service in one worker. `admit` before a request, and `done` once for each that was admitted: when the head
    of its answer comes, or when it ends without one. A long answer, or an event stream, keeps no place, and between
    `leave` and `come_back` a request whose body the client has yet to send keeps none either.

    Priority p (0 lowest, 9 highest) may use 55 + 5 p percent of the limit, so the lower ones are refused first; whoever
    is refused learns so at once and costs nothing.
    """

    __slots__ = (
        "_baseline_s",
        "_before_s",
        "_count",
        "_failures",
        "_is_starting",
        "_most",
        "_policy",
        "_probed_at",
        "_saved",
        "_shares",
        "_sum_s",
        "_window_ends",
        "_windows_left",
        "in_flight",
        "limit",
        "shed",
    )

    def __init__(self, policy: Concurrency) -> None:
        self.in_flight = 0
        self.shed = [0] * PRIORITIES  # refused so far, by priority
        self.limit = _FIRST_LIMIT
        self._baseline_s = 0.0  # 0: not known yet
        self._is_starting = True  # it doubles until it has been too much once
        self._sum_s = 0.0
        self._count = self._failures = 0
        self._most = 0  # in flight at once in this window
        self._window_ends = 0.0
        self._probed_at = -1  # which of the ten seconds
        self._windows_left = 0  # of the probe that is under way
        self._before_s = 0.0  # the latency before it
        self._saved = 0.0  # the limit before it
        self.apply(policy)

    def apply(self, policy: Concurrency) -> None:
        self._policy = policy
        self._set(self.limit)

    def admit(self, priority: int) -> bool:
        """Whether a request of this priority may go on; it is counted if so."""
        in_flight = self.in_flight
        if in_flight >= self._shares[priority]:
            self.shed[priority] += 1
            return False
        self.in_flight = in_flight = in_flight + 1
        if in_flight > self._most:
            self._most = in_flight
        return True

    def leave(self) -> None:
        self.in_flight -= 1

    def come_back(self) -> None:
        """It was admitted before, and is not refused now."""
        self.in_flight += 1
        self._most = max(self._most, self.in_flight)

    def done(self, now: float, latency_s: float | None, ok: bool) -> None:
        """An admitted request is over. ``latency_s`` from admission to the first byte of the answer; None where it says
        nothing (the client left). Not ``ok``: the upstream failed, or refused for want of capacity (503, timeout)."""
        self.in_flight -= 1
        if latency_s is None:
            return
        if ok:
            self._sum_s += latency_s
            self._count += 1
        else:
            self._failures += 1
        if now >= self._window_ends and self._count + self._failures >= MIN_SAMPLES:
            self._end_window(now)

    def _end_window(self, now: float) -> None:
        average_s = self._sum_s / self._count if self._count else 0.0
        if self._failures > (self._count + self._failures) * _FAILURE_SHARE:
            self._windows_left = 0
            self._is_starting = False
            self._set(self.limit * _FAILURE_FACTOR)
        elif self._windows_left:
            self._go_on_probing(average_s)
        else:
            self._adjust(now, average_s)
        self._window_ends = now + min(max(WINDOW_S, 2 * average_s), MAX_WINDOW_S)
        self._sum_s = 0.0
        self._count = self._failures = 0
        self._most = self.in_flight

    def _adjust(self, now: float, average_s: float) -> None:
        limit = self.limit
        is_used = self._most * 2 >= limit  # a limit that nobody reaches says nothing of what is beyond it
        if average_s < self._baseline_s or self._baseline_s == 0.0:
            self._baseline_s = average_s
        elif not is_used:
            self._baseline_s += (average_s - self._baseline_s) * _LEARNING
        gradient = TOLERANCE * self._baseline_s / average_s if average_s else 1.0
        if gradient >= 1.0:
            if is_used:
                self._set(limit * 2 if self._is_starting else limit + sqrt(limit))
            return
        self._is_starting = False
        self._set(limit * max(gradient, _LEAST_GRADIENT) + sqrt(limit))
        if now // PROBE_EVERY_S != self._probed_at or self.limit < self._saved * _FALLEN:
            self._probed_at = int(now // PROBE_EVERY_S)
            self._windows_left = _PROBE_WINDOWS
            self._before_s, self._saved = average_s, self.limit
            self._set(self.limit * _PROBE_SHARE)

    def _go_on_probing(self, average_s: float) -> None:
        self._windows_left -= 1
        if self._windows_left:
            return
        if average_s < self._baseline_s or average_s > self._before_s * _HELPED:
            self._baseline_s = average_s
        self._set(self._saved)

    def _set(self, limit: float) -> None:
        policy = self._policy
        self.limit = limit = min(max(limit, policy.min_limit), policy.max_limit)
        self._shares = tuple([max(1, int(limit * (55 + 5 * priority) / 100)) for priority in range(PRIORITIES)])

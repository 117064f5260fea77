"""Rate limiting algorithms, without clock or memory: state and ``now`` in, decision and state out.

All times are nanoseconds on one clock, costs and limits whole numbers; a ``cost`` is never above what the policy could
admit at once. A refusal leaves the budget as it is. Whatever lies in the future, because the clock jumped back or the
policy changed, counts as happening now: nobody gets more than the budget, and nobody is blocked for longer than the
policy could block them.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple


def gcra(tat: int, now: int, interval: int, span: int, cost: int = 1) -> tuple[bool, int, int, int]:
    """A token bucket in one number: the generic cell rate algorithm (ITU-T I.371, annex A).

    ``tat`` is the time at which the bucket is full again (any past time: it is), ``interval`` what one request costs,
    ``span`` what the full bucket is worth (``interval`` times its size), all in the unit of ``now``. Returns whether
    the request is admitted, the new ``tat``, how many more would be admitted now, and a time: until the bucket is full
    when admitted, until the next request is admitted when refused. A refusal costs nothing.
    """
    if tat < now:
        tat = now
    elif tat > now + span:  # the clock jumped back, or the policy shrank: the bucket is empty, not in debt
        tat = now + span
    price = interval * cost
    used = tat + price - now
    if used > span:
        return False, tat, (span - used + price) // interval, used - span
    return True, tat + price, (span - used) // interval, used


class Turn(NamedTuple):
    """Of a leaky bucket: ``next_at`` is when the request after this one may leave. ``wait``: admitted, until its turn;
    refused, until it would be let into the queue. ``remaining``: how many more could come now; ``reset``: until the
    queue is empty."""

    allowed: bool
    next_at: int
    remaining: int
    wait: int
    reset: int


def leaky_bucket(next_at: int, now: int, interval: int, longest: int, cost: int = 1) -> Turn:
    """A queue that lets one request out every ``interval``. ``longest`` is the longest wait that a request takes on:
    the queue's bound, as time."""
    if next_at < now:
        next_at = now
    elif next_at > now + longest + interval * cost:
        next_at = now + longest + interval * cost
    wait = next_at - now
    if wait > longest:
        return Turn(False, next_at, 0, wait - longest, wait)
    after = next_at + interval * cost
    remaining = (longest - (after - now)) // interval + 1
    return Turn(True, after, max(remaining, 0), wait, after - now)


class Windows(NamedTuple):
    """What was admitted in the window that began at ``start``, and in the one before it. ``until``: when that is of no
    account any more."""

    until: int
    start: int
    length: int
    current: int
    previous: int


class Counted(NamedTuple):
    """``wait``: refused, until the same request would be admitted. ``reset``: until the whole budget is back."""

    allowed: bool
    windows: Windows
    remaining: int
    wait: int
    reset: int


_NOTHING = Windows(0, 0, 0, 0, 0)


def sliding_window(windows: Windows | None, now: int, length: int, limit: int, cost: int = 1) -> Counted:
    """Two counters: the requests of the window before count by the share of it that the last ``length`` still covers.

    It is as if those had come evenly. Where they did not, a span of ``length`` may see a few more or fewer than the
    limit; a window by the clock never does.
    """
    start, current, previous = _moved(windows or _NOTHING, now, length)
    left = start + length - now  # of the present window: > 0
    used = current - (-previous * left // length)  # rounded up
    if used + cost > limit:
        wait = _until_room(current, previous, left, length, limit - cost)
        reset = left + length if current else left
        refused = Windows(start + 2 * length, start, length, current, previous)
        return Counted(False, refused, max(limit - used, 0), wait, reset)
    admitted = Windows(start + 2 * length, start, length, current + cost, previous)
    return Counted(True, admitted, limit - used - cost, 0, left + length)


def _until_room(current: int, previous: int, left: int, length: int, room: int) -> int:
    """Until at most ``room`` counts."""
    if room >= current:  # in this window, as the one before leaves: previous * left' <= (room - current) * length
        return left - (room - current) * length // previous
    return left + length - room * length // current  # in the next one, as this leaves


def fixed_window(windows: Windows | None, now: int, length: int, limit: int, cost: int = 1) -> Counted:
    """One counter, which begins anew at each multiple of ``length``."""
    start, current, _ = _moved(windows or _NOTHING, now, length)
    end = start + length
    if current + cost > limit:
        refused = Windows(end, start, length, current, 0)
        return Counted(False, refused, max(limit - current, 0), end - now, end - now)
    return Counted(True, Windows(end, start, length, current + cost, 0), limit - current - cost, 0, end - now)


def _moved(windows: Windows, now: int, length: int) -> tuple[int, int, int]:
    """The window of ``now``: its start, and what was admitted in it and in the one before."""
    start = now - now % length
    _, known_start, known_length, current, previous = windows
    if known_length == length:
        if start == known_start:
            return start, current, previous
        if start == known_start + length:
            return start, 0, current
        if start > known_start:
            return start, 0, 0
        return start, current, previous  # the clock jumped back
    if now >= windows.until or not known_length:
        return start, 0, 0
    return start, current + previous, 0  # other windows than before: what they held counts as happening now


class Log:
    """The times of admitted requests, oldest first: the state of `sliding_log`."""

    __slots__ = ("entries", "until", "used")

    def __init__(self) -> None:
        self.entries: deque[tuple[int, int]] = deque()  # when, and its cost
        self.used = 0
        self.until = 0  # when the last of them is of no account any more

    def add(self, now: int, length: int, cost: int) -> None:
        self.entries.append((now, cost))
        self.used += cost
        self.until = now + length

    def take_back(self, cost: int) -> None:
        """Forget the newest entry of this cost."""
        for place in range(len(self.entries) - 1, -1, -1):
            if self.entries[place][1] == cost:
                del self.entries[place]
                self.used -= cost
                return

    def forget(self, now: int, length: int) -> None:
        """Drop what came ``length`` ago or earlier; what lies in the future counts as coming now."""
        entries = self.entries
        while entries and entries[0][0] <= now - length:
            self.used -= entries.popleft()[1]
        if entries and entries[-1][0] > now:
            self.entries = deque((min(at, now), cost) for at, cost in entries)
        if entries:
            self.until = self.entries[-1][0] + length


class Logged(NamedTuple):
    """As `Counted`; whoever admits the request adds it to the log."""

    allowed: bool
    remaining: int
    wait: int
    reset: int


def sliding_log(log: Log, now: int, length: int, limit: int, cost: int = 1) -> Logged:
    """Exactly ``limit`` in any span of ``length``. Forgets, and changes nothing else."""
    log.forget(now, length)
    free = limit - log.used
    if cost <= free:
        return Logged(True, free - cost, 0, length)
    wait = 0
    for at, freed in log.entries:
        free += freed
        wait = at + length - now
        if free >= cost:
            break
    return Logged(False, max(limit - log.used, 0), wait, log.until - now)

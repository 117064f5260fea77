"""Requests that wait for their turn: one timer for all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count

from gateway_project.dataplane.holding import Hold

_EARLY_S = 0.0005  # timers of the loop go by whole milliseconds
_MOST_AT_ONCE = 20  # the others that are due go on in the next turn of the loop


class Turns:
    """Holds by the time at which they go on. ``loop`` and ``now`` as in `Gateway`."""

    def __init__(self, loop: Callable[[], asyncio.AbstractEventLoop], now: Callable[[], float]) -> None:
        self._loop = loop
        self._now = now
        self._numbers = count()
        self._waiting: list[tuple[float, int, Hold, Callable[[], None]]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0

    def wait(self, due: float, hold: Hold, step: Callable[[], None]) -> None:
        """``hold`` goes on with ``step`` at ``due``. One whose client has left does nothing then."""
        heappush(self._waiting, (due, next(self._numbers), hold, step))
        self._set_timer()

    def _set_timer(self) -> None:
        if not self._waiting:
            return
        due = self._waiting[0][0]
        if self._timer is not None:
            if self._timer_at <= due:
                return
            self._timer.cancel()
        self._timer_at = due
        self._timer = self._loop().call_later(max(due - self._now(), 0.0), self._let_go)

    def _let_go(self) -> None:
        self._timer = None
        now = self._now() + _EARLY_S
        for _ in range(_MOST_AT_ONCE):
            if not self._waiting or self._waiting[0][0] > now:
                break
            _, _, hold, step = heappop(self._waiting)
            hold.go_on(step)
        self._set_timer()

    @property
    def size(self) -> int:
        """How many are kept, those among them whose client has left meanwhile."""
        return len(self._waiting)

    def __len__(self) -> int:
        return sum(not hold.is_over for _, _, hold, _ in self._waiting)

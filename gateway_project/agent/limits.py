"""What the workers of this host count against limits: quotas, which the database keeps; who uses limits most; and who
was refused.

Quotas are added to the database before a worker hears the sum, so that what it was told survives us. The rest waits in
memory, within bounds, and the latest of it is lost with us.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from heapq import nlargest
from typing import Any

from access.limiting.counts import Busy, QuotaPlace, Refused, add_quotas, add_violations, epoch, prune, store_uses
from core.faults import InternalFault
from gateway_project.agent.database import DatabaseAway, DatabaseThread

logger = logging.getLogger("portcullis.agent")

_LOOK_S = 1.0
_USES_S = 5.0
_PRUNE_S = 3600.0
_MINUTE_S = 60.0
_MOST_REFUSED = 10_000  # subjects that wait for the database
_MOST_BUSY = 20_000  # subjects of all limits
_MOST_SHOWN = 20  # of one limit
_MOST_COUNT = 2**50
_MOST_ROWS = 1_000

Params = dict[str, Any]


@dataclass(slots=True)
class _Subject:
    """``minutes``: admitted and refused by minute; ``used``: by worker, and when it said so."""

    is_shared: bool = False
    counts: dict[int, tuple[int, int]] = field(default_factory=dict)
    used: dict[int, tuple[int, float]] = field(default_factory=dict)
    seen_at: float = 0.0

    def add(self, pid: int, admitted: int, refused: int, used: int, now: float) -> None:
        second = int(now)
        before = self.counts.get(second, (0, 0))
        self.counts[second] = before[0] + admitted, before[1] + refused
        self.used[pid] = used, now
        self.seen_at = now

    def forget(self, now: float) -> None:
        self.counts = {second: each for second, each in self.counts.items() if second > now - _MINUTE_S}
        self.used = {pid: each for pid, each in self.used.items() if each[1] > now - _MINUTE_S}

    def busy(self, limit_id: str, subject: str) -> Busy:
        numbers = [used for used, _ in self.used.values()]
        return Busy(
            limit_id,
            subject,
            max(numbers, default=0) if self.is_shared else sum(numbers),
            sum(admitted for admitted, _ in self.counts.values()),
            sum(refused for _, refused in self.counts.values()),
            self.is_shared,
        )


class LimitCounts:
    """`take_uses` and `take_violations` get the rows of workers' messages (`core.wire`)."""

    def __init__(self, node_name: str) -> None:
        self._node_name = node_name
        self._database = DatabaseThread("limits")
        self._quotas = DatabaseThread("quotas")  # requests wait for these
        self._waiting: list[tuple[list[tuple[str, QuotaPlace, int]], asyncio.Future[list[int]]]] = []
        self._adding: asyncio.Task[None] | None = None
        self._refused: dict[tuple[str, str], Refused] = {}
        self._subjects: dict[tuple[str, str], _Subject] = {}
        self._changed: set[tuple[str, str]] = set()
        self.handlers: dict[str, Callable[[Params], Awaitable[Params]]] = {"quotas": self.quotas}

    # --- from workers ---
    async def quotas(self, params: Params) -> Params:
        """``{"rows": [[tenant, policy, subject, period, how much], …]}`` → ``{"used": [what has been used of each]}``.
        Raises InternalFault ``dependency_unavailable``."""
        uses = [_quota_use(row) for row in params["rows"][:_MOST_ROWS]]
        answer: asyncio.Future[list[int]] = asyncio.get_running_loop().create_future()
        self._waiting.append((uses, answer))
        if self._adding is None:
            self._adding = asyncio.create_task(self._add_waiting())
        return {"used": await answer}

    async def _add_waiting(self) -> None:
        """What arrives while the database is asked goes to it together."""
        try:
            while self._waiting:
                waiting, self._waiting = self._waiting, []
                sums: dict[QuotaPlace, tuple[str, int]] = {}
                for uses, _ in waiting:
                    for tenant, place, cost in uses:
                        sums[place] = tenant, cost + sums.get(place, ("", 0))[1]
                outcome = await self._add([(tenant, place, cost) for place, (tenant, cost) in sums.items()])
                for uses, answer in waiting:
                    if answer.done():  # its caller has given up
                        continue
                    if isinstance(outcome, InternalFault):
                        answer.set_exception(outcome)
                    else:
                        answer.set_result([outcome[place] for _, place, _ in uses])
        finally:
            self._adding = None

    async def _add(self, uses: list[tuple[str, QuotaPlace, int]]) -> dict[QuotaPlace, int] | InternalFault:
        try:
            return await self._quotas.run(add_quotas, uses)
        except DatabaseAway:
            return InternalFault("dependency_unavailable", "The gateway's database is away.", retry_after_s=2)
        except Exception:
            logger.exception("quotas could not be counted")
            return InternalFault("internal_error", "The gateway's agent failed.")

    def take_violations(self, rows: list[Any]) -> None:
        """Raises ValueError or TypeError for what is none."""
        for row in rows[:_MOST_ROWS]:
            refused, is_reported = _refused(row)
            place = refused.limit_id, refused.subject
            known = self._refused.get(place)
            if known is not None:
                refused = refused._replace(requests=refused.requests + known.requests)
            elif len(self._refused) >= (_MOST_REFUSED if is_reported else _MOST_REFUSED // 2):
                continue  # those that somebody is told of come first
            self._refused[place] = refused

    def take_uses(self, pid: int, rows: list[Any]) -> None:
        """Raises ValueError or TypeError for what is none."""
        now = time.time()
        for limit_id, name, admitted, refused, used, is_shared in rows[:_MOST_ROWS]:
            place = _text(limit_id, 60), _text(name, 300)
            subject = self._subjects.get(place)
            if subject is None:
                if len(self._subjects) >= _MOST_BUSY:
                    continue
                subject = self._subjects[place] = _Subject()
            subject.is_shared = bool(is_shared)
            subject.add(pid, _count(admitted), _count(refused), _count(used), now)
            self._changed.add(place)

    # --- to the database ---
    async def run(self) -> None:
        """Until cancelled; then what has been counted is stored."""
        next_uses = next_prune = 0.0
        try:
            while True:
                await asyncio.sleep(_LOOK_S)
                now = time.monotonic()
                try:
                    await self._store_violations()
                    if now >= next_uses:
                        await self._store_uses()
                        next_uses = now + _USES_S
                    if now >= next_prune:
                        await self._database.run(prune, epoch(time.time()))
                        next_prune = now + _PRUNE_S
                except DatabaseAway:
                    pass  # the follower says so, once
                except Exception:
                    logger.exception("what limits have counted could not be stored")
        finally:
            try:
                async with asyncio.timeout(2.0):
                    if self._adding is not None:
                        await self._adding
                    await self._store_violations()
            except (TimeoutError, DatabaseAway):
                pass
            await self._quotas.close()
            await self._database.close()

    async def _store_violations(self) -> None:
        refused, self._refused = self._refused, {}
        if not refused:
            return
        try:
            await self._database.run(add_violations, list(refused.values()), epoch(time.time()))
        except DatabaseAway:
            for place, each in refused.items():
                newer = self._refused.get(place)
                requests = each.requests + (newer.requests if newer is not None else 0)
                self._refused[place] = each._replace(requests=requests)
            raise

    async def _store_uses(self) -> None:
        now = time.time()
        changed, self._changed = self._changed, set()
        by_limit: dict[str, list[Busy]] = {}
        for place in changed:
            subject = self._subjects[place]
            subject.forget(now)
            by_limit.setdefault(place[0], []).append(subject.busy(*place))
        busy = [
            each
            for group in by_limit.values()
            for each in nlargest(_MOST_SHOWN, group, key=lambda busy: (busy.admitted + busy.refused, busy.used))
        ]
        for place in [place for place, each in self._subjects.items() if each.seen_at < now - _MINUTE_S]:
            del self._subjects[place]
        if busy:
            await self._database.run(store_uses, self._node_name, busy, epoch(now))


def _quota_use(row: list[Any]) -> tuple[str, QuotaPlace, int]:
    tenant, policy, subject, period, cost = row
    if not isinstance(cost, int) or abs(cost) > _MOST_COUNT:
        raise ValueError(f"{str(cost)[:40]!r} is nothing to be used")
    return _text(tenant, 40), QuotaPlace(_text(policy, 60), _text(subject, 300), _text(period, 10)), cost


def _refused(row: list[Any]) -> tuple[Refused, bool]:
    tenant, limit_id, name, subject, application_id, address, count, is_reported = row
    texts = _text(tenant, 40), _text(limit_id, 60), _text(name, 100), _text(subject, 300), _text(application_id, 40)
    return Refused(*texts, _text(address, 64), _count(count)), bool(is_reported)


def _text(value: Any, longest: int) -> str:
    if not isinstance(value, str) or len(value) > longest or "\x00" in value:
        raise ValueError(f"{str(value)[:40]!r} is no name that could stand here")
    return value


def _count(value: Any) -> int:
    if not isinstance(value, int) or not 0 <= value <= _MOST_COUNT:
        raise ValueError(f"{str(value)[:40]!r} is no number of requests")
    return value

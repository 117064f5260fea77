"""What the workers of this host count of versions, on its way to the database; and the rollouts that go by it.

Sums wait in memory, within bounds, while the database is away.
"""

import asyncio
import logging
import secrets
import time
from typing import Any

from gateway_project.agent.database import DatabaseAway, DatabaseThread
from routing.judging import LATENCY_S, Numbers, total
from routing.rollouts import advance_rollouts
from routing.traffic import BUCKET_S, PHASE_BUCKET_S, Traffic, Use, add_uses, prune, store_traffic

logger = logging.getLogger("portcullis.agent")

_LOOK_S = 1.0
_USES_S = 10.0
_PRUNE_S = 600.0
_MAX_USES = 20_000
_MAX_BUCKETS = 5_000
_MAX_COUNT = 2**40  # of requests in one message
_END_OF_TIME = 253_402_300_800  # epoch seconds: the year 10000


class Versions:
    """`take_uses` and `take_traffic` get the rows of workers' messages (`core.wire`)."""

    def __init__(self, node_name: str) -> None:
        self._agent = f"{node_name[:180]} {secrets.token_hex(4)}"
        self._database = DatabaseThread("versions")
        self._uses: dict[tuple[str, str, str, str], Use] = {}
        self._traffic: dict[tuple[str, str, str, int], Numbers] = {}
        self._changed: set[tuple[str, str, str, int]] = set()
        self._next_uses = self._next_prune = 0.0

    # --- from workers ---
    def take_uses(self, rows: list[Any]) -> None:
        """Raises ValueError or TypeError for what is no use."""
        for row in rows:
            self._add_use(_use(row))

    def _add_use(self, use: Use) -> None:
        caller = use.service_id, use.version, use.application_id, use.key_id
        known = self._uses.get(caller)
        if known is not None:
            later = use if use.last >= known.last else known
            use = Use(*caller, known.requests + use.requests, later.last, later.address)
        elif len(self._uses) >= _MAX_USES:
            return
        self._uses[caller] = use

    def take_traffic(self, rows: list[Any]) -> None:
        """Raises ValueError or TypeError for what is no traffic."""
        now = int(time.time())
        for service_id, version, phase, requests, errors, latency in rows:
            numbers = Numbers(_count(requests), _count(errors), tuple(map(_count, latency)))
            if len(numbers.latency) != len(LATENCY_S) + 1:
                raise ValueError("a histogram of another form")
            size = PHASE_BUCKET_S if phase else BUCKET_S
            bucket = _text(service_id, 40), _text(version, 32), _text(phase, 60), now // size * size
            known = self._traffic.get(bucket)
            if known is not None:
                self._traffic[bucket] = total((known, numbers))
            elif len(self._traffic) < _MAX_BUCKETS:
                self._traffic[bucket] = numbers
            else:
                continue
            self._changed.add(bucket)

    # --- to the database ---
    async def run(self) -> None:
        """Until cancelled; then what has been counted is stored."""
        try:
            while True:
                await asyncio.sleep(_LOOK_S)
                await self._look(time.monotonic())
        finally:
            try:
                async with asyncio.timeout(2.0):
                    await self._store_traffic()
                    await self._store_uses()
            except (TimeoutError, DatabaseAway):
                pass
            await self._database.close()

    async def _look(self, now: float) -> None:
        try:
            await self._store_traffic()
            if now >= self._next_uses:
                await self._store_uses()
                self._next_uses = now + _USES_S
            if now >= self._next_prune:
                await self._database.run(prune)
                self._next_prune = now + _PRUNE_S
            await self._database.run(advance_rollouts)
        except DatabaseAway:
            pass  # the follower says so, once
        except Exception:
            logger.exception("the rollouts could not be looked at")

    async def _store_traffic(self) -> None:
        changed, self._changed = self._changed, set()
        if changed:
            traffic = [Traffic(*bucket, self._traffic[bucket]) for bucket in changed]
            try:
                await self._database.run(store_traffic, self._agent, traffic)
            except BaseException:
                self._changed |= changed
                raise
        oldest = time.time() - 2 * PHASE_BUCKET_S
        for bucket in [each for each in self._traffic if each[3] < oldest and each not in self._changed]:
            del self._traffic[bucket]

    async def _store_uses(self) -> None:
        uses, self._uses = self._uses, {}
        if not uses:
            return
        try:
            await self._database.run(add_uses, list(uses.values()))
        except BaseException:
            for use in uses.values():
                self._add_use(use)
            raise


def _use(row: list[Any]) -> Use:
    service_id, version, application_id, key_id, requests, last, address = row
    if not isinstance(last, int | float) or not 0 <= last < _END_OF_TIME:
        raise ValueError(f"{str(last)[:40]} is no time of a use")
    names = _text(service_id, 40), _text(version, 32), _text(application_id, 40), _text(key_id, 40)
    return Use(*names, _count(requests), last, _text(address, 1000)[:64])


def _text(value: Any, longest: int) -> str:
    if not isinstance(value, str) or len(value) > longest or "\x00" in value:
        raise ValueError(f"{str(value)[:40]!r} is no name that could stand here")
    return value


def _count(value: Any) -> int:
    if not isinstance(value, int) or not 0 <= value <= _MAX_COUNT:
        raise ValueError(f"{str(value)[:40]!r} is no number of requests")
    return value

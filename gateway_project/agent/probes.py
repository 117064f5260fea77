"""Probes the targets of services on their timetables: one prober on each host, for all its workers (R8, rule 27).

What it holds of a target starts as healthy and is turned only by results in a row (`routing.health.judged`). The work
follows the number of targets: each has one place in a heap, and however many are due, only so many are asked at once.
"""

import asyncio
import heapq
import logging
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from core.wire import Message
from gateway_project.agent.store import ConfigStore
from routing.health import Finding, Probe, Standing, judged, probes_of
from routing.records import ServiceRecord

logger = logging.getLogger("portcullis.agent")

AT_ONCE = 256  # sockets
_GO = 4  # probes that begin in one go of the loop, which belongs to the feed too
_PAUSE_S = 0.005
LOOK_S = 0.25  # how soon a change of the configuration is noticed
_JITTER = 0.1  # of the interval, so that targets do not fall into step
_APART_S = 0.005  # between first probes, so that a start is no burst
_SLICE = 200  # records looked at in one go of the loop

Key = tuple[str, str]  # service id, the target's URL


@dataclass(eq=False, slots=True)
class Watched:
    """One target of one service. ``since`` and ``checked_at`` are epoch seconds; 0: never."""

    key: Key
    service_name: str
    probe: Probe
    standing: Standing = field(default_factory=Standing)
    since: float = 0.0
    checked_at: float = 0.0
    finding: Finding | None = None
    turn: int = 0  # which of its places in the heap counts

    @property
    def is_healthy(self) -> bool:
        return self.standing.is_healthy


class Prober:
    """``ask`` asks one target, ``on_change`` is called when it is known which targets there are, and when one turns
    healthy or unhealthy, or goes while it is unhealthy. ``remembered`` are the targets that the host held for
    unhealthy when its last agent ended."""

    def __init__(
        self, store: ConfigStore, ask: Callable[[Probe], Awaitable[Finding]], on_change: Callable[[], None]
    ) -> None:
        self.watched: dict[Key, Watched] = {}
        self.remembered: set[Key] = set()
        self._store = store
        self._ask = ask
        self._on_change = on_change
        self._by_service: dict[str, dict[Key, Watched]] = {}
        self._serial: int | None = None  # of the store, up to which it has been looked at
        self._due: list[tuple[float, int, Watched]] = []
        self._count = 0
        self._asking: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()

    async def run(self) -> None:
        """Until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._follow_forever(), name="targets")
                group.create_task(self._probe_forever(), name="probes")
        finally:
            for task in self._asking:
                task.cancel()
            await asyncio.gather(*self._asking, return_exceptions=True)

    # --- which targets ---

    async def _follow_forever(self) -> None:
        while True:
            if self._store.is_ready and self._store.serial != self._serial:
                await self.follow()
            await asyncio.sleep(LOOK_S)

    async def follow(self) -> None:
        """Take over what has changed in the store."""
        serial = self._store.serial
        changed = None if self._serial is None else self._store.changed_since(self._serial)
        present = self._store.records["service"]
        everything = {*present, *self._by_service}
        ids = everything if changed is None else {ref_id for kind, ref_id in changed if kind == "service"}
        for place, service_id in enumerate(ids):
            self._set(service_id, *_targets(present.get(service_id)))
            if place % _SLICE == _SLICE - 1:
                await asyncio.sleep(0)
        is_first, self._serial = self._serial is None, serial
        if is_first:
            self._on_change()
        self._wake.set()

    def _set(self, service_id: str, name: str, probes: Mapping[str, Probe]) -> None:
        """A target that stays keeps its standing, whatever its check has become."""
        former = self._by_service.pop(service_id, {})
        fresh: dict[Key, Watched] = {}
        for url, probe in probes.items():
            key = service_id, url
            watched = former.pop(key, None)
            if watched is None:
                watched = self._begin(key, name, probe)
            elif watched.probe.check != probe.check:
                self._schedule(watched, random.uniform(0, probe.check.interval_s))
            watched.probe = probe
            fresh[key] = watched
        for key, watched in former.items():
            watched.turn = 0
            del self.watched[key]
        if fresh:
            self._by_service[service_id] = fresh
        if any(not watched.is_healthy for watched in former.values()):
            self._on_change()

    def _begin(self, key: Key, name: str, probe: Probe) -> Watched:
        watched = self.watched[key] = Watched(key, name, probe, since=time.time())
        if key in self.remembered:
            self.remembered.discard(key)
            watched.standing = Standing(is_healthy=False)
            self._on_change()
        longest_s = min(probe.check.interval_s, _APART_S * len(self.watched))
        self._schedule(watched, random.uniform(0, longest_s))
        return watched

    # --- probing ---

    def _schedule(self, watched: Watched, in_s: float) -> None:
        self._count += 1  # breaks ties in time, and tells the newest place of a target in the heap from former ones
        watched.turn = self._count
        heapq.heappush(self._due, (time.monotonic() + in_s, self._count, watched))

    async def _probe_forever(self) -> None:
        while True:
            self._wake.clear()
            now = time.monotonic()
            for count, watched in enumerate(self._take_due(now), 1):
                if count % _GO == 0:
                    await asyncio.sleep(_PAUSE_S)
                task = asyncio.create_task(self._probe(watched))
                self._asking.add(task)
                task.add_done_callback(self._done)
            is_full = len(self._asking) >= AT_ONCE
            wait_s = None if is_full or not self._due else max(0.0, self._due[0][0] - now)
            try:
                async with asyncio.timeout(wait_s):
                    await self._wake.wait()
            except TimeoutError:
                pass

    def _take_due(self, now: float) -> Iterator[Watched]:
        while self._due and self._due[0][0] <= now and len(self._asking) < AT_ONCE:
            _, turn, watched = heapq.heappop(self._due)
            if turn == watched.turn:
                yield watched

    def _done(self, task: asyncio.Task[None]) -> None:
        self._asking.discard(task)
        self._wake.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a probe failed inside the gateway", exc_info=error)

    async def _probe(self, watched: Watched) -> None:
        try:
            self._take(watched, await self._ask(watched.probe))
        finally:
            if self._is_watched(watched):
                interval_s = watched.probe.check.interval_s
                self._schedule(watched, interval_s * random.uniform(1 - _JITTER, 1 + _JITTER))

    def _take(self, watched: Watched, finding: Finding) -> None:
        if not self._is_watched(watched):
            return
        former = watched.standing
        watched.standing = judged(former, finding.is_good, watched.probe.check)
        watched.finding, watched.checked_at = finding, time.time()
        if watched.standing.is_healthy == former.is_healthy:
            return
        watched.since = watched.checked_at
        word = "healthy again" if watched.is_healthy else "unhealthy"
        logger.warning("%s of %s is %s. %s", watched.key[1], watched.service_name, word, finding.error)
        self._on_change()

    def _is_watched(self, watched: Watched) -> bool:
        """Else it has left the configuration while it was asked."""
        return self.watched.get(watched.key) is watched


def _targets(record: bytes | None) -> tuple[str, dict[str, Probe]]:
    """The service's name, and its probes by the target's URL. Most services have none, which a look at the bytes
    tells without reading them."""
    if record is None or (b'"health_checks":' not in record and b'"health_endpoint":""' in record):
        return "", {}
    try:
        service = ServiceRecord.from_wire(orjson.loads(record))
    except (ValueError, KeyError, TypeError, AttributeError):
        return "", {}  # workers skip it too, and say so
    return service.name, probes_of(service)


# --- what workers are told ---------------------------------------------------------------------------------------
Told = frozenset[Key]  # of the targets that are unhealthy


class HealthNews:
    """The unhealthy targets, for workers: all of them when one joins, then what has changed (`core.wire`)."""

    def __init__(self, watched: Mapping[Key, Watched]) -> None:
        self._watched = watched
        self._present: Told = frozenset()
        self._is_stale = self._is_known = False

    def changed(self) -> None:
        """A target has turned, or gone, or it is known now which there are."""
        self._is_stale = self._is_known = True

    def since(self, told: Told | None) -> tuple[Told | None, Message | None]:
        """What the worker will know, and the message that tells it; ``told`` is what it knows."""
        if not self._is_known:  # what the worker heard from the agent before this one is better than nothing
            return told, None
        if self._is_stale:
            self._present, self._is_stale = _unhealthy(self._watched.values()), False
        present = self._present
        if told == present:
            return present, None
        known: Told = told or frozenset()
        changes = [_entry(key, healthy=False) for key in sorted(present - known)]
        changes += [_entry(key, healthy=True) for key in sorted(known - present)]
        return present, {"type": "health", "whole": told is None, "targets": changes}


def _unhealthy(watched: Iterable[Watched]) -> Told:
    return frozenset(each.key for each in watched if not each.is_healthy)


def _entry(key: Key, *, healthy: bool) -> dict[str, Any]:
    service, url = key
    return {"service": service, "url": url, "healthy": healthy}

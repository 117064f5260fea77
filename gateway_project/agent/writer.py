"""What the agent writes for its workers: heartbeats of nodes, and when keys were last used.

Nothing waits in a queue: heartbeats are the present state, last uses one time per key. While the database is away
the latest of both is kept and the rest forgotten.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from django.contrib.sessions.backends.db import SessionStore
from django.db.models import Q
from django.db.models.functions import Now

from core.models import GatewayNode
from gateway_project.agent.database import DatabaseAway, DatabaseThread
from gateway_project.agent.store import Problem
from keys.models import ApiKey

logger = logging.getLogger("portcullis.agent")

_BEAT_S = 1.0
_GATHER_S = 0.005  # acknowledgements that arrive together share a write
_FLUSH_S = 10.0
_CLEAN_S = 600.0
_FORGOTTEN = timedelta(hours=1)
_END_OF_TIME = 253_402_300_800  # epoch seconds: the year 10000
_USED_LIMIT = 200_000  # keys
_CHUNK = 1_000
_PROBLEM_LIMIT = 100


@dataclass(frozen=True, slots=True)
class NodeState:
    """What is to be written of one worker; ``started_at`` is epoch seconds."""

    slot: int
    pid: int
    applied_revision: int
    problems: list[Problem]
    started_at: float


class Writer:
    """``states`` gives the workers that are connected at the moment."""

    def __init__(self, node_name: str, states: Callable[[], Collection[NodeState]]) -> None:
        self._node_name = node_name
        self._states = states
        self._database = DatabaseThread("writer")
        self._acknowledged = asyncio.Event()
        self._used: dict[str, float] = {}

    def acknowledged(self) -> None:
        """A worker has applied a revision: somebody may be waiting for that."""
        self._acknowledged.set()

    def used(self, keys: dict[str, float]) -> None:
        """Last uses, epoch seconds by key id. Raises ValueError for what is no time."""
        for key_id, at in keys.items():
            if not 0 <= at < _END_OF_TIME:
                raise ValueError(f"{at} is no time of a use")
            if key_id in self._used or len(self._used) < _USED_LIMIT:
                self._used[key_id] = max(at, self._used.get(key_id, 0.0))

    async def run(self) -> None:
        """Until cancelled; then what is known of uses and workers: those that have left are no nodes any more."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._beat_forever(), name="heartbeats")
                group.create_task(self._flush_forever(), name="last uses")
        finally:
            try:
                async with asyncio.timeout(2.0):
                    await self.beat()
                    await self._try(_remove_nodes, self._node_name, [state.slot for state in self._states()])
                    await self.flush()
            except TimeoutError:
                pass
            await self._database.close()

    async def _beat_forever(self) -> None:
        while True:
            try:
                async with asyncio.timeout(_BEAT_S):
                    await self._acknowledged.wait()
                await asyncio.sleep(_GATHER_S)
            except TimeoutError:
                pass
            self._acknowledged.clear()
            await self.beat()

    async def _flush_forever(self) -> None:
        next_clean = 0.0
        while True:
            await asyncio.sleep(_FLUSH_S)
            await self.flush()
            if time.monotonic() >= next_clean and await self._try(clean):
                next_clean = time.monotonic() + _CLEAN_S

    async def beat(self) -> None:
        nodes = [_node(self._node_name, state) for state in self._states()]
        if nodes:
            await self._try(_store_nodes, nodes)

    async def flush(self) -> None:
        used, self._used = self._used, {}
        if used and not await self._try(_store_uses, used):
            self.used(used)

    async def _try(self, function: Callable[..., None], *args: object) -> bool:
        try:
            await self._database.run(function, *args)
        except DatabaseAway:
            return False  # the follower says so, once
        return True


def _node(name: str, state: NodeState) -> GatewayNode:
    """Seen by the database's clock, which is the one that all hosts share (`core.propagation`)."""
    return GatewayNode(
        id=f"{name}/{state.slot}",
        host=name,
        slot=state.slot,
        pid=state.pid,
        applied_revision=state.applied_revision,
        problems=state.problems[:_PROBLEM_LIMIT],
        started_at=datetime.fromtimestamp(state.started_at, UTC),
        seen_at=Now(),
    )


def _store_nodes(nodes: list[GatewayNode]) -> None:
    fields = ["host", "slot", "pid", "applied_revision", "problems", "started_at", "seen_at"]
    GatewayNode.objects.bulk_create(nodes, update_conflicts=True, unique_fields=["id"], update_fields=fields)


def _remove_nodes(name: str, but: list[int]) -> None:
    """Those of this host that have ended in order: nobody shall wait for them (`core.propagation`)."""
    GatewayNode.objects.filter(host=name).exclude(slot__in=but).delete()


def clean() -> None:
    """Forget nodes that are long gone, and panel sessions that have ended: nobody else would."""
    SessionStore.clear_expired()
    GatewayNode.objects.filter(seen_at__lt=Now() - _FORGOTTEN).delete()


def _store_uses(used: dict[str, float]) -> None:
    """By the second, so that the many keys used in the same one share a statement. Never moves a time back: other
    hosts write too. Never touches ``revision``: a use is no change of the configuration."""
    by_second: dict[int, list[str]] = {}
    for key_id, at in used.items():
        by_second.setdefault(int(at), []).append(key_id)
    for second, ids in by_second.items():
        moment = datetime.fromtimestamp(second, UTC)
        older = Q(last_used_at__isnull=True) | Q(last_used_at__lt=moment)
        for chunk in _chunks(sorted(ids)):
            ApiKey.objects.filter(older, pk__in=chunk).update(last_used_at=moment)


def _chunks(ids: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(ids), _CHUNK):
        yield ids[start : start + _CHUNK]

"""What the agent writes for its workers: heartbeats of nodes, and how often keys were used, when last, and from where.

Nothing waits in a queue: heartbeats are the present state, uses one sum per key and address. While the database is away
both are kept, within bounds.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from django.contrib.sessions.backends.db import SessionStore
from django.db.models.functions import Now

from access.end_users.sessions import forget_ended
from access.revocations import forget_revocations
from access.signing.keys import keep_signing_keys
from core.models import GatewayNode
from gateway_project.agent.database import DatabaseAway, DatabaseThread
from gateway_project.agent.store import Problem
from keys.uses import KeyUse, prune_callers, store_uses

logger = logging.getLogger("portcullis.agent")

_BEAT_S = 1.0
_GATHER_S = 0.005  # acknowledgements that arrive together share a write
_FLUSH_S = 10.0
_CLEAN_S = 600.0
_FORGOTTEN = timedelta(hours=1)
_END_OF_TIME = 253_402_300_800  # epoch seconds: the year 10000
_USED_LIMIT = 200_000  # keys and addresses together
_MAX_COUNT = 2**40  # of requests in one message
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
        self._used: dict[tuple[str, str], KeyUse] = {}

    def acknowledged(self) -> None:
        """A worker has applied a revision: somebody may be waiting for that."""
        self._acknowledged.set()

    def used(self, rows: list[Any]) -> None:
        """The rows of a worker's ``used`` message (`core.wire`). Raises ValueError or TypeError for what is no use."""
        for row in rows:
            self._add_use(_key_use(row))

    def _add_use(self, use: KeyUse) -> None:
        known = self._used.get((use.key_id, use.address))
        if known is not None:
            use = KeyUse(use.key_id, use.address, known.requests + use.requests, max(known.last, use.last))
        elif len(self._used) >= _USED_LIMIT:
            return
        self._used[use.key_id, use.address] = use

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
        if used and not await self._try(store_uses, list(used.values())):
            for use in used.values():
                self._add_use(use)

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
    """Forget what is over: nodes that are long gone, sessions, revocations, callers, keys that signed; nobody else
    would. And rotate the keys that sign, by age."""
    SessionStore.clear_expired()
    forget_ended()
    forget_revocations()
    keep_signing_keys()
    GatewayNode.objects.filter(seen_at__lt=Now() - _FORGOTTEN).delete()
    prune_callers()


def _key_use(row: list[Any]) -> KeyUse:
    key_id, address, requests, last = row
    if not isinstance(last, int | float) or not 0 <= last < _END_OF_TIME:
        raise ValueError(f"{str(last)[:40]} is no time of a use")
    if not isinstance(requests, int) or not 0 <= requests <= _MAX_COUNT:
        raise ValueError(f"{str(requests)[:40]} is no number of requests")
    return KeyUse(_text(key_id, 40), _text(address, 64), requests, last)


def _text(value: Any, longest: int) -> str:
    if not isinstance(value, str) or len(value) > longest or "\x00" in value:
        raise ValueError(f"{str(value)[:40]!r} is no name that could stand here")
    return value

"""The worker's line to the agent of its host: configuration in, tasks, metrics and last uses out (`core.wire`).

The worker serves on from memory while the agent is away and asks for what it missed when it is back. Every piece of
work on the event loop is small: large loads and deltas are taken in slices with a turn of the loop between them.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from core.faults import KINDS as FAULT_KINDS
from core.faults import ClientFault, GatewayFault, InternalFault
from core.wire import FrameReader, Message, encode
from gateway_project.dataplane.release import release_slowly
from gateway_project.dataplane.settings import WorkerSettings
from gateway_project.dataplane.snapshot import (
    Problem,
    RecordCompiler,
    RecordDelta,
    RecordIndex,
    Snapshot,
    SnapshotBuilder,
    apply_delta,
)
from gateway_project.dataplane.snapshot_file import REVOCATIONS_FILE, SnapshotFileError, read_snapshot_file
from routing.records import RouteRecord

logger = logging.getLogger("portcullis.agent_link")

FRESH_S = 2.0  # rule 11
_CONNECT_S = 0.3
_BACKOFF_S = (0.05, 1.0)
_FIRST_TRIES = 6  # with the shortest back-off in between: about 0.3 s
_READ_BYTES = 16 * 1024
_GO = 20  # records compiled in one go of the loop: a service takes about 30 µs
_BUFFER_LIMIT = 4 * 1024 * 1024  # bytes that wait for an agent that does not read

_Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class AgentLink:
    """Holds ``snapshot``, the one reference that a request captures, and keeps it up to date."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self._default_limit = (settings.rate_limit_requests, settings.rate_limit_window_s)
        self.snapshot = Snapshot.empty()
        self.has_snapshot = False
        self.is_too_old = False  # the snapshot, for its keys to be trusted; see `look_at_age`
        self.problems: list[Problem] = []  # records of the last load or delta that did not compile here
        self._further_problems: list[Problem] = []
        self._index = RecordIndex()
        self._as_of = 0.0  # epoch seconds up to which the snapshot is known to be the database's
        self._tick_as_of = 0.0
        self._is_in_doubt = False  # a delta failed halfway: ask for everything
        self._writer: asyncio.StreamWriter | None = None
        self._calls: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._last_call = 0
        self._task: asyncio.Task[None] | None = None
        self._releases: set[asyncio.Task[None]] = set()
        self._handlers: dict[str, Callable[[Message], None]] = {}

    def on(self, kind: str, handler: Callable[[Message], None]) -> None:
        """Who takes the agent's messages of this type: runtime state, which is no part of the snapshot."""
        self._handlers[kind] = handler

    # --- what requests ask ---

    def is_fresh(self, now: float) -> bool:
        """Whether the feed is alive: the agent looked at the database, with success, at most 2 s before ``now``
        (epoch seconds)."""
        return abs(now - self._tick_as_of) <= FRESH_S

    def config_age_s(self, now: float) -> float:
        """For how long before ``now`` (epoch seconds) changes may be missing. Infinite without a snapshot."""
        return max(0.0, now - self._as_of) if self.has_snapshot else float("inf")

    def route(self, route_id: str) -> RouteRecord | None:
        """An explicit route of the snapshot, active or not."""
        return self._index.routes.get(route_id)

    def look_at_age(self, now: float) -> None:
        """Renew ``is_too_old``: whether changes, revocations among them, may be missing for longer than MAX_CONFIG_AGE.
        Called with all that is heard from the agent, and by whoever keeps time. Nothing is not too old."""
        self.is_too_old = self.has_snapshot and self.config_age_s(now) > self._settings.max_config_age_s

    @property
    def is_connected(self) -> bool:
        return self._writer is not None

    async def call(self, name: str, params: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """Ask the agent to do something. Raises GatewayFault: the agent's own, or ``dependency_unavailable``."""
        self._last_call = number = self._last_call + 1
        if not self._send({"type": "call", "id": number, "name": name, "params": params}):
            raise _agent_away()
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._calls[number] = future
        try:
            async with asyncio.timeout(timeout_s):
                return await future
        except TimeoutError:
            raise _agent_away() from None
        finally:
            del self._calls[number]

    def send_metrics(self, metrics: dict[str, Any]) -> bool:
        """Totals since the worker started. False: not sent, the next ones will do."""
        return self._send({**metrics, "type": "metrics"})

    def tell_problems(self, further: list[Problem]) -> None:
        """What keeps the configuration from working beside records that do not compile. Sent when it changes."""
        if further != self._further_problems:
            self._further_problems = further
            if self.has_snapshot:
                self._ack()

    def send(self, message: Message) -> bool:
        """A message of one of the types in `core.wire`. False: not sent, the agent is away or does not read."""
        return self._send(message)

    def send_dropped(self, places: list[list[str | None]]) -> bool:
        """Places in the cache, for the other workers (`core.wire`)."""
        return self._send({"type": "dropped", "places": places})

    def _send(self, message: Message) -> bool:
        writer = self._writer
        if writer is None or writer.transport.get_write_buffer_size() > _BUFFER_LIMIT:
            return False
        writer.write(encode(message))
        return True

    # --- connection ---

    async def start(self) -> bool:
        """Connect, or load the last good snapshot if the agent is not there, and go on trying for ever. Returns
        whether the agent is there, so that a snapshot is to be expected soon."""
        streams = await self._reach()
        if streams is None:
            await self._load_file()
        self._task = asyncio.create_task(self._run(streams), name="agent link")
        return streams is not None

    async def close(self) -> None:
        tasks = [task for task in (self._task, *self._releases) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._task = None

    async def _reach(self) -> _Streams | None:
        """The first connection, tried for a moment only: the last good snapshot must be in force soon."""
        for _ in range(_FIRST_TRIES):
            if streams := await self._connect():
                return streams
            await asyncio.sleep(_BACKOFF_S[0])
        return None

    async def _connect(self) -> _Streams | None:
        try:
            async with asyncio.timeout(_CONNECT_S):
                return await asyncio.open_unix_connection(self._settings.agent_socket)
        except OSError:  # TimeoutError is one
            return None

    async def _run(self, streams: _Streams | None) -> None:
        backoff_s, longest_s = _BACKOFF_S
        was_connected = True
        while True:
            if streams is not None:
                was_connected, backoff_s = True, _BACKOFF_S[0]
                await self._follow(*streams)
            if was_connected and self.has_snapshot:
                logger.warning("the agent is away: serving on at revision %d", self.snapshot.revision)
            was_connected = False
            await asyncio.sleep(backoff_s * random.uniform(0.5, 1.0))
            backoff_s = min(backoff_s * 2, longest_s)
            streams = await self._connect()

    async def _follow(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Live with one connection until it ends."""
        writer.write(encode(self._join()))
        self._writer = writer
        load = _Load(self._default_limit)
        frames = FrameReader()
        try:
            while data := await reader.read(_READ_BYTES):
                for message in frames.feed(data):
                    await self._take(message, load)
        except OSError:
            pass  # the same as its end
        except Exception:
            logger.exception("a message of the agent could not be applied: asking for everything anew")
            self._is_in_doubt = True
        finally:
            self._writer = None
            self._release(load.abandon())
            writer.close()
            for future in self._calls.values():
                if not future.done():
                    future.set_exception(_agent_away())

    def _join(self) -> Message:
        revision, token = self.snapshot.revision, self.snapshot.token
        knows = self.has_snapshot and not self._is_in_doubt
        return {
            "type": "join",
            "slot": self._settings.slot,
            "pid": os.getpid(),
            "revision": revision if knows else 0,
            "token": token if knows else "",
        }

    # --- messages ---

    async def _take(self, message: Message, load: _Load) -> None:
        kind = message["type"]
        if kind == "tick":
            self._tick(message)
        elif kind == "delta":
            await self._apply(message)
            self._ack()
        elif kind == "reply":
            self._reply(message)
        elif kind in self._handlers:
            self._handlers[kind](message)
        elif await load.take(message):
            self._swap(load, message)
            self._ack()

    def _tick(self, message: Message) -> None:
        self._tick_as_of = message["as_of"]
        if self.has_snapshot:
            self._as_of = max(self._as_of, message["as_of"])
        self.look_at_age(time.time())

    def _ack(self) -> None:
        problems = [*self.problems, *self._further_problems][:100]
        self._send({"type": "ack", "revision": self.snapshot.revision, "problems": problems})

    async def _apply(self, message: Message) -> None:
        compiler = RecordCompiler(self._default_limit)
        delta = RecordDelta()
        for kind, wires in message["put"].items():
            for part in _parts(wires):
                delta.put.setdefault(kind, []).extend(compiler.compile(kind, part))
                await asyncio.sleep(0)
        for kind, ids in message["drop"].items():
            delta.drop.setdefault(kind, []).extend(ids)
        self._is_in_doubt = True  # until it is done: the index changes along with it
        self.snapshot = apply_delta(self.snapshot, self._index, delta, message["revision"], message["token"])
        self._is_in_doubt = False
        self._note(compiler.problems)

    def _swap(self, load: _Load, commit: Message) -> None:
        """A full load takes force."""
        former: list[Any] = [self.snapshot, self._index]
        self.snapshot, self._index, problems = load.finish(commit["revision"], commit["token"])
        self.has_snapshot, self._is_in_doubt = True, False
        self._as_of = commit.get("as_of", 0.0)
        self.look_at_age(time.time())
        self._note(problems)
        self._release(former)

    def _note(self, problems: list[Problem]) -> None:
        self.problems = problems
        for each in problems:
            logger.warning("skipped %s %s (%s): %s", each["kind"], each["id"], each["name"], each["error"])

    def _reply(self, message: Message) -> None:
        future = self._calls.get(message["id"])
        if future is None or future.done():
            return  # nobody waits any longer
        if "fault" in message:
            future.set_exception(_fault(message["fault"]))
        else:
            future.set_result(message["result"])

    def _release(self, holder: list[Any]) -> None:
        if holder:
            task = asyncio.create_task(release_slowly(holder), name="release")
            self._releases.add(task)
            task.add_done_callback(self._releases.discard)

    async def _load_file(self) -> None:
        await self._load_revocations()
        load = _Load(self._default_limit)
        try:
            for messages in read_snapshot_file(Path(self._settings.snapshot_path)):
                for message in messages:
                    if await load.take(message):
                        self._swap(load, message)
                await asyncio.sleep(0)
        except SnapshotFileError as error:
            logger.info("nothing to serve before the agent is there: no last good snapshot (%s)", error)
            self._release(load.abandon())
        else:
            age_s = self.config_age_s(time.time())
            logger.info("started from the last good snapshot: revision %d, %.0f s old", self.snapshot.revision, age_s)

    async def _load_revocations(self) -> None:
        """What the agent has kept beside the snapshot: without it none of our own tokens is taken."""
        take = self._handlers.get("revocations")
        try:
            for messages in read_snapshot_file(Path(self._settings.snapshot_path).with_name(REVOCATIONS_FILE)):
                for message in messages:
                    if take is not None:
                        take(message)
                await asyncio.sleep(0)
        except SnapshotFileError as error:
            logger.info("no revocations to start from: %s", error)


class _Load:
    """A full load under way. The collector pauses: there is no garbage in it, and a pass over it takes 70 ms."""

    def __init__(self, default_limit: tuple[int, int]) -> None:
        self._default_limit = default_limit
        self._builder: SnapshotBuilder | None = None

    async def take(self, message: Message) -> bool:
        """True at the commit."""
        if message["type"] == "reset":
            gc.disable()
            self._builder = SnapshotBuilder(self._default_limit)
        elif message["type"] == "records" and self._builder is not None:
            for part in _parts(message["records"]):
                self._builder.add(message["kind"], part)
                await asyncio.sleep(0)
        return message["type"] == "commit" and self._builder is not None

    def finish(self, revision: int, token: str) -> tuple[Snapshot, RecordIndex, list[Problem]]:
        assert self._builder is not None
        builder, self._builder = self._builder, None
        snapshot = builder.finish(revision, token)
        gc.freeze()  # moves what lives out of the collector's sight; without a pass before, that takes no time
        gc.set_threshold(50_000, 50, 50)
        gc.enable()
        return snapshot, builder.index, builder.problems

    def abandon(self) -> list[Any]:
        """What was loaded so far, to be released."""
        if self._builder is None:
            return []
        builder, self._builder = self._builder, None
        gc.enable()
        return [builder]


def _parts(wires: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    for start in range(0, len(wires), _GO):
        yield wires[start : start + _GO]


def _agent_away() -> InternalFault:
    return InternalFault("dependency_unavailable", "The gateway's agent does not answer.", retry_after_s=1)


def _fault(wire: Mapping[str, Any]) -> GatewayFault:
    kind = FAULT_KINDS.get(wire["code"])
    if kind is None:
        return _agent_away()
    family = ClientFault if kind.status < 500 else InternalFault
    return family(kind.code, wire["detail"], members=wire.get("members"), retry_after_s=wire.get("retry_after_s"))

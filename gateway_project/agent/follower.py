"""Follows the database's revisions and keeps the store (`agent.store`) at the latest one.

PostgreSQL notifies about each commit, and the follower looks every second anyway; on SQLite it polls. A look reads
what has changed since the store's position; where that does not help (nothing loaded yet, a restored backup) a second
thread reads everything while the looks go on.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

import psycopg
from django.conf import settings
from django.db import connections

from core.revisions import NOTIFY_CHANNEL
from gateway_project.agent.changes import (
    Changes,
    HistoryUnknown,
    TooManyChanges,
    changes_since,
    data_version,
    everything,
)
from gateway_project.agent.database import DatabaseAway, DatabaseThread
from gateway_project.agent.store import ConfigStore

logger = logging.getLogger("portcullis.agent")

LOOK_S = 1.0
_POLL_S = 0.05  # SQLite
_PATIENCE_S = 1.0  # for the first look, before workers get the last good snapshot as it is


class Follower:
    """``on_look`` is called after every look that succeeded and after everything that changed the store,
    ``on_other_history`` when the database turns out to hold another history than the store."""

    def __init__(
        self, store: ConfigStore, on_look: Callable[[], None], on_other_history: Callable[[], None] = lambda: None
    ) -> None:
        self._store = store
        self._on_look = on_look
        self._on_other_history = on_other_history
        self._looks = DatabaseThread("feed", reading=True)
        self._loads = DatabaseThread("load", reading=True)
        self._wake = asyncio.Event()
        self._load_wanted = asyncio.Event()
        self._looked = asyncio.Event()
        self._is_away = False
        self._is_sqlite = connections.settings["default"]["ENGINE"].endswith("sqlite3")
        self._data_version: int | None = None  # at the last look
        self._last_look = 0.0  # monotonic

    async def run(self) -> None:
        """Until cancelled. A store that started from the last good snapshot is served after a moment's wait for the
        database, and then compared with the whole of it, for what was changed by hand."""
        try:
            async with asyncio.TaskGroup() as group:
                if not self._is_sqlite:
                    group.create_task(self._listen(), name="listen")
                group.create_task(self._load_when_wanted(), name="load")
                if self._has_base:
                    group.create_task(self._serve_soon(), name="patience")
                else:
                    self._load_wanted.set()
                group.create_task(self._look_forever(), name="look")
        finally:
            await asyncio.gather(self._looks.close(), self._loads.close())

    @property
    def _has_base(self) -> bool:
        return self._store.serial > 0 or self._store.is_ready

    # --- looks ---

    async def _look_forever(self) -> None:
        while True:
            self._wake.clear()
            if self._has_base:
                await self._look()
            try:
                async with asyncio.timeout(_POLL_S if self._is_sqlite else LOOK_S):
                    await self._wake.wait()
            except TimeoutError:
                pass

    async def _look(self) -> None:
        asked_at, serial = time.time(), self._store.serial
        try:
            changes = await self._read()
        except DatabaseAway as error:
            self._note_away(error)
            return
        except HistoryUnknown:
            if not self._load_wanted.is_set():
                logger.warning(
                    "the database does not know revision %d: reading everything", self._store.position.number
                )
                self._store.forget_history()
                self._on_other_history()
            self._load_wanted.set()
            return
        except TooManyChanges:
            self._load_wanted.set()
            return
        self._note_back()
        if serial != self._store.serial:  # everything was read meanwhile: look again from there
            self._wake.set()
            return
        if changes is not None:
            self._apply(changes)
        self._store.as_of = asked_at
        self._store.is_ready = True
        self._looked.set()
        if changes is not None or not self._is_sqlite:
            self._on_look()

    async def _read(self) -> Changes | None:
        """What has changed. On SQLite a counter tells cheaply whether anything in the file has."""
        if not self._is_sqlite:
            return await self._looks.run(changes_since, self._store.position)
        now = time.monotonic()
        version = await self._looks.run(data_version)
        if version == self._data_version and now - self._last_look < LOOK_S:
            return None
        changes = await self._looks.run(changes_since, self._store.position)
        self._data_version, self._last_look = version, now
        return changes

    def _apply(self, changes: Changes) -> None:
        self._store.apply(changes.steps, changes.compiled.records, changes.compiled.problems)
        logger.info("revision %d", self._store.position.number)
        for each in changes.compiled.problems.values():
            _log_problem(each)

    # --- everything ---

    async def _load_when_wanted(self) -> None:
        while True:
            await self._load_wanted.wait()
            try:
                await self._load()
            except DatabaseAway as error:
                self._note_away(error)
                await asyncio.sleep(LOOK_S)
            except Exception:
                logger.exception("the configuration cannot be read")
                await asyncio.sleep(LOOK_S)

    async def _load(self) -> None:
        asked_at = time.time()
        position, compiled = await self._loads.run(everything)
        self._note_back()
        self._load_wanted.clear()
        self._store.load(position, compiled.records, compiled.problems)
        self._store.as_of = max(self._store.as_of, asked_at)
        self._store.is_ready = True
        took_s, count = time.time() - asked_at, sum(map(len, compiled.records.values()))
        logger.info("read everything at revision %d: %d records in %.1f s", position.number, count, took_s)
        for each in compiled.problems.values():
            _log_problem(each)
        self._on_look()
        self._wake.set()

    async def _serve_soon(self) -> None:
        try:
            async with asyncio.timeout(_PATIENCE_S):
                await self._looked.wait()
        except TimeoutError:
            self._store.is_ready = True
            self._on_look()
        self._load_wanted.set()

    # --- notifications ---

    async def _listen(self) -> None:
        is_heard = True
        while True:
            try:
                connection = await psycopg.AsyncConnection.connect(**_listen_parameters(), autocommit=True)
                async with connection:
                    await connection.execute(f"LISTEN {NOTIFY_CHANNEL}")
                    is_heard = True
                    self._wake.set()  # for what was committed before
                    async for _ in connection.notifies():
                        self._wake.set()
            except (psycopg.Error, OSError) as error:
                if is_heard and not self._is_away:
                    logger.warning("no notifications, looking every second: %s", str(error).partition("\n")[0])
                is_heard = False
            await asyncio.sleep(LOOK_S)

    def _note_away(self, error: DatabaseAway) -> None:
        if not self._is_away:
            logger.warning("the database is away, serving on at revision %d: %s", self._store.position.number, error)
        self._is_away = True
        self._data_version = None

    def _note_back(self) -> None:
        if self._is_away:
            logger.info("the database is back")
        self._is_away = False


def _log_problem(problem: dict[str, str]) -> None:
    logger.error("skipped %(kind)s %(id)s (%(name)s), which does not compile: %(error)s", problem)


def _listen_parameters() -> dict[str, Any]:
    """Of the direct connection: PgBouncer does not pass notifications on."""
    common = {"connect_timeout": 3, "application_name": "portcullis agent", "keepalives_idle": 5}
    if settings.DATABASE_LISTEN_URL:
        return {"conninfo": settings.DATABASE_LISTEN_URL, **common}
    parameters = connections.create_connection("default").get_connection_params()
    return {name: value for name, value in parameters.items() if isinstance(value, str | int)} | common

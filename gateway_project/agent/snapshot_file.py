"""The agent's use of the last good snapshot: start from it, and keep it current."""

import asyncio
import logging
import time
from itertools import chain
from pathlib import Path

from gateway_project.agent.store import ConfigStore, Position, Records, encoded_record, no_records
from gateway_project.dataplane.snapshot_file import SnapshotFileError, read_snapshot_file, write_snapshot_file

logger = logging.getLogger("portcullis.agent")

_LOOK_S = 1.0
_PAUSE_S = 30.0  # between two writes
_RENEW_S = 3600.0  # for an unchanged configuration, whose age counts from ``as_of``


class SnapshotKeeper:
    """Writes the store to the file after changes, at most every half minute, and when the agent ends.

    ``max_age_s`` is how old a configuration may grow: the file is renewed well before that.
    """

    def __init__(self, store: ConfigStore, path: Path, max_age_s: float) -> None:
        self._store = store
        self._path = path
        self._renew_s = min(_RENEW_S, max_age_s / 10)
        self._writing: asyncio.Task[None] | None = None
        self._written_serial: int | None = None
        self._written_as_of = 0.0
        self._could_write = True

    def start_store(self) -> None:
        """Begin the store with the file's content, if there is one that can be used."""
        try:
            position, records, as_of = _read(self._path)
        except SnapshotFileError as error:
            logger.info("no last good snapshot to start from: %s", error)
            return
        self._store.start_from(position, records, as_of)
        self._written_serial, self._written_as_of = self._store.serial, as_of
        age_s = time.time() - as_of
        logger.info("the last good snapshot is of revision %d and %.0f s old", position.number, age_s)

    async def run(self) -> None:
        """Until cancelled."""
        try:
            while True:
                if self._is_due():
                    self._writing = asyncio.create_task(self._write())
                    await asyncio.shield(self._writing)
                    await asyncio.sleep(_PAUSE_S)
                else:
                    await asyncio.sleep(_LOOK_S)
        finally:
            if self._writing is not None:
                await self._writing
            if self._has_news:
                await self._write()

    @property
    def _has_news(self) -> bool:
        """Only what the database has confirmed is written: never a copy of the file itself. The host's clock may have
        been set back since the last time."""
        return self._store.is_ready and self._store.as_of != self._written_as_of

    def _is_due(self) -> bool:
        is_changed = self._store.serial != self._written_serial
        return self._has_news and (is_changed or abs(self._store.as_of - self._written_as_of) > self._renew_s)

    async def _write(self) -> None:
        serial, as_of = self._store.serial, self._store.as_of
        try:
            await asyncio.to_thread(write_snapshot_file, self._path, self._store.full_load())
        except OSError as error:
            if self._could_write:
                logger.error("the last good snapshot cannot be written to %s: %s", self._path, error.strerror)
            self._could_write = False
            return
        self._could_write = True
        self._written_serial, self._written_as_of = serial, as_of


def _read(path: Path) -> tuple[Position, Records, float]:
    """Raises SnapshotFileError."""
    records = no_records()
    position, as_of = Position(), 0.0
    try:
        for message in chain.from_iterable(read_snapshot_file(path)):
            if message["type"] == "records":
                records[message["kind"]].update((each["id"], encoded_record(each)) for each in message["records"])
            elif message["type"] == "commit":
                position, as_of = Position(message["revision"], message["token"]), message["as_of"]
    except (ValueError, LookupError, TypeError) as error:
        raise SnapshotFileError(f"{path} holds what this version of the gateway cannot read: {error!r}") from None
    return position, records, as_of

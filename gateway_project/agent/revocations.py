"""Follows the revocations of our own tokens in the database, tells the workers of this host, and keeps them in a file.

What has been revoked stays so until the tokens that it concerns have expired, whatever becomes of the database: a host
that starts while it is away, or on a restored backup, revives none (rule 21). The file is written anew soon after each
change, beside the last good snapshot, whose writing takes its time.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

from access.revocations import Told, latest_number, revocations_after
from core.wire import Message, encode
from gateway_project.agent.database import DatabaseAway, DatabaseThread
from gateway_project.dataplane.snapshot_file import SnapshotFileError, read_snapshot_file, write_snapshot_file

logger = logging.getLogger("portcullis.agent")

LOOK_S = 0.2
_PAUSE_S = 1.0  # between two writes of the file
_SLICE = 1_000  # entries in one frame of the file


class RevocationFollower:
    """News for workers (`agent.server`). ``on_change`` is called when there are some."""

    def __init__(self, path: Path, on_change: Callable[[], None]) -> None:
        self._path = path
        self._on_change = on_change
        self._thread = DatabaseThread("revocations", reading=True)
        self._number: int | None = None  # the database's, up to which it was read
        self._told: list[Told] = []  # in the order in which they were heard of
        self._is_known = False  # what there is was read from the database, or from the file
        self._begun = 0  # how many of the oldest were forgotten
        self._written = 0
        self._could_write = True

    def start(self) -> None:
        """Begin with the file's content, if there is one that can be used."""
        try:
            messages = list(chain.from_iterable(read_snapshot_file(self._path)))
            self._told = [
                (what, value, before, until) for each in messages for what, value, before, until in each["rows"]
            ]
        except (SnapshotFileError, ValueError, LookupError, TypeError) as error:
            logger.info("no revocations to start from: %s", error)
            return
        self._is_known = True
        self._written = self._count

    async def run(self) -> None:
        """Until cancelled."""
        writing = asyncio.create_task(self._keep())
        try:
            while True:
                with contextlib.suppress(DatabaseAway):  # the feed says so
                    await self._look()
                await asyncio.sleep(LOOK_S)
        finally:
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)
            await self._write()
            await self._thread.close()

    @property
    def _count(self) -> int:
        return self._begun + len(self._told)

    async def _look(self) -> None:
        known = self._number
        latest = await self._thread.run(latest_number)
        if latest == known:
            return
        if known is None or latest < known:
            known = 0  # the first look; or the newest were forgotten, or another history: then all of it is news
        self._number, told = await self._thread.run(revocations_after, known)
        present = set(self._told) if known == 0 else set()
        self._told += [each for each in told if each not in present]
        self._is_known = True
        self._forget()
        self._on_change()

    def _forget(self) -> None:
        """The oldest that concern no living token."""
        now, dead = time.time(), 0
        while dead < len(self._told) and self._told[dead][3] < now:
            dead += 1
        self._begun += dead
        del self._told[:dead]

    def since(self, told: int | None) -> tuple[int | None, Message | None]:
        """``told`` is how many the worker has heard of."""
        if not self._is_known or told == self._count:
            return told, None
        is_whole = told is None or told < self._begun
        rows = self._told if is_whole or told is None else self._told[told - self._begun :]
        return self._count, {"type": "revocations", "number": self._count, "whole": is_whole, "rows": rows}

    # --- the file ---
    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(_PAUSE_S)
            await self._write()

    async def _write(self) -> None:
        count = self._count
        if not self._is_known or (count == self._written and self._path.exists()):
            return
        try:
            await asyncio.to_thread(write_snapshot_file, self._path, _frames(list(self._told)))
        except OSError as error:
            if self._could_write:
                logger.error("revocations cannot be kept in %s: %s", self._path, error.strerror)
            self._could_write = False
            return
        self._could_write = True
        self._written = count


def _frames(told: list[Told]) -> Iterator[bytes]:
    """What workers take, in slices; the first one is there even where it is empty."""
    for start in range(0, max(len(told), 1), _SLICE):
        rows = told[start : start + _SLICE]
        yield encode({"type": "revocations", "number": start + len(rows), "whole": start == 0, "rows": rows})

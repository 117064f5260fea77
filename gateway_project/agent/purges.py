"""Follows the purges of stored answers in the database, and tells the workers of this host."""

import asyncio
import contextlib
from collections.abc import Callable

from core.wire import Message
from gateway_project.agent.database import DatabaseAway, DatabaseThread
from routing.cache_purges import MOST_TOLD, Told, latest_number, purges_after

LOOK_S = 0.25


class PurgeFollower:
    """News for workers (`agent.server`). ``on_change`` is called when there are some."""

    def __init__(self, on_change: Callable[[], None]) -> None:
        self._on_change = on_change
        self._thread = DatabaseThread("purges", reading=True)
        self._number: int | None = None
        self._rules: dict[tuple[str, str], int] = {}

    async def run(self) -> None:
        """Until cancelled."""
        try:
            while True:
                with contextlib.suppress(DatabaseAway):  # the feed says so
                    await self._look()
                await asyncio.sleep(LOOK_S)
        finally:
            await self._thread.close()

    async def _look(self) -> None:
        known = self._number
        latest = await self._thread.run(latest_number)
        if latest == known:
            return
        if known is None or latest < known or len(self._rules) > 2 * MOST_TOLD:
            known, self._rules = 0, {}  # the first look, another history (a restored backup), or many old ones
        latest, rules = await self._thread.run(purges_after, known)
        self._enter(rules)
        self._number = latest
        self._on_change()

    def _enter(self, rules: list[Told]) -> None:
        for number, kind, value in rules:
            self._rules[kind, value] = number

    def since(self, told: int | None) -> tuple[int | None, Message | None]:
        """``told`` is the number of the latest purge that the worker knows."""
        number = self._number
        if number is None or number == told:
            return told, None
        is_whole = told is None or number < told
        after = 0 if told is None or is_whole else told
        rules = sorted((at, kind, value) for (kind, value), at in self._rules.items() if at > after)
        return number, {"type": "purges", "number": number, "whole": is_whole, "rules": rules}

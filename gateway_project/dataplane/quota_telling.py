"""Quotas between a worker and the agent: what has been admitted is told, and who must know first is held until then."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from access.limits.quotas import MOST_TOLD, Place, QuotaBook
from core.context import Exchange
from core.faults import GatewayFault
from gateway_project.dataplane.holding import Hold

if TYPE_CHECKING:
    from gateway_project.dataplane.app import Gateway

_ASK_S = 3.0  # the agent, where it is there: one that is away is noticed at once


class QuotaTelling:
    """One per worker. ``book`` is what is known here."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self.book = QuotaBook(gateway.settings.workers)
        self._waiting: list[tuple[set[Place], Hold, Callable[[], None]]] = []
        self._telling: asyncio.Task[None] | None = None
        self._is_due = False  # all that has not been told is to be told

    def ask(self, exchange: Exchange, places: set[Place], step: Callable[[], None]) -> Hold:
        """Hold a request until it is known what has been used of ``places``, which are wanted; then ``step``."""
        hold = Hold(self._gateway, exchange)
        self._waiting.append((places, hold, step))
        self.tell(is_urgent=True)
        return hold

    def tell(self, *, is_urgent: bool = False) -> None:
        """Tell the agent what has been admitted, and ask it what somebody waits for. Called once a second too."""
        self._is_due = self._is_due or not is_urgent
        if self._telling is None:
            self._telling = self._gateway.loop.create_task(self._tell())

    async def _tell(self) -> None:
        try:
            while rows := self.book.rows(is_urgent=not self._is_due):
                self._is_due = len(rows) >= MOST_TOLD  # else what is admitted meanwhile can wait for the next second
                try:
                    answer = await self._gateway.link.call("quotas", {"rows": rows}, _ASK_S)
                    self.book.answered(rows, answer["used"])
                except Exception as error:
                    if not isinstance(error, GatewayFault):  # a mistake of ours must not leave anybody waiting
                        self._gateway.unexpected(error)
                    self.book.unanswered(rows, time.time())
                self._go_on()
        finally:
            self._telling = None
            self._is_due = False

    def _go_on(self) -> None:
        waiting, self._waiting = self._waiting, []
        for places, hold, step in waiting:
            if self.book.is_waiting(places):
                self._waiting.append((places, hold, step))
            else:
                hold.go_on(step)

    async def close(self) -> None:
        """Tell the agent what it has not been told."""
        self.tell()
        if self._telling is not None:
            await asyncio.wait({self._telling}, timeout=_ASK_S)

"""The secrets of managers in a process with an event loop: asked for in the background, kept, asked for again.

No request waits for a manager. What is not there yet is 503 for as long, and what cannot be asked for again stays.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping

from core.faults import GatewayFault
from core.secret_references.names import SecretUnavailable

logger = logging.getLogger("portcullis.secrets")

MAX_KEPT = 1000  # references; those of a configuration are few
_FETCHING = "it is being fetched"

Ask = Callable[[str], Awaitable[bytes]]  # raises GatewayFault


class _Kept:
    __slots__ = ("asked_at", "is_asking", "reason", "value")

    def __init__(self) -> None:
        self.value: bytes | None = None
        self.reason = _FETCHING
        self.asked_at = float("-inf")
        self.is_asking = False

    def fail(self, reference: str, reason: str) -> None:
        if reason != self.reason:
            logger.warning("%s cannot be resolved: %s", reference, reason)
        self.reason = reason


class ManagedSecrets:
    """``ask`` is asked again for each value every ``renew_s``, and for what is missing every ``retry_s``, as long as
    `sweep` is called. ``now`` gives monotonic seconds."""

    def __init__(
        self, ask: Ask, *, renew_s: float, retry_s: float = 1.0, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._ask = ask
        self._renew_s, self._retry_s = renew_s, retry_s
        self._now = now
        self._kept: dict[str, _Kept] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def resolve(self, reference: str) -> bytes:
        """What is kept. Raises `SecretUnavailable`."""
        kept = self._kept.get(reference)
        if kept is None:
            if len(self._kept) >= MAX_KEPT:
                self._kept.clear()
            kept = self._kept[reference] = _Kept()
            self._begin(reference, kept)
        if kept.value is None:
            raise SecretUnavailable(reference, kept.reason)
        return kept.value

    @property
    def problems(self) -> Mapping[str, str]:
        return {reference: kept.reason for reference, kept in self._kept.items() if kept.value is None}

    def sweep(self) -> None:
        """Ask for what is due. Costs nothing where no reference leads to a manager."""
        now = self._now()
        for reference, kept in self._kept.items():
            if now - kept.asked_at >= (self._renew_s if kept.value is not None else self._retry_s):
                self._begin(reference, kept)

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()

    def _begin(self, reference: str, kept: _Kept) -> None:
        if kept.is_asking:
            return
        kept.is_asking, kept.asked_at = True, self._now()
        task = asyncio.get_running_loop().create_task(self._renew(reference, kept))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _renew(self, reference: str, kept: _Kept) -> None:
        try:
            kept.value = await self._ask(reference)
        except SecretUnavailable as fault:
            kept.fail(reference, fault.reason)
        except GatewayFault as fault:
            kept.fail(reference, fault.detail)
        finally:
            kept.is_asking = False

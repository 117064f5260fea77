"""How often keys were used, when last, and from where: counted by each worker, told to the agent from time to time.

A connection's session remembers what its caller is counted under, so that a request pays two comparisons and two
assignments (`Gateway.account`). What is told is small whatever clients do: past a bound, further addresses of a key
count as one without a name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from core.context import Exchange
from core.wire import Message

_MOST = 50_000  # keys and addresses together
_MOST_OF_KEY = 64

Send = Callable[[Message], bool]


class Uses:
    """Of one key from one address; ``last`` is monotonic."""

    __slots__ = ("address", "key_id", "last", "requests")

    def __init__(self, key_id: str, address: str) -> None:
        self.key_id = key_id
        self.address = address
        self.requests = 0
        self.last = 0.0


class KeyUses:
    def __init__(self) -> None:
        self._by_key: dict[str, dict[str, Uses]] = {}
        self._count = 0

    def of(self, exchange: Exchange) -> Uses:
        """What the uses of the exchange's key from its client are counted under; the session remembers it."""
        uses: Uses | None = exchange.session.uses
        key_id, client = exchange.key.id, exchange.identity.client
        if uses is None or uses.key_id != key_id or uses.address != client:
            uses = exchange.session.uses = self._of(key_id, client)
        return uses

    def _of(self, key_id: str, address: str) -> Uses:
        addresses = self._by_key.setdefault(key_id, {})
        uses = addresses.get(address)
        if uses is None:
            if address and (len(addresses) >= _MOST_OF_KEY or self._count >= _MOST):
                return self._of(key_id, "")
            self._count += 1
            uses = addresses[address] = Uses(key_id, address)
        return uses

    def report(self, send: Send, epoch: float) -> bool:
        """Tell what was counted since this was done last; False: the agent is away, or there was nothing. ``epoch``:
        what makes monotonic seconds epoch seconds."""
        rows: list[Any] = [
            [key_id, uses.address, uses.requests, epoch + uses.last]
            for key_id, addresses in self._by_key.items()
            for uses in addresses.values()
            if uses.requests
        ]
        if not rows or not send({"type": "used", "rows": rows}):
            return False
        self._forget()
        return True

    def _forget(self) -> None:
        """What was told. Those that sessions hold on to begin anew when their callers come again."""
        for addresses in self._by_key.values():
            for uses in addresses.values():
                uses.key_id = ""
        self._by_key, self._count = {}, 0

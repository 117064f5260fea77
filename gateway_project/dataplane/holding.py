"""A request that cannot go on at once: a step asks somebody (Redis, the agent, an issuer of tokens) and waits.

The step raises a `Hold` and whoever has the answer calls its `go_on`. No task is made for it, and a client that leaves
meanwhile is noticed. A request that is held keeps the snapshot that it began with.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from core.context import Exchange

if TYPE_CHECKING:
    from gateway_project.dataplane.app import Gateway


class Hold(Exception):
    """Raised by a step. ``on_left`` is called when the client leaves, or sends a body that is refused, before `go_on`,
    which then does nothing."""

    def __init__(self, gateway: Gateway, exchange: Exchange, on_left: Callable[[], None] | None = None) -> None:
        super().__init__()
        self._gateway = gateway
        self._exchange = exchange
        self._on_left = on_left
        self.is_over = False
        exchange.left = self._leave

    def go_on(self, step: Callable[[], None]) -> None:
        """Take the request further; ``step`` may raise a GatewayFault, which is answered, or a `Hold`."""
        if self.is_over:
            return
        self._end()
        self._gateway.take_further(self._exchange, step)

    def _leave(self) -> None:
        self._end()
        if self._on_left is not None:
            self._on_left()

    def _end(self) -> None:
        """Nothing stays in a circle, which would keep the request for the garbage collector: frames that the hold was
        raised through may know it."""
        self.is_over = True
        self.__traceback__ = None
        self._exchange.left = None

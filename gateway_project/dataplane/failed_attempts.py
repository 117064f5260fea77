"""Failed authentications (rule 10): what an address with too many of them is told, and how fast (docs/adr/0020)."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NoReturn

from access.limits.local import FailureBuckets
from core.context import Exchange
from gateway_project.dataplane.holding import Hold
from gateway_project.dataplane.turns import Turns
from keys.verify import throttled

if TYPE_CHECKING:
    from gateway_project.dataplane.app import Gateway

MOST_HELD = 10_000  # refusals: each keeps its request until it is due, even if the client leaves before


class FailedAttempts:
    """One per worker."""

    def __init__(self, gateway: Gateway, per_minute: int) -> None:
        self._gateway = gateway
        self._buckets = FailureBuckets(per_minute)
        self._turns = Turns(lambda: gateway.loop, gateway.now)

    def charge(self, exchange: Exchange) -> None:
        self._buckets.charge(exchange.identity.client, exchange.started)

    def check(self, exchange: Exchange) -> None:
        """Of a request whose credential is not right. Raises PolicyDenied, or Hold, when its address is blocked.

        The address gets few refusals a second, and those that are too early are held: so a client that waits for
        answers, on however many connections, leaves the worker to others. What comes by a trusted proxy is not held,
        since the proxy's connections are everybody's.
        """
        address = exchange.identity.client
        wait_s = self._buckets.is_blocked(address, exchange.started)
        if not wait_s:
            return
        if not exchange.identity.is_proxied and self._turns.size < MOST_HELD:
            now = self._gateway.now()
            pause_s = self._buckets.pause_s(address, now)
            if pause_s:
                hold = Hold(self._gateway, exchange)
                exchange.forget_body()
                self._turns.wait(now + pause_s, hold, partial(_refuse, exchange, wait_s))
                raise hold
        raise throttled(wait_s)

    def sweep(self, now: float, budget: int) -> None:
        """Forget up to ``budget`` addresses whose failures are long past."""
        self._buckets.sweep(now, budget)


def _refuse(exchange: Exchange, wait_s: int) -> NoReturn:
    exchange.stop_ahead()
    raise throttled(wait_s)

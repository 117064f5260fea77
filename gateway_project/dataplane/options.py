"""OPTIONS, where the gateway itself is the one that is asked (RFC 9110 sections 7.6.2, 9.3.7)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from core.context import Exchange

if TYPE_CHECKING:
    from gateway_project.dataplane.app import Gateway
    from gateway_project.dataplane.matching import Match

METHODS = b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"  # the usual ones; others pass too


class Options:
    """Answers for the gateway as a whole, and counts requests down that are to trace the way to an upstream."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def answer(self, exchange: Exchange) -> None:
        """``OPTIONS *``, and whatever may go no further: what can be said of any resource."""
        exchange.own_template = "*"
        self._gateway.answer(exchange, 200, [(b"allow", METHODS)], b"")

    def step(self, exchange: Exchange, match: Match) -> bool:
        """Of OPTIONS requests: one whose Max-Forwards has come to 0 ends here."""
        passed = exchange.passed
        for i in range(0, len(passed), 4):
            if passed[i] == b"max-forwards" and passed[i + 2].isdigit():
                left = int(passed[i + 2])
                if left == 0:
                    self.answer(exchange)
                    return True
                passed[i + 2] = b"%d" % (left - 1)
        return False

"""Request bodies that must be had whole before a step can go on: for queues, and for routes that change them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from core.context import Exchange
from core.faults import GatewayFault

if TYPE_CHECKING:
    from gateway_project.dataplane.app import Gateway


def collect_body(gateway: Gateway, exchange: Exchange, go_on: Callable[[bytes], None]) -> None:
    """Take the body whole, bounded by the exchange's ``max_body_bytes``; ``go_on`` gets it and may raise GatewayFault,
    which becomes the answer."""
    collector = _Collector(gateway, exchange, go_on)
    exchange.sink = collector
    exchange.read_body(collector)


class _Collector:
    __slots__ = ("_body", "_exchange", "_gateway", "_go_on")

    def __init__(self, gateway: Gateway, exchange: Exchange, go_on: Callable[[bytes], None]) -> None:
        self._gateway = gateway
        self._exchange = exchange
        self._go_on = go_on
        self._body = bytearray()  # not a list: a body may come in pieces of a few bytes

    def body_data(self, data: bytes) -> None:
        self._body += data

    def body_end(self) -> None:
        exchange = self._exchange
        exchange.sink = None
        try:
            self._go_on(bytes(self._body))
        except GatewayFault as fault:
            self._gateway.refuse(exchange, fault)

    def client_gone(self) -> None:
        self._body.clear()

    def client_ready(self) -> None:
        """Nothing is written while a body is gathered."""

    def refuse_body(self, fault: GatewayFault) -> None:
        self._gateway.refuse(self._exchange, fault)

"""A large body from memory, at the pace of the client: what it has not taken stays in the store, and is not copied."""

from __future__ import annotations

import asyncio

from core.context import Exchange
from core.faults import GatewayFault
from routing.answers import AnswerHead, AnswerSink

LARGE = 128 * 1024
PIECE = 64 * 1024
STALLED_S = 30.0  # for a client to take more
_AT_ONCE = 4  # pieces in one go of the event loop


def deliver(exchange: Exchange, out: AnswerSink, head: AnswerHead, body: bytes) -> None:
    """An answer to ``out``, which writes to the exchange. Nobody else may be the exchange's sink."""
    if len(body) <= LARGE or exchange.method == b"HEAD":
        out.whole(head, body)
    else:
        Pouring(exchange, out, body).begin(head)


class Pouring:
    """The exchange's sink while it lasts."""

    __slots__ = ("_at", "_body", "_exchange", "_is_over", "_out", "_timer")

    def __init__(self, exchange: Exchange, out: AnswerSink, body: bytes) -> None:
        self._exchange = exchange
        self._out = out
        self._body = body
        self._at = 0
        self._is_over = False
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, head: AnswerHead) -> None:
        self._exchange.sink = self
        self._out.start(head)
        self._pour()

    def _pour(self) -> None:
        for _ in range(_AT_ONCE):
            if self._is_over:
                return
            piece = self._body[self._at : self._at + PIECE]
            self._at += len(piece)
            is_ready = self._out.data(piece)
            if self._at >= len(self._body):
                self._is_over = True
                self._exchange.sink = None
                self._out.end()
                return
            if not is_ready:
                self._keep_time()
                return
        asyncio.get_running_loop().call_soon(self._pour)

    def _keep_time(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(STALLED_S, self._stalled)

    def _stop(self) -> None:
        self._is_over = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _stalled(self) -> None:
        if self._exchange.is_taking():
            self._keep_time()  # it is slow, but it goes on
            return
        self._cut_off()

    def _cut_off(self) -> None:
        self._stop()
        self._exchange.sink = None
        self._out.abort()

    # --- what the exchange tells its sink ---
    def client_ready(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._pour()

    def client_gone(self) -> None:
        self._stop()
        self._out.abort()

    def body_data(self, data: bytes) -> None:
        pass  # of a request without a body

    def body_end(self) -> None:
        pass

    def refuse_body(self, fault: GatewayFault) -> None:
        self._cut_off()

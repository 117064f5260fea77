"""Whoever writes a long answer by itself holds on to a client for as long as it takes something (rule 9)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from core.context import Exchange
from routing import compression
from routing.answers import AnswerHead, AnswerSink
from routing.cache import pouring
from routing.compression import Compressing, Rules
from routing.policies import Compression

BODY = bytes(range(256)) * 4096


class SlowClient(Exchange):
    """Takes something in each of ``times`` looks at it, and then nothing more."""

    def __init__(self, times: int) -> None:
        self.method = b"GET"
        self.noted, self.passed = {b"accept-encoding": b"gzip"}, []
        self.left_times = times
        self.is_cut_off = asyncio.Event()

    def is_taking(self) -> bool:
        self.left_times -= 1
        return self.left_times >= 0


class Socket(AnswerSink):
    def __init__(self, exchange: SlowClient) -> None:
        self.exchange = exchange

    def whole(self, head: AnswerHead, body: bytes) -> None: ...
    def start(self, head: AnswerHead) -> None: ...
    def end(self) -> None: ...

    def data(self, data: bytes) -> bool:
        return False

    def abort(self) -> None:
        self.exchange.is_cut_off.set()


def head() -> AnswerHead:
    return AnswerHead(200, [b"content-type: text/plain\r\n"], is_sized=False)


def pour(exchange: Exchange, out: AnswerSink) -> None:
    pouring.deliver(exchange, out, head(), BODY)


def compress(exchange: Exchange, out: AnswerSink) -> None:
    Compressing(out, exchange, Rules(Compression())).whole(head(), BODY)


@pytest.mark.parametrize("write", [pour, compress])
def test_a_client_is_cut_off_when_it_takes_nothing_more(
    write: Callable[[Exchange, AnswerSink], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (pouring, compression):
        monkeypatch.setattr(module, "STALLED_S", 0.01)

    async def run() -> SlowClient:
        exchange = SlowClient(5)
        write(exchange, Socket(exchange))
        await asyncio.wait_for(exchange.is_cut_off.wait(), 10)
        return exchange

    assert asyncio.run(run()).left_times == -1  # it was looked at until it took nothing

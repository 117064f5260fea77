"""Connections to targets whose names take long to look up."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from routing.records import TargetRecord
from routing.upstream.pool import Connector
from routing.upstream.tls import ClientContexts


def connector() -> Connector:
    def no_secrets(_: str) -> bytes:
        raise AssertionError

    return Connector(asyncio.get_running_loop(), lambda _: True, ClientContexts(no_secrets))


class Accepted(asyncio.Protocol):
    open = 0

    def connection_made(self, _: asyncio.BaseTransport) -> None:
        Accepted.open += 1

    def connection_lost(self, _: Exception | None) -> None:
        Accepted.open -= 1


def test_a_name_that_takes_long_to_look_up_is_looked_up_once_for_all_who_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        loop = asyncio.get_running_loop()
        looked_up: list[Any] = []
        answer = asyncio.Event()

        async def slow(*place: Any, **_: Any) -> Any:
            looked_up.append(place)
            await answer.wait()
            return [(0, 0, 0, "", ("127.0.0.1", port))]

        server = await loop.create_server(Accepted, "127.0.0.1", 0)
        port: int = server.sockets[0].getsockname()[1]
        monkeypatch.setattr(loop, "getaddrinfo", slow)
        connections = connector()
        pool = connections.pool(TargetRecord.from_url(f"http://slow.test:{port}")[0])
        opening = [loop.create_task(connections.open(pool)) for _ in range(10)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        opening[0].cancel()  # who gives up takes nothing from the others
        answer.set()
        monkeypatch.undo()
        opened = await asyncio.gather(*opening, return_exceptions=True)
        assert isinstance(opened[0], asyncio.CancelledError)
        assert len(looked_up) == 1
        for each in opened[1:]:
            assert not isinstance(each, BaseException)
            each.close()
        server.close()
        while Accepted.open:
            await asyncio.sleep(0.01)
        with pytest.raises(socket.gaierror):  # and what has failed is asked again
            await connections.open(connections.pool(TargetRecord.from_url("http://no.invalid:1")[0]))

    asyncio.run(run())

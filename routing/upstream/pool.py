"""Keep-alive connections, one pool for each origin."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from typing import Any, Protocol

from routing.upstream.connection import UpstreamConnection
from routing.upstream.errors import EgressDenied
from routing.upstream.tls import client_context

Origin = tuple[str, str, int]  # scheme (also "unix" and "local": the gateway's own processes), host, port

# Many servers close an idle connection after five seconds (Node.js, uvicorn). Closing ours before that keeps most
# requests from meeting one that is just being closed, which for a POST means 502 (rule 8).
IDLE_S = 4.0
MAX_IDLE = 256


class Connecting(Protocol):
    """Whoever waits for a connection."""

    def connected(self, connection: UpstreamConnection) -> None: ...
    def connect_failed(self, error: BaseException) -> None: ...


class Pool:
    """The connections to one origin that no exchange uses now. The newest is taken first: it is the least stale."""

    __slots__ = ("_connector", "_idle", "origin")

    def __init__(self, origin: Origin, connector: Connector) -> None:
        self.origin = origin
        self._connector = connector
        self._idle: list[UpstreamConnection] = []

    def take(self) -> UpstreamConnection | None:
        while self._idle:
            connection = self._idle.pop()
            if not connection.is_closed:
                connection.is_reused = True
                return connection
        return None

    def give_back(self, connection: UpstreamConnection) -> None:
        if len(self._idle) >= MAX_IDLE:
            connection.close()
            return
        connection.idle_since = self._connector.now()
        self._idle.append(connection)

    def forget(self, connection: UpstreamConnection) -> None:
        """An idle connection was closed by the other end."""
        if connection in self._idle:
            self._idle.remove(connection)

    def connect(self, waiter: Connecting) -> asyncio.Task[None]:
        """Open a new connection; the waiter is told. Cancel the task to give up."""
        return self._connector.loop.create_task(self._connect(waiter))

    async def _connect(self, waiter: Connecting) -> None:
        try:
            connection = await self._connector.open(self)
        except (OSError, ValueError) as error:  # ValueError: a name that no resolver takes
            waiter.connect_failed(error)
        else:
            waiter.connected(connection)

    def sweep(self, now: float) -> None:
        """Close what has been idle for too long. The oldest stand first."""
        stale = 0
        for connection in self._idle:
            if now - connection.idle_since < IDLE_S:
                break
            stale += 1
        if stale:
            old, self._idle = self._idle[:stale], self._idle[stale:]
            for connection in old:
                connection.close()

    def close(self) -> None:
        for connection in self._idle:
            connection.close()
        self._idle.clear()


class Connector:
    """Opens connections and keeps the pools. ``permits`` judges every resolved address (rule 25)."""

    def __init__(self, loop: asyncio.AbstractEventLoop, permits: Callable[[str], bool]) -> None:
        self.loop = loop
        self.now = time.monotonic  # not the loop's clock, which stands still while a callback runs
        self._permits = permits
        self._pools: dict[Origin, Pool] = {}

    def pool(self, origin: Origin) -> Pool:
        pool = self._pools.get(origin)
        if pool is None:
            pool = self._pools[origin] = Pool(origin, self)
        return pool

    async def open(self, pool: Pool) -> UpstreamConnection:
        """A connection to the pool's origin. Raises OSError (which TLS errors and EgressDenied are)."""
        scheme, host, port = pool.origin
        if scheme == "unix":
            _, connection = await self.loop.create_unix_connection(lambda: UpstreamConnection(pool), host)
            return connection
        tls: dict[str, Any] = {"ssl": client_context(), "server_hostname": host} if scheme == "https" else {}
        failure: OSError = socket.gaierror(socket.EAI_NONAME, "the name has no address")
        for address in await self._addresses(scheme, host, port):
            try:
                _, connection = await self.loop.create_connection(
                    lambda: UpstreamConnection(pool), address, port, **tls
                )
            except OSError as error:
                failure = error
            else:
                return connection
        raise failure

    async def _addresses(self, scheme: str, host: str, port: int) -> list[str]:
        """The addresses to try. Judged after resolving and connected to as they were judged, so that no second
        answer of the name server can slip another one in."""
        found = await self.loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = list(dict.fromkeys(str(info[4][0]) for info in found))
        if scheme == "local":
            return addresses
        allowed = [address for address in addresses if self._permits(address)]
        if addresses and not allowed:
            raise EgressDenied(f"{host} resolves to {', '.join(addresses)}")
        return allowed

    def sweep(self, now: float) -> None:
        for pool in self._pools.values():
            pool.sweep(now)

    def close(self) -> None:
        for pool in self._pools.values():
            pool.close()

"""Keep-alive connections, one pool for each origin and TLS policy: what one policy has verified, no other may use."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from typing import Any, Protocol

from routing.policies import UpstreamTls
from routing.records import TargetRecord
from routing.upstream.connection import UpstreamConnection
from routing.upstream.errors import EgressDenied
from routing.upstream.tls import ClientContexts

Origin = tuple[str, str, int]  # scheme (also "unix" and "local": the gateway's own processes), host, port

# Many servers close an idle connection after five seconds (Node.js, uvicorn). Closing ours before that keeps most
# requests from meeting one that is just being closed, which for a POST means 502 (rule 8).
IDLE_S = 4.0
MAX_IDLE = 256
FORGET_S = 600.0  # a pool that nobody has used for so long


class Connecting(Protocol):
    """Whoever waits for a connection."""

    def connected(self, connection: UpstreamConnection) -> None: ...
    def connect_failed(self, error: BaseException) -> None: ...


class Pool:
    """The connections to one origin that no exchange uses now. The newest is taken first: it is the least stale."""

    __slots__ = ("_connector", "_idle", "is_forgotten", "origin", "tls", "used_at")

    def __init__(self, origin: Origin, tls: UpstreamTls | None, connector: Connector) -> None:
        self.origin = origin
        self.tls = tls
        self._connector = connector
        self._idle: list[UpstreamConnection] = []
        self.used_at = connector.now()
        self.is_forgotten = False

    @property
    def is_empty(self) -> bool:
        return not self._idle

    def take(self) -> UpstreamConnection | None:
        while self._idle:
            connection = self._idle.pop()
            if not connection.is_closed:
                connection.is_reused = True
                return connection
        return None

    def give_back(self, connection: UpstreamConnection) -> None:
        if len(self._idle) >= MAX_IDLE or self.is_forgotten:
            connection.close()
            return
        connection.idle_since = self.used_at = self._connector.now()
        self._idle.append(connection)

    def forget(self, connection: UpstreamConnection) -> None:
        """An idle connection was closed by the other end."""
        if connection in self._idle:
            self._idle.remove(connection)

    def connect(self, waiter: Connecting) -> asyncio.Task[None]:
        """Open a new connection; the waiter is told. Cancel the task to give up."""
        self.used_at = self._connector.now()
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

    def __init__(
        self, loop: asyncio.AbstractEventLoop, permits: Callable[[str], bool], contexts: ClientContexts
    ) -> None:
        self.loop = loop
        self.now = time.monotonic  # not the loop's clock, which stands still while a callback runs
        self._permits = permits
        self._contexts = contexts
        self._pools: dict[Origin | tuple[Origin, UpstreamTls], Pool] = {}
        self._lookups: dict[tuple[str, int], asyncio.Future[list[str]]] = {}  # under way
        self._forget_at = 0.0

    def pool(self, target: TargetRecord) -> Pool:
        origin, tls = target.origin, target.tls
        key = origin if tls is None else (origin, tls)
        pool = self._pools.get(key)
        if pool is None:
            pool = self._pools[key] = Pool(origin, tls, self)
        return pool

    async def open(self, pool: Pool) -> UpstreamConnection:
        """A connection to the pool's origin. Raises OSError (which TLS errors and EgressDenied are)."""
        scheme, host, port = pool.origin
        if scheme == "unix":
            _, connection = await self.loop.create_unix_connection(lambda: UpstreamConnection(pool), host)
            return connection
        tls = self._tls(pool.tls, host) if scheme == "https" else {}
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

    def _tls(self, policy: UpstreamTls | None, host: str) -> dict[str, Any]:
        """What `create_connection` must know. OpenSSL sends the name as SNI, unless it is an address (RFC 6066)."""
        name = policy.server_name if policy is not None and policy.server_name else host
        return {"ssl": self._contexts.context(policy), "server_hostname": name}

    async def _addresses(self, scheme: str, host: str, port: int) -> list[str]:
        """The addresses to try. Judged after resolving and connected to as they were judged, so that no second
        answer of the name server can slip another one in."""
        lookup = self._lookups.get((host, port))
        if lookup is None:
            lookup = self._lookups[host, port] = self.loop.create_task(self._look_up(host, port))
        # Shared, since a name server that hangs would else take every thread that looks names up, for one service.
        addresses = await asyncio.shield(lookup)
        if scheme == "local":
            return addresses
        allowed = [address for address in addresses if self._permits(address)]
        if addresses and not allowed:
            raise EgressDenied(f"{host} resolves to {', '.join(addresses)}")
        return allowed

    async def _look_up(self, host: str, port: int) -> list[str]:
        try:
            found = await self.loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        finally:
            del self._lookups[host, port]
        return list(dict.fromkeys(str(info[4][0]) for info in found))

    def sweep(self, now: float) -> None:
        for pool in self._pools.values():
            pool.sweep(now)
        if now >= self._forget_at:
            self._forget_at = now + FORGET_S / 10
            self._forget_unused(now - FORGET_S)

    def _forget_unused(self, before: float) -> None:
        """Addresses and policies come and go with the configuration and with discovery."""
        for key, pool in list(self._pools.items()):
            if pool.is_empty and pool.used_at < before:
                pool.is_forgotten = True  # a connection may still be in use, for hours if it is a stream
                del self._pools[key]

    def close(self) -> None:
        for pool in self._pools.values():
            pool.close()

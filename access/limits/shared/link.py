"""One connection to Redis for all that a worker counts there.

What is called within one turn of the event loop leaves in one write, and replies come in the order of the calls, so
a call costs no future and no task. Whoever calls never waits longer than ``wait_s``: then all that is under way fails,
and what comes after fails at once until Redis has answered again. A failed call may still have been carried out.
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha1
from typing import Any, cast

from hiredis import Reader, ReplyError

from access.limits.shared.address import RedisAddress

logger = logging.getLogger("portcullis.limits")

MAX_CALLS = 10_000  # under way or waiting to leave
_CONNECT_S = 2.0
_FIRST_PAUSE_S = 0.05  # between two attempts to connect; it doubles
_LONGEST_PAUSE_S = 1.0
_SECOND_LOOK_S = 0.004
_HANGING_S = 1.0  # after which a connection is given up whose replies are late
_IDLE_S = 5.0  # after which Redis is asked whether it is there
_LONGEST_REASON = 200
_MAX_HOPS = 3  # from node to node of a cluster
_PING = b"*1\r\n$4\r\nPING\r\n"

Taken = Callable[[Any], None]  # what is done with a reply; None: there is none, Redis is away


class Refused(Exception):
    """Redis does not do what it is asked. ``str()`` is its own word, which repeats no password."""


class Script:
    """A Lua script as Redis knows it. ``arguments`` count the script's keys and arguments, and their number."""

    __slots__ = ("_heads", "_whole", "text")

    def __init__(self, text: bytes) -> None:
        self.text = text
        digest = sha1(text, usedforsecurity=False).hexdigest().encode()
        self._heads = (b"$7\r\nEVALSHA\r\n$40\r\n" + digest + b"\r\n", b"$4\r\nEVAL\r\n" + bulk(text))

    def call(self, keys: int, arguments: int, encoded: bytes) -> bytes:
        """The command; ``encoded`` are the keys and arguments as bulk strings."""
        return b"*%d\r\n%b%b%b" % (3 + keys + arguments, self._heads[0], bulk(b"%d" % keys), encoded)

    def in_full(self, command: bytes) -> bytes:
        """The same call with the script's text, for a Redis that does not know it (yet, or any more)."""
        return command.replace(self._heads[0], self._heads[1], 1)


def bulk(value: bytes) -> bytes:
    """A bulk string of the protocol (https://redis.io/docs/latest/develop/reference/protocol-spec/)."""
    return b"$%d\r\n%b\r\n" % (len(value), value)


def command(*words: bytes) -> bytes:
    return b"*%d\r\n%b" % (len(words), b"".join(map(bulk, words)))


class RedisLink(asyncio.Protocol):
    """Connects by itself, again and again. ``probe`` is a call that shows whether Redis does what limits need; no other
    one leaves before it has been answered. ``on_up`` is called whenever Redis can be used again.

    Calls wait for the first connection as long as for a reply; later ones fail at once while there is none.
    """

    def __init__(
        self, address: RedisAddress, script: Script, probe: bytes, wait_s: float, on_up: Callable[[], None]
    ) -> None:
        self._address = self._target = address
        self._script = script
        self._probe = script.in_full(probe)
        self._wait_s = wait_s
        self._on_up = on_up
        self.is_up = False
        self._takes_calls = True
        self._is_told = False  # that Redis is away
        self._reason = ""
        # of the connection
        self._transport: asyncio.Transport | None = None
        self._reader = Reader()
        self._greeting: deque[asyncio.Future[None]] = deque()
        self._ended = asyncio.Event()
        self._late = 0  # replies that nobody waits for any more
        self._giving_up: asyncio.TimerHandle | None = None
        # of the calls
        self._outgoing: list[bytes] = []
        self._waiting: deque[tuple[Taken, bytes, float]] = deque()  # for replies, in the order of the calls
        self._timer: asyncio.TimerHandle | None = None
        self._has_looked = False
        # counted
        self.calls = self.writes = 0
        self.failures = {"away": 0, "late": 0, "refused": 0}
        self._loop = asyncio.get_running_loop()
        self._task = self._loop.create_task(self._keep_connected())

    # --- calls ---
    def call(self, command: bytes, taken: Taken) -> None:
        """``taken`` is called once, later, with the reply or None. It must not raise."""
        if not self._takes_calls or len(self._waiting) >= MAX_CALLS:
            self.failures["away"] += 1
            self._loop.call_soon(taken, None)
            return
        self.calls += 1
        outgoing = self._outgoing
        if not outgoing:
            self._loop.call_soon(self._flush)
        outgoing.append(command)
        self._waiting.append((taken, command, self._loop.time()))
        if self._timer is None:
            self._timer = self._loop.call_later(self._wait_s, self._look)

    def _flush(self) -> None:
        if self.is_up and self._outgoing and self._transport is not None:
            self.writes += 1
            self._transport.write(b"".join(self._outgoing))
            self._outgoing.clear()

    def data_received(self, data: bytes) -> None:
        reader = self._reader
        try:
            reader.feed(data)
            while (reply := reader.gets()) is not False:
                if self._late or self._greeting:
                    self._take_other(reply)
                    continue
                taken, command, _ = self._waiting.popleft()
                if type(reply) is ReplyError:
                    self._take_error(reply, command, taken)
                else:
                    taken(reply)
        except Exception as error:  # a ProtocolError, or a reply to nothing: it is no Redis
            self._drop(f"it answers nonsense ({type(error).__name__})")

    def _take_other(self, reply: Any) -> None:
        if self._greeting:
            greeted = self._greeting.popleft()
            if greeted.done():
                return
            if isinstance(reply, ReplyError):
                greeted.set_exception(Refused(str(reply)))
            else:
                greeted.set_result(None)
            return
        self._late -= 1
        if self._late == 0:
            self._come_up()

    def _take_error(self, error: ReplyError, command: bytes, taken: Taken) -> None:
        text = str(error)
        if text.startswith("NOSCRIPT"):
            self.calls -= 1
            self.call(self._script.in_full(command), taken)
            return
        self.failures["refused"] += 1
        taken(None)
        if _OF_SERVER.search(text):
            self._follow(text)
            self._drop(text)
        else:
            self._say(text)

    # --- time ---
    def _look(self) -> None:
        """Fail what is overdue. A loop that was busy may have replies to read yet: hence the second look."""
        self._timer = None
        if not self._waiting:
            self._has_looked = False
            return
        left_s = self._waiting[0][2] + self._wait_s - self._loop.time()
        if left_s > 0:
            self._has_looked = False
        elif not self._has_looked:
            self._has_looked, left_s = True, _SECOND_LOOK_S
        else:
            self._has_looked = False
            self._hang()
            return
        self._timer = self._loop.call_later(left_s, self._look)

    def _hang(self) -> None:
        """Redis, or the way to it, is too slow. The connection is kept for a moment: replies may yet come."""
        if self.is_up:
            self._late = len(self._waiting) - len(self._outgoing)
            self._giving_up = self._loop.call_later(_HANGING_S, self._drop, "it does not answer")
        self._fail_all("late", self._reason or "it does not answer in time")

    def _fail_all(self, kind: str, reason: str) -> None:
        self.is_up = self._takes_calls = False
        waiting, self._waiting = self._waiting, deque()
        self._outgoing.clear()
        self.failures[kind] += len(waiting)
        self._say(reason)
        for taken, _, _ in waiting:
            taken(None)

    def _come_up(self) -> None:
        if self._giving_up is not None:
            self._giving_up.cancel()
        self._giving_up = None
        self.is_up = self._takes_calls = True
        if self._is_told:
            logger.info("limits are counted in Redis again")
        self._is_told, self._reason = False, ""
        self._on_up()
        self._flush()

    def _say(self, reason: str) -> None:
        """Once, until Redis is back. It may repeat what it was told (ERR unknown command)."""
        if self._address.password:
            reason = reason.replace(self._address.password, "…")
        self._reason = reason = reason[:_LONGEST_REASON]
        if not self._is_told:
            logger.warning("limits cannot be counted in Redis at %s: %s", self._address, reason)
        self._is_told = True

    # --- connection ---
    async def _keep_connected(self) -> None:
        pause_s, hops = _FIRST_PAUSE_S, 0
        while True:
            began = self._loop.time()
            try:
                async with asyncio.timeout(_CONNECT_S):
                    await self._connect()
                    await self._greet()
                self._come_up()
                await self._watch()
            except (OSError, TimeoutError, Refused) as error:
                await self._disconnect()
                hops += 1
                if self._follow(str(error)) and hops <= _MAX_HOPS:
                    continue
                self._target = self._address
                self._fail_all("away", _why(error))
            hops = 0
            if self._loop.time() - began > _LONGEST_PAUSE_S:
                pause_s = _FIRST_PAUSE_S
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def _connect(self) -> None:
        address = self._target
        self._reader = Reader()
        self._late = 0
        self._ended.clear()
        tls = address.tls_context()
        name = address.host if tls is not None else None
        if address.path:
            await self._loop.create_unix_connection(lambda: self, address.path)
        else:
            await self._loop.create_connection(lambda: self, address.host, address.port, ssl=tls, server_hostname=name)

    async def _greet(self) -> None:
        address, commands = self._address, []
        if address.password:
            user = [address.username.encode()] if address.username else []
            commands.append(command(b"AUTH", *user, address.password.encode()))
        if address.database:
            commands.append(command(b"SELECT", b"%d" % address.database))
        commands.append(self._probe)
        greeted = [self._loop.create_future() for _ in commands]
        self._greeting = deque(greeted)
        if self._transport is None:
            raise ConnectionResetError("it closes the connection")
        self._transport.write(b"".join(commands))
        try:
            for future in greeted:
                await future
        finally:
            for future in greeted:
                future.cancel()
                if not future.cancelled():
                    future.exception()  # has been seen

    async def _watch(self) -> None:
        """Until the connection has ended. While nobody else asks, it is asked whether it lives."""
        while not self._ended.is_set():
            calls = self.calls
            try:
                async with asyncio.timeout(_IDLE_S):
                    await self._ended.wait()
            except TimeoutError:
                if self.calls == calls and self.is_up:
                    self.call(_PING, _ignore)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        if self._giving_up is not None:
            self._giving_up.cancel()
        self._giving_up = None
        self._late = 0
        for future in self._greeting:
            if not future.done():
                future.set_exception(ConnectionResetError("it closes the connection"))
        self._greeting.clear()
        if self.is_up:
            self._fail_all("away", self._reason or "it closes the connection")
        self._ended.set()

    def _drop(self, reason: str) -> None:
        self._reason = reason
        if self._transport is not None:
            self._transport.abort()

    async def _disconnect(self) -> None:
        if self._transport is not None:
            self._transport.abort()
            await self._ended.wait()

    def _follow(self, text: str) -> bool:
        """To the node that has the keys (https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/,
        MOVED); all of ours are in one slot. Whether the text says so."""
        moved = _MOVED.search(text)
        if moved is None:
            return False
        host, port = moved.groups()
        self._target = replace(self._target, host=host.strip("[]") or self._target.host, port=int(port), path="")
        return True

    async def close(self) -> None:
        """Waits for what is under way, no longer than for any call."""
        if self.is_up:
            done = asyncio.Event()
            self.call(_PING, lambda _: done.set())
            await done.wait()
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self.is_up = self._takes_calls = False
        for timer in (self._timer, self._giving_up):
            if timer is not None:
                timer.cancel()
        await self._disconnect()


# What says that no call will do better, rather than that something is wrong with this one.
_OF_SERVER = re.compile(
    r"\b(READONLY|LOADING|OOM|NOAUTH|WRONGPASS|NOPERM|MASTERDOWN|MISCONF|NOREPLICAS|CLUSTERDOWN|MOVED|ASK|TRYAGAIN|BUSY)\b"
)
_MOVED = re.compile(r"\bMOVED \d+ (\S*):(\d+)")


def _ignore(reply: Any) -> None: ...


def _why(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "it does not answer in time"
    if isinstance(error, Refused):
        return str(error)
    return str(error).partition("\n")[0] or type(error).__name__

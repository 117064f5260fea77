"""Serves the workers of this host over a Unix socket (frames: `core.wire`).

Nothing is queued for a worker: one that is behind gets, once it reads again, one delta from where it stands to where
the store stands then. So a slow or stopped worker costs nobody anything.
"""

import asyncio
import logging
import os
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from core.faults import GatewayFault, InternalFault
from core.wire import FrameReader, Message, encode
from gateway_project.agent.store import ConfigStore, Position, Problem

logger = logging.getLogger("portcullis.agent")


class News(Protocol):
    """Runtime state beside the configuration, of which each worker is told what it does not know yet."""

    def since(self, told: Any) -> tuple[Any, Message | None]:
        """What the worker will know, and the message that tells it (None: it knows all). ``told`` is what it knows;
        None: nothing."""


CallHandler = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]

TICK_S = 0.5
_READ_BYTES = 64 * 1024
_CALLS_AT_ONCE = 2_000  # of one worker
_MOST_INT, _MOST_BIGINT = 2**31 - 1, 2**63 - 1
_UNREAD_LIMIT = 4 * 1024 * 1024  # bytes of replies that a worker does not fetch


@dataclass(eq=False, slots=True)
class Peer:
    """A worker. ``serial`` is the store's step up to which it was sent everything; None: it needs a full load, unless
    the ``position`` that it came with turns out to be known."""

    writer: asyncio.StreamWriter
    slot: int = -1  # before it has joined
    pid: int = 0
    position: Position = field(default_factory=Position)
    serial: int | None = None
    applied_revision: int = 0
    problems: list[Problem] = field(default_factory=list)
    joined_at: float = 0.0
    told: dict[News, Any] = field(default_factory=dict)
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    calls: set[asyncio.Task[None]] = field(default_factory=set)


class AgentServer:
    """``handlers`` answer calls by name; they raise GatewayFault. ``on_message`` gets ``join``, ``ack``, ``metrics``
    and ``used`` after the server has dealt with them. Workers are told of ``news`` beside the configuration."""

    def __init__(self, store: ConfigStore, path: Path, on_message: Callable[[Peer, Message], None]) -> None:
        self.handlers: dict[str, CallHandler] = {}
        self.news: list[News] = []
        self.peers: set[Peer] = set()  # those that have joined
        self._store = store
        self._path = path
        self._on_message = on_message
        self._connections: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Until cancelled. Whoever calls holds the lock on VAR_DIR, so a socket that is there is a dead one's."""
        server = await asyncio.start_unix_server(self._accept, sock=_private_socket(self._path))
        try:
            async with server:
                await server.serve_forever()
        finally:
            for task in self._connections:
                task.cancel()
            await asyncio.gather(*self._connections, return_exceptions=True)
            self._path.unlink(missing_ok=True)

    def wake(self) -> None:
        """The store has changed, or its ``as_of`` or some news have: tell the workers."""
        for peer in self.peers:
            peer.wake.set()

    def pass_on(self, sender: Peer, message: Message) -> None:
        """Tell the other workers what one says. One that does not read misses it."""
        frame = encode(message)
        for peer in self.peers:
            if peer is not sender and peer.writer.transport.get_write_buffer_size() <= _UNREAD_LIMIT:
                peer.writer.write(frame)

    def forget_applied(self) -> None:
        """Until the workers acknowledge again."""
        for peer in self.peers:
            peer.applied_revision = 0

    # --- one worker ---

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        peer = Peer(writer)
        sending = asyncio.create_task(self._send(peer))
        try:
            await self._receive(peer, reader)
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:  # nonsense too
            logger.warning("worker %d is cut off: %s: %s", peer.slot, type(error).__name__, error)
        except asyncio.CancelledError:
            pass  # the agent ends; the server's own callback must not see it
        finally:
            for each in (sending, *peer.calls):
                each.cancel()
            writer.close()
            self._connections.discard(task)
            if peer in self.peers:
                self.peers.discard(peer)
                logger.info("worker %d (pid %d) has left", peer.slot, peer.pid)

    async def _receive(self, peer: Peer, reader: asyncio.StreamReader) -> None:
        frames = FrameReader()
        while data := await reader.read(_READ_BYTES):
            for message in frames.feed(data):
                self._take(peer, message)

    def _take(self, peer: Peer, message: Message) -> None:
        kind = message["type"]
        if kind == "call":
            self._begin_call(peer, message)
            return
        if kind == "join":
            self._join(peer, message)
        elif kind == "ack":
            peer.applied_revision = _number(message["revision"])
            peer.problems = [dict(problem) for problem in message.get("problems", ())]
        self._on_message(peer, message)

    def _join(self, peer: Peer, message: Message) -> None:
        position = Position(_number(message["revision"]), str(message["token"]))
        peer.slot, peer.pid = _number(message["slot"], _MOST_INT), _number(message["pid"], _MOST_INT)
        peer.position, peer.joined_at = position, time.time()
        peer.applied_revision = peer.position.number
        self.peers.add(peer)
        peer.wake.set()
        logger.info("worker %d (pid %d) has joined at revision %d", peer.slot, peer.pid, peer.position.number)

    # --- configuration ---

    async def _send(self, peer: Peer) -> None:
        try:
            while True:
                try:
                    async with asyncio.timeout(TICK_S):
                        await peer.wake.wait()
                except TimeoutError:
                    pass
                peer.wake.clear()
                if peer in self.peers and self._store.is_ready:
                    await self._bring_up_to_date(peer)
                    self._tell_news(peer)
                    tick = {"type": "tick", "revision": self._store.position.number, "as_of": self._store.as_of}
                    peer.writer.write(encode(tick))
                    await peer.writer.drain()
        except OSError:
            pass  # its receiving half ends the connection

    async def _bring_up_to_date(self, peer: Peer) -> None:
        """Returns when all that the store holds at that moment has been written."""
        if peer.serial is None and peer.position.number:  # revision 0 says that it has nothing
            peer.serial = self._store.serial_of(peer.position)
        while peer.serial != self._store.serial:
            serial = self._store.serial
            frames = None if peer.serial is None else self._store.frames_since(peer.serial)
            for frame in frames if frames is not None else self._store.full_load():
                peer.writer.write(frame)
                await peer.writer.drain()
            peer.serial = serial

    def _tell_news(self, peer: Peer) -> None:
        for news in self.news:
            peer.told[news], message = news.since(peer.told.get(news))
            if message is not None:
                peer.writer.write(encode(message))

    # --- calls ---

    def _begin_call(self, peer: Peer, message: Message) -> None:
        reply: Message = {"type": "reply", "id": message["id"]}
        name, params = message["name"], message["params"]
        if len(peer.calls) >= _CALLS_AT_ONCE or peer.writer.transport.get_write_buffer_size() > _UNREAD_LIMIT:
            fault = InternalFault("overloaded", "The gateway's agent has too much to do.", retry_after_s=1)
            peer.writer.write(encode(reply | {"fault": _wire_fault(fault)}))
            return
        task = asyncio.create_task(self._call(peer, reply, name, params))
        peer.calls.add(task)
        task.add_done_callback(peer.calls.discard)

    async def _call(self, peer: Peer, reply: Message, name: str, params: dict[str, Any]) -> None:
        try:
            reply["result"] = await self._answer(name, params)
        except GatewayFault as fault:
            reply["fault"] = _wire_fault(fault)
        except Exception:
            logger.exception("the call %s failed", name)
            reply["fault"] = _wire_fault(InternalFault("internal_error", "The gateway's agent failed."))
        peer.writer.write(encode(reply))

    async def _answer(self, name: str, params: dict[str, Any]) -> dict[str, Any]:
        handler = self.handlers.get(name)
        if handler is None:
            raise InternalFault("dependency_unavailable", f"This version of the agent knows no call {name[:40]!r}.")
        return await handler(params)


def _number(value: Any, most: int = _MOST_BIGINT) -> int:
    """What a column of the database can hold. Raises ValueError for anything else."""
    if not isinstance(value, int) or not 0 <= value <= most:
        raise ValueError(f"{str(value)[:40]!r} is no number that could stand here")
    return value


def _wire_fault(fault: GatewayFault) -> dict[str, Any]:
    return {
        "code": fault.code,
        "detail": fault.detail,
        "members": dict(fault.members),
        "retry_after_s": fault.retry_after_s,
    }


def _private_socket(path: Path) -> socket.socket:
    """Bound with mode 0600 from the first moment on. Raises OSError."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    umask = os.umask(0o177)
    try:
        listener.bind(str(path))
    except BaseException:
        listener.close()
        raise
    finally:
        os.umask(umask)
    return listener

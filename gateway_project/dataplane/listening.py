"""Listening sockets of a worker, and the connections on their way from the kernel to a protocol.

The plain port is served by uvicorn as it is. Where something comes before HTTP (the PROXY protocol, TLS) an `Acceptor`
takes the connections, so that all of it together has as much time as a request's head, and so that a worker that stops
knows of those that are under way.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import logging
import socket
import ssl
import struct
import time
from collections.abc import Callable
from typing import Any

from gateway_project.dataplane.proxy_protocol import NoHeader, read_header

logger = logging.getLogger("portcullis")

BACKLOG = 2048
ADMISSION_S = 10.0  # for the PROXY header and the TLS handshake together
_ACCEPTS_PER_TURN = 64
_NO_DESCRIPTORS = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))
_COMPLAINT_S = 10.0
_SO_ATTACH_FILTER = 26  # linux/asm-generic/socket.h; Python has no name for it
_LOOPBACK = ("127.", "::1", "::ffff:127.")


def listening_socket(host: str, port: int) -> socket.socket:
    """Each worker has its own: the kernel spreads connections evenly over sockets, not over sharers of one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        listener.bind((host, port))  # the server listens when the worker can answer: no client comes to one that cannot
    except OSError:
        listener.close()
        raise
    listener.setblocking(False)
    return listener


def refuse_newcomers(listener: socket.socket) -> None:
    """Have the kernel drop every SYN for a listening socket, so that nobody new is queued while handshakes that have
    begun end well. Who is dropped tries again within a second, and another worker takes them."""
    # Classic BPF over the TCP header (socket(7), SO_ATTACH_FILTER): load the flags; SYN? drop : keep.
    program = ((0x30, 0, 0, 13), (0x45, 0, 1, 0x02), (0x06, 0, 0, 0), (0x06, 0, 0, 0xFFFFFFFF))
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *instruction) for instruction in program))
    try:
        listener.setsockopt(
            socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", len(program), ctypes.addressof(code))
        )
    except OSError:  # a kernel without: a queue of one is the least that there is
        listener.listen(0)


class Admitted(asyncio.Protocol):
    """What is made for a connection. Both are set before it hears of its transport."""

    told_peer: str | None = None  # the client's address by the PROXY protocol
    deadline: float


class Acceptor:
    """Accepts on one listening socket. Like asyncio's server, as far as uvicorn uses that.

    ``may_tell`` says whose PROXY header is believed, None that nobody sends one; ``tls`` gives the context of the port
    for each connection.
    """

    def __init__(
        self,
        listener: socket.socket,
        make_protocol: Callable[[], Admitted],
        *,
        tls: Callable[[], ssl.SSLContext] | None = None,
        may_tell: Callable[[str], bool] | None = None,
    ) -> None:
        self._listener = listener
        self._make_protocol = make_protocol
        self._tls = tls
        self._may_tell = may_tell
        self._loop = asyncio.get_running_loop()
        self._pending: set[asyncio.Task[None]] = set()
        self._complained_at = -_COMPLAINT_S
        self._silent = 0

    @property
    def pending(self) -> int:
        """Connections that are on their way to a protocol."""
        return len(self._pending)

    def start(self) -> None:
        self._listener.listen(BACKLOG)
        self._loop.add_reader(self._listener, self._accept)

    def close(self) -> None:
        self._loop.remove_reader(self._listener)
        self._listener.close()
        for task in self._pending:
            task.cancel()

    async def wait_closed(self) -> None:
        pass

    def _accept(self) -> None:
        for _ in range(_ACCEPTS_PER_TURN):
            try:
                sock, address = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _NO_DESCRIPTORS:
                    raise
                logger.error("no connection can be accepted: %s", error.strerror)
                self._loop.remove_reader(self._listener)
                self._loop.call_later(1.0, self._go_on)
                return
            sock.setblocking(False)
            task = self._loop.create_task(self._admit(sock, str(address[0])))
            self._pending.add(task)
            task.add_done_callback(self._pending.discard)

    def _go_on(self) -> None:
        if self._listener.fileno() >= 0:
            self._loop.add_reader(self._listener, self._accept)

    async def _admit(self, sock: socket.socket, peer: str) -> None:
        try:
            by = self._loop.time() + ADMISSION_S
            told = None
            if self._may_tell is not None:
                async with asyncio.timeout_at(by):
                    told = await self._read_header(sock, peer)
            protocol = self._make_protocol()
            protocol.told_peer = told
            remaining_s = by - self._loop.time()
            protocol.deadline = time.monotonic() + remaining_s
            limit: dict[str, Any] = (
                {"ssl": self._tls(), "ssl_handshake_timeout": max(remaining_s, 0.1)} if self._tls else {}
            )
            await self._loop.connect_accepted_socket(lambda: protocol, sock, **limit)
        except NoHeader as error:
            self._complain(peer, f"sent no PROXY header ({error})")
            sock.close()
        except TimeoutError:
            if self._may_tell is not None:
                self._complain(peer, "sent nothing whole in time")
            sock.close()
        except OSError:  # the client has left, or the handshake failed (ssl.SSLError)
            sock.close()
        except asyncio.CancelledError:
            sock.close()
            raise

    async def _read_header(self, sock: socket.socket, peer: str) -> str | None:
        """Takes exactly the header from the socket, so that TLS or HTTP finds what follows it. Raises NoHeader."""
        assert self._may_tell is not None
        is_trusted = self._may_tell(peer)
        if not is_trusted and not peer.startswith(_LOOPBACK):
            raise NoHeader("its address is not among TRUSTED_PROXIES")
        taken = b""
        while True:
            await self._readable(sock)
            try:
                seen = sock.recv(65536, socket.MSG_PEEK)
            except (BlockingIOError, InterruptedError):
                continue
            if not seen:
                raise ConnectionResetError
            header = read_header(taken + seen)
            if header is None:  # then all that is there belongs to it
                taken += sock.recv(len(seen))
                continue
            size, told = header
            sock.recv(size - len(taken))
            if not is_trusted and told not in (None, peer):  # this host may ask after itself, and speak for nobody
                raise NoHeader("its address is not among TRUSTED_PROXIES")
            return told

    async def _readable(self, sock: socket.socket) -> None:
        readable: asyncio.Future[None] = self._loop.create_future()
        self._loop.add_reader(sock, _set, readable)
        try:
            await readable
        finally:
            self._loop.remove_reader(sock)

    def _complain(self, peer: str, what: str) -> None:
        """Once in a while: whoever can connect must not be able to fill the log."""
        now = time.monotonic()
        if now - self._complained_at < _COMPLAINT_S:
            self._silent += 1
            return
        more = f" ({self._silent} more like it since the last line)" if self._silent else ""
        self._complained_at, self._silent = now, 0
        logger.warning("a connection from %s was refused: it %s%s", peer, what, more)


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)

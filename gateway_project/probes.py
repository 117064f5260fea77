"""How the supervisor learns that one of its processes is ready. No Django."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path

import orjson

_TIMEOUT_S = 2.0
_ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104
_Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def worker_is_ready(bind: str, port: int, pid: int, preamble: bytes = b"") -> bool:
    """Whether ``/ready`` is 200 and this process has said so: the workers share the port, and the kernel decides who
    gets a connection, so this is asked again and again. ``preamble`` is what the port wants to hear before HTTP."""
    with contextlib.suppress(OSError, TimeoutError):
        async with _connected(asyncio.open_connection(_ANYWHERE.get(bind, bind), port)) as (reader, writer):
            writer.write(preamble)
            return await _status(reader, writer, "/ready") == 200 and _has_accepted(pid, writer)
    return False


async def serves_revision(bind: str, port: int, revision: int, preamble: bytes = b"") -> bool:
    """Whether ``/ready`` tells of this revision or a later one, and of news that are fresh."""
    with contextlib.suppress(OSError, TimeoutError, ValueError, KeyError):
        async with _connected(asyncio.open_connection(_ANYWHERE.get(bind, bind), port)) as (reader, writer):
            writer.write(preamble)
            if await _status(reader, writer, "/ready") != 200:
                return False
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length:")[2].split()[0])
            document = orjson.loads(await reader.readexactly(length))
            is_fresh = document["dependencies"]["configuration"] == "fresh"
            return is_fresh and int(document["revision"]) >= revision
    return False


async def http_answers(path: Path) -> bool:
    """Whether somebody speaks HTTP on a Unix socket."""
    with contextlib.suppress(OSError, TimeoutError):
        async with _connected(asyncio.open_unix_connection(path)) as (reader, writer):
            return await _status(reader, writer, "/health") > 0
    return False


async def answers_on(host: str, port: int) -> bool:
    """Whether somebody speaks HTTP on a TCP port."""
    with contextlib.suppress(OSError, TimeoutError):
        async with _connected(asyncio.open_connection(host, port)) as (reader, writer):
            return await _status(reader, writer, "/health") > 0
    return False


async def accepts(path: Path) -> bool:
    """Whether somebody listens on a Unix socket."""
    with contextlib.suppress(OSError, TimeoutError):
        async with _connected(asyncio.open_unix_connection(path)):
            return True
    return False


@contextlib.asynccontextmanager
async def _connected(connecting: Awaitable[_Streams]) -> AsyncIterator[_Streams]:
    async with asyncio.timeout(_TIMEOUT_S):
        reader, writer = await connecting
        try:
            yield reader, writer
        finally:
            writer.close()


async def _status(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, target: str) -> int:
    """The status of the answer to a GET, 0 when it is none. The connection is left open."""
    writer.write(f"GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    parts = (await reader.readline()).split()
    return int(parts[1]) if len(parts) > 1 and parts[1].isdigit() else 0


def _has_accepted(pid: int, writer: asyncio.StreamWriter) -> bool:
    """Whether the other end of our TCP connection within this host is a descriptor of the process (proc(5))."""
    ports = (writer.get_extra_info("peername")[1], writer.get_extra_info("sockname")[1])
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            _, local, remote, *columns = line.split()
            if (_port(local), _port(remote)) == ports:
                return f"socket:[{columns[6]}]" in _descriptors(pid)
    return False


def _port(address: str) -> int:
    return int(address.rpartition(":")[2], 16)


def _descriptors(pid: int) -> set[str]:
    links = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            links.add(os.readlink(descriptor))
    return links

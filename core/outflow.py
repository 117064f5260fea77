"""How much of what was written the other end has not taken yet."""

from __future__ import annotations

import asyncio
import fcntl
import sys
import termios

NOTHING_KNOWN = float("inf")  # before the first look


def unsent_bytes(transport: asyncio.WriteTransport) -> int:
    """In the transport's buffer and in the kernel's, which holds megabytes for a slow reader and lets the transport go
    on in large steps only: whether a reader of a few kilobytes a second still reads shows there (tcp(7), SIOCOUTQ)."""
    unsent = transport.get_write_buffer_size()
    sock = transport.get_extra_info("socket")
    if sock is not None:
        try:
            queued = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4))
        except OSError:  # closed, or a kernel without
            return unsent
        unsent += int.from_bytes(queued, sys.byteorder)
    return unsent

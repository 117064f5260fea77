"""What became of bytes that were written: how many the other end has not taken yet, and whether it goes on taking."""

from __future__ import annotations

import asyncio
import fcntl
import socket
import sys
import termios

NOTHING_KNOWN = float("-inf")  # taken, before the first look

# bytes_acked of struct tcp_info (linux/tcp.h)
_ACKED, _INFO_BYTES = 120, 128


def unsent_bytes(transport: asyncio.WriteTransport) -> int:
    """In the transport's buffer and in the kernel's (tcp(7), SIOCOUTQ)."""
    unsent = transport.get_write_buffer_size()
    sock = transport.get_extra_info("socket")
    if sock is not None:
        try:
            queued = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4))
        except OSError:  # closed, or a kernel without
            return unsent
        unsent += int.from_bytes(queued, sys.byteorder)
    return unsent


def taken_bytes(transport: asyncio.WriteTransport) -> float:
    """Grows while the other end takes something: what its TCP has acknowledged since the connection began (tcp(7),
    TCP_INFO). No buffer tells as much: the kernel holds megabytes for a slow reader, is filled again from above, and
    what TLS has handed down shows in no buffer at all. Where there is no TCP, by how little is unsent."""
    sock = transport.get_extra_info("socket")
    if sock is not None:
        try:
            info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_BYTES)
        except OSError:  # closed, or a Unix socket
            info = b""
        if len(info) == _INFO_BYTES:
            return int.from_bytes(info[_ACKED:], sys.byteorder)
    return -unsent_bytes(transport)

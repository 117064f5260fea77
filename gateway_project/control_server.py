"""The control process: panel and admin API, one server on two sockets.

TCP ``PANEL_BIND:ADMIN_PORT`` is for people and their tools; the workers hand the gateway's own endpoints of the
gateway port over on the Unix socket ``VAR_DIR/control.sock``.
"""

import asyncio
import contextlib
import os
import socket
from pathlib import Path
from typing import Any

import uvicorn

STOP_TIMEOUT_S = 8  # below the supervisor's patience: requests in flight may end, open event streams may not delay


def tcp_socket(host: str, port: int) -> socket.socket:
    """Raises OSError when the address cannot be bound."""
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # Its connections inherit it. An answer is written in two pieces, and the second would wait 40 ms for the client's
    # delayed acknowledgement of the first.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listener.bind((host, port))
    return listener


def unix_socket(path: Path) -> socket.socket:
    """A socket that only this user may connect to. What a dead process has left at ``path`` is replaced."""
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    umask = os.umask(0o177)
    try:
        listener.bind(str(path))
    finally:
        os.umask(umask)
    return listener


def server_config(application: Any) -> uvicorn.Config:
    """How control is served. h11 refuses a head beyond 64 KiB; httptools would take it into memory, however large."""
    return uvicorn.Config(
        application,
        http="h11",
        proxy_headers=False,
        server_header=False,
        lifespan="off",
        ws="none",
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=STOP_TIMEOUT_S,
    )


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "gateway_project.settings")
    from django.conf import settings

    config = server_config("gateway_project.control:application")
    sockets = [
        unix_socket(settings.VAR_DIR / "control.sock"),
        tcp_socket(settings.PANEL_BIND, settings.ADMIN_PORT),
    ]
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(uvicorn.Server(config).serve(sockets=sockets))


if __name__ == "__main__":
    main()

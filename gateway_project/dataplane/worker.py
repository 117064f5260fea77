"""A worker process: ``python -m gateway_project.dataplane.worker`` with `WorkerSettings` as JSON on standard input.

It imports no Django, DRF or Celery. SIGTERM drains: /ready says 503 and every answer closes its connection for a
second, so that clients and balancers go elsewhere by themselves; then the listening socket closes, and what is in
flight is finished. SIGUSR1 reopens the access log.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import logging
import signal
import socket
import struct
import sys
from types import FrameType

import uvicorn
import uvloop

from gateway_project.dataplane.app import Gateway
from gateway_project.dataplane.protocol import ClientProtocol
from gateway_project.dataplane.settings import WorkerSettings

GRACE_S = 1.0
LAST_CALL_S = 0.25  # for handshakes that have begun
FINISH_S = 30
BACKLOG = 2048
_SO_ATTACH_FILTER = 26  # linux/asm-generic/socket.h; Python has no name for it


def listening_socket(host: str, port: int) -> socket.socket:
    """Each worker has its own: the kernel spreads connections evenly over sockets, not over sharers of one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listener.bind((host, port))  # the server listens when the worker can answer: no client comes to one that cannot
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


class WorkerServer(uvicorn.Server):
    """uvicorn's server with a drain before its shutdown."""

    def __init__(self, config: uvicorn.Config, gateway: Gateway, listener: socket.socket) -> None:
        super().__init__(config)
        self._gateway = gateway
        self._listener = listener
        self._loop = asyncio.get_running_loop()
        gateway.connections = self.server_state.connections

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        is_second = self._gateway.is_draining
        self._gateway.is_draining = True
        self._loop.call_soon_threadsafe(self._stop_now if is_second else self._begin_drain)

    def _begin_drain(self) -> None:
        self._loop.call_later(GRACE_S, self._stop_queueing)

    def _stop_queueing(self) -> None:
        """Closing a socket resets the connections that the kernel queues for it, so the queue must run dry first."""
        refuse_newcomers(self._listener)
        self._loop.call_later(LAST_CALL_S, setattr, self, "should_exit", True)

    def _stop_now(self) -> None:
        """Told twice: what is in flight is void, but the log is still written to its end."""
        self.should_exit = True
        for connection in list(self._gateway.connections):
            connection.transport.abort()


async def serve(settings: WorkerSettings) -> None:
    gateway = Gateway(settings)
    config = uvicorn.Config(
        gateway,
        http=ClientProtocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        timeout_graceful_shutdown=FINISH_S,
        backlog=BACKLOG,
    )
    listener = listening_socket(settings.bind, settings.port)
    server = WorkerServer(config, gateway, listener)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR1, gateway.reopen_log)
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 50)
    await server.serve(sockets=[listener])


def main() -> None:
    settings = WorkerSettings.from_json(sys.stdin.buffer.read())
    logging.basicConfig(level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    try:
        uvloop.run(serve(settings))
    except OSError as error:
        where = f"{settings.bind}:{settings.port}"
        sys.exit(f"portcullis: the worker cannot listen on {where} (BIND, PORT): {error.strerror}.")


if __name__ == "__main__":
    main()

"""A worker process: ``python -m gateway_project.dataplane.worker`` with `WorkerSettings` as JSON on standard input.

It imports no Django, DRF or Celery. SIGTERM drains: /ready says 503 and every answer closes its connection for a
second, so that clients and balancers go elsewhere by themselves; then the listening sockets close, and what is in
flight is finished. SIGUSR1 reopens the access log and looks at the certificates.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import socket
import ssl
import sys
from importlib import import_module
from types import FrameType
from typing import TYPE_CHECKING, Any

import uvicorn
import uvloop

from core.masking import Masker, install
from gateway_project.dataplane.app import Gateway
from gateway_project.dataplane.https_redirect import RedirectingProtocol
from gateway_project.dataplane.listening import (
    ADMISSION_S,
    BACKLOG,
    Acceptor,
    Admitted,
    listening_socket,
    refuse_newcomers,
)
from gateway_project.dataplane.protocol import ClientProtocol
from gateway_project.dataplane.settings import WorkerSettings

if TYPE_CHECKING:
    from gateway_project.dataplane.tls import Certificates

GRACE_S = 1.0
LAST_CALL_S = 0.25  # for handshakes that have begun
FINISH_S = 30
CERTIFICATES_LOOK_S = 2.0


class CannotListen(Exception):
    """``str()`` is the sentence for whoever started the worker."""


class WorkerServer(uvicorn.Server):
    """uvicorn's server with a drain before its shutdown, and with ports where something comes before HTTP."""

    def __init__(self, config: uvicorn.Config, gateway: Gateway) -> None:
        super().__init__(config)
        self._gateway = gateway
        self._listeners: list[socket.socket] = []
        self._acceptors: list[Acceptor] = []
        self._certificates: Certificates | None = None
        self._http2: Any = None  # the module, which only a TLS port needs
        self._loop = asyncio.get_running_loop()
        gateway.connections = self.server_state.connections

    # --- ports ---
    async def listen(self) -> None:
        """Serve until a signal says otherwise. Raises CannotListen."""
        settings = self._gateway.settings
        plain = _listen("PORT", settings.bind, settings.port)
        self._listeners.append(plain)
        may_tell = self._gateway.proxies.trusts if settings.proxy_protocol else None
        if settings.tls_port:
            secure = _listen("TLS_PORT", settings.bind, settings.tls_port)
            self._listeners.append(secure)
            certificates = self._certificates = self._read_certificates(settings)

            def tls() -> ssl.SSLContext:
                return certificates.front

            if settings.tls_client_certificates != "off":
                read = import_module("gateway_project.dataplane.client_certificates").of_connection
                self._gateway.read_certificate = read
            if settings.http2:
                self._http2 = import_module("gateway_project.dataplane.http2")
            self._acceptors.append(Acceptor(secure, self._make_secure, tls=tls, may_tell=may_tell))
        if may_tell is not None:
            self._acceptors.append(Acceptor(plain, self._make_plain, may_tell=may_tell))
            await self.serve(sockets=[])
        else:
            await self.serve(sockets=[plain])

    def _read_certificates(self, settings: WorkerSettings) -> Certificates:
        tls = import_module("gateway_project.dataplane.tls")  # 8 MiB that only this port needs
        try:
            certificates: Certificates = tls.Certificates(settings)
        except tls.CertificateError as error:
            raise CannotListen(str(error)) from None
        self._gateway.gauge_sources.append(certificates.gauges)
        self._loop.call_later(CERTIFICATES_LOOK_S, self._watch_certificates, certificates)
        return certificates

    def _watch_certificates(self, certificates: Certificates) -> None:
        certificates.look()
        self._loop.call_later(CERTIFICATES_LOOK_S, self._watch_certificates, certificates)

    def reopen(self) -> None:
        """SIGUSR1."""
        self._gateway.reopen_log()
        if self._certificates is not None:
            self._certificates.look()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)  # uvicorn serves what needs no acceptor
        for acceptor in self._acceptors:
            acceptor.start()
            self.servers.append(acceptor)  # type: ignore[arg-type]  # as far as uvicorn uses servers

    def _make_plain(self) -> Admitted:
        make = self.config.http_protocol_class
        protocol = make(config=self.config, server_state=self.server_state, app_state={})  # type: ignore[call-arg]
        assert isinstance(protocol, Admitted)
        return protocol

    def _make_secure(self) -> Admitted:
        settings = self._gateway.settings
        field = b"strict-transport-security: %b\r\n" % settings.hsts.encode("ascii") if settings.hsts else b""
        if settings.http2:
            chosen: Admitted = self._http2.ChosenProtocol(self.config, self.server_state, field + b"\r\n")
            return chosen
        protocol = ClientProtocol(self.config, self.server_state, {})
        protocol.end_of_head = field + b"\r\n"
        return protocol

    # --- the end ---
    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        is_second = self._gateway.is_draining
        self._gateway.is_draining = True
        self._loop.call_soon_threadsafe(self._stop_now if is_second else self._begin_drain)

    def _begin_drain(self) -> None:
        self._loop.call_later(GRACE_S, self._stop_queueing)

    def _stop_queueing(self) -> None:
        """Closing a socket resets the connections that the kernel queues for it, so the queue must run dry first."""
        for listener in self._listeners:
            refuse_newcomers(listener)
        self._loop.call_later(LAST_CALL_S, self._await_admissions, self._loop.time() + ADMISSION_S)

    def _await_admissions(self, until: float) -> None:
        """Who is in the middle of a TLS handshake is as good as connected."""
        if any(acceptor.pending for acceptor in self._acceptors) and self._loop.time() < until:
            self._loop.call_later(0.05, self._await_admissions, until)
        else:
            self.should_exit = True

    def _stop_now(self) -> None:
        """Told twice: what is in flight is void, but the log is still written to its end."""
        self.should_exit = True
        for connection in list(self._gateway.connections):
            connection.transport.abort()


def _listen(setting: str, host: str, port: int) -> socket.socket:
    try:
        return listening_socket(host, port)
    except OSError as error:
        raise CannotListen(f"the worker cannot listen on {host}:{port} (BIND, {setting}): {error.strerror}.") from None


async def serve(settings: WorkerSettings) -> None:
    gateway = Gateway(settings)
    config = uvicorn.Config(
        gateway,
        http=RedirectingProtocol if settings.https_redirect_port else ClientProtocol,
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
    server = WorkerServer(config, gateway)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR1, server.reopen)
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 50)
    await server.listen()


def main() -> None:
    settings = WorkerSettings.from_json(sys.stdin.buffer.read())
    install(Masker(settings.mask, settings.api_key_prefix, settings.mask_patterns))
    logging.basicConfig(level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    try:
        uvloop.run(serve(settings))
    except CannotListen as error:
        sys.exit(f"portcullis: {error}")


if __name__ == "__main__":
    main()

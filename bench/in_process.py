"""The data plane of a worker without sockets: bytes are handed to its protocols, whose answers end in a list.

Everything between the sockets is real: the parsers, the pipeline, the snapshot of 1,000 services, the access log.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from bench.machine import CannotMeasure
from bench.peers import BODY, PATH
from core.wire import SLICE, encode
from gateway_project.dataplane.app import Gateway
from gateway_project.dataplane.protocol import ClientProtocol
from gateway_project.dataplane.settings import WorkerSettings
from gateway_project.dataplane.snapshot_file import write_snapshot_file
from keys.credential import Digester, generate
from routing.records import TargetRecord
from routing.upstream.connection import UpstreamConnection
from tests.wires import application_wire, service_wire, version_wire

SERVICES = 1_000
_PEPPER = b"p" * 32
_KEY = generate("km_").key
_UPSTREAM = ("http", "127.0.0.1", 9)  # nobody is asked there
_ANSWER = (
    "HTTP/1.1 200 OK\r\nServer: nginx/1.22.1\r\nDate: Fri, 20 Nov 2026 08:31:42 GMT\r\n"
    f"Content-Type: application/json\r\nContent-Length: {len(BODY)}\r\nConnection: keep-alive\r\n\r\n{BODY}"
).encode()


def request(path: str = PATH) -> bytes:
    """What wrk sends."""
    return f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:4200\r\nX-API-Key: {_KEY}\r\n\r\n".encode()


class Wire(asyncio.Transport):
    """A transport that keeps what was written last."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 50_000), "sockname": ("127.0.0.1", 4200)})
        self.written = b""

    def write(self, data: Any) -> None:
        self.written = data

    def is_closing(self) -> bool:
        return False

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def abort(self) -> None: ...

    def close(self) -> None: ...


class Worker:
    """One client's connection, one upstream's, and the gateway between them."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self._client_wire = Wire()
        self._client = ClientProtocol(SimpleNamespace(loaded_app=gateway), SimpleNamespace(connections=set()), {})
        self._client.connection_made(self._client_wire)
        pool = gateway.forwarder.connector.pool(TargetRecord(_UPSTREAM, b"upstream"))
        self._upstream = UpstreamConnection(pool)
        self._upstream.connection_made(Wire())
        pool.give_back(self._upstream)

    def serve(self, received: bytes) -> None:
        """One request and its answer."""
        self._client.data_received(received)
        self._upstream.data_received(_ANSWER)

    def check(self) -> None:
        """Raises CannotMeasure unless a request is answered as it should be."""
        self.serve(request())
        if not self._client_wire.written.startswith(b"HTTP/1.1 200 "):
            raise CannotMeasure(f"the gateway answers {self._client_wire.written[:300]!r}")


@asynccontextmanager
async def worker(directory: Path, limits: Sequence[dict[str, Any]] = ()) -> AsyncIterator[Worker]:
    """One that has started from a last good snapshot, since no agent is there. ``limits`` are wire records."""
    settings = _settings(directory)
    write_snapshot_file(Path(settings.snapshot_path), _frames(limits))
    gateway = Gateway(settings)
    await gateway.startup()
    try:
        running = Worker(gateway)
        running.check()
        yield running
    finally:
        await gateway.shutdown()


def _frames(limits: Sequence[dict[str, Any]]) -> Iterator[bytes]:
    at = {"revision": 1, "token": "bench"}
    yield encode({"type": "reset", **at})
    for kind, records in [*_records(), ("limit", list(limits))]:
        for start in range(0, len(records), SLICE):
            yield encode({"type": "records", "kind": kind, "records": records[start : start + SLICE]})
    yield encode({"type": "commit", **at, "as_of": time.time()})


def _records() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    yield "service", [_service(number) for number in range(SERVICES)]
    entry = {"path": "/api/v1/s977/*", "methods": ["GET"], "versions": ["*"], "rate_limit": None, "is_public": False}
    application = application_wire(
        name="bench", endpoint_mode="listed", rate_limit=100_000_000, entries=[{"id": "wle_1", **entry}]
    )
    yield "application", [application]
    key: dict[str, Any] = {"id": "key_1", "tenant": "default", "application": "app_1", "expires_at": None, "scopes": []}
    yield "api_key", [{**key, "digest": Digester(_PEPPER)(_KEY.encode()).hex()}]


def _service(number: int) -> dict[str, Any]:
    scheme, host, port = _UPSTREAM
    url = f"{scheme}://{host}:{port}"
    weights = (("v1", 90), ("v2", 10))
    versions = [version_wire(name, weight, url) for name, weight in weights]
    return service_wire(id=f"svc_{number}", name=f"s{number}", versions=versions, current_version="v1", default_url=url)


def _settings(directory: Path) -> WorkerSettings:
    return WorkerSettings(
        service_name="portcullis",
        node_name="bench",
        slot=0,
        workers=1,
        bind="127.0.0.1",
        port=4200,
        agent_socket=str(directory / "agent.sock"),
        control_socket=str(directory / "control.sock"),
        snapshot_path=str(directory / "snapshot.bin"),
        access_log="/dev/null",
        log_level="WARNING",
        embedded=False,
        pepper=_PEPPER.hex(),
        api_key_header="X-API-Key",
        api_key_prefix="km_",
        cors_origins=(),
        trusted_proxies=(),
        egress_allow=("127.0.0.0/8",),
        rate_limit_requests=1000,
        rate_limit_window_s=3600,
        auth_failures_per_minute=60,
        max_body_bytes=10 * 2**20,
        max_header_field_bytes=8192,
        request_timeout_s=30.0,
        max_config_age_s=86400.0,
        admin_api_on_gateway_port=True,
        docs_on_gateway_port=False,
        metrics_port=9090,
        metrics_token="",
    )

"""A worker without agent or database: it starts from a last good snapshot that the benchmark writes.

For what a service's own policies cost, of which a database would only be a slower way to write the same records.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.gateways import WORKER
from bench.load import Party
from bench.machine import GATEWAY_CORE, CannotMeasure, Stage, eventually, free_port
from bench.plain_http import answers
from core.wire import SLICE, encode
from gateway_project.dataplane.settings import WorkerSettings
from gateway_project.dataplane.snapshot_file import write_snapshot_file
from keys.credential import Digester
from tests.wires import application_wire, entry_wire, key_wire, service_wire, version_wire

KEY = "km_" + "b" * 48
HEADER = f"X-API-Key: {KEY}"
_PEPPER = b"b" * 32
_NO_LIMIT = 100_000_000


def service(name: str, url: str, *targets: str, **policies: Any) -> dict[str, Any]:
    """A service with two versions by weight, as all that are measured; ``targets`` serve both."""
    versions = [version_wire(version, weight, url) for version, weight in (("v1", 90), ("v2", 10))]
    for version in versions:
        version["targets"] = [[target, 1] for target in targets]
    return service_wire(id=f"svc_{name}", name=name, versions=versions, current_version="v1", policies=policies)


class LoneWorker:
    """Serves ``services`` under /api/v1/… to one application with one key, a whitelist and a limit. Workers with one
    ``port`` share it."""

    def __init__(
        self, stage: Stage, services: Sequence[dict[str, Any]], *, port: int = 0, core: int | None = GATEWAY_CORE,
        issuers: Sequence[dict[str, Any]] = (), **settings: Any,
    ) -> None:  # fmt: skip
        self.port = port or free_port()
        self.services = services
        self.directory = stage.directory / f"worker-{free_port()}"
        self.directory.mkdir(mode=0o700)
        self._stage = stage
        made = _settings(self.directory, self.port, settings)
        write_snapshot_file(Path(made.snapshot_path), _frames(services, issuers))
        self.process: subprocess.Popen[bytes] = stage.start(core, sys.executable, "-m", WORKER, stdin=made.to_json())

    def wait(self, name: str | None = None) -> LoneWorker:
        """Raises CannotMeasure when it does not serve the service (the first one) in time."""
        path = self.path(name or self.services[0]["name"])
        try:
            eventually(lambda: answers(self.port, path, (HEADER,)), f"an answer at {path}", 30.0)
        except CannotMeasure as error:
            raise CannotMeasure(f"{error}:\n{self._stage.output()}") from None
        return self

    def path(self, name: str) -> str:
        return f"/api/v1/{name}/abc"

    def party(self, name: str, service: str, *, scheme: str = "http", port: int = 0) -> Party:
        return Party(name, self.process.pid, port or self.port, self.path(service), (HEADER,), scheme=scheme)


def _frames(services: Sequence[dict[str, Any]], issuers: Sequence[dict[str, Any]] = ()) -> Iterator[bytes]:
    entries = [entry_wire(f"wle_{each['name']}", f"/api/v1/{each['name']}/*") for each in services]
    application = application_wire(endpoint_mode="listed", rate_limit=_NO_LIMIT, entries=entries)
    key = key_wire("key_1", Digester(_PEPPER)(KEY.encode()))
    at = {"revision": 1, "token": "bench"}
    yield encode({"type": "reset", **at})
    records = (
        ("service", list(services)),
        ("application", [application]),
        ("api_key", [key]),
        ("issuer", list(issuers)),
    )
    for kind, all_of_kind in records:
        for start in range(0, len(all_of_kind), SLICE):
            yield encode({"type": "records", "kind": kind, "records": all_of_kind[start : start + SLICE]})
    yield encode({"type": "commit", **at, "as_of": time.time()})


def _settings(directory: Path, port: int, changes: dict[str, Any]) -> WorkerSettings:
    values: dict[str, Any] = {
        "service_name": "portcullis", "node_name": "bench", "slot": 0, "workers": 1, "bind": "127.0.0.1",
        "port": port, "agent_socket": str(directory / "agent.sock"), "control_socket": str(directory / "control.sock"),
        "snapshot_path": str(directory / "snapshot.bin"), "access_log": str(directory / "access.log"),
        "log_level": "WARNING", "embedded": False, "pepper": _PEPPER.hex(), "api_key_header": "X-API-Key",
        "api_key_prefix": "km_", "cors_origins": (), "trusted_proxies": (), "egress_allow": ("127.0.0.0/8", "::1/128"),
        "rate_limit_requests": 1000, "rate_limit_window_s": 3600, "auth_failures_per_minute": 60,
        "max_body_bytes": 2**30, "max_header_field_bytes": 8192, "request_timeout_s": 30.0,
        "max_config_age_s": 86_400.0, "admin_api_on_gateway_port": True, "docs_on_gateway_port": False,
        "metrics_port": free_port(), "metrics_token": "",
    }  # fmt: skip
    return WorkerSettings(**(values | changes))

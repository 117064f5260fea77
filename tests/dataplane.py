"""A real worker process for tests, fed by the test: ``python -m gateway_project.dataplane.worker`` on a free port."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from gateway_project.dataplane.settings import WorkerSettings
from gateway_project.processes import ROOT
from keys.credential import Digester, generate
from tests.agent_feed import Feed
from tests.gateway_process import eventually
from tests.private_servers import free_port
from tests.raw_http import Answer, Client, request
from tests.scripted_upstream import Peer, Script, Upstream
from tests.wires import application_wire, key_wire, service_wire, version_wire

PEPPER = b"p" * 32
START_TIMEOUT_S = 30.0
_digest = Digester(PEPPER)


def digest_of(key: str) -> bytes:
    return _digest(key.encode())


def worker_settings(directory: Path, **changes: Any) -> WorkerSettings:
    """Plain settings with loose limits, so that only tests of a limit meet it."""
    values: dict[str, Any] = {
        "service_name": "portcullis",
        "node_name": "test",
        "slot": 0,
        "workers": 1,
        "bind": "127.0.0.1",
        "port": free_port(),
        "agent_socket": str(directory / "agent.sock"),
        "control_socket": str(directory / "control.sock"),
        "snapshot_path": str(directory / "snapshot.bin"),
        "access_log": str(directory / "access.log"),
        "log_level": "INFO",
        "embedded": False,
        "pepper": PEPPER.hex(),
        "api_key_header": "X-API-Key",
        "api_key_prefix": "km_",
        "cors_origins": (),
        "trusted_proxies": (),
        "egress_allow": ("127.0.0.0/8", "::1/128"),
        "rate_limit_requests": 1_000_000,
        "rate_limit_window_s": 60,
        "auth_failures_per_minute": 1_000_000,
        "max_body_bytes": 10 * 1024 * 1024,
        "max_header_field_bytes": 8192,
        "request_timeout_s": 10.0,
        "max_config_age_s": 86_400.0,
        "admin_api_on_gateway_port": True,
        "docs_on_gateway_port": True,
        "metrics_port": free_port(),
        "metrics_token": "",
    }
    return WorkerSettings(**(values | changes))


class DataPlane:
    """A worker and its feed. ``key`` belongs to the application ``web``, which may use everything."""

    def __init__(
        self, directory: Path, *, environment: Mapping[str, str] | None = None, with_agent: bool = True, **settings: Any
    ) -> None:
        self.directory = directory
        self.settings = worker_settings(directory, **settings)
        self.port = self.settings.port
        self.feed = Feed(directory / "agent.sock")
        self.key = generate("km_").key
        self._environment = dict(environment or {})
        self._upstreams: list[Upstream] = []
        self._number = 0
        self.feed.put("application", application_wire())
        self.feed.put("api_key", key_wire("key_1", digest_of(self.key)))
        self._has_agent = with_agent
        if with_agent:
            self.feed.start()

    # --- the process ---
    def start(self) -> DataPlane:
        self.start_process()
        eventually(self._answers, START_TIMEOUT_S, "the worker's first answer")
        if self._has_agent:
            self.feed.wait_for_worker()
        return self

    def start_process(self) -> None:
        self._output = (self.directory / "worker.log").open("ab")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gateway_project.dataplane.worker"],
            cwd=ROOT,
            env={"PATH": os.environ["PATH"], **self._environment},
            stdin=subprocess.PIPE,
            stdout=self._output,
            stderr=subprocess.STDOUT,
        )
        assert self.process.stdin is not None
        self.process.stdin.write(self.settings.to_json())
        self.process.stdin.close()

    def _answers(self) -> bool:
        assert self.process.poll() is None, self.output()
        try:
            with self.connect() as client:
                preamble = b"PROXY UNKNOWN\r\n" if self.settings.proxy_protocol else b""
                return client.send(preamble + self.request("GET", "/health", key=None)).answer().status == 200
        except ConnectionRefusedError:
            return False

    def output(self) -> str:
        """What the worker has written, its traces among it."""
        return (self.directory / "worker.log").read_text()

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def close(self) -> None:
        """Ends everything. Raises AssertionError when the script of an upstream has found something wrong."""
        try:
            self.close_upstreams()
        finally:
            if hasattr(self, "process"):
                self.process.kill()
                self.process.wait()
                self._output.close()
            self.feed.stop()

    def close_upstreams(self) -> None:
        """Those that there have been so far, with their threads and all that they remember."""
        upstreams, self._upstreams = self._upstreams, []
        for upstream in upstreams:
            upstream.close()
        failures = [failure for upstream in upstreams for failure in upstream.failures]
        assert not failures, failures

    def rss_mib(self) -> float:
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGESIZE") / 2**20

    def sockets(self) -> int:
        """How many file descriptors the worker holds."""
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    # --- configuration ---
    def new_key(self, **changes: Any) -> str:
        """A further key, with the changes to its record."""
        key = generate("km_").key
        self._number += 1
        self.feed.put("api_key", key_wire(f"key_new_{self._number}", digest_of(key), **changes))
        return key

    def serve(self, script: Script | None = None, *, upstream: Upstream | None = None, **service: Any) -> Upstream:
        """An upstream behind a service of its own, at ``upstream.path`` of the gateway."""
        if upstream is None:
            upstream = Upstream(script) if script is not None else Upstream()
        self._upstreams.append(upstream)
        self._number += 1
        name = f"s{self._number}"
        wire = service_wire(id=f"svc_{name}", name=name, default_url=upstream.url)
        self.feed.put("service", wire | service)
        upstream.path = f"/api/v1/{name}"
        return upstream

    # --- requests ---
    def connect(self, source: str = "127.0.0.1", **options: Any) -> Client:
        return Client(self.port, source, **options)

    def request(
        self,
        method: str,
        target: str | bytes,
        *fields: str | bytes,
        key: str | None = "",
        body: bytes | None = None,
        host: str | None = "gateway.test",
    ) -> bytes:
        """The bytes of a request with the key (None: without one)."""
        credentials = () if key is None else (f"X-API-Key: {key or self.key}",)
        return request(method, target, *credentials, *fields, body=body, host=host)

    def ask(
        self,
        method: str,
        target: str | bytes,
        *fields: str | bytes,
        source: str = "127.0.0.1",
        **options: Any,
    ) -> Answer:
        """One request on a connection of its own."""
        with self.connect(source) as client:
            return client.send(self.request(method, target, *fields, **options)).answer(method)

    # --- what it writes ---
    def log_lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.directory / "access.log").read_text().splitlines()]

    def log_line(self, request_id: str | None) -> dict[str, Any]:
        """The access log's line for a request, when it has been written."""
        line: dict[str, Any] = eventually(
            lambda: next((line for line in self.log_lines() if line["request_id"] == request_id), None),
            what=f"the line of request {request_id}",
        )
        return line


def serve(
    plane: DataPlane,
    *targets: Upstream | str,
    weights: Sequence[int] = (),
    policies: dict[str, Any] | None = None,
    **service: Any,
) -> str:
    """A service with these targets, in turn unless its policies say otherwise; its path."""
    urls = [target if isinstance(target, str) else target.url for target in targets]
    name = service.pop("name", f"t{time.monotonic_ns()}")
    version = version_wire("v1", 1, urls[0])
    version["targets"] = [list(pair) for pair in zip(urls, weights or [1] * len(urls), strict=True)]
    policies = {"load_balancing": {"strategy": "round_robin"}} | (policies or {})
    wire = service_wire(id=f"svc_{name}", name=name, versions=[version], policies=policies)
    plane.feed.put("service", wire | service)
    return f"/api/v1/{name}"


def nowhere() -> str:
    """An address that refuses connections."""
    return f"http://127.0.0.1:{free_port()}"


def silent(peer: Peer) -> None:
    """Reads requests and answers none."""
    while peer.read_request() is not None:
        pass


def failed(answer: Answer, status: int, code: str, error: str) -> None:
    """The answer says what went wrong, and that it was the upstream that failed."""
    assert (answer.status, answer.code) == (status, code)
    assert f"error={error}" in (answer.field("proxy-status") or "")
    assert (answer.field("proxy-status") or "").startswith("portcullis;")
    assert "127.0.0.1" not in answer.body.decode()


def data_planes(new_directory: Any) -> Iterator[Any]:
    """For fixtures: a function that starts data planes; all end with the fixture, and none may have failed inside."""
    with ExitStack() as stack:

        def start(**options: Any) -> DataPlane:
            plane = DataPlane(new_directory(), **options)
            stack.callback(_end, plane)
            return plane.start()

        yield start


def _end(plane: DataPlane) -> None:
    plane.close()
    assert "Traceback" not in plane.output(), plane.output()

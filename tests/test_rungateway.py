"""The real processes together: what happens when they start, die, stop and are replaced, under traffic."""

import asyncio
import os
import signal
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread
from typing import Any

import httpx
import pytest

from gateway_project.processes import ROOT
from tests.gateway_process import START_TIMEOUT_S, GatewayFactory, GatewayProcess, eventually, migrate
from tests.private_servers import PrivateServer, free_port


@pytest.fixture(scope="module")
def upstream() -> Iterator[str]:
    """The URL of a service that answers `GET /products`."""
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "deploy.demo.services:monolith", "--port", str(port)]
    with subprocess.Popen([*command, "--log-level", "warning", "--lifespan", "off"], cwd=ROOT) as process:
        url = f"http://127.0.0.1:{port}"
        eventually(lambda: _status(f"{url}/health") == 200, what="the upstream's answer")
        yield url
        process.terminate()


def _status(url: str, **options: Any) -> int:
    """0 when there is no answer."""
    try:
        return httpx.get(url, timeout=5, trust_env=False, **options).status_code
    except httpx.TransportError:
        return 0


@dataclass
class Traffic:
    """Requests one after the other, each on a connection of its own, until the block ends."""

    url: str
    headers: dict[str, str]
    statuses: list[int] = field(default_factory=list)
    stop: Event = field(default_factory=Event)

    def run(self) -> None:
        while not self.stop.is_set():
            self.statuses.append(_status(self.url, headers=self.headers))

    def goes_on(self) -> None:
        """Wait for some more requests."""
        before = len(self.statuses)
        eventually(lambda: len(self.statuses) > before + 20, what="more requests")


@contextmanager
def traffic(url: str, headers: dict[str, str]) -> Iterator[Traffic]:
    flow = Traffic(url, headers)
    thread = Thread(target=flow.run)
    thread.start()
    try:
        flow.goes_on()
        yield flow
        flow.goes_on()
    finally:
        flow.stop.set()
        thread.join()


def serve_products(gateway: GatewayProcess, upstream: str) -> tuple[str, dict[str, str]]:
    """URL and headers of a request that the gateway answers with the upstream's products."""
    with gateway.admin() as admin:
        service = {"name": "monolith", "defaultUrl": upstream}
        application = {"name": "shop", "allowedServices": ["monolith"], "rateLimit": 1_000_000}
        assert admin.post("/admin/routing/services", json=service).status_code == 201
        made = admin.post("/admin/access/applications", json=application).json()
        key = admin.post("/keys", json={"name": "test", "applicationId": made["id"]}).json()["key"]
    return f"{gateway.url}/api/v1/monolith/products", {"X-API-Key": key}


@pytest.fixture(scope="module")
def pair(start_module_gateway: GatewayFactory) -> GatewayProcess:
    """An embedded gateway with two workers."""
    return start_module_gateway(WORKERS="2")


@pytest.fixture(scope="module")
def products(pair: GatewayProcess, upstream: str) -> tuple[str, dict[str, str]]:
    return serve_products(pair, upstream)


Products = tuple[str, dict[str, str]]


@pytest.mark.parametrize("name", ["agent", "control"])
def test_nobody_notices_when_the_agent_or_control_is_killed(
    pair: GatewayProcess, products: Products, name: str
) -> None:
    before = pair.children()
    with traffic(*products) as flow:
        os.kill(before[name], signal.SIGKILL)
        eventually(lambda: pair.children().get(name) not in (None, before[name]) and pair.is_ready(), 30)
    assert set(flow.statuses) == {200}
    after = pair.children()
    assert {other: after[other] for other in after if other != name} == {
        other: before[other] for other in before if other != name
    }


def test_a_worker_that_is_killed_comes_back_while_the_other_serves(pair: GatewayProcess, products: Products) -> None:
    before = pair.children()
    with traffic(*products) as flow:
        os.kill(before["worker-0"], signal.SIGKILL)
        eventually(lambda: pair.children().get("worker-0") not in (None, before["worker-0"]) and pair.is_ready(), 30)
    assert set(flow.statuses) <= {200, 0}
    # What was on the killed worker's connections is lost, nothing else.
    assert flow.statuses.count(0) <= 3
    assert flow.statuses[-1] == 200


def test_a_change_reaches_workers_that_were_there_before_the_agent(pair: GatewayProcess, products: Products) -> None:
    before = pair.children()
    os.kill(before["agent"], signal.SIGKILL)
    eventually(lambda: pair.children().get("agent") not in (None, before["agent"]) and pair.is_ready(), 30)
    with pair.admin() as admin:
        key = admin.post("/keys", json={"name": "later", "owner": "shop"}).json()["key"]
    eventually(lambda: _status(products[0], headers={"X-API-Key": key}) == 200, what="the new key's first success")


def test_a_hangup_replaces_the_workers_and_no_request_is_lost(pair: GatewayProcess, products: Products) -> None:
    before = pair.children()
    with traffic(*products) as flow:
        pair.signal(signal.SIGHUP)
        eventually(lambda: pair.log().count("all workers are replaced") >= 1, 60)
    after = pair.children()
    assert set(flow.statuses) == {200}
    assert all(after[name] != before[name] for name in ("worker-0", "worker-1"))
    assert after["agent"] == before["agent"]


def test_with_several_workers_the_start_says_that_limits_count_per_worker(pair: GatewayProcess) -> None:
    assert "rate limits count per worker" in pair.log()


def test_no_request_of_200_kept_connections_is_lost_when_the_gateway_stops(
    start_gateway: GatewayFactory, upstream: str
) -> None:
    gateway = start_gateway()
    url, headers = serve_products(gateway, upstream)
    connected = 0

    async def client(http: httpx.AsyncClient) -> set[int]:
        """Requests on one connection, until an answer says that it is the last one."""
        nonlocal connected
        statuses: set[int] = set()
        while True:
            answer = await http.get(url, headers=headers)
            connected += not statuses
            statuses.add(answer.status_code)
            if answer.headers.get("Connection") == "close":
                return statuses
            await asyncio.sleep(0.2)

    async def scenario() -> list[set[int]]:
        context = ssl.create_default_context()  # one for all: each takes 20 ms to make
        clients = [httpx.AsyncClient(trust_env=False, timeout=20, verify=context) for _ in range(200)]
        tasks = [asyncio.create_task(client(http)) for http in clients]
        async with asyncio.timeout(60):
            while connected < len(clients):
                await asyncio.sleep(0.02)
            gateway.signal(signal.SIGTERM)
            results = await asyncio.gather(*tasks)
        await asyncio.gather(*(http.aclose() for http in clients))
        return results

    assert asyncio.run(scenario()) == [{200}] * 200
    assert gateway.stop() == 0


def test_no_process_outlives_a_killed_supervisor(start_gateway: GatewayFactory) -> None:
    gateway = start_gateway()
    children = gateway.children()
    gateway.kill()
    eventually(
        lambda: not any(Path(f"/proc/{pid}").exists() for pid in children.values()), 30, "the end of all children"
    )


# --- real servers --------------------------------------------------------------------------------------------------
@pytest.mark.postgres
@pytest.mark.rabbitmq
def test_it_runs_on_postgresql_and_rabbitmq(start_gateway: GatewayFactory, rabbitmq: str, upstream: str) -> None:
    gateway = start_gateway(database="postgres", broker=rabbitmq, SETUP_TOKEN="")
    url, headers = serve_products_after_setup(gateway, upstream)
    assert _status(url, headers=headers) == 200
    assert set(gateway.children()) == {"worker-0", "agent", "control", "events"}
    assert gateway.stop() == 0


def serve_products_after_setup(gateway: GatewayProcess, upstream: str) -> Products:
    """With the token that the start has printed."""
    gateway.setup_token = eventually(lambda: printed_tokens(gateway), what="the token's line")[0]
    return serve_products(gateway, upstream)


def printed_tokens(gateway: GatewayProcess) -> list[str]:
    """Printed once everything is ready, so a moment after it is."""
    lines = gateway.log().split("\n")[:-1]  # whole ones
    return [line.rpartition(" ")[2] for line in lines if "X-Setup-Token: " in line]


def test_setup_needs_the_printed_token_where_it_is_not_embedded(start_gateway: GatewayFactory) -> None:
    gateway = start_gateway(database="postgres", SETUP_TOKEN="")
    admin = {"name": "Eve", "email": "eve@example.com"}
    assert httpx.post(f"{gateway.url}/setup", json=admin, trust_env=False).status_code in (401, 403)
    eventually(lambda: printed_tokens(gateway), what="the token's line")
    assert len(printed_tokens(gateway)) == 1


def test_a_gateway_that_is_set_up_prints_no_token(start_gateway: GatewayFactory) -> None:
    first = start_gateway(database="postgres")
    assert first.admin_key
    first.stop()
    second = start_gateway(database=first.environment["DATABASE_URL"], var_dir=first.var_dir, SETUP_TOKEN="")
    eventually(lambda: "gateway on http" in second.log(), what="the line that comes before a token's")
    second.stop()
    assert not printed_tokens(second)


def test_it_starts_from_the_last_good_snapshot_when_the_database_is_away(
    start_gateway: GatewayFactory, private_postgres: PrivateServer, upstream: str
) -> None:
    migrate(private_postgres.url)
    first = start_gateway(database=private_postgres.url)
    url, headers = serve_products(first, upstream)
    eventually(lambda: _status(url, headers=headers) == 200)
    assert first.stop() == 0
    private_postgres.stop()
    second = start_gateway(database=private_postgres.url, var_dir=first.var_dir)
    assert _status(f"{second.url}/api/v1/monolith/products", headers=headers) == 200
    assert "starting from the last good snapshot" in second.log()


def run(arguments: list[str], **environment: str) -> "subprocess.CompletedProcess[str]":
    given = {"PATH": os.environ["PATH"], **environment}
    command = [sys.executable, "manage.py", *arguments]
    return subprocess.run(command, cwd=ROOT, env=given, capture_output=True, text=True, timeout=180)


SECRET = "a secret key of at least 32 characters"


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({}, "SECRET_KEY is not set."),
        ({"SECRET_KEY": "short"}, "SECRET_KEY is too short"),
        ({"SECRET_KEY": SECRET}, "DATABASE_URL is not set."),
        (
            {"SECRET_KEY": SECRET, "DATABASE_URL": "mysql://localhost/x"},
            "DATABASE_URL is malformed: it must be a URL such as postgres://",
        ),
    ],
)
def test_a_missing_setting_ends_the_start_with_one_sentence(
    environment: dict[str, str], sentence: str, tmp_path: Path
) -> None:
    done = run(["rungateway"], VAR_DIR=str(tmp_path), **environment)
    assert done.returncode == 2
    assert done.stderr.startswith(f"portcullis: {sentence}")
    assert len(done.stderr.splitlines()) == 1


def test_an_impossible_number_of_workers_is_refused(tmp_path: Path) -> None:
    done = run(["rungateway", "--embedded", "--workers", "0"], VAR_DIR=str(tmp_path))
    assert done.returncode == 2
    assert done.stderr == "portcullis: --workers must be from 1 to 512, not 0.\n"


@pytest.mark.postgres
def test_a_database_that_is_not_migrated_ends_the_start(tmp_path: Path, private_postgres: PrivateServer) -> None:
    ports = {name: str(free_port()) for name in ("PORT", "ADMIN_PORT", "METRICS_PORT")}
    done = run(["rungateway"], VAR_DIR=str(tmp_path), SECRET_KEY=SECRET, DATABASE_URL=private_postgres.url, **ports)
    assert done.returncode == 1
    assert done.stderr == "portcullis: The database is not migrated; run: python manage.py migrate\n"


def test_a_directory_too_deep_for_sockets_is_refused(tmp_path: Path) -> None:
    ports = {name: str(free_port()) for name in ("PORT", "ADMIN_PORT", "METRICS_PORT")}
    deep = tmp_path / ("d" * 100)
    done = run(["rungateway", "--embedded"], VAR_DIR=str(deep), **ports)
    assert done.returncode == 1
    assert done.stderr == f"portcullis: VAR_DIR {deep} is too long a path for a Unix socket in it.\n"


def test_a_certificate_that_cannot_be_read_ends_the_start(tmp_path: Path) -> None:
    ports = {name: str(free_port()) for name in ("PORT", "TLS_PORT", "ADMIN_PORT", "METRICS_PORT")}
    files = {"TLS_CERTIFICATE": str(tmp_path / "none.crt"), "TLS_KEY": str(tmp_path / "none.key")}
    done = run(["rungateway", "--embedded"], VAR_DIR=str(tmp_path / "var"), **ports, **files)
    assert done.returncode == 1
    sentence = f"portcullis: TLS_CERTIFICATE {tmp_path}/none.crt cannot be read: No such file or directory.\n"
    assert done.stderr == sentence


# --- without the supervisor ----------------------------------------------------------------------------------------
@pytest.fixture
def start_asgi(tmp_path: Path) -> Iterator[Callable[..., tuple[str, "subprocess.Popen[bytes]"]]]:
    started: list[subprocess.Popen[bytes]] = []

    def start(*options: str, **environment: str) -> tuple[str, "subprocess.Popen[bytes]"]:
        port = free_port()
        given = GatewayProcess(tmp_path).environment | {"EMBEDDED": "true"} | environment
        command = [sys.executable, "-m", "uvicorn", "gateway_project.asgi:application", "--port", str(port), *options]
        with (tmp_path / "asgi.log").open("ab") as log:
            started.append(subprocess.Popen(command, cwd=ROOT, env=given, stdout=log, stderr=log))
        return f"http://127.0.0.1:{port}", started[-1]

    yield start
    for process in started:
        process.terminate()
        process.wait(30)


Start = Callable[..., tuple[str, "subprocess.Popen[bytes]"]]


def test_it_serves_under_uvicorn_alone(start_asgi: Start, upstream: str, tmp_path: Path) -> None:
    url, process = start_asgi()
    eventually(lambda: _status(f"{url}/ready") == 200, START_TIMEOUT_S, "readiness")
    made = httpx.post(f"{url}/setup", json={"name": "Admin", "email": "admin@example.com"}, timeout=20, trust_env=False)
    assert made.status_code == 201, made.text
    with httpx.Client(base_url=url, headers={"X-API-Key": made.json()["key"]}, timeout=20, trust_env=False) as admin:
        admin.post("/admin/routing/services", json={"name": "monolith", "defaultUrl": upstream})
        admin.post("/admin/access/applications", json={"name": "shop", "allowedServices": ["*"]})
        key = admin.post("/keys", json={"name": "test", "owner": "shop"}).json()["key"]
    eventually(lambda: _status(f"{url}/api/v1/monolith/products", headers={"X-API-Key": key}) == 200)
    children = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    assert len(children) == 2
    process.terminate()
    process.wait(30)
    assert not any(Path(f"/proc/{pid}").exists() for pid in children)


def test_two_servers_of_one_directory_share_the_agent(start_asgi: Start) -> None:
    first, _ = start_asgi()
    eventually(lambda: _status(f"{first}/ready") == 200, START_TIMEOUT_S, "readiness of the first")
    second, process = start_asgi()
    eventually(lambda: _status(f"{second}/ready") == 200, START_TIMEOUT_S, "readiness of the second")
    assert Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split() == []


def test_uvicorn_alone_says_what_is_wrong_with_the_settings(start_asgi: Start, tmp_path: Path) -> None:
    _, process = start_asgi(WORKERS="none at all")
    assert process.wait(30) != 0
    log = (tmp_path / "asgi.log").read_text()
    assert "portcullis: WORKERS must be a whole number" in log
    assert "Traceback" not in log

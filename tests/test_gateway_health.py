"""Health checks and circuits through a whole gateway: what probes find, where requests go then, and what admins see."""

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, closing
from typing import Any

import httpx
import pytest

from tests.gateway_process import GatewayFactory, GatewayProcess, eventually
from tests.gateway_traffic import create, new_key, panel_api
from tests.scripted_upstream import Peer, Upstream

CHECKS = {"active": {"path": "/health", "intervalS": 0.5, "timeoutS": 0.4, "unhealthyThreshold": 2}}


class Server:
    """An upstream whose health and whose answers are switched apart."""

    def __init__(self) -> None:
        self.is_well = True
        self.status = 200
        self.upstream = Upstream(self._script)

    @property
    def url(self) -> str:
        return self.upstream.url

    def _script(self, peer: Peer) -> None:
        while (seen := peer.read_request()) is not None:
            status = self.status if seen.target != b"/health" else 200 if self.is_well else 500
            peer.send(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%b" % (status, len(self.url), self.url.encode()))


@pytest.fixture(scope="module")
def gateway(start_module_gateway: GatewayFactory) -> GatewayProcess:
    return start_module_gateway(WORKERS="2")


@pytest.fixture
def admin(gateway: GatewayProcess) -> Iterator[httpx.Client]:
    with panel_api(gateway) as admin:
        yield admin


@pytest.fixture(scope="module")
def key(gateway: GatewayProcess) -> str:
    with panel_api(gateway) as admin:
        application = create(admin, "/admin/access/applications", name="shop", allowedServices=["*"], rateLimit=100_000)
        return str(new_key(admin, application["id"])["key"])


@pytest.fixture
def servers() -> Iterator[list[Server]]:
    with ExitStack() as stack:
        servers = [Server() for _ in range(3)]
        for server in servers:
            stack.enter_context(closing(server.upstream))
        yield servers


def publish(admin: httpx.Client, name: str, servers: list[Server], **policies: Any) -> None:
    path = "/admin/routing/services"
    create(admin, path, name=name, **policies)
    create(admin, f"{path}/{name}/versions", version="v1", url=servers[0].url, weight=1)
    for server in servers:
        create(admin, f"{path}/{name}/versions/v1/targets", url=server.url)


def who_answers(gateway: GatewayProcess, key: str, name: str, count: int = 24) -> set[str]:
    """On connections of their own, so that both workers are asked."""
    limits = httpx.Limits(max_keepalive_connections=0)
    with httpx.Client(base_url=gateway.url, headers={"X-API-Key": key}, trust_env=False, limits=limits) as client:
        answers = [client.get(f"/api/v1/{name}/x") for _ in range(count)]
    return {answer.text if answer.status_code == 200 else str(answer.status_code) for answer in answers}


def metric(gateway: GatewayProcess, name: str, **labels: str) -> float | None:
    text = httpx.get(f"{gateway.metrics_url}/metrics", trust_env=False).text
    for line in text.splitlines():
        if line.startswith(name + "{") and all(f'{key}="{value}"' in line for key, value in labels.items()):
            return float(line.rpartition(" ")[2])
    return None


def test_an_unhealthy_target_gets_no_requests_until_it_is_well_again(
    gateway: GatewayProcess, admin: httpx.Client, key: str, servers: list[Server]
) -> None:
    publish(admin, "probed", servers, healthChecks=CHECKS)
    every = {server.url for server in servers}
    assert who_answers(gateway, key, "probed") == every

    servers[1].is_well = False
    eventually(lambda: who_answers(gateway, key, "probed") == every - {servers[1].url})
    document = eventually(lambda: unhealthy(admin, "probed"))
    assert document == {servers[1].url: "It answered with status 500."}
    assert metric(gateway, "api_gateway_target_healthy", service="probed", target=servers[1].url) == 0
    assert metric(gateway, "api_gateway_service_health", service="probed") == 1
    assert admin.get("/admin/health").json()["targets"]["unhealthy"] == 1

    servers[1].is_well = True
    eventually(lambda: who_answers(gateway, key, "probed") == every)
    eventually(lambda: not unhealthy(admin, "probed"))


def unhealthy(admin: httpx.Client, name: str) -> dict[str, str]:
    health = admin.get(f"/admin/routing/services/{name}/health").json()
    hosts = [(target["url"], host) for target in health["targets"] for host in target["hosts"]]
    return {url: host["lastError"] for url, host in hosts if not host["isHealthy"]}


def test_a_worker_that_starts_later_knows_what_the_others_know(
    gateway: GatewayProcess, admin: httpx.Client, key: str, servers: list[Server]
) -> None:
    publish(admin, "restarted", servers, healthChecks=CHECKS)
    servers[2].is_well = False
    healthy = {server.url for server in servers[:2]}
    eventually(lambda: who_answers(gateway, key, "restarted") == healthy)
    former = gateway.children()["worker-0"]

    os.kill(former, signal.SIGKILL)
    eventually(lambda: gateway.children().get("worker-0") != former and gateway.is_ready(), 60)
    assert who_answers(gateway, key, "restarted") == healthy


def test_no_request_goes_to_an_unhealthy_target_because_the_agent_dies_and_starts_anew(
    gateway: GatewayProcess, admin: httpx.Client, key: str, servers: list[Server]
) -> None:
    publish(admin, "orphaned", servers, healthChecks=CHECKS)
    servers[2].is_well = False
    healthy = {server.url for server in servers[:2]}
    eventually(lambda: who_answers(gateway, key, "orphaned") == healthy)
    eventually(lambda: unhealthy(admin, "orphaned"))  # it is written down
    former = gateway.children()["agent"]
    os.kill(former, signal.SIGKILL)
    found: set[str] = set()

    def is_back() -> bool:
        found.update(who_answers(gateway, key, "orphaned", 8))
        return bool(gateway.children().get("agent") != former and gateway.is_ready())

    eventually(is_back, 60)
    for _ in range(8):
        found |= who_answers(gateway, key, "orphaned", 8)
    assert found == healthy
    servers[2].is_well = True
    eventually(lambda: who_answers(gateway, key, "orphaned") == {server.url for server in servers})


def test_an_open_circuit_is_seen_by_admins_and_closed_by_a_reset(
    gateway: GatewayProcess, admin: httpx.Client, key: str, servers: list[Server]
) -> None:
    server = servers[0]
    publish(admin, "tripped", [server], circuitBreaker={"failures": 2, "openS": 3600})
    server.status = 503
    eventually(lambda: requests_of(server, gateway, key, "tripped") == 0)  # both workers have opened it
    eventually(lambda: circuits(admin, "tripped") == ["open"])
    eventually(lambda: metric(gateway, "api_gateway_circuit_breaker_state", service="tripped") == 1)
    assert metric(gateway, "api_gateway_circuit_state", service="tripped", target=server.url) == 1

    server.status = 200
    answer = admin.post("/admin/circuit-breaker/tripped/reset")
    assert answer.status_code == 200
    assert [each["url"] for each in answer.json()["reset"]] == [server.url]
    assert "X-Config-Pending" not in answer.headers
    assert who_answers(gateway, key, "tripped") == {server.url}
    eventually(lambda: circuits(admin, "tripped") == ["closed"])
    assert metric(gateway, "api_gateway_circuit_breaker_state", service="tripped") == 0


def circuits(admin: httpx.Client, name: str) -> list[str]:
    return [each["state"] for each in admin.get(f"/admin/circuit-breaker?service={name}").json()["circuits"]]


def requests_of(server: Server, gateway: GatewayProcess, key: str, name: str) -> int:
    """How many of twenty requests reach it."""
    before = len(server.upstream.requests)
    who_answers(gateway, key, name, 20)
    return len(server.upstream.requests) - before

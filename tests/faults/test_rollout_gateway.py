"""Rollouts and callers of versions through real processes: requests in, weights and history out."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import psycopg
import pytest

from tests.gateway_process import Databases, GatewayFactory, GatewayProcess, eventually
from tests.gateway_traffic import NO_LIMIT, create, new_key, panel_api
from tests.raw_http import Client, request
from tests.scripted_upstream import OK, Upstream, replying

SERVICES = "/admin/routing/services"
FAILS = b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n"
KEYS = 24
PATIENCE_S = 60.0


class Shop:
    """A service of a gateway with a good version v1 and a new version v2, and applications that call it."""

    def __init__(self, gateway: GatewayProcess, name: str, new: bytes = OK) -> None:
        self.gateway = gateway
        self.name = name
        self.upstreams = [Upstream(replying(OK)), Upstream(replying(new))]
        self.admin = panel_api(gateway)
        create(self.admin, SERVICES, name=name, currentVersion="v1")
        for version, upstream in zip(("v1", "v2"), self.upstreams, strict=True):
            create(self.admin, f"{SERVICES}/{name}/versions", version=version, url=upstream.url)
        self.put_weights(v1=100)
        application = create(
            self.admin, "/admin/access/applications", name=name, allowedServices=[name], rateLimit=NO_LIMIT
        )
        self.application = application["id"]
        self.admin.headers["Prefer"] = "wait=0"
        self.keys = [new_key(self.admin, self.application, f"key {number}") for number in range(KEYS)]
        self.admin.headers["Prefer"] = "wait=5"
        self.ask(self.keys[-1]["key"])

    def close(self) -> None:
        self.admin.close()
        for upstream in self.upstreams:
            upstream.close()

    def put_weights(self, **weights: int) -> None:
        answer = self.admin.put(f"{SERVICES}/{self.name}/weights", json={"weights": weights})
        assert answer.status_code == 200, answer.text

    def weights(self) -> dict[str, int]:
        weights: dict[str, int] = self.admin.get(f"{SERVICES}/{self.name}/weights").json()["weights"]
        return weights

    def ask(self, key: str) -> None:
        def is_known() -> bool:
            answer = httpx.get(f"{self.gateway.url}/api/v1/{self.name}/x", headers={"X-API-Key": key}, trust_env=False)
            return answer.status_code != 401

        eventually(is_known, what="the key in the worker")

    def start(self, *steps: tuple[float, float], **plan: Any) -> dict[str, Any]:
        """``steps``: percent and hold_s."""
        listed = [{"percent": percent, "holdS": hold_s} for percent, hold_s in steps]
        document = {"version": "v2", "steps": listed, "intervalS": 1, "minSamples": 50, "maxLatencyRatio": None}
        return create(self.admin, f"{SERVICES}/{self.name}/rollouts", **document | plan)

    def rollout(self) -> dict[str, Any]:
        rollout: dict[str, Any] = self.admin.get(f"{SERVICES}/{self.name}/rollouts").json()["rollouts"][0]
        return rollout

    def until(self, condition: Callable[[dict[str, Any]], bool], what: str) -> dict[str, Any]:
        def found() -> dict[str, Any] | None:
            rollout = self.rollout()
            return rollout if condition(rollout) else None

        rollout: dict[str, Any] = eventually(found, PATIENCE_S, what)
        return rollout

    def reasons(self, rollout: dict[str, Any]) -> list[str]:
        """Of the revisions that the rollout made by itself, the oldest first."""
        revisions = self.admin.get("/admin/revisions?limit=100").json()["revisions"]
        own = [each for each in revisions if (each["actor"]["kind"], each["actor"]["id"]) == ("rollout", rollout["id"])]
        return [each["reason"] for each in reversed(own)]

    @contextmanager
    def traffic(self, gateway: GatewayProcess | None = None) -> Iterator[None]:
        """All keys in turn, as fast as the answers come, over connections that are renewed."""
        stopping = threading.Event()
        port = int((gateway or self.gateway).environment["PORT"])
        requests = [request("GET", f"/api/v1/{self.name}/x", f"X-API-Key: {key['key']}") for key in self.keys]

        def run() -> None:
            while not stopping.is_set():
                with Client(port) as client:
                    for data in requests:
                        client.send(data).answer("GET")
                stopping.wait(0.02)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield
        finally:
            stopping.set()
            thread.join()


@pytest.fixture
def open_shop() -> Iterator[Callable[..., Shop]]:
    shops: list[Shop] = []

    def make(*args: Any, **options: Any) -> Shop:
        shops.append(Shop(*args, **options))
        return shops[-1]

    yield make
    for shop in shops:
        shop.close()


OpenShop = Callable[..., Shop]


def test_a_version_that_fails_is_rolled_back_by_itself(gateway: GatewayProcess, open_shop: OpenShop) -> None:
    shop = open_shop(gateway, "failing", new=FAILS)
    with shop.traffic():
        started = shop.start((30, 300), (100, 300))
        assert shop.weights() == {"v1": 70, "v2": 30}
        rollout = shop.until(lambda rollout: rollout["status"] != "running", "the end of the rollout")
    assert rollout["id"] == started["id"]
    assert (rollout["status"], shop.weights()) == ("rolled_back", {"v1": 100, "v2": 0})
    (reason,) = shop.reasons(rollout)
    assert reason == rollout["outcome"]
    assert reason.startswith("rolled back: 100.0 % errors against 0.0 %, ")


@pytest.mark.parametrize("database", ["sqlite", "postgres"])
def test_a_good_version_is_promoted_though_the_agent_dies_on_the_way(
    start_gateway: GatewayFactory, open_shop: OpenShop, database: str
) -> None:
    gateway = start_gateway(database=database, WORKERS="2")
    shop = open_shop(gateway, "good")
    with shop.traffic():
        shop.start((20, 3), (60, 2), (100, 1))
        shop.until(lambda rollout: bool(rollout["comparison"][0]["requests"]), "the first numbers")
        os.kill(gateway.children()["agent"], signal.SIGKILL)
        rollout = shop.until(lambda rollout: rollout["status"] == "completed", "the end of the rollout")
    assert shop.weights() == {"v1": 0, "v2": 100}
    reasons = shop.reasons(rollout)
    assert [reason.partition(":")[0] for reason in reasons] == ["20 % → 60 %", "60 % → 100 %", "100 %, done"]
    assert all("0.0 % errors" in reason and "requests" in reason for reason in reasons)


def test_several_hosts_add_up_and_one_of_them_decides(
    start_gateway: GatewayFactory, open_shop: OpenShop, gateway_databases: Databases
) -> None:
    database = gateway_databases.new()
    hosts = [start_gateway(database=database, NODE_NAME=name, wait=False) for name in ("one", "two")]
    for host in hosts:
        host.wait_ready()
    first = open_shop(hosts[0], "shared")
    with first.traffic(), first.traffic(hosts[1]):
        started = first.start((30, 4), (100, 2), minSamples=20)
        rollout = first.until(lambda rollout: rollout["status"] == "completed", "the end of the rollout")
    reasons = first.reasons(rollout)
    assert [reason.partition(":")[0] for reason in reasons] == ["30 % → 100 %", "100 %, done"]
    with psycopg.connect(database) as connection:
        rows = connection.execute(
            "SELECT DISTINCT split_part(agent, ' ', 1) FROM gateway_version_traffic WHERE phase = %s",
            [f"{started['id']}/0"],
        )
        assert {row[0] for row in rows} == {"one", "two"}


def test_weights_that_an_admin_sets_meanwhile_stand(gateway: GatewayProcess, open_shop: OpenShop) -> None:
    shop = open_shop(gateway, "taken-over")
    shop.start((10, 300))
    shop.put_weights(v1=50, v2=50)
    rollout = shop.until(lambda rollout: rollout["status"] == "superseded", "the end of the rollout")
    assert "was changed to 50 by hand" in rollout["outcome"]
    assert shop.weights() == {"v1": 50, "v2": 50}


def test_who_still_calls_a_deprecated_version_is_listed(gateway: GatewayProcess, open_shop: OpenShop) -> None:
    shop = open_shop(gateway, "old")
    version = f"{SERVICES}/old/versions/v1"
    answer = shop.admin.patch(version, json={"lifecycle": "deprecated", "deprecationLink": "https://example.com/v2"})
    assert answer.status_code == 200, answer.text
    assert shop.admin.get(f"{version}/callers").json()["callers"] == []
    path = f"{gateway.url}/api/v1/old/x"
    for key in (shop.keys[0], shop.keys[0], shop.keys[1]):
        told = httpx.get(path, headers={"X-API-Key": key["key"]}, trust_env=False)
        assert told.headers["deprecation"].startswith("@")
        assert told.headers["link"] == '<https://example.com/v2>; rel="deprecation"'

    def listed() -> list[dict[str, Any]]:
        callers: list[dict[str, Any]] = shop.admin.get(f"{version}/callers?ordering=-requests").json()["callers"]
        return callers if len(callers) == 2 else []

    callers = eventually(listed, 40.0, "the callers")
    assert [(each["key"], each["requests"], each["application"]) for each in callers] == [
        ("key 0", 2, "old"),
        ("key 1", 1, "old"),
    ]
    assert {each["address"] for each in callers} == {"127.0.0.1"}
    assert shop.admin.get(f"{SERVICES}/old/versions/v2/callers").json()["callers"] == []

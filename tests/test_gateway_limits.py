"""Limits from the admin API to the database, through whole gateways: what survives a crash and a restart (A10, A11)."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import httpx
import pytest

from tests.gateway_process import GatewayFactory, GatewayProcess, eventually
from tests.gateway_traffic import Shop, echo, open_shop
from tests.scripted_upstream import Upstream


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with closing(Upstream(echo)) as upstream:
        yield upstream


def used(gateway: GatewayProcess, limit: str) -> int:
    with gateway.admin() as admin:
        subjects = admin.get(f"/admin/access/limits/{limit}/use").json()["subjects"]
    return sum(each["used"] for each in subjects)


def test_a_quota_survives_the_death_of_a_worker_and_a_restart(
    start_gateway: GatewayFactory, upstream: Upstream
) -> None:
    gateway = start_gateway()
    shop = open_shop(gateway, upstream.url)
    with gateway.admin() as admin:
        rule = {"limit": 9, "algorithm": "quota", "period": "month", "alert": True}
        limit = admin.post("/admin/access/limits", json={"name": "monthly", "rule": rule}).json()["id"]
    assert statuses(shop, 4) == [200] * 4
    eventually(lambda: used(gateway, limit) == 4, what="the use in the database")
    former = gateway.children()["worker-0"]
    os.kill(former, signal.SIGKILL)
    eventually(lambda: gateway.is_ready() and gateway.children()["worker-0"] != former, what="another worker")
    eventually(lambda: hears_of_changes(gateway), what="the worker's line to the agent")
    assert statuses(shop, 3) == [200] * 3
    eventually(lambda: used(gateway, limit) == 7, what="the use in the database")
    gateway.end()
    gateway.start()
    eventually(lambda: hears_of_changes(gateway), what="the worker's line to the agent")  # else it counts alone
    assert statuses(shop, 4) == [200] * 2 + [429] * 2
    eventually(lambda: used(gateway, limit) == 9, what="all of it in the database")
    with gateway.admin() as admin:
        violations = eventually(lambda: refused(admin, limit, 2), what="the violations")
        assert {(each["limitName"], each["address"]) for each in violations} == {("monthly", "127.0.0.1")}
        subjects = eventually(
            lambda: [
                each for each in admin.get(f"/admin/access/limits/{limit}/use").json()["subjects"] if each["refused"]
            ],
            what="the refusals among the uses",
        )
        assert subjects[0]["remaining"] == 0


def hears_of_changes(gateway: GatewayProcess) -> bool:
    ready = httpx.get(f"{gateway.url}/ready", trust_env=False).json()
    return bool(ready["dependencies"]["configuration"] == "fresh")


def refused(admin: httpx.Client, limit: str, requests: int) -> list[dict[str, Any]]:
    """The violations, when there are as many as that."""
    listed = admin.get("/admin/access/limit-violations", params={"limitId": limit}).json()["violations"]
    return listed if sum(each["refused"] for each in listed) == requests else []


def statuses(shop: Shop, count: int) -> list[int]:
    return [shop.status() for _ in range(count)]

"""The life of keys through real processes: two workers, PostgreSQL, a rotation, and a change of the pepper."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial

import httpx
import pytest

from keys.credential import generate
from tests.gateway_process import GatewayFactory, GatewayProcess, eventually
from tests.gateway_traffic import Shop, connect_to, echo, new_key, open_shop
from tests.raw_http import request
from tests.scripted_upstream import Upstream


@pytest.fixture(scope="module")
def shop(start_module_gateway: GatewayFactory) -> Iterator[Shop]:
    with closing(Upstream(echo)) as upstream:
        gateway = start_module_gateway(
            database="postgres", WORKERS="2", KEY_PEPPER="the first pepper of all", AUTH_FAILURES_PER_MINUTE="1000"
        )
        yield open_shop(gateway, upstream.url)


def status(gateway: GatewayProcess, worker: int, key: str, path: str) -> int:
    with connect_to(gateway, f"worker-{worker}") as client:
        return client.send(request("GET", path, f"X-API-Key: {key}")).answer().status


def has_status(wanted: int, gateway: GatewayProcess, worker: int, key: str, path: str) -> bool:
    return status(gateway, worker, key, path) == wanted


def answered(gateway: GatewayProcess, shop: Shop) -> int:
    return httpx.get(gateway.url + shop.path, headers={"X-API-Key": shop.key}).status_code


def test_both_keys_work_on_every_worker_until_the_transition_ends(shop: Shop) -> None:
    gateway = shop.gateway
    with gateway.admin() as admin:
        made = new_key(admin, shop.application)
        rotated = admin.post(f"/keys/{made['id']}/rotate", json={"transitionPeriodDays": 7}).json()
        both = made["key"], rotated["newKey"]["key"]
        assert {status(gateway, worker, key, shop.path) for worker in (0, 1) for key in both} == {200}
        soon = round(time.time() * 1000) + 1500
        assert admin.patch(f"/keys/{made['id']}", json={"expiresAt": soon}).status_code == 200
        eventually(lambda: status(gateway, 0, both[0], shop.path) == 401, 10, "the end of the transition")
        assert [status(gateway, worker, key, shop.path) for worker in (0, 1) for key in both] == [401, 200] * 2

        def callers() -> list[dict[str, object]]:
            found: list[dict[str, object]] = admin.get(f"/keys/{made['id']}/callers").json()["callers"]
            return found

        eventually(lambda: callers() and callers()[0]["address"] == "127.0.0.1", 60, "the callers of the old key")
        seen = admin.get(f"/keys/{made['id']}").json()
        assert seen["lastUsedAddress"] == "127.0.0.1"
        assert seen["useCount"] >= 2


def test_keys_of_a_former_pepper_work_again_and_wrong_ones_do_not(
    shop: Shop, start_module_gateway: GatewayFactory
) -> None:
    """Last in this module: it ends the others' gateway."""
    former = shop.gateway
    with former.admin() as admin:
        keys = [new_key(admin, shop.application) for _ in range(3)]
        revoked = new_key(admin, shop.application)
        admin.delete(f"/keys/{revoked['id']}")
    former.end()
    gateway = start_module_gateway(
        database=former.environment["DATABASE_URL"],
        var_dir=former.var_dir,
        WORKERS="2",
        KEY_PEPPER="quite another pepper",
        AUTH_FAILURES_PER_MINUTE="1000",
    )
    # Workers may begin with the last good snapshot, which knows less; none of that may be a 401.
    began = eventually(lambda: [each] if (each := answered(gateway, shop)) != 503 else [], 30, "the configuration")
    assert began in ([200], [404])
    for worker in (0, 1):
        is_known = partial(has_status, 200, gateway, worker, shop.key, shop.path)
        eventually(is_known, 30, "the first key of the former pepper")
    wrong = [generate("km_").key, revoked["key"], keys[0]["key"][:-7] + generate("km_").key[-7:], "km_nonsense"]
    url = f"{gateway.url}{shop.path}"
    assert [httpx.get(url, headers={"X-API-Key": key}).status_code for key in wrong] == [401] * 4

    with ThreadPoolExecutor(8) as pool:  # many requests with one key are one question
        answers = list(pool.map(lambda _: httpx.get(url, headers={"X-API-Key": keys[0]["key"]}), range(8)))
    assert [answer.status_code for answer in answers] == [200] * 8
    for worker in (0, 1):
        assert status(gateway, worker, keys[0]["key"], shop.path) == 200
        assert status(gateway, worker, keys[1]["key"], shop.path) == 200
    asked = {"key": keys[2]["key"]}
    assert httpx.post(f"{gateway.url}/validate", json=asked).json()["isValid"] is True
    with httpx.Client(base_url=gateway.url, headers={"X-API-Key": former.admin_key}) as admin:
        assert admin.get("/keys").status_code == 200
        assert admin.post(f"/keys/{keys[1]['id']}/rotate", json={}).status_code == 201
    log = gateway.log() + (gateway.var_dir / "access.log").read_text()
    for key in (*(each["key"] for each in keys), former.admin_key):
        assert key not in log

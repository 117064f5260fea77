"""How a whole gateway starts without its database, serves with a configuration that grows old, and ends under load."""

import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from hashlib import sha256

import httpx
import pytest

from tests.gateway_process import GatewayFactory, GatewayProcess, eventually
from tests.gateway_traffic import NO_LIMIT, Shop, Traffic, ask, create, open_shop, panel_api, traffic
from tests.private_servers import PrivatePostgres
from tests.scripted_upstream import Upstream

PUBLIC = "/api/v1/orders/public"
BODY = b"0123456789abcdef" * 4096
OK, AWAY = (200, ""), (503, "dependency_unavailable")


def asked(gateway: GatewayProcess, path: str, key: str | None = None) -> tuple[int, str]:
    """Status and problem code of a GET."""
    headers = {} if key is None else {"X-API-Key": key}
    answer = httpx.get(gateway.url + path, headers=headers, trust_env=False, timeout=20)
    if answer.status_code == 503 and path != "/ready":
        assert int(answer.headers["Retry-After"]) > 0
    return answer.status_code, answer.json().get("code", "") if answer.status_code >= 400 else ""


def is_answered(gateway: GatewayProcess, path: str, key: str) -> bool:
    return asked(gateway, path, key) == OK


@pytest.fixture(scope="module")
def shop(start_module_gateway: GatewayFactory, server: PrivatePostgres, upstream: Upstream) -> Shop:
    """Its gateway trusts a configuration for three seconds."""
    shop = open_shop(start_module_gateway(database=server.url, MAX_CONFIG_AGE="3"), upstream.url)
    entry = {"endpointPath": PUBLIC, "isPublic": True, "rateLimit": NO_LIMIT}
    with panel_api(shop.gateway) as admin:
        create(admin, f"/admin/access/applications/{shop.application}/whitelist", **entry)
    return shop


@pytest.fixture
def without_database(server: PrivatePostgres, shop: Shop) -> Iterator[PrivatePostgres]:
    """The database of the shop's gateway, stopped."""
    server.stop()
    yield server
    if not server.is_running:
        server.start()


@pytest.mark.private_postgres
def test_keys_are_trusted_only_as_long_as_the_configuration_is_not_too_old(
    start_gateway: GatewayFactory, server: PrivatePostgres, shop: Shop
) -> None:
    gateway = shop.gateway
    with (
        traffic(gateway, lambda client, count: shop.get, clients=1) as keyed,
        traffic(gateway, lambda client, count: ask("GET", PUBLIC), clients=1) as public,
    ):
        server.stop()
        eventually(lambda: keyed.results[-1].status == 503, 20, "the end of trust")
        assert asked(gateway, shop.path, shop.key) == AWAY
        assert (asked(gateway, "/ready")[0], asked(gateway, "/health")) == (200, OK)
    assert (keyed.statuses(), public.statuses()) == ({200, 503}, {200})
    gateway.stop()

    again = start_gateway(database=server.url, var_dir=gateway.var_dir, MAX_CONFIG_AGE="3")
    assert (asked(again, shop.path, shop.key), asked(again, PUBLIC)) == (AWAY, OK)
    server.start()
    eventually(partial(is_answered, again, shop.path, shop.key), 20, "trust in keys")


@pytest.mark.private_postgres
def test_without_database_and_snapshot_it_is_alive_and_becomes_ready_when_the_database_comes(
    start_gateway: GatewayFactory, shop: Shop, without_database: PrivatePostgres
) -> None:
    gateway = start_gateway(database=without_database.url, wait=False)
    eventually(partial(is_alive, gateway), 30, "an answer")
    assert (asked(gateway, "/health"), asked(gateway, "/ready")[0]) == (OK, 503)
    assert (asked(gateway, shop.path, shop.key), asked(gateway, PUBLIC)) == (AWAY, AWAY)
    eventually(lambda: asked(gateway, "/admin/nodes", shop.key) == AWAY, 30, "control")
    without_database.start()
    gateway.wait_ready()
    assert (asked(gateway, shop.path, shop.key), asked(gateway, PUBLIC)) == (OK, OK)


def is_alive(gateway: GatewayProcess) -> bool:
    try:
        return asked(gateway, "/health") == OK
    except httpx.TransportError:
        return False


# --- ends under load -----------------------------------------------------------------------------------------------
@pytest.fixture
def pair(start_gateway: GatewayFactory, upstream: Upstream) -> Shop:
    """Two workers, embedded."""
    return open_shop(start_gateway(WORKERS="2"), upstream.url)


def test_while_another_program_holds_the_embedded_database_traffic_goes_on_and_writes_are_refused(pair: Shop) -> None:
    service = "/admin/routing/services/orders"
    database = sqlite3.connect(pair.gateway.var_dir / "portcullis.sqlite3", isolation_level=None)
    with (
        closing(database),
        traffic(pair.gateway, lambda client, count: pair.get) as flow,
        panel_api(pair.gateway) as api,
    ):
        database.execute("BEGIN IMMEDIATE")
        refusal = api.patch(service, json={"pathPrefix": "/never"})  # it waits ten seconds for its turn
        assert (refusal.status_code, refusal.json()["code"]) == AWAY
        assert int(refusal.headers["Retry-After"]) > 0
        assert api.get(service).status_code == 200
        database.execute("ROLLBACK")
        assert api.patch(service, json={"pathPrefix": "/again"}, headers={"Prefer": "wait=10"}).status_code == 200
        flow.goes_on()
    assert flow.statuses() == {200}


def mixed(shop: Shop, client: int, count: int) -> bytes:
    """Every other request has a body of 64 KiB that says whose it is."""
    if count % 2:
        return shop.get
    return ask("POST", f"/api/v1/orders/{client}-{count}", shop.key, BODY + f"{client}-{count}".encode())


def assert_nothing_is_lost(flow: Traffic, upstream: Upstream) -> None:
    """Every request got its answer, and every POST reached the upstream whole, once."""
    assert flow.statuses() == {200}
    posts = {seen.target: seen for seen in upstream.requests if seen.method == b"POST"}
    assert len(posts) == sum(seen.method == b"POST" for seen in upstream.requests)
    answered = [each.answer.body for each in flow.results if each.answer and b"-" in each.answer.body]
    assert len(answered) == len(set(answered)) == len(posts)
    for body in answered:
        target, _, digest = body.partition(b" ")
        assert sha256(posts[target].body).hexdigest().encode() == digest
        assert posts[target].body == BODY + target.rpartition(b"/")[2]


def test_neither_replacing_the_workers_nor_the_end_loses_a_request_under_load(pair: Shop, upstream: Upstream) -> None:
    gateway, before = pair.gateway, pair.gateway.children()
    with traffic(gateway, partial(mixed, pair), clients=8) as flow:
        gateway.signal(signal.SIGHUP)
        eventually(lambda: "all workers are replaced" in gateway.log(), 60, "new workers")
        flow.goes_on()
        assert flow.statuses() == {200}
        assert {name for name, pid in gateway.children().items() if before[name] != pid} == {"worker-0", "worker-1"}

        gateway.signal(signal.SIGTERM)
        eventually(lambda: asked(gateway, "/ready")[0] == 503, 5, "the drain")
        assert asked(gateway, "/health") == OK
        assert gateway.process is not None
        assert gateway.process.wait(60) == 0
    assert_nothing_is_lost(flow, upstream)
    with closing(sqlite3.connect(gateway.var_dir / "portcullis.sqlite3")) as database:
        assert database.execute("SELECT count(*) FROM gateway_node").fetchone() == (0,)

"""What each port of a running gateway serves, to whom, and what the processes tell of themselves (rules 15, 21)."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.gateway_process import GatewayFactory, GatewayProcess, eventually
from tests.gateway_traffic import (
    Shop,
    ask,
    connect_to,
    create,
    echo,
    open_shop,
    panel_api,
    set_up,
    signed_in,
    submit,
)
from tests.scripted_upstream import Upstream

TOKEN = {"Authorization": "Bearer the token of the metrics"}
ADMIN_PATHS = ("/admin/nodes", "/admin/routing/services", "/keys", "/validate", "/setup", "/admin/nothing")
DOCUMENTS = ("/docs", "/redoc", "/openapi.json")


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with closing(Upstream(echo)) as upstream:
        yield upstream


@pytest.fixture(scope="module")
def strict(start_module_gateway: GatewayFactory) -> GatewayProcess:
    """As on a host of its own: PostgreSQL, two workers."""
    return start_module_gateway(database="postgres", WORKERS="2", METRICS_TOKEN=TOKEN["Authorization"][7:])


@pytest.fixture(scope="module")
def ann(strict: GatewayProcess) -> dict[str, Any]:
    """The first admin."""
    return set_up(strict)


@pytest.fixture(scope="module")
def shop(strict: GatewayProcess, ann: dict[str, Any], upstream: Upstream) -> Shop:
    return open_shop(strict, upstream.url)


@pytest.fixture(scope="module")
def apart(start_module_gateway: GatewayFactory) -> GatewayProcess:
    """Embedded, with its admin API on the panel's port alone."""
    gateway = start_module_gateway(migrated=False, ADMIN_API_ON_GATEWAY_PORT="false")
    set_up(gateway)
    return gateway


@pytest.fixture
def admin(strict: GatewayProcess, ann: dict[str, Any]) -> Iterator[httpx.Client]:
    with panel_api(strict) as admin:
        yield admin


def get(url: str, **options: Any) -> httpx.Response:
    return httpx.get(url, timeout=20, trust_env=False, **options)


# --- ports ---------------------------------------------------------------------------------------------------------
def test_a_panel_session_is_worth_nothing_on_the_gateway_port(
    strict: GatewayProcess, shop: Shop, ann: dict[str, Any], upstream: Upstream
) -> None:
    with signed_in(strict, ann) as browser:
        assert browser.get("/services").status_code == 200
        assert browser.get("/admin/nodes").status_code == 200
        with httpx.Client(base_url=strict.url, cookies=browser.cookies, trust_env=False, timeout=20) as same:
            assert same.get("/admin/nodes").status_code == 401
            assert {same.get(page).status_code for page in ("/", "/login", "/services", "/django-admin/")} == {404}
            assert same.get(shop.path).status_code == 401
            assert same.get(shop.path, headers={"X-API-Key": shop.key}).status_code == 200
    assert b"portcullis" not in (upstream.requests[-1].field("cookie") or b"")


def test_the_admin_api_can_be_kept_off_the_gateway_port(apart: GatewayProcess, upstream: Upstream) -> None:
    headers = {"X-API-Key": apart.admin_key}
    for path in ADMIN_PATHS:
        for method in ("GET", "POST"):
            answer = httpx.request(method, apart.url + path, headers=headers, json={}, trust_env=False)
            assert (answer.status_code, answer.json()["code"]) == (404, "no_route"), path
    assert get(f"{apart.panel_url}/admin/nodes", headers=headers).status_code == 200
    with panel_api(apart) as admin:  # its routes work as ever
        create(admin, "/admin/routing/services", name="orders", defaultUrl=upstream.url)
    assert get(f"{apart.url}/api/v1/orders/1").status_code == 401


def test_documents_are_on_the_gateway_port_only_by_choice(strict: GatewayProcess, apart: GatewayProcess) -> None:
    assert {get(strict.url + path).status_code for path in DOCUMENTS} == {404}
    assert {get(apart.url + path).status_code for path in DOCUMENTS} == {200}  # embedded: on loopback
    assert {get(strict.panel_url + path).status_code for path in DOCUMENTS} == {200}


def test_metrics_are_on_the_gateway_port_only_for_their_token(strict: GatewayProcess, apart: GatewayProcess) -> None:
    assert get(f"{apart.url}/metrics", headers=TOKEN).status_code == 404  # there is none
    for url in (strict.url, strict.metrics_url):
        assert get(f"{url}/metrics").status_code == 401
        assert get(f"{url}/metrics", headers={"Authorization": "Bearer another"}).status_code == 401
        answer = get(f"{url}/metrics", headers=TOKEN)
        assert (answer.status_code, "api_gateway_config_revision" in answer.text) == (200, True)


# --- what they tell ------------------------------------------------------------------------------------------------
def test_every_worker_says_that_it_lives_and_is_ready(strict: GatewayProcess, ann: dict[str, Any]) -> None:
    for name in ("worker-0", "worker-1"):
        with connect_to(strict, name) as client:
            health = client.send(ask("GET", "/health")).answer()
            assert (health.status, health.body) == (200, b'{"status":"ok"}')

            def ready(client: Any = client) -> Any:
                document = httpx.Response(200, content=client.send(ask("GET", "/ready")).answer().body).json()
                return document if document["dependencies"]["configuration"] == "fresh" else None

            document = eventually(ready)
            assert document["status"] == "ready"
            assert document["revision"] > 0
            assert document["dependencies"]["agent"] == "up"


def total(gateway: GatewayProcess, name: str, **labels: str) -> float:
    """The sum of a metric's samples that have these labels."""
    text = get(f"{gateway.metrics_url}/metrics", headers=TOKEN).text
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


def test_metrics_are_the_sum_over_all_workers(strict: GatewayProcess, shop: Shop) -> None:
    labels = {"service": "orders", "status_code": "200"}
    before = total(strict, "api_gateway_requests_total", **labels)
    with ExitStack() as stack:
        first, second = [stack.enter_context(connect_to(strict, name)) for name in ("worker-0", "worker-1")]
        for client in [first] * 30 + [second] * 12:
            assert client.send(shop.get).answer().status == 200
    eventually(lambda: total(strict, "api_gateway_requests_total", **labels) == before + 42, what="the sum of both")
    assert total(strict, "api_gateway_request_duration_seconds_count", service="orders") >= before + 42
    assert total(strict, "api_gateway_workers") == 2


# --- keys ----------------------------------------------------------------------------------------------------------
def test_a_key_opens_only_what_it_was_made_for(
    strict: GatewayProcess, apart: GatewayProcess, shop: Shop, ann: dict[str, Any]
) -> None:
    on_route = get(strict.url + shop.path, headers={"X-API-Key": ann["key"]})
    assert (on_route.status_code, on_route.json()["code"]) == (401, "invalid_credentials")
    for url in (strict.url, strict.panel_url):
        as_admin = get(f"{url}/admin/nodes", headers={"X-API-Key": shop.key})
        assert (as_admin.status_code, as_admin.json()["code"]) == (403, "insufficient_scope")
        foreign = get(f"{url}/admin/nodes", headers={"X-API-Key": apart.admin_key})
        assert (foreign.status_code, foreign.json()["code"]) == (401, "invalid_credentials")
    assert get(strict.url + shop.path, headers={"X-API-Key": apart.admin_key}).status_code == 401


@pytest.fixture
def ben(strict: GatewayProcess, ann: dict[str, Any]) -> tuple[str, dict[str, str]]:
    """Another admin's path in the user administration, and a key of that admin's own."""
    password = "a long password of Ben's"
    with signed_in(strict, ann) as browser:
        name = f"ben{time.monotonic_ns()}"
        fields = {"username": name, "password1": password, "password2": password, "usable_password": "true"}
        made = submit(browser, "/django-admin/auth/user/add/", **fields)
        assert made.status_code == 302, made.text
        where = made.headers["Location"].removesuffix("change/")
        flags = {"username": name, "is_active": "on", "is_staff": "on", "is_superuser": "on"}
        assert submit(browser, f"{where}change/", **flags, **joined_now()).status_code == 302
    with signed_in(strict, {"username": name, "password": password}) as own:
        token = {"X-CSRFToken": own.cookies["portcullis_csrf"]}
        key = own.post("/keys", json={"name": "laptop", "scopes": ["admin:*"]}, headers=token)
        assert key.status_code == 201, key.text
    return where, {"X-API-Key": key.json()["key"]}


def joined_now() -> dict[str, str]:
    now = datetime.now(UTC)
    return {"date_joined_0": f"{now:%Y-%m-%d}", "date_joined_1": f"{now:%H:%M:%S}"}


@pytest.mark.parametrize("end", ["deleted", "deactivated"])
def test_an_admin_key_ends_with_its_user(
    strict: GatewayProcess, ann: dict[str, Any], ben: tuple[str, dict[str, str]], end: str
) -> None:
    where, key = ben
    assert {get(f"{url}/admin/nodes", headers=key).status_code for url in (strict.url, strict.panel_url)} == {200}
    with signed_in(strict, ann) as browser:
        if end == "deleted":
            done = submit(browser, f"{where}delete/", post="yes")
        else:
            done = submit(browser, f"{where}change/", username="ben", is_staff="on", **joined_now())
        assert done.status_code == 302, done.text
    assert {get(f"{url}/admin/nodes", headers=key).status_code for url in (strict.url, strict.panel_url)} == {401}


def test_an_embedded_gateway_keeps_no_key_in_its_files_and_its_files_to_itself(apart: GatewayProcess) -> None:
    used = apart.admin_key
    for headers in ({"X-API-Key": used}, {"Authorization": f"Bearer {used}"}, {"Cookie": f"key={used}"}):
        get(f"{apart.url}/api/v1/orders/1", headers=headers)
    eventually(lambda: len(apart.access_log()) > 3, what="the access log")
    files = {path.name: path for path in apart.var_dir.rglob("*") if path.is_file()}
    assert {"portcullis.sqlite3", "access.log", "snapshot.bin", "output.log"} <= files.keys()
    assert [name for name, path in files.items() if used.encode() in path.read_bytes()] == []
    files.pop("output.log")  # the test's own, to which the gateway's output goes
    assert [name for name, path in files.items() if path.stat().st_mode & 0o077] == []


def test_the_last_use_of_a_key_is_told(shop: Shop, admin: httpx.Client) -> None:
    """Within 20 s: workers tell the agent every 10 s, and it stores what it knows every 10 s."""
    assert shop.status() == 200
    used = eventually(lambda: admin.get(f"/keys/{shop.key_id}").json()["lastUsedAt"], 40, "the last use")
    assert time.time() - 300 <= used / 1000 <= time.time() + 1
    assert abs(admin.get("/keys?isAdmin=true").json()["keys"][0]["lastUsedAt"] / 1000 - time.time()) < 300

"""A whole gateway, two workers on PostgreSQL, while parts of it or its database die, hang and come back."""

import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import httpx
import psycopg
import pytest
from prometheus_client.parser import text_string_to_metric_families

from keys.credential import generate
from tests.gateway_process import GatewayFactory, GatewayProcess, eventually
from tests.gateway_traffic import (
    Shop,
    ask,
    connect_to,
    create,
    new_key,
    open_shop,
    panel_api,
    set_up,
    signed_in,
    submit,
    target_in,
    traffic,
)
from tests.private_servers import PrivatePostgres
from tests.raw_http import Answer
from tests.scripted_upstream import Upstream

pytestmark = pytest.mark.private_postgres

MAIL = "/api/v1/notifications/email"
SERVICE = "/admin/routing/services/orders"
AT_ONCE = {"Prefer": "wait=0"}
PATIENTLY = {"Prefer": "wait=10"}


@pytest.fixture(scope="module")
def running(start_module_gateway: GatewayFactory, server: PrivatePostgres) -> tuple[GatewayProcess, dict[str, Any]]:
    """The gateway and its first admin."""
    gateway = start_module_gateway(database=server.url, WORKERS="2", AUTH_FAILURES_PER_MINUTE="1000000")
    return gateway, set_up(gateway)


@pytest.fixture(scope="module")
def gateway(running: tuple[GatewayProcess, dict[str, Any]]) -> GatewayProcess:
    return running[0]


@pytest.fixture(scope="module")
def shop(gateway: GatewayProcess, upstream: Upstream) -> Shop:
    shop = open_shop(gateway, upstream.url)
    with panel_api(gateway) as admin:
        create(admin, "/admin/routing/queue-routes", name="mail", taskName="email.send", queue="mail")
        create(admin, "/admin/routing/routes", name="mail", path=MAIL, queueRoute="mail", methods=["POST"])
    return shop


@pytest.fixture
def admin(gateway: GatewayProcess, shop: Shop) -> Iterator[httpx.Client]:
    with panel_api(gateway) as admin:
        yield admin


@pytest.fixture
def side() -> Iterator[ThreadPoolExecutor]:
    """For requests that wait for an outage all at once."""
    with ThreadPoolExecutor(8) as side:
        yield side


def keyed(shop: Shop) -> Callable[[int, int], bytes]:
    return lambda client, count: shop.get


def posted(shop: Shop) -> Callable[[int, int], bytes]:
    def make(client: int, count: int) -> bytes:
        body = b'{"to": "a@b.example", "subject": "%d"}' % count
        return ask("POST", MAIL, shop.key, body).replace(b"\r\n", b"\r\nContent-Type: application/json\r\n", 1)

    return make


def each_worker(shop: Shop, data: bytes) -> list[Answer]:
    answers = []
    for name in ("worker-0", "worker-1"):
        with connect_to(shop.gateway, name) as client:
            answers.append(client.send(data).answer())
    return answers


def all_see(shop: Shop, target: str) -> bool:
    return {target_in(answer) for answer in each_worker(shop, shop.get)} == {target}


def come_back(gateway: GatewayProcess, name: str, former: int) -> None:
    eventually(lambda: gateway.children().get(name) not in (None, former) and gateway.is_ready(), 40, f"a new {name}")


# --- the database --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("leave", "return_"), [("stop", "start"), ("kill", "start"), ("freeze", "thaw")], ids=["stopped", "killed", "hung"]
)
def test_while_the_database_is_away_traffic_goes_on_writes_wait_and_no_accepted_task_is_lost(
    running: tuple[GatewayProcess, dict[str, Any]],
    shop: Shop,
    admin: httpx.Client,
    server: PrivatePostgres,
    side: ThreadPoolExecutor,
    leave: str,
    return_: str,
) -> None:
    gateway, ann = running
    prefix = f"/after-{leave}"
    with (
        signed_in(gateway, ann) as browser,
        traffic(gateway, keyed(shop)) as flow,
        traffic(gateway, posted(shop), clients=2) as mail,
    ):
        getattr(server, leave)()
        asked = [
            side.submit(httpx.patch, f"{url}{SERVICE}", json={"pathPrefix": prefix}, headers=as_admin(gateway))
            for url in (gateway.panel_url, gateway.url)
        ]
        page = side.submit(browser.get, "/services")
        for refusal in [each.result() for each in asked]:
            assert (refusal.status_code, refusal.json()["code"]) == (503, "dependency_unavailable")
            assert int(refusal.headers["Retry-After"]) > 0
        assert page.result().status_code == 503
        assert "The database does not answer" in page.result().text

        stranger = ask("GET", shop.path, generate("km_").key)
        eventually(lambda: {each.status for each in each_worker(shop, stranger)} == {503}, 10, "doubt about new keys")
        for answer in each_worker(shop, ask("GET", "/ready")):
            assert answer.status == 200
            assert b'"configuration":"stale"' in answer.body
        eventually(lambda: any(result.status == 503 for result in mail.results), 20, "a refused task")
        flow.goes_on()

        getattr(server, return_)()
        eventually(partial(is_written, admin, prefix), 30, "a write")
        assert all_see(shop, f"{prefix}/1")
        eventually(lambda: mail.results[-1].status == 202, 20, "an accepted task")
    assert flow.statuses() == {200}
    refused = [result.answer for result in mail.results if result.status == 503]
    assert all(answer and answer.code == "dependency_unavailable" and answer.field("retry-after") for answer in refused)
    accepted = [result.answer for result in mail.results if result.status == 202]
    assert len(accepted) > 20
    with httpx.Client(base_url=gateway.url, headers={"X-API-Key": shop.key}, trust_env=False, timeout=20) as sender:
        for each in accepted:
            assert each is not None
            eventually(partial(is_published, sender, str(each.field("location"))), 20, "the publishing")


def is_published(sender: httpx.Client, location: str) -> bool:
    return sender.get(location).json()["published_at"] is not None


def as_admin(gateway: GatewayProcess) -> dict[str, str]:
    return {"X-API-Key": gateway.admin_key}


def is_written(admin: httpx.Client, prefix: str) -> bool:
    answer = admin.patch(SERVICE, json={"pathPrefix": prefix}, headers=PATIENTLY)
    return answer.status_code == 200 and "X-Config-Pending" not in answer.headers


def test_while_the_database_takes_no_writes_everything_that_only_reads_goes_on(
    running: tuple[GatewayProcess, dict[str, Any]], shop: Shop, admin: httpx.Client, server: PrivatePostgres
) -> None:
    gateway, ann = running
    with signed_in(gateway, ann) as browser, traffic(gateway, keyed(shop)) as flow:
        set_read_only(server, "on")  # as after a failover
        try:
            refusal = admin.patch(SERVICE, json={"pathPrefix": "/never"})
            assert (refusal.status_code, refusal.json()["code"]) == (503, "dependency_unavailable")
            assert int(refusal.headers["Retry-After"]) > 0
            assert admin.get(SERVICE).status_code == 200
            assert browser.get("/services").status_code == 200
            assert submit(browser, "/services/new", name="never", default_url="http://127.0.0.1:1").status_code == 503
            mail = each_worker(shop, posted(shop)(0, 0))
            assert {answer.status for answer in mail} == {503}
        finally:
            set_read_only(server, "off")
        eventually(partial(is_written, admin, "/again"), 30, "a write")
        assert all_see(shop, "/again/1")
    assert flow.statuses() == {200}


def set_read_only(server: PrivatePostgres, value: str) -> None:
    """For new transactions of everybody, in connections that are open too."""
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute("SET default_transaction_read_only = off")
        connection.execute(f"ALTER SYSTEM SET default_transaction_read_only = {value}")
        connection.execute("SELECT pg_reload_conf()")
    eventually(partial(is_default, server, value), what="the new default")


def is_default(server: PrivatePostgres, value: str) -> bool:
    with psycopg.connect(server.url, autocommit=True) as connection:
        return connection.execute("SHOW default_transaction_read_only").fetchone() == (value,)


# --- processes -----------------------------------------------------------------------------------------------------
def test_what_is_changed_while_the_agent_is_dead_holds_once_it_is_back(
    gateway: GatewayProcess, shop: Shop, admin: httpx.Client
) -> None:
    revoked, suspended = (new_key(admin, shop.application) for _ in range(2))
    former = gateway.children()["agent"]
    with traffic(gateway, keyed(shop)) as flow:
        os.kill(former, signal.SIGKILL)
        made = admin.post("/keys", json={"name": "new", "applicationId": shop.application}, headers=AT_ONCE).json()
        assert admin.delete(f"/keys/{revoked['id']}", headers=AT_ONCE).status_code == 200
        assert admin.post(f"/keys/{suspended['id']}/suspend", headers=AT_ONCE).status_code == 200
        assert admin.patch(SERVICE, json={"pathPrefix": "/meanwhile"}, headers=AT_ONCE).status_code == 200
        come_back(gateway, "agent", former)
        wanted = {made["key"]: {200}, revoked["key"]: {401}, suspended["key"]: {401}}
        for key, status in wanted.items():
            eventually(partial(is_answered, shop, key, status), what=f"{status} on every worker")
        assert all_see(shop, "/meanwhile/1")
    assert flow.statuses() == {200}


def is_answered(shop: Shop, key: str, statuses: set[int]) -> bool:
    return {answer.status for answer in each_worker(shop, ask("GET", shop.path, key))} == statuses


def test_while_the_agent_is_dead_a_write_names_every_node_and_tasks_are_refused_with_a_time_to_come_back(
    gateway: GatewayProcess, shop: Shop, admin: httpx.Client
) -> None:
    former = gateway.children()["agent"]
    with traffic(gateway, posted(shop), clients=2) as mail:
        os.kill(former, signal.SIGKILL)
        answer = admin.patch(SERVICE, json={"description": "while nobody listens"}, headers={"Prefer": "wait=0"})
        assert answer.status_code == 200
        assert len(answer.headers["X-Config-Pending"].split(", ")) == 2
        come_back(gateway, "agent", former)
        eventually(lambda: mail.results[-1].status == 202, 20, "an accepted task")
    assert mail.statuses() == {202, 503}
    assert all(each.answer and each.answer.field("retry-after") for each in mail.results if each.status == 503)


def test_nobody_but_admins_notices_when_control_and_events_worker_are_killed(
    gateway: GatewayProcess, shop: Shop, admin: httpx.Client
) -> None:
    before = gateway.children()
    with traffic(gateway, keyed(shop)) as flow, traffic(gateway, posted(shop), clients=1) as mail:
        for name in ("control", "events"):
            os.kill(before[name], signal.SIGKILL)
        away = httpx.get(f"{gateway.url}/admin/nodes", headers=as_admin(gateway), trust_env=False, timeout=20)
        for name in ("control", "events"):
            come_back(gateway, name, before[name])
        back = httpx.get(f"{gateway.url}/admin/nodes", headers=as_admin(gateway), trust_env=False, timeout=20)
    assert (flow.statuses(), mail.statuses(), back.status_code) == ({200}, {202}, 200)
    assert (away.status_code, away.headers["Content-Type"]) == (503, "application/problem+json")
    assert away.json()["code"] == "dependency_unavailable"
    assert int(away.headers["Retry-After"]) > 0


def test_a_killed_worker_costs_the_requests_on_its_own_connections_and_no_others(
    gateway: GatewayProcess, shop: Shop
) -> None:
    before = gateway.children()
    other = partial(traffic, gateway, keyed(shop), connect=lambda number: connect_to(gateway, "worker-0"))
    own = partial(traffic, gateway, keyed(shop), connect=lambda number: connect_to(gateway, "worker-1"), clients=2)
    with other() as spared, own() as hit:
        os.kill(before["worker-1"], signal.SIGKILL)
        come_back(gateway, "worker-1", before["worker-1"])
        assert {answer.status for answer in each_worker(shop, shop.get)} == {200}
    assert spared.statuses() == {200}
    assert hit.statuses() <= {200, 0}
    assert len(hit.failed()) <= hit.clients + 2  # and what the kernel had queued for it


# --- rows that nobody should write ---------------------------------------------------------------------------------
def test_a_row_broken_by_hand_is_reported_and_the_rest_goes_on_until_a_good_write_mends_it(
    gateway: GatewayProcess, shop: Shop, admin: httpx.Client, server: PrivatePostgres
) -> None:
    route = create(admin, "/admin/routing/routes", name="broken", path="/api/broken", service="orders")
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute("UPDATE gateway_route SET path = '/api/{' WHERE id = %s", [route["id"]])
    before = gateway.children()
    with traffic(gateway, keyed(shop)) as flow:
        for name in ("agent", "worker-1"):  # one worker has known better, one knows only what there is
            os.kill(before[name], signal.SIGKILL)
        for name in ("agent", "worker-1"):
            come_back(gateway, name, before[name])
        eventually(lambda: [problem["id"] for problem in problems(admin)] == [route["id"]], what="the report")
        assert (problems(admin)[0]["kind"], problems(admin)[0]["name"]) == ("route", "broken")
        assert metric(gateway, "api_gateway_config_problems") == 1

        changed = admin.patch(SERVICE, json={"pathPrefix": "/beside"}, headers=PATIENTLY)
        assert (changed.status_code, "X-Config-Pending" in changed.headers) == (200, False)
        assert all_see(shop, "/beside/1")

        mended = admin.patch(f"/admin/routing/routes/{route['id']}", json={"path": "/api/mended"}, headers=PATIENTLY)
        assert mended.status_code == 200, mended.text
        answers = each_worker(shop, ask("GET", "/api/mended", shop.key))
        assert {answer.status for answer in answers} == {200}
        eventually(lambda: not problems(admin), what="no report any more")
        assert metric(gateway, "api_gateway_config_problems") == 0
    assert flow.statuses() <= {200, 0}


def problems(admin: httpx.Client) -> list[dict[str, str]]:
    """Those of all nodes, which must agree."""
    reported = [node["problems"] for node in admin.get("/admin/nodes").json()["nodes"]]
    return reported[0] if all(each == reported[0] for each in reported) else []


def metric(gateway: GatewayProcess, name: str) -> float:
    text = httpx.get(f"{gateway.metrics_url}/metrics", trust_env=False, timeout=20).text
    families = text_string_to_metric_families(text)
    return sum(sample.value for family in families for sample in family.samples if sample.name == name)


# --- secrets -------------------------------------------------------------------------------------------------------
def test_no_secret_is_left_in_files_logs_or_the_database(
    running: tuple[GatewayProcess, dict[str, Any]], shop: Shop, admin: httpx.Client, server: PrivatePostgres
) -> None:
    gateway, ann = running
    used = new_key(admin, shop.application)["key"]
    for header in ({"X-API-Key": used}, {"Authorization": f"Bearer {used}"}, {"X-API-Key": used[:-1]}):
        httpx.get(f"{gateway.url}{shop.path}?q=1", headers=header, trust_env=False)
    with signed_in(gateway, ann):
        pass
    assert admin.post("/validate", json={"key": used}).json()["isValid"]
    eventually(lambda: any(line["path"] == shop.path for line in gateway.access_log()), what="the access log")
    secrets = [used, used[:-1], shop.key, ann["key"], ann["password"], gateway.setup_token]
    places = {path.name: path.read_bytes() for path in gateway.var_dir.rglob("*") if path.is_file()}
    places |= {f"the table {name}": content for name, content in tables(server).items()}
    assert {"output.log", "access.log", "snapshot.bin", "the table gateway_api_key"} <= places.keys()
    found = [
        (place, secret[:8]) for place, content in places.items() for secret in secrets if secret.encode() in content
    ]
    assert found == []
    modes = {path.name: path.stat().st_mode & 0o077 for path in gateway.var_dir.rglob("*") if path.name != "output.log"}
    assert {name for name, others in modes.items() if others} == set()


def tables(server: PrivatePostgres) -> dict[str, bytes]:
    """Everything that the database holds, as text."""
    with psycopg.connect(server.url) as connection:
        names = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
        dump = {}
        for (name,) in names:
            with connection.cursor().copy(f'COPY "{name}" TO STDOUT') as copy:
                dump[name] = b"".join(bytes(piece) for piece in copy)
        return dump


def test_workers_know_no_secret_of_other_processes(gateway: GatewayProcess) -> None:
    for name, pid in gateway.children().items():
        with open(f"/proc/{pid}/environ", "rb") as file:
            environment = dict(entry.partition(b"=")[::2] for entry in file.read().split(b"\0") if entry)
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            assert gateway.environment["SECRET_KEY"].encode() not in file.read()
        assert (b"SECRET_KEY" in environment) == (not name.startswith("worker"))
        assert not name.startswith("worker") or environment.keys().isdisjoint({b"DATABASE_URL", b"SETUP_TOKEN"})

"""The admin API about targets' health and circuits."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.db.models.functions import Now
from rest_framework.test import APIClient

from core.models import ConfigRevision, GatewayNode
from routing.models import ServiceConfig, ServiceTarget, ServiceVersion, TargetStatus
from tests.admin_api import SERVICES, admin_with_key, client_with_key, problem_of
from tests.scripted_upstream import Upstream, replying
from tests.test_agent_feed import add

pytestmark = pytest.mark.django_db
FAILING = b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n"
URL = "http://10.0.0.1:7000"


@pytest.fixture
def orders() -> ServiceConfig:
    service = ServiceConfig(name="orders", health_endpoint="/health")
    version = ServiceVersion(service=service, version="v1", url="http://10.0.0.9", weight=1)
    targets = [ServiceTarget(version=version, url=url) for url in (URL, "http://10.0.0.2:7000")]
    add(service, version, *targets)
    return service


def status(service: ServiceConfig, host: str = "one", url: str = URL, **values: Any) -> TargetStatus:
    seen_at = Now() - timedelta(minutes=5) if host == "gone" else Now()
    GatewayNode.objects.get_or_create(id=f"{host}/0", defaults={"host": host, "slot": 0, "seen_at": seen_at})
    fields = {"version": "v1", "seen_at": Now(), **values}
    return TargetStatus.objects.create(host=host, service=service, url=url, **fields)


# --- health --------------------------------------------------------------------------------------------------------
def test_every_target_is_shown_as_every_host_sees_it(api: APIClient, orders: ServiceConfig) -> None:
    status(orders, "one", is_probed=True, is_healthy=False, last_error="It refused the connection.")
    status(orders, "two", is_probed=True, last_status=200, last_ms=3)
    status(orders, "gone", is_healthy=False)
    health = api.get(f"{SERVICES}/orders/health").json()
    assert health["service"] == "orders"
    assert health["isHealthy"] is False
    assert health["check"]["path"] == "/health"
    first, second = health["targets"]
    assert (first["version"], first["url"], second["url"]) == ("v1", URL, "http://10.0.0.2:7000")
    assert [(host["host"], host["isHealthy"], host["lastError"]) for host in first["hosts"]] == [
        ("one", False, "It refused the connection."),
        ("two", True, ""),
    ]
    assert second["hosts"] == []


def test_a_service_without_checks_says_so(api: APIClient) -> None:
    add(ServiceConfig(name="orders", default_url=URL))
    health = api.get(f"{SERVICES}/orders/health").json()
    assert health == {
        "service": "orders",
        "isHealthy": True,
        "check": None,
        "targets": [{"version": "default", "url": URL, "hosts": []}],
    }
    problem_of(api.get(f"{SERVICES}/nothing/health"), 404, "not_found")


# --- asking now ----------------------------------------------------------------------------------------------------
@pytest.fixture
def servers() -> Iterator[list[Upstream]]:
    started = [Upstream(), Upstream(replying(FAILING))]
    yield started
    for each in started:
        each.close()


def test_targets_are_asked_at_once_and_each_answer_is_told(
    api: APIClient, servers: list[Upstream], settings: Any
) -> None:
    settings.EGRESS_ALLOW = ["127.0.0.0/8"]
    service = ServiceConfig(name="orders", health_checks={"active": {"path": "/up", "timeoutS": 5}})
    version = ServiceVersion(service=service, version="v1", url=servers[0].url, weight=1)
    add(service, version, *(ServiceTarget(version=version, url=server.url) for server in servers))
    answer = api.post(f"{SERVICES}/orders/health-check")
    assert answer.status_code == 200
    found = {each["url"]: each for each in answer.json()["targets"]}
    good, bad = found[servers[0].url], found[servers[1].url]
    assert (good["isHealthy"], good["status"], good["error"], good["versions"]) == (True, 200, "", ["v1"])
    assert (bad["isHealthy"], bad["status"], bad["error"]) == (False, 503, "It answered with status 503.")
    assert good["ms"] > 0
    assert servers[0].requests[0].target == b"/up"


def test_what_the_gateway_may_not_connect_to_is_not_asked(
    api: APIClient, servers: list[Upstream], settings: Any
) -> None:
    settings.EGRESS_ALLOW = []
    add(ServiceConfig(name="orders", default_url=servers[0].url))
    (target,) = api.post(f"{SERVICES}/orders/health-check").json()["targets"]
    assert (target["isHealthy"], target["status"]) == (False, None)
    assert "EGRESS_ALLOW" in target["error"]
    assert servers[0].connections == 0


def test_asking_needs_the_permission_to_change_services(orders: ServiceConfig, api: APIClient) -> None:
    _, key = admin_with_key("admin:services:read")
    reader = client_with_key(key)
    assert reader.get(f"{SERVICES}/orders/health").status_code == 200
    problem_of(reader.post(f"{SERVICES}/orders/health-check"), 403, "insufficient_scope")
    problem_of(reader.post("/admin/circuit-breaker/orders/reset"), 403, "insufficient_scope")


def test_what_was_found_is_asked_too(api: APIClient, servers: list[Upstream], settings: Any) -> None:
    settings.EGRESS_ALLOW = ["127.0.0.0/8"]
    service = ServiceConfig(name="orders", default_url=URL, discovery={"registration": {}})
    add(service)
    status(service, url=servers[0].url, version="default", source="http")
    (target,) = api.post(f"{SERVICES}/orders/health-check").json()["targets"]
    assert (target["url"], target["isHealthy"]) == (servers[0].url, True)


@pytest.mark.parametrize("path", ["up", "/u p", "/up\r\nX: y", "/ü"])
def test_a_path_that_no_request_can_have_is_refused(api: APIClient, path: str) -> None:
    body = {"name": "orders", "healthChecks": {"active": {"path": path}}}
    problem = problem_of(api.post(SERVICES, body), 422, "invalid_field")
    assert list(problem["errors"]) == ["healthChecks.active.path"]


# --- circuits ------------------------------------------------------------------------------------------------------
def test_circuits_are_listed_by_state_and_service(api: APIClient, orders: ServiceConfig) -> None:
    status(orders, "one", circuit="open", circuit_since=Now())
    status(orders, "two", circuit="closed")
    every = api.get("/admin/circuit-breaker").json()
    assert [(each["host"], each["state"]) for each in every["circuits"]] == [("one", "open"), ("two", "closed")]
    (opened,) = api.get("/admin/circuit-breaker?state=open&service=orders").json()["circuits"]
    assert (opened["service"], opened["version"], opened["url"]) == ("orders", "v1", URL)
    assert opened["since"] > 0
    problem_of(api.get("/admin/circuit-breaker?state=ajar"), 422, "invalid_field")


def test_a_reset_is_a_revision_that_says_who_and_why(api: APIClient, orders: ServiceConfig) -> None:
    status(orders, "one", circuit="open")
    status(orders, "two", circuit="closed")
    answer = api.post("/admin/circuit-breaker/orders/reset", HTTP_X_CHANGE_REASON="deployed a fix")
    assert answer.status_code == 200
    document = answer.json()
    assert (document["service"], document["circuitResets"]) == ("orders", 1)
    assert [(each["host"], each["url"]) for each in document["reset"]] == [("one", URL)]
    latest = ConfigRevision.objects.first()
    assert latest is not None
    assert answer["X-Config-Revision"] == str(latest.number)
    assert (latest.actor_name, latest.reason) == ("ann (laptop)", "deployed a fix")
    (change,) = latest.changes.all()
    assert change.before is not None and change.after is not None
    assert (change.before["circuit_resets"], change.after["circuit_resets"]) == (0, 1)
    problem_of(api.post("/admin/circuit-breaker/nothing/reset"), 404, "not_found")


def test_the_systems_health_counts_targets_with_something_wrong(api: APIClient, orders: ServiceConfig) -> None:
    status(orders, "one", is_healthy=False, circuit="open")
    status(orders, "two", is_healthy=False, is_ejected=True)
    status(orders, "two", "http://10.0.0.2:7000")
    assert api.get("/admin/health").json()["targets"] == {"unhealthy": 1, "ejected": 1, "openCircuits": 1}

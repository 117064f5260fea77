"""Services, versions, targets, weights and routes over HTTP: shapes, aliases, and what hangs on what."""

from typing import Any

import pytest
from rest_framework.test import APIClient

from core.models import ConfigRevision
from tests.admin_api import SERVICES, problem_of

pytestmark = pytest.mark.django_db
URL = "http://orders.internal:7000"
ORDERS = f"{SERVICES}/orders"


@pytest.fixture
def orders(api: APIClient) -> dict[str, Any]:
    document: dict[str, Any] = api.post(SERVICES, {"name": "orders", "defaultUrl": URL}).json()
    return document


def test_a_service_has_these_members(orders: dict[str, Any]) -> None:
    assert set(orders) == {
        *("id", "name", "description", "defaultUrl", "currentVersion", "fallbackUrl", "pathPrefix", "healthEndpoint"),
        *("implicitRoute", "requestTimeoutMs", "isActive", "revision", "createdAt", "updatedAt"),
    }
    assert orders["id"].startswith("svc_")
    assert isinstance(orders["createdAt"], int) and orders["createdAt"] > 1_600_000_000_000


def test_services_are_registered_with_the_words_of_other_gateways_too(api: APIClient) -> None:
    body = {"name": "ai-concierge", "url": "http://ai-concierge:8000", "health_endpoint": "/health", "timeout": 30}

    created = api.post("/admin/services", body)

    assert created.status_code == 201
    assert created["Location"] == "/admin/services/ai-concierge"
    read = api.get("/admin/routing/services/ai-concierge").json()
    assert (read["defaultUrl"], read["healthEndpoint"]) == ("http://ai-concierge:8000", "/health")
    assert read["requestTimeoutMs"] == 30_000


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"url": URL, "defaultUrl": URL}, "url"),
        ({"timeout": "30s"}, "requestTimeoutMs"),
        ({"timeout": 0}, "requestTimeoutMs"),
        ({"timeout": True}, "requestTimeoutMs"),
        ({"timeout": 1e300}, "requestTimeoutMs"),
        ({"circuit_breaker_enabled": True}, "circuit_breaker_enabled"),
    ],
)
def test_an_alias_is_judged_like_what_it_stands_for(api: APIClient, body: dict[str, Any], field: str) -> None:
    problem = problem_of(api.post("/admin/services", {"name": "orders", **body}), 422, "invalid_field")

    assert list(problem["errors"]) == [field]


def test_a_name_that_is_taken_is_a_conflict_at_the_name(api: APIClient, orders: dict[str, Any]) -> None:
    problem = problem_of(api.post(SERVICES, {"name": "orders"}), 409, "conflict")

    assert list(problem["errors"]) == ["name"]


def test_a_version_is_made_changed_and_deleted(api: APIClient, orders: dict[str, Any]) -> None:
    made = api.post(f"{ORDERS}/versions", {"version": "v1", "url": URL})
    assert (made.status_code, made["Location"]) == (201, f"{ORDERS}/versions/v1")
    assert (made.json()["weight"], made.json()["service"]) == (0, "orders")

    assert api.patch(f"{ORDERS}/versions/v1", {"weight": 40}).json()["weight"] == 40
    assert api.get(f"{ORDERS}/versions").json()["count"] == 1
    assert api.get("/admin/services/orders/versions/v1").json()["weight"] == 40
    assert api.delete(f"{ORDERS}/versions/v1").status_code == 204
    problem_of(api.get(f"{ORDERS}/versions/v1"), 404, "not_found")


def test_a_version_of_one_service_is_not_found_below_another(api: APIClient, orders: dict[str, Any]) -> None:
    api.post(SERVICES, {"name": "other"})
    api.post(f"{SERVICES}/other/versions", {"version": "v1", "url": URL})

    problem_of(api.get(f"{ORDERS}/versions/v1"), 404, "not_found")


def test_targets_hang_on_a_version(api: APIClient, orders: dict[str, Any]) -> None:
    api.post(f"{ORDERS}/versions", {"version": "v1", "url": URL})
    targets = f"{ORDERS}/versions/v1/targets"

    made = api.post(targets, {"url": "http://10.0.3.17:7000"}).json()
    assert (made["weight"], made["version"]) == (100, "v1")
    assert api.patch(f"{targets}/{made['id']}", {"isActive": False}).json()["isActive"] is False
    assert [target["id"] for target in api.get(targets).json()["targets"]] == [made["id"]]
    assert api.delete(f"{targets}/{made['id']}").status_code == 204
    problem_of(api.post(f"{ORDERS}/versions/v9/targets", {"url": URL}), 404, "not_found")


def test_a_split_is_one_document_and_one_revision(api: APIClient, orders: dict[str, Any]) -> None:
    for name in ("v1", "v2"):
        api.post(f"{ORDERS}/versions", {"version": name, "url": URL})
    read = api.get(f"{ORDERS}/weights")
    assert read.json() == {"weights": {"v1": 0, "v2": 0}}
    before = ConfigRevision.objects.count()

    written = api.put(f"{ORDERS}/weights", {"weights": {"v1": 90, "v2": 10}}, headers={"If-Match": read["ETag"]})

    assert written.json() == {"weights": {"v1": 90, "v2": 10}}
    assert ConfigRevision.objects.count() == before + 1
    assert written["ETag"] == f'"{written["X-Config-Revision"]}"'
    stale = api.put(f"{ORDERS}/weights", {"weights": {"v1": 1}}, headers={"If-Match": read["ETag"]})
    assert problem_of(stale, 412, "stale_revision")["current"] == int(written["X-Config-Revision"])
    assert api.get(f"{ORDERS}/weights", headers={"If-None-Match": written["ETag"]}).status_code == 304


@pytest.mark.parametrize("weights", [{"v1": -1}, {"v1": 10_001}, {"v1": 0.5}, {"v1": "9"}, {"v9": 1}, [1], None])
def test_a_split_that_is_none_is_refused(api: APIClient, orders: dict[str, Any], weights: Any) -> None:
    api.post(f"{ORDERS}/versions", {"version": "v1", "url": URL})

    problem = problem_of(api.put(f"{ORDERS}/weights", {"weights": weights}), 422, "invalid_field")

    assert all(field.startswith("weights") for field in problem["errors"])


def test_a_route_names_its_service_and_guards_it(api: APIClient, orders: dict[str, Any]) -> None:
    made = api.post(
        "/admin/routing/routes",
        {"name": "documents", "path": "/api/v1/documents/{id}", "methods": ["GET"], "service": "orders"},
    )
    assert made.status_code == 201
    assert (made.json()["service"], made.json()["queueRoute"]) == ("orders", None)

    problem = problem_of(api.delete(ORDERS), 409, "conflict")
    assert problem["routes"] == ["documents"]
    listed = api.get("/admin/routing/routes?service=orders").json()["routes"]
    assert [route["id"] for route in listed] == [made.json()["id"]]
    assert api.delete(made["Location"]).status_code == 204
    assert api.delete(ORDERS).status_code == 204


def test_a_first_route_says_that_it_ends_the_implicit_one(api: APIClient, orders: dict[str, Any]) -> None:
    first = api.post("/admin/routing/routes", {"name": "first", "path": "/api/first", "service": "orders"})
    assert "implicitRoute" in first.json()["notice"]
    second = api.post("/admin/routing/routes", {"name": "second", "path": "/api/second", "service": "orders"})
    assert "notice" not in second.json()


def test_a_route_to_what_does_not_exist_is_refused_at_that_field(api: APIClient) -> None:
    for field in ("service", "queueRoute"):
        body = {"name": "r", "path": "/api/v1/x", field: "nobody"}
        problem = problem_of(api.post("/admin/routing/routes", body), 422, "invalid_field")
        assert list(problem["errors"]) == [field]


def test_a_route_moves_from_a_service_to_a_queue(api: APIClient, orders: dict[str, Any]) -> None:
    api.post("/admin/routing/queue-routes", {"name": "email", "taskName": "email.send", "queue": "email"})
    route = api.post("/admin/routing/routes", {"name": "r", "path": "/api/v1/x", "service": "orders"})

    both = api.patch(route["Location"], {"queueRoute": "email"})
    problem_of(both, 422, "invalid_field")
    moved = api.put(route["Location"], {"name": "r", "path": "/api/v1/x", "queueRoute": "email"})

    assert (moved.json()["service"], moved.json()["queueRoute"]) == (None, "email")

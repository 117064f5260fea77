"""Routes and services in document 001's shape (R27): one object out of many rows, written whole, in one revision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from rest_framework.test import APIClient

from core.models import ConfigRevision
from routing.models import Route, ServiceConfig, ServiceTarget, ServiceVersion
from tests.admin_api import admin_with_key, client_with_key, problem_of

pytestmark = pytest.mark.django_db
ROUTES = "/api/v1/management/routes"
SERVICES = "/api/v1/management/services"
# As the document writes it.
USERS: dict[str, Any] = {
    "id": "user-service",
    "name": "User Service",
    "conditions": [{"path_pattern": "/api/v1/users/*", "method": "GET"}],
    "targets": [{"host": "user-service", "port": 8080, "weight": 100, "healthy": True}],
    "load_balance": "weighted",
    "timeout": "30s",
    "retries": 3,
    "require_auth": True,
}
USER_SERVICE = f"{ROUTES}/user-service"


def targets(*hosts: str) -> list[dict[str, Any]]:
    return [{"host": host, "port": 8080} for host in hosts]


def revisions() -> int:
    return ConfigRevision.objects.count()


@pytest.fixture
def users(api: APIClient) -> dict[str, Any]:
    response = api.post(ROUTES, USERS)
    assert response.status_code == 201, response.content
    document: dict[str, Any] = response.json()
    return document


def test_the_documents_own_example_becomes_service_version_target_and_route_in_one_revision(api: APIClient) -> None:
    before = revisions()

    response = api.post(ROUTES, USERS)

    assert response.status_code == 201, response.content
    assert revisions() == before + 1
    assert response["Location"] == USER_SERVICE
    assert response["X-Config-Revision"] == str(response.json()["revision"])
    assert {name: response.json()[name] for name in USERS} == USERS | {
        "targets": [{"host": "user-service", "port": 8080, "protocol": "http", "weight": 100, "healthy": True}]
    }
    route, service = Route.objects.get(), ServiceConfig.objects.get()
    assert (route.name, route.path, route.methods) == ("User Service", "/api/v1/users/*", ["GET"])
    assert (route.request_timeout_ms, route.retries, route.requires_key) == (30_000, {"attempts": 3}, True)
    assert (service.name, service.load_balancing) == ("user-service", {"strategy": "weighted"})
    assert ServiceVersion.objects.get().url == ServiceTarget.objects.get().url == "http://user-service:8080"
    assert response.json()["service"] == "user-service"


def test_what_was_read_may_be_sent_back_and_nothing_changes(api: APIClient, users: dict[str, Any]) -> None:
    read = api.get(USER_SERVICE)
    before = revisions()

    response = api.put(USER_SERVICE, read.json())

    assert response.status_code == 200, response.content
    assert response.json() == read.json()
    assert (revisions(), response["ETag"]) == (before, read["ETag"])


def test_a_put_makes_what_is_not_there_and_is_idempotent(api: APIClient) -> None:
    document = {name: value for name, value in USERS.items() if name != "id"}
    made = api.put(USER_SERVICE, document)
    before = revisions()
    again = api.put(USER_SERVICE, document)

    assert (made.status_code, again.status_code) == (201, 200)
    assert made.json() == again.json()
    assert revisions() == before


def test_several_conditions_are_several_routes_and_one_object(api: APIClient, users: dict[str, Any]) -> None:
    conditions: list[dict[str, Any]] = [
        {"path_pattern": "/api/v1/users/*", "methods": ["GET", "POST"]},
        {
            "path_pattern": "/api/v1/people/{id}",
            "host": "api.example.com",
            "headers": {"X-Tenant": "acme", "X-Beta": "*"},
        },
        {"path_pattern": "/api/v1/folk", "query_params": {"v": "2"}},
    ]
    before = revisions()

    response = api.put(USER_SERVICE, USERS | {"conditions": conditions})

    assert response.status_code == 200, response.content
    assert response.json()["conditions"] == conditions
    assert revisions() == before + 1
    assert sorted(Route.objects.values_list("name", flat=True)) == [
        "User Service",
        "User Service (2)",
        "User Service (3)",
    ]
    assert Route.objects.get(path="/api/v1/people/{id}").conditions == {
        "headers": [{"name": "X-Tenant", "equals": "acme"}, {"name": "X-Beta", "present": True}]
    }
    listed = api.get(ROUTES).json()
    assert (listed["count"], [each["id"] for each in listed["routes"]]) == (1, ["user-service"])
    assert listed["routes"][0] == api.get(USER_SERVICE).json()

    fewer = api.put(USER_SERVICE, USERS | {"conditions": conditions[1:2], "name": "People"})
    assert fewer.json()["conditions"] == conditions[1:2]
    assert list(Route.objects.values_list("name", flat=True)) == ["People"]


def test_targets_come_go_and_change_in_one_revision(api: APIClient, users: dict[str, Any]) -> None:
    tag, before = api.get(USER_SERVICE)["ETag"], revisions()
    wanted = [
        {"host": "b", "port": 8080, "weight": 30, "healthy": True, "protocol": "https"},
        {"host": "user-service", "port": 8080, "weight": 70, "healthy": False, "protocol": "http"},
        {"host": "::1", "port": 9, "weight": 0, "healthy": True, "protocol": "http"},
    ]

    response = api.put(USER_SERVICE, USERS | {"targets": wanted, "load_balance": "least_connections"})

    assert response.status_code == 200, response.content
    assert sorted(response.json()["targets"], key=lambda each: str(each["host"])) == sorted(
        wanted, key=lambda each: str(each["host"])
    )
    assert (revisions(), response["ETag"] != tag) == (before + 1, True)
    tag = response["ETag"]
    only_less = api.put(USER_SERVICE, USERS | {"targets": wanted[:2], "load_balance": "least_connections"})
    assert len(only_less.json()["targets"]) == 2
    assert only_less["ETag"] != tag
    assert ServiceConfig.objects.get().load_balancing == {"strategy": "least_connections"}


def test_what_this_shape_cannot_say_stays(api: APIClient, users: dict[str, Any]) -> None:
    route = Route.objects.get()
    api.patch(f"/admin/routing/routes/{route.pk}", {"stripPrefix": "/api/v1", "retries": {"attempts": 3, "baseMs": 7}})
    balancing = {"strategy": "weighted", "sticky": {"cookie": "c"}}
    api.patch("/admin/routing/services/user-service", {"loadBalancing": balancing})

    assert api.put(USER_SERVICE, USERS | {"retries": 4, "load_balance": "ip_hash"}).status_code == 200

    route.refresh_from_db()
    assert (route.strip_prefix, route.retries) == ("/api/v1", {"attempts": 4, "baseMs": 7})
    assert ServiceConfig.objects.get().load_balancing == {"strategy": "ip_hash", "sticky": {"cookie": "c"}}


def test_deleting_the_object_deletes_all_of_it_in_one_revision(api: APIClient, users: dict[str, Any]) -> None:
    before = revisions()

    assert api.delete(USER_SERVICE).status_code == 204

    assert revisions() == before + 1
    for model in (Route, ServiceConfig, ServiceVersion, ServiceTarget):
        assert not model.objects.exists()
    problem_of(api.get(USER_SERVICE), 404, "not_found")


def test_a_service_that_other_routes_lead_to_keeps_the_object_whole(api: APIClient, users: dict[str, Any]) -> None:
    api.post("/admin/routing/routes", {"name": "other", "path": "/api/other", "service": "user-service"})

    problem = problem_of(api.delete(USER_SERVICE), 409, "conflict")

    assert problem["routes"] == ["other"]
    assert Route.objects.count() == 2


def test_another_change_since_it_was_read_is_412(api: APIClient, users: dict[str, Any]) -> None:
    tag = api.get(USER_SERVICE)["ETag"]
    target = ServiceTarget.objects.get()
    path = f"/admin/routing/services/user-service/versions/v1/targets/{target.pk}"
    assert api.patch(path, {"weight": 5}).status_code == 200

    for method in (api.put, api.delete):
        problem = problem_of(method(USER_SERVICE, USERS, HTTP_IF_MATCH=tag), 412, "stale_revision")
        assert problem["current"] == users["revision"] + 1
    present = api.get(USER_SERVICE)
    assert present["ETag"] != tag
    assert api.get(USER_SERVICE, HTTP_IF_NONE_MATCH=present["ETag"]).status_code == 304
    assert api.put(USER_SERVICE, USERS, HTTP_IF_MATCH=present["ETag"]).status_code == 200


def test_an_id_is_made_of_the_name_and_a_taken_service_name_is_no_hindrance(api: APIClient) -> None:
    assert api.post(SERVICES, {"name": "user-service", "host": "a", "port": 1}).status_code == 201
    made = api.post(ROUTES, {**USERS, "id": "user-service"})
    assert (made.status_code, made.json()["service"]) == (201, "user-service-route")

    unnamed = api.post(ROUTES, {name: value for name, value in USERS.items() if name != "id"} | {"name": "V1"})
    assert (unnamed.json()["id"], unnamed.json()["service"]) == ("v1", "v1-route")  # v1 is no service's name


@pytest.mark.parametrize(("again", "field"), [(USERS, "id"), (USERS | {"id": "other"}, "name")])
def test_what_is_taken_is_a_conflict_and_leaves_nothing_behind(
    api: APIClient, users: dict[str, Any], again: dict[str, Any], field: str
) -> None:
    before = revisions()
    problem = problem_of(api.post(ROUTES, again), 409, "conflict")

    assert list(problem["errors"]) == [field]
    assert (revisions(), ServiceConfig.objects.count()) == (before, 1)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"name": ""}, "name"),
        ({"id": "a b"}, "id"),
        ({"conditions": []}, "conditions"),
        ({"conditions": [{"method": "GET"}]}, "conditions.0.path_pattern"),
        ({"conditions": [USERS["conditions"][0], {"path_pattern": "/users"}]}, "conditions.1.path_pattern"),
        ({"conditions": [{"path_pattern": "/api/x", "method": "G T"}]}, "conditions.0.methods"),
        ({"conditions": [{"path_pattern": "/api/x", "method": "GET", "methods": ["PUT"]}]}, "conditions.0.method"),
        ({"conditions": [{"path_pattern": "/api/x", "host": "a b"}]}, "conditions.0.hosts"),
        ({"conditions": [{"path_pattern": "/api/x", "headers": {"a b": "c"}}]}, "conditions.0.headers"),
        ({"conditions": [{"path_pattern": "/api/x", "headers": {"X-API-Key": "c"}}]}, "conditions.0.headers"),
        ({"conditions": [{"path_pattern": "/api/x", "colour": "red"}]}, "conditions.0.colour"),
        ({"targets": []}, "targets"),
        ({"targets": targets("a", "a")}, "targets"),
        ({"targets": [{"host": "a", "port": 0}]}, "targets.0.port"),
        ({"targets": [*targets("a"), {"host": "b/c", "port": 80}]}, "targets.1.host"),
        ({"targets": [{"host": "169.254.169.254", "port": 80}]}, "targets.0.host"),
        ({"targets": [{"host": "a", "port": 80, "weight": -1}]}, "targets.0.weight"),
        ({"targets": [{"host": "a", "port": 80, "healthy": False}]}, "targets"),
        ({"load_balance": "random"}, "load_balance"),
        ({"timeout": "30"}, "timeout"),
        ({"timeout": "0s"}, "timeout"),
        ({"timeout": "48h"}, "timeout"),
        ({"retries": 11}, "retries"),
        ({"require_auth": "yes"}, "require_auth"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_what_is_wrong_is_said_at_the_member_and_nothing_is_stored(
    api: APIClient, changes: dict[str, Any], field: str
) -> None:
    before = revisions()
    problem = problem_of(api.post(ROUTES, USERS | changes), 422, "invalid_field")

    assert list(problem["errors"]) == [field]
    assert problem["errors"][field][0].endswith(".")
    assert (revisions(), ServiceConfig.objects.exists()) == (before, False)


@pytest.mark.parametrize(
    ("given", "kept", "shown"),
    [
        ("30s", 30_000, "30s"),
        ("500ms", 500, "500ms"),
        ("1m30s", 90_000, "90s"),
        ("1.5s", 1500, "1.5s"),
        ("2h", 7_200_000, "7200s"),
        (2, 2000, "2s"),
        (0.25, 250, "250ms"),
        (None, None, None),
    ],
)
def test_timeouts_are_durations_or_seconds(api: APIClient, given: Any, kept: int | None, shown: str | None) -> None:
    response = api.post(ROUTES, USERS | {"timeout": given})
    assert response.json()["timeout"] == shown
    assert Route.objects.get().request_timeout_ms == kept


def test_routes_made_elsewhere_are_shown_and_not_written(api: APIClient) -> None:
    api.post("/admin/routing/services", {"name": "orders", "defaultUrl": "https://orders.internal/base"})
    made = api.post(
        "/admin/routing/routes",
        {
            "name": "orders",
            "path": "/api/orders/*",
            "service": "orders",
            "methods": ["GET", "PUT"],
            "requiresKey": False,
        },
    ).json()

    shown = api.get(f"{ROUTES}/{made['id']}").json()

    assert shown["conditions"] == [{"path_pattern": "/api/orders/*", "methods": ["GET", "PUT"]}]
    assert (shown["require_auth"], shown["editable"], shown["service"]) == (False, False, "orders")
    assert shown["targets"] == [
        {"host": "orders.internal", "port": 443, "protocol": "https", "weight": 100, "healthy": True}
    ]
    for method in (api.put, api.delete):
        detail = problem_of(method(f"{ROUTES}/{made['id']}", USERS | {"id": made["id"]}), 409, "conflict")["detail"]
        assert f"/admin/routing/routes/{made['id']}" in detail
    assert api.get(ROUTES).json()["count"] == 1


def test_listing_costs_the_same_for_many(api: APIClient, django_assert_max_num_queries: Callable[[int], Any]) -> None:
    for number in range(6):
        conditions = [{"path_pattern": f"/api/{number}/{path}"} for path in "ab"]
        document = USERS | {"id": f"r{number}", "name": f"r{number}", "conditions": conditions}
        assert api.post(ROUTES, document, HTTP_PREFER="wait=0").status_code == 201
    with django_assert_max_num_queries(12):
        listed = api.get(f"{ROUTES}?limit=4&ordering=-name").json()
    assert [each["id"] for each in listed["routes"]] == ["r5", "r4", "r3", "r2"]
    assert listed["count"] == 6
    assert all(len(each["conditions"]) == 2 for each in listed["routes"])
    rest = api.get(f"{ROUTES}?limit=4&ordering=-name&cursor={listed['cursor']}").json()
    assert [each["id"] for each in rest["routes"]] == ["r1", "r0"]


@pytest.mark.parametrize(
    ("scopes", "status"),
    [
        (("admin:routes:create",), 403),
        (("admin:services:create",), 403),
        (("admin:routes:create", "admin:services:create"), 201),
    ],
)
def test_who_writes_a_route_must_be_allowed_to_write_its_service(
    api: APIClient, scopes: tuple[str, ...], status: int
) -> None:
    narrow = client_with_key(admin_with_key(*scopes)[1])
    assert narrow.post(ROUTES, USERS).status_code == status


def test_a_put_that_makes_something_needs_the_scope_for_that(api: APIClient) -> None:
    narrow = client_with_key(admin_with_key("admin:routes:update", "admin:services:update")[1])
    assert narrow.put(USER_SERVICE, USERS).status_code == 403
    api.post(ROUTES, USERS)
    assert narrow.put(USER_SERVICE, USERS).status_code == 200


# --- services ------------------------------------------------------------------------------------------------------
def test_a_service_is_registered_as_the_document_writes_it(api: APIClient) -> None:
    body = {
        "name": "user-service",
        "host": "user-service.local",
        "port": 8080,
        "health": "http://user-service.local:8080/health",
    }

    response = api.post(SERVICES, body)

    assert response.status_code == 201, response.content
    assert {name: response.json()[name] for name in body} == body
    service = ServiceConfig.objects.get()
    assert (service.default_url, service.health_endpoint) == ("http://user-service.local:8080", "/health")
    assert service.health_checks == {"active": {}}
    assert api.get("/admin/routing/services/user-service").json()["id"] == response.json()["id"]


def test_a_service_is_replaced_read_listed_and_deleted(api: APIClient) -> None:
    path = f"{SERVICES}/users"
    api.post(SERVICES, {"name": "users", "host": "a", "port": 80, "health": "/health"})
    api.patch("/admin/services/users", {"healthChecks": {"active": {"intervalS": 3}, "passive": {}}})

    changed = api.put(path, {"host": "b", "port": 443, "protocol": "https", "path": "/v1", "health": "/up"})

    assert changed.status_code == 200, changed.content
    assert (changed.json()["host"], changed.json()["path"], changed.json()["health"]) == (
        "b",
        "/v1",
        "https://b:443/up",
    )
    service = ServiceConfig.objects.get()
    assert (service.default_url, service.health_checks) == (
        "https://b:443/v1",
        {"active": {"intervalS": 3}, "passive": {}},
    )
    before = revisions()
    assert api.put(path, changed.json()).json() == changed.json()
    assert revisions() == before
    assert api.put(path, {"host": "b", "port": 443}).json()["health"] == ""
    assert ServiceConfig.objects.get().health_checks == {"passive": {}}
    assert [each["name"] for each in api.get(SERVICES).json()["services"]] == ["users"]
    assert api.delete(path).status_code == 204
    problem_of(api.get(path), 404, "not_found")


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"name": "Users"}, "name"),
        ({"name": "management"}, "name"),
        ({"host": "a b"}, "host"),
        ({"host": "169.254.169.254"}, "host"),
        ({"port": 70_000}, "port"),
        ({"protocol": "ftp"}, "protocol"),
        ({"health": "http://other:8080/health"}, "health"),
        ({"health": "health"}, "health"),
        ({"health": "/a/../b"}, "health"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_what_is_wrong_with_a_service_is_said_at_the_member(
    api: APIClient, changes: dict[str, Any], field: str
) -> None:
    problem = problem_of(
        api.post(SERVICES, {"name": "users", "host": "a", "port": 8080} | changes), 422, "invalid_field"
    )

    assert list(problem["errors"]) == [field]


def test_a_service_without_an_address_of_its_own_is_shown(api: APIClient) -> None:
    api.post("/admin/services", {"name": "orders"})
    shown = api.get(f"{SERVICES}/orders").json()
    assert (shown["host"], shown["port"], shown["health"]) == (None, None, "")

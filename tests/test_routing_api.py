"""Services, versions, targets, weights and routes over HTTP: shapes, aliases, and what hangs on what."""

from typing import Any

import pytest
from rest_framework.test import APIClient

from core.api_problems import camel
from core.models import ConfigRevision
from routing.policies import SERVICE_POLICIES
from tests.admin_api import SERVICES, admin_with_key, client_with_key, problem_of

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
        *("connectTimeoutMs", "idleTimeoutMs", "totalTimeoutMs", "upstreamCredentials", "circuitResets", "bundles"),
        *(camel(name) for name in SERVICE_POLICIES),
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


def test_upstream_credentials_are_kept_and_shown_as_references(api: APIClient, orders: dict[str, Any]) -> None:
    credentials = [{"header": "Authorization", "value": "Bearer {secret://env/UPSTREAM_ORDERS}"}]

    assert api.patch(ORDERS, {"upstreamCredentials": credentials}).status_code == 200

    assert api.get(ORDERS).json()["upstreamCredentials"] == credentials


@pytest.mark.parametrize(
    ("credential", "field"),
    [
        ({"header": "Host", "value": "{secret://env/UPSTREAM_A}"}, "upstreamCredentials[0].header"),
        ({"header": "X A", "value": "{secret://env/UPSTREAM_A}"}, "upstreamCredentials[0].header"),
        ({"header": "X-A", "value": "hunter2"}, "upstreamCredentials[0].value"),
        ({"header": "X-A", "value": "{secret://env/SECRET_KEY}"}, "upstreamCredentials[0].value"),
        ({"header": "X-A", "value": "{secret://file/../a}"}, "upstreamCredentials[0].value"),
    ],
)
def test_an_upstream_credential_that_could_not_be_sent_is_refused_at_its_member(
    api: APIClient, orders: dict[str, Any], credential: dict[str, str], field: str
) -> None:
    problem = problem_of(api.patch(ORDERS, {"upstreamCredentials": [credential]}), 422, "invalid_field")

    assert list(problem["errors"]) == [field]
    assert "hunter2" not in str(problem)


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


# --- aggregates ----------------------------------------------------------------------------------------------------
AGGREGATION = {"parts": [{"key": "orders", "service": "orders", "path": "/of/${path.id}"}]}


def test_a_route_may_lead_to_an_aggregate_of_services(api: APIClient, orders: dict[str, Any]) -> None:
    made = api.post("/admin/routing/routes", {"name": "page", "path": "/api/page/{id}", "aggregation": AGGREGATION})

    assert made.status_code == 201
    assert (made.json()["aggregation"], made.json()["service"]) == (AGGREGATION, None)
    problem = problem_of(api.delete(ORDERS), 409, "conflict")
    assert problem["routes"] == ["page"]


@pytest.mark.parametrize(
    ("part", "field"),
    [
        ({"service": "nobody"}, "aggregation.parts[0].service"),
        ({"path": "/of/${path.other}"}, "aggregation.parts[0].path"),
        ({"path": "of"}, "aggregation.parts[0].path"),
        ({"key": "_partial"}, "aggregation.parts[0].key"),
        ({"key": "a b"}, "aggregation.parts[0].key"),
        ({"timeoutMs": 0}, "aggregation.parts[0].timeoutMs"),
    ],
)
def test_a_part_that_could_not_be_called_is_refused_at_its_member(
    api: APIClient, orders: dict[str, Any], part: dict[str, Any], field: str
) -> None:
    aggregation = {"parts": [AGGREGATION["parts"][0] | part]}
    body = {"name": "page", "path": "/api/page/{id}", "aggregation": aggregation}
    problem = problem_of(api.post("/admin/routing/routes", body), 422, "invalid_field")

    assert list(problem["errors"]) == [field]


def test_what_would_do_nothing_on_an_aggregate_is_refused(api: APIClient, orders: dict[str, Any]) -> None:
    body = {"name": "page", "path": "/api/page/{id}", "aggregation": AGGREGATION, "caching": {}, "compression": {}}
    problem = problem_of(api.post("/admin/routing/routes", body), 422, "invalid_field")

    assert list(problem["errors"]) == ["caching"]


# --- the gateway as a whole ----------------------------------------------------------------------------------------
GATEWAY = "/admin/gateway"
MAINTENANCE = {"message": "Back at nine.", "retryAfterS": 60}


def test_the_gateway_is_there_before_anybody_has_said_anything_about_it(api: APIClient) -> None:
    before = ConfigRevision.objects.count()
    response = api.get(GATEWAY)

    assert response.status_code == 200
    assert (response.json()["id"], response.json()["maintenance"], response.json()["revision"]) == ("gateway", None, 0)
    assert response["ETag"] == '"0"'
    assert api.put(GATEWAY, {"maintenance": None}, HTTP_IF_MATCH='"0"').status_code == 200
    assert api.patch(GATEWAY, {"maintenance": None}).json()["revision"] == 0
    assert ConfigRevision.objects.count() == before


def test_maintenance_begins_and_ends_in_revisions(api: APIClient) -> None:
    begun = api.patch(GATEWAY, {"maintenance": MAINTENANCE}, HTTP_X_CHANGE_REASON="new disks")
    assert (begun.status_code, begun.json()["maintenance"]) == (200, MAINTENANCE)
    assert api.get(GATEWAY).json() == begun.json()
    problem_of(api.put(GATEWAY, {"maintenance": None}, HTTP_IF_MATCH='"0"'), 412, "stale_revision")
    ended = api.put(GATEWAY, {"maintenance": None}, HTTP_IF_MATCH=begun["ETag"])
    assert ended.json()["maintenance"] is None

    kinds = [
        (revision["reason"], change["kind"], change["operation"], change["before"], change["after"]["maintenance"])
        for revision in api.get("/admin/revisions?kind=gateway").json()["revisions"]
        for change in revision["changes"]
    ]
    assert kinds[1] == ("new disks", "gateway", "create", None, MAINTENANCE)
    assert (kinds[0][2], kinds[0][3]["maintenance"], kinds[0][4]) == ("update", MAINTENANCE, None)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"maintenance": {"message": ""}}, "maintenance.message"),
        ({"maintenance": {"retryAfterS": 0}}, "maintenance.retryAfterS"),
        ({"maintenance": {"colour": "red"}}, "maintenance"),
        ({"maintenance": True}, "maintenance"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_what_is_wrong_about_the_gateway_is_said_at_the_member(
    api: APIClient, body: dict[str, Any], field: str
) -> None:
    assert list(problem_of(api.patch(GATEWAY, body), 422, "invalid_field")["errors"]) == [field]


def test_nobody_makes_or_deletes_the_gateway_and_it_has_a_scope_of_its_own(api: APIClient) -> None:
    problem_of(api.post(GATEWAY, {}), 405, "method_not_allowed")
    problem_of(api.delete(GATEWAY), 405, "method_not_allowed")
    reader = client_with_key(admin_with_key("admin:gateway:read")[1])
    assert reader.get(GATEWAY).status_code == 200
    problem_of(reader.patch(GATEWAY, {"maintenance": None}), 403, "insufficient_scope")


def test_a_put_of_the_gateway_that_names_nothing_ends_nothing(api: APIClient) -> None:
    api.patch(GATEWAY, {"maintenance": {}})

    problem_of(api.put(GATEWAY, {}), 422, "invalid_field")
    assert api.get(GATEWAY).json()["maintenance"] is not None

"""The OpenAPI document, its pages, and the control process's health."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
from django.core.management import call_command
from jsonschema import Draft202012Validator
from rest_framework.test import APIClient

pytestmark = pytest.mark.django_db


@pytest.fixture
def document(api: APIClient) -> dict[str, Any]:
    response = APIClient().get("/openapi.json")
    assert response["Content-Type"] == "application/json"
    document: dict[str, Any] = response.json()
    return document


def test_the_document_is_valid_and_written_without_a_warning(tmp_path: Any) -> None:
    call_command("spectacular", "--validate", "--fail-on-warn", "--file", str(tmp_path / "openapi.yaml"))


def test_every_operation_may_answer_with_a_problem_and_says_who_may_call(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1")
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            assert operation["responses"]["default"] == {"$ref": "#/components/responses/Problem"}, (path, method)
            security = operation.get("security", [])
            is_public = path in ("/validate", "/setup", "/auth/login", "/auth/refresh")
            assert bool(security) is not is_public, (path, method)
            admins: list[dict[str, list[str]]] = [{"adminKey": []}, {"bearer": []}, {"panelSession": []}]
            others: dict[str, list[dict[str, list[str]]]] = {
                "/admin/discovery/": [{"registrationToken": []}],
                "/auth/": [{"endUser": []}],
            }
            expected = next((each for start, each in others.items() if path.startswith(start)), admins)
            assert is_public or security == expected, (path, method)


def test_every_path_of_the_interface_is_described(document: dict[str, Any]) -> None:
    expected = {
        "/admin/routing/services/{name}/versions/{version}/targets/{id}": {"get", "put", "patch", "delete"},
        "/admin/services/{name}": {"get", "put", "patch", "delete"},
        "/admin/routing/services/{name}/weights": {"get", "put"},
        "/admin/routing/queue-routes": {"get", "post"},
        "/admin/access/applications/{application}/whitelist": {"get", "post"},
        "/keys/{id}/suspend": {"post"},
        "/admin/revisions/{number}": {"get"},
        "/admin/queues/tasks": {"get"},
        "/auth/profile": {"get", "patch"},
        "/admin/access/end-users/{user}/sessions/{id}": {"get", "delete"},
        "/admin/access/signing-keys/rotate": {"post"},
        "/validate": {"post"},
        "/setup": {"post"},
    }
    for path, methods in expected.items():
        assert set(document["paths"][path]) == methods, path


def test_lists_and_conditional_requests_are_described(document: dict[str, Any]) -> None:
    listing = document["paths"]["/keys"]["get"]
    reference = listing["responses"]["200"]["content"]["application/json"]["schema"]["$ref"]
    page = document["components"]["schemas"][reference.rpartition("/")[2]]
    assert set(page["properties"]) == {"keys", "count", "cursor"}
    assert {"limit", "cursor", "ordering", "search", "status"} <= {each["name"] for each in listing["parameters"]}


@pytest.mark.parametrize(
    ("path", "method", "headers"),
    [
        ("/admin/routing/services", "post", {"Prefer", "X-Change-Reason"}),
        ("/admin/routing/services/{name}", "get", {"If-None-Match"}),
        ("/admin/routing/services/{name}", "put", {"If-Match", "Prefer", "X-Change-Reason"}),
        ("/admin/routing/services/{name}/weights", "get", {"If-None-Match"}),
        ("/admin/routing/services/{name}/weights", "put", {"If-Match", "Prefer", "X-Change-Reason"}),
        ("/keys/{id}", "get", set()),  # it tells more than its revisions
        ("/keys/{id}/suspend", "post", {"If-Match", "Prefer", "X-Change-Reason"}),
        ("/keys/{id}/rotate", "post", {"If-Match", "Prefer", "X-Change-Reason"}),
        ("/admin/access/users/{id}/deactivate", "post", {"If-Match", "Prefer", "X-Change-Reason"}),
        ("/admin/access/end-users/{id}/reset-password", "post", {"If-Match", "Prefer", "X-Change-Reason"}),
        ("/admin/access/signing-keys/{id}", "get", set()),
        ("/admin/access/signing-keys/{id}/revoke", "post", {"If-Match", "Prefer", "X-Change-Reason"}),
        ("/admin/access/signing-keys/rotate", "post", {"Prefer", "X-Change-Reason"}),
        ("/admin/circuit-breaker/{name}/reset", "post", {"Prefer", "X-Change-Reason"}),
        ("/admin/cache/purge", "post", {"X-Change-Reason"}),
        ("/admin/revisions/{number}", "get", set()),
    ],
)
def test_the_headers_that_count_are_described(
    document: dict[str, Any], path: str, method: str, headers: set[str]
) -> None:
    operation = document["paths"][path][method]
    assert {each["name"] for each in operation["parameters"] if each["in"] == "header"} == headers
    assert ("304" in operation["responses"]) is ("If-None-Match" in headers)


def test_everything_is_described_in_words_for_users(document: dict[str, Any]) -> None:
    purposes = {tag["name"]: tag["description"] for tag in document["tags"]}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            where = f"{method} {path}"
            assert operation["summary"] and all(purposes[tag] for tag in operation["tags"]), where
            assert all(parameter["description"] for parameter in operation.get("parameters", ())), where
            assert all("$ref" in answer or answer["description"] for answer in operation["responses"].values()), where
    # rules and features by number, reStructuredText, and what base classes say to engineers
    foreign = re.compile(r"\b[A-Z]\d+\b[:.,]|rules? \d+|document 00\d|``|listed in Meta|unknown member is an error at")
    assert not [text for text in _descriptions(document) if foreign.search(text)]


def _descriptions(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("description"), str):
            yield node["description"]
        for inner in node.values():
            yield from _descriptions(inner)
    elif isinstance(node, list):
        for inner in node:
            yield from _descriptions(inner)


def test_an_example_of_a_problem_is_one(document: dict[str, Any]) -> None:
    for status, answer in document["paths"]["/admin/routing/services/{name}"]["put"]["responses"].items():
        if "$ref" in answer and status != "default":
            named = document["components"]["responses"][answer["$ref"].rpartition("/")[2]]
            example = named["content"]["application/problem+json"]["example"]
            assert example["status"] == int(status)
            Draft202012Validator({**document, "$ref": "#/components/schemas/Problem"}).validate(example)


@pytest.mark.parametrize(
    ("method", "path", "is_required"),
    [
        ("post", "/admin/cache/purge", True),
        ("put", "/admin/gateway", True),
        ("patch", "/admin/gateway", False),
        ("post", "/admin/routing/services/{name}/rollouts", True),
        ("post", "/admin/routing/services/{name}/rollouts/{id}/promote", False),
        ("post", "/keys/{id}/rotate", False),
    ],
)
def test_a_body_is_required_where_something_must_be_said(
    document: dict[str, Any], method: str, path: str, is_required: bool
) -> None:
    assert document["paths"][path][method]["requestBody"].get("required", False) is is_required


def test_a_purge_says_exactly_one_thing(document: dict[str, Any]) -> None:
    purge = Draft202012Validator({**document, "$ref": "#/components/schemas/WhatToPurgeRequest"})
    assert purge.is_valid({"tag": "a"}) and purge.is_valid({"all": True})
    for wrong in ({}, {"tag": "a", "all": True}, {"all": False}, {"host": "a"}):
        assert not purge.is_valid(wrong)


@pytest.mark.parametrize(
    ("path", "right", "wrong"),
    [
        (
            "/admin/routing/services",
            {"name": "orders", "currentVersion": "", "requestTimeoutMs": 1},
            [{"name": "Orders"}, {"name": "orders "}, {"currentVersion": "v 2"}, {"requestTimeoutMs": 0}],
        ),
        (
            "/admin/routing/services/{name}/versions",
            {"version": "v2", "url": "http://a.internal", "weight": 10_000},
            [{"version": "v 2"}, {"weight": 10_001}],
        ),
        (
            "/admin/routing/routes",
            {"name": "r", "path": "/api/a", "methods": ["GET"], "service": "any"},
            [{"path": "/a"}, {"methods": ["get"]}],
        ),
        (
            "/admin/access/applications",
            {"name": "a", "allowedServices": ["*"], "allowedVersions": ["v1", "2"], "rateLimit": 1, "priority": 9},
            [{"allowedServices": [" orders"]}, {"allowedVersions": ["v1", "v1"]}, {"rateLimit": 0}, {"priority": 10}],
        ),
        (
            "/admin/routing/queue-routes",
            {"name": "mail", "taskName": "mail.send", "queue": "mail", "expiresS": 1},
            [{"taskName": "mail send"}, {"queue": "a b"}, {"expiresS": 0}],
        ),
    ],
)
def test_the_bounds_of_fields_are_those_that_are_asked_for(
    document: dict[str, Any], api: APIClient, path: str, right: dict[str, Any], wrong: list[dict[str, Any]]
) -> None:
    schema = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    validator = Draft202012Validator({**document, **schema})
    api.post("/admin/routing/services", {"name": "any", "defaultUrl": "http://a.internal"})
    for each in wrong:
        assert not validator.is_valid(right | each), each
        answer = api.post(path.format(name="any"), right | each)
        assert (answer.status_code, {name.partition(".")[0] for name in answer.json()["errors"]}) == (422, set(each))
    assert validator.is_valid(right)
    assert api.post(path.format(name="any"), right).status_code == 201


def test_a_policy_is_one_schema_wherever_it_is_set(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    reference = {"$ref": "#/components/schemas/Cors"}
    assert schemas["Cors"]["properties"]["origins"]
    for name in ("Route", "RouteRequest", "PatchedServiceRequest"):
        assert schemas[name]["properties"]["cors"] == {"oneOf": [reference, {"type": "null"}]}
    assert schemas["BundleRequest"]["properties"]["policies"]["properties"]["cors"] == reference


def test_every_schema_is_one(document: dict[str, Any]) -> None:
    for schema in document["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)


def test_what_a_new_key_may_lack_is_not_required(document: dict[str, Any]) -> None:
    assert not {"warning", "expiresAt"} & set(document["components"]["schemas"]["IssuedKey"]["required"])


@pytest.mark.parametrize("path", ["/docs", "/redoc"])
def test_the_pages_need_no_other_host_and_no_inline_script(api: APIClient, settings: Any, path: str) -> None:
    plain = {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"}
    settings.STORAGES = settings.STORAGES | {"staticfiles": plain}

    page = APIClient().get(path)

    html = page.content.decode()
    assert page.status_code == 200
    assert "script-src 'self';" in page["Content-Security-Policy"]
    assert "https://" not in html and "http://" not in html
    assert html.count("<script") == html.count("<script src=")
    assert "<style" not in html


def test_the_script_of_the_docs_page_is_served(api: APIClient, settings: Any) -> None:
    plain = {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"}
    settings.STORAGES = settings.STORAGES | {"staticfiles": plain}

    script = APIClient().get("/docs?script=")

    assert script["Content-Type"].startswith("application/javascript")
    assert b"/openapi.json" in script.content


def test_the_process_says_that_it_lives_to_anybody(api: APIClient, django_assert_num_queries: Any) -> None:
    with django_assert_num_queries(0):
        assert APIClient().get("/health").json() == {"status": "ok"}


def test_the_systems_health_is_for_admins(api: APIClient) -> None:
    health = api.get("/admin/health").json()

    assert set(health) == {"status", "revision", "database", "nodes", "tasks", "targets"}
    assert health["status"] == "degraded"  # no node is live
    assert health["nodes"] == {"live": 0, "behind": [], "withProblems": []}


def test_a_route_that_was_made_elsewhere_is_as_described(document: dict[str, Any], api: APIClient) -> None:
    api.post("/admin/routing/services", {"name": "orders", "defaultUrl": "http://orders.internal"})
    route = {"name": "r" * 100, "path": "/api/a", "service": "orders", "description": "d" * 2000}
    made = api.post("/admin/routing/routes", {**route, "conditions": {"query": [{"name": "q", "equals": "v"}]}})
    assert made.status_code == 201, made.json()
    (shown,) = api.get("/api/v1/management/routes").json()["routes"]
    assert (shown["name"], shown["editable"]) == ("r" * 100, False)
    Draft202012Validator({**document, "$ref": "#/components/schemas/ManagedRoute"}).validate(shown)


def test_a_service_without_a_host_of_its_own_is_as_described(document: dict[str, Any], api: APIClient) -> None:
    api.post("/admin/services", {"name": "orders"})
    shown = api.get("/api/v1/management/services/orders").json()
    read = document["paths"]["/api/v1/management/services/{name}"]["get"]["responses"]["200"]
    reference = read["content"]["application/json"]["schema"]["$ref"]
    Draft202012Validator({**document, "$ref": reference}).validate(shown)
    assert {"200", "201"} <= set(document["paths"]["/api/v1/management/routes/{id}"]["put"]["responses"])

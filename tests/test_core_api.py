"""What holds of every endpoint of the admin API: who may call it, and that whatever fails is a problem document."""

from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import DataError, IntegrityError, InterfaceError, OperationalError
from django.http import Http404
from rest_framework.test import APIClient

from core.api_problems import as_fault
from core.faults import ClientFault
from core.models import ConfigRevision
from keys.authentication import FAILURES
from keys.models import ApiKey
from keys.services import create_key
from tests.admin_api import ANN, SERVICES, admin_with_key, client_with_key, problem_of

pytestmark = pytest.mark.django_db
READABLE = [
    SERVICES,
    "/admin/services",
    "/admin/routing/routes",
    "/admin/routing/queue-routes",
    "/admin/access/applications",
    "/admin/revisions",
    "/admin/nodes",
    "/admin/queues/tasks",
    "/admin/circuit-breaker",
    "/admin/health",
    "/keys",
]


@pytest.fixture(autouse=True)
def forget_failures() -> None:
    FAILURES.clear()


@pytest.mark.parametrize("path", READABLE)
def test_nothing_is_open(api: APIClient, path: str) -> None:
    api.credentials()

    response = api.get(path)

    problem_of(response, 401, "missing_credentials")
    assert response["WWW-Authenticate"].startswith("Bearer")


@pytest.mark.parametrize("path", READABLE)
def test_an_admin_key_opens_everything_in_either_header(api: APIClient, path: str) -> None:
    assert api.get(path).status_code == 200
    _, key = admin_with_key()
    api.credentials(HTTP_AUTHORIZATION=f"Bearer {key}")
    assert api.get(path).status_code == 200


def test_two_different_credentials_are_ambiguous(api: APIClient) -> None:
    api.credentials(HTTP_AUTHORIZATION="Bearer km_x", HTTP_X_API_KEY="km_y")

    problem_of(api.get(SERVICES), 400, "bad_request")


def test_a_wrong_key_is_not_helped_by_a_session(api: APIClient) -> None:
    api.credentials(HTTP_X_API_KEY="km_wrong")
    api.force_login(User.objects.get())

    problem_of(api.get(SERVICES), 401, "invalid_credentials")


def test_the_key_of_an_application_is_known_but_may_not_administer(api: APIClient) -> None:
    key = create_key(name="k", owner="mobile", **ANN).key

    problem_of(client_with_key(key).get(SERVICES), 403, "insufficient_scope")


@pytest.mark.parametrize(
    ("scope", "method", "path", "status"),
    [
        ("admin:services:read", "get", SERVICES, 200),
        ("admin:services:read", "post", SERVICES, 403),
        ("admin:services:read", "get", "/admin/routing/routes", 403),
        ("admin:services:*", "post", SERVICES, 422),
        ("admin:services:update", "patch", f"{SERVICES}/orders", 404),
        ("admin:services:create", "delete", f"{SERVICES}/orders", 403),
        ("admin:keys:read", "get", "/keys", 200),
        ("admin:keys:create", "post", "/keys/key_x/suspend", 403),
        ("admin:keys:update", "post", "/keys/key_x/suspend", 404),
        ("admin:applications:update", "post", "/admin/access/applications/app_x/whitelist", 404),
        ("admin:system:read", "get", "/admin/health", 200),
        ("admin:*", "delete", f"{SERVICES}/orders", 404),
    ],
)
def test_a_key_may_what_its_scopes_say(api: APIClient, scope: str, method: str, path: str, status: int) -> None:
    client = client_with_key(admin_with_key(scope)[1])
    body = {"endpointPath": "/api/x"} if path.endswith("whitelist") else {}

    assert getattr(client, method)(path, body).status_code == status


def test_failures_of_an_address_are_counted_and_then_not_even_looked_at(api: APIClient, settings: Any) -> None:
    settings.AUTH_FAILURES_PER_MINUTE = 3
    right = admin_with_key()[1]
    wrong = client_with_key("km_wrong")
    for _ in range(3):
        problem_of(wrong.get(SERVICES), 401, "invalid_credentials")

    refused = wrong.get(SERVICES)
    problem_of(refused, 429, "rate_limited")
    assert 1 <= int(refused["Retry-After"]) <= 20
    assert client_with_key(right).get(SERVICES).status_code == 429
    assert client_with_key(right).get(SERVICES, REMOTE_ADDR="192.0.2.7").status_code == 200


def test_a_panel_session_reads_and_writes_only_with_its_csrf_token(api: APIClient) -> None:
    client = APIClient(enforce_csrf_checks=True)
    client.force_login(User.objects.get())

    assert client.get(SERVICES).status_code == 200
    problem_of(client.post(SERVICES, {"name": "orders"}), 403, "blocked")
    token = "a" * 32
    client.cookies["portcullis_csrf"] = token
    assert client.post(SERVICES, {"name": "orders"}, HTTP_X_CSRFTOKEN=token).status_code == 201
    assert ConfigRevision.objects.order_by("-number")[0].actor_kind == "user"


def test_a_session_without_staff_rights_is_no_admin(api: APIClient) -> None:
    client = APIClient()
    client.force_login(User.objects.create_user("bob"))

    problem_of(client.get(SERVICES), 401, "missing_credentials")


def test_use_of_an_admin_key_is_noted(api: APIClient) -> None:
    api.get(SERVICES)

    assert ApiKey.objects.get().last_used_at is not None


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (OperationalError("connection refused: password=hunter2"), 503, "dependency_unavailable"),
        (InterfaceError("connection already closed"), 503, "dependency_unavailable"),
        (IntegrityError("duplicate key"), 409, "conflict"),
        (DataError("value out of range"), 400, "bad_request"),
        (Http404("a secret path"), 404, "not_found"),
        (ClientFault("conflict", "So it is."), 409, "conflict"),
        (ZeroDivisionError("hunter2"), 500, "internal_error"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_each_failure_has_its_code_and_tells_no_internals(error: Exception, status: int, code: str) -> None:
    fault = as_fault(error)

    assert (fault.status, fault.code) == (status, code)
    assert "hunter2" not in fault.detail
    assert (fault.retry_after_s is not None) == (status == 503)


@pytest.mark.parametrize("path", [*READABLE, f"{SERVICES}/orders", "/keys/key_x", f"{SERVICES}/orders/weights"])
def test_while_the_database_is_away_every_endpoint_says_so(
    api: APIClient, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    def away(*_: Any, **__: Any) -> None:
        raise OperationalError("connection refused")

    monkeypatch.setattr("django.db.models.sql.compiler.SQLCompiler.execute_sql", away)

    response = api.get(path)

    problem_of(response, 503, "dependency_unavailable")
    assert int(response["Retry-After"]) > 0


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("get", "/nowhere", 404, "not_found"),
        ("get", f"{SERVICES}/none", 404, "not_found"),
        ("get", f"{SERVICES}/a%00b", 404, "not_found"),
        ("get", f"{SERVICES}/%F0%9F%92%A9", 404, "not_found"),
        ("get", f"/admin/revisions/{10**30}", 404, "not_found"),
        ("get", "/admin/revisions/0", 404, "not_found"),
        ("get", f"{SERVICES}/none/versions", 404, "not_found"),
        ("get", f"{SERVICES}/none/weights", 404, "not_found"),
        ("get", "/admin/access/applications/app_x/whitelist", 404, "not_found"),
        ("put", SERVICES, 405, "method_not_allowed"),
        ("post", "/admin/nodes", 405, "method_not_allowed"),
        ("get", "/validate", 405, "method_not_allowed"),
    ],
)
def test_what_is_not_there_is_a_problem_too(api: APIClient, method: str, path: str, status: int, code: str) -> None:
    response = getattr(api, method)(path)

    problem_of(response, status, code)
    assert ("Allow" in response) or status != 405


def test_the_request_id_is_the_clients_if_it_is_one(api: APIClient) -> None:
    assert api.get(SERVICES, headers={"X-Request-ID": "abc-1"})["X-Request-ID"] == "abc-1"
    for sent in ("a b", "x" * 200, ""):
        assert len(api.get(SERVICES, headers={"X-Request-ID": sent})["X-Request-ID"]) == 32

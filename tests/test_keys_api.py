"""Keys, validation and setup over HTTP."""

from typing import Any

import pytest
from django.contrib.auth.models import User
from django.utils import timezone
from rest_framework.test import APIClient

from access.models import Application, SetupCompletion
from keys.authentication import FAILURES
from keys.models import ApiKey
from keys.public_api import VALIDATIONS
from tests.admin_api import admin_with_key, client_with_key, problem_of

pytestmark = pytest.mark.django_db
EXAMPLE = {"name": "Service API Key", "owner": "Example Service", "scopes": ["read:data", "write:data"]}


@pytest.fixture(autouse=True)
def forget_callers() -> None:
    FAILURES.clear()
    VALIDATIONS.clear()


def _create(api: APIClient, **body: Any) -> dict[str, Any]:
    response = api.post("/keys", EXAMPLE | body)
    assert response.status_code == 201, response.content
    document: dict[str, Any] = response.json()
    return document


def test_a_created_key_is_shown_once(api: APIClient) -> None:
    response = api.post("/keys", EXAMPLE | {"expiresInDays": 365})

    created = response.json()
    assert response.status_code == 201
    assert response["Cache-Control"] == "no-store"
    assert created["key"].startswith("km_")
    assert {name: created[name] for name in EXAMPLE} == EXAMPLE
    assert created["status"] == "active"
    assert created["expiresAt"] - created["createdAt"] == pytest.approx(365 * 86_400_000, abs=5000)
    assert "warning" not in created
    for path in ("/keys", response["Location"], "/admin/revisions"):
        assert created["key"] not in api.get(path).content.decode()


def test_a_key_without_an_end_comes_with_a_warning(api: APIClient) -> None:
    created = _create(api, expiresInDays=None)

    assert created["expiresAt"] is None
    assert created["warning"]


def test_the_last_use_of_a_key_is_news_although_it_is_no_revision(api: APIClient) -> None:
    seen = api.get(f"/keys/{_create(api)['id']}")
    ApiKey.objects.filter(pk=seen.json()["id"]).update(last_used_at=timezone.now())

    again = api.get(f"/keys/{seen.json()['id']}", headers={"If-None-Match": seen["ETag"]})

    assert (again.status_code, again["ETag"]) == (200, seen["ETag"])
    assert again.json()["lastUsedAt"] is not None


def test_keys_are_listed_as_documented(api: APIClient) -> None:
    created = _create(api)

    page = api.get("/keys?isAdmin=false").json()

    assert set(page) == {"keys", "count", "cursor"}
    assert (page["count"], page["cursor"]) == (1, None)
    assert {"id", "name", "owner", "scopes", "status", "createdAt", "expiresAt"} <= set(page["keys"][0])
    assert "key" not in page["keys"][0]
    read = api.get(f"/keys/{created['id']}").json()
    assert read["lastUsedAt"] is None
    assert read == page["keys"][0]


def test_a_revoked_key_is_answered_as_documented(api: APIClient) -> None:
    created = _create(api)

    answer = api.delete(f"/keys/{created['id']}")

    assert answer.status_code == 200
    assert set(answer.json()) == {"id", "status", "revokedAt"}
    assert (answer.json()["id"], answer.json()["status"]) == (created["id"], "revoked")
    assert api.get("/keys?status=revoked").json()["count"] == 1
    problem_of(api.patch(f"/keys/{created['id']}", {"name": "x"}), 409, "conflict")


def test_a_key_is_suspended_and_activated(api: APIClient) -> None:
    path = f"/keys/{_create(api)['id']}"

    assert api.post(f"{path}/suspend").json()["status"] == "suspended"
    assert api.get("/keys?isActive=false").json()["count"] == 1
    assert api.post(f"{path}/activate").json()["status"] == "active"
    assert api.patch(path, {"isActive": False}).json()["status"] == "suspended"


def test_a_put_takes_neither_expiry_nor_scopes_away(api: APIClient) -> None:
    created = _create(api)

    put = api.put(f"/keys/{created['id']}", {"name": "renamed"}).json()

    assert put["name"] == "renamed"
    assert (put["expiresAt"], put["scopes"]) == (created["expiresAt"], created["scopes"])


def test_an_expired_key_says_so(api: APIClient) -> None:
    created = _create(api)

    assert api.patch(f"/keys/{created['id']}", {"expiresAt": 1_600_000_000_000}).json()["status"] == "expired"
    assert [key["id"] for key in api.get("/keys?status=expired").json()["keys"]] == [created["id"]]
    assert api.get("/keys?status=active").json()["count"] == 1  # the admin's own


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"scopes": ["read:data", "admin:*"]}, "scopes"),
        ({"scopes": "read:data"}, "scopes"),
        ({"expiresInDays": 0}, "expiresInDays"),
        ({"expiresInDays": 1.5}, "expiresInDays"),
        ({"expiresInDays": "365"}, "expiresInDays"),
        ({"applicationId": "app_none"}, "applicationId"),
        ({"name": ""}, "name"),
        ({"key": "km_mine"}, "key"),
    ],
)
def test_what_is_no_key_is_said_at_its_field(api: APIClient, body: dict[str, Any], field: str) -> None:
    problem = problem_of(api.post("/keys", EXAMPLE | body), 422, "invalid_field")

    assert list(problem["errors"]) == [field]


def test_an_admin_key_belongs_to_whoever_makes_it_and_gives_no_more(api: APIClient) -> None:
    lesser = client_with_key(admin_with_key("admin:keys:*", username="kim")[1])

    made = _create(lesser, scopes=["admin:keys:read"])

    row = ApiKey.objects.get(pk=made["id"])
    assert row.user == User.objects.get(username="kim")
    assert (made["isAdmin"], made["applicationId"]) == (True, None)
    problem_of(lesser.post("/keys", EXAMPLE | {"scopes": ["admin:*"]}), 403, "insufficient_scope")
    application = Application.objects.create(name="mobile")
    body = EXAMPLE | {"scopes": ["admin:keys:read"], "applicationId": application.pk}
    problem_of(lesser.post("/keys", body), 422, "invalid_field")


# --- /validate (rule 17) -------------------------------------------------------------------------------------------
def test_validation_answers_as_documented(api: APIClient) -> None:
    created = _create(api, scopes=["read:data"])
    anybody = APIClient()

    valid = anybody.post("/validate", {"key": created["key"], "scopes": ["read:data"]})
    lacking = anybody.post("/validate", {"key": created["key"], "scopes": ["read:data", "admin:data"]})

    assert valid.json() == {
        "isValid": True,
        "keyId": created["id"],
        "scopes": ["read:data"],
        "owner": "Example Service",
    }
    assert lacking.json() == {
        "isValid": False,
        "reason": "insufficient_scope",
        "requiredScopes": ["read:data", "admin:data"],
        "providedScopes": ["read:data"],
    }
    assert (valid.status_code, lacking.status_code) == (200, 200)
    assert anybody.post("/validate", {"key": created["key"]}).json()["isValid"] is True


def test_whatever_is_wrong_with_a_key_the_answer_is_the_same(api: APIClient) -> None:
    revoked, suspended, expired = (_create(api) for _ in range(3))
    api.delete(f"/keys/{revoked['id']}")
    api.post(f"/keys/{suspended['id']}/suspend")
    api.patch(f"/keys/{expired['id']}", {"expiresAt": 1_600_000_000_000})
    admin = admin_with_key()[1]

    for key in (revoked["key"], suspended["key"], expired["key"], admin, "km_" + "0" * 48, "x", ""):
        answer = APIClient().post("/validate", {"key": key, "scopes": ["read:data"]})
        assert (answer.status_code, answer.json()) == (200, {"isValid": False, "reason": "invalid_key"})


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"key": None},
        {"key": 5},
        {"key": "x", "scopes": "y"},
        {"key": "a" * 1001},
        {"key": "x", "scopes": [[["y"]]]},
        {"key": "x", "scopes": ["y"] * 1001},
    ],
)
def test_validation_of_nothing_is_refused(body: dict[str, Any], api: APIClient) -> None:
    problem_of(APIClient().post("/validate", body), 422, "invalid_field")


def test_validation_is_throttled_for_each_address(api: APIClient, settings: Any) -> None:
    settings.VALIDATIONS_PER_MINUTE = 2
    anybody = APIClient()
    for _ in range(2):
        assert anybody.post("/validate", {"key": "x"}).status_code == 200

    refused = anybody.post("/validate", {"key": "x"})

    problem_of(refused, 429, "rate_limited")
    assert 1 <= int(refused["Retry-After"]) <= 30
    assert anybody.post("/validate", {"key": "x"}, REMOTE_ADDR="2001:db8::1").status_code == 200
    assert anybody.post("/validate", {"key": "x"}, REMOTE_ADDR="2001:db8::2").status_code == 200
    assert anybody.post("/validate", {"key": "x"}, REMOTE_ADDR="2001:db8::3").status_code == 429


# --- /setup (rule 16) ----------------------------------------------------------------------------------------------
ANN = {"name": "Super Admin", "email": "admin@example.com"}


@pytest.fixture
def token(api: APIClient, settings: Any) -> str:
    settings.EMBEDDED = False
    settings.SETUP_TOKEN = token = "the token that was printed"
    return token


def test_setup_makes_the_first_admin_once(token: str) -> None:
    answer = APIClient().post("/setup", ANN, headers={"X-Setup-Token": token})

    assert answer.status_code == 201
    first = answer.json()
    assert (first["scopes"], first["username"], first["email"]) == (
        ["admin:*"],
        "admin@example.com",
        "admin@example.com",
    )
    assert client_with_key(first["key"]).get("/keys").status_code == 200
    assert APIClient().login(username=first["username"], password=first["password"])
    problem_of(APIClient().post("/setup", ANN, headers={"X-Setup-Token": token}), 409, "conflict")
    problem_of(APIClient().post("/setup", {}), 409, "conflict")


def test_the_token_may_stand_in_the_body(token: str) -> None:
    assert APIClient().post("/setup", ANN | {"setupToken": token}).status_code == 201


@pytest.mark.parametrize("given", ["", "wrong", "the token that was printe", "жетон"])
def test_setup_without_the_token_is_refused(token: str, given: str) -> None:
    code = "invalid_credentials" if given else "missing_credentials"

    problem_of(APIClient().post("/setup", ANN | {"setupToken": given} if given else ANN), 401, code)

    assert not SetupCompletion.objects.exists()


def test_without_any_token_set_nobody_can_guess_it(token: str, settings: Any) -> None:
    settings.SETUP_TOKEN = ""

    problem_of(APIClient().post("/setup", ANN | {"setupToken": "x"}), 401, "invalid_credentials")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 201),
        ({"REMOTE_ADDR": "::1"}, 201),
        ({"REMOTE_ADDR": "192.0.2.7"}, 401),
        ({"HTTP_X_FORWARDED_FOR": "127.0.0.1"}, 401),
        ({"HTTP_FORWARDED": "for=127.0.0.1"}, 401),
        ({"HTTP_VIA": "1.1 proxy"}, 401),
        ({"HTTP_ORIGIN": "http://evil.example"}, 401),
    ],
)
def test_when_embedded_a_program_on_this_host_needs_no_token(
    token: str, settings: Any, headers: dict[str, Any], status: int
) -> None:
    settings.EMBEDDED = True

    assert APIClient().post("/setup", ANN, **headers).status_code == status


def test_guesses_at_the_token_are_throttled(token: str, settings: Any) -> None:
    settings.AUTH_FAILURES_PER_MINUTE = 2
    for _ in range(2):
        problem_of(APIClient().post("/setup", ANN | {"setupToken": "x"}), 401, "invalid_credentials")

    problem_of(APIClient().post("/setup", ANN | {"setupToken": token}), 429, "rate_limited")


@pytest.mark.parametrize("body", [{}, {"name": "A"}, {"name": "A", "email": "b"}, ANN | {"admin": True}])
def test_setup_that_is_not_valid_stays_open(token: str, body: dict[str, Any]) -> None:
    problem_of(APIClient().post("/setup", body, headers={"X-Setup-Token": token}), 422, "invalid_field")

    assert not SetupCompletion.objects.exists()

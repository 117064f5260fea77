"""End users over HTTP: logging in, refreshing, logging out, and what admins do about them."""

import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.conf import settings
from django.contrib.auth.hashers import make_password
from django.test import override_settings
from django.utils import timezone
from rest_framework.test import APIClient

from access.end_users import auth_api, login
from access.lockout import Lockout, device_of
from access.models import EndUser, EndUserRole, RefreshToken, TokenRevocation, UserSession
from access.passwords import HashingRoom
from access.revocations import revocations_after
from access.signing.tokens import read
from admin_panel.sign_in.brakes import key_of
from core.faults import InternalFault
from core.models import AuditEvent, ConfigChange
from tests.admin_api import problem_of

pytestmark = pytest.mark.django_db
USERS, ROLES = "/admin/access/end-users", "/admin/access/end-user-roles"
ANN = {"username": "Ann@Example.com", "password": "correct horse battery"}
OTHER = "staple horse battery"


@pytest.fixture(autouse=True)
def _fresh_brakes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(login, "LOCKOUT", Lockout())
    auth_api.FAILURES.clear()


@pytest.fixture
def ann(api: APIClient) -> str:
    """The URL of an end user who may log in as ANN."""
    EndUserRole.objects.get_or_create(name="passenger", defaults={"scopes": ["flights:read"]})
    made = api.post(USERS, {**ANN, "name": "Ann", "role": "passenger"})
    assert made.status_code == 201, made.content
    return str(made["Location"])


@pytest.fixture
def public(ann: str) -> APIClient:
    return APIClient()


def tokens_of(client: APIClient, **changes: str) -> dict[str, Any]:
    answer = client.post("/auth/login", {**ANN, **changes})
    assert answer.status_code == 200, answer.content
    tokens: dict[str, Any] = answer.json()
    return tokens


def with_token(tokens: dict[str, Any]) -> APIClient:
    client = APIClient()
    client.credentials(HTTP_AUTHORIZATION=f"Bearer {tokens['access_token']}")
    return client


# --- /auth ---
def test_a_login_answers_with_the_members_of_the_documents(public: APIClient) -> None:
    answer = public.post("/auth/login", ANN)

    assert set(answer.json()) == {
        "access_token", "token_type", "expires_in", "refresh_token", "device_token", "user",
    }  # fmt: skip
    assert (answer.json()["token_type"], answer.json()["expires_in"]) == ("Bearer", 86_400)
    assert answer["Cache-Control"] == "no-store"
    user = answer.json()["user"]
    assert (user["username"], user["role"], user["must_change_password"]) == ("ann@example.com", "passenger", False)
    assert user["last_login_at"].endswith("Z")


def test_whatever_is_wrong_with_a_login_the_answer_is_the_same(api: APIClient, public: APIClient, ann: str) -> None:
    api.post(USERS, {"username": "bob", "role": "passenger"})  # without a password
    api.post(USERS, {"username": "eve", "role": "passenger", "password": ANN["password"], "isActive": False})
    names = ["ann@example.com", "nobody@example.com", "bob", "eve"]
    problems = [
        problem_of(public.post("/auth/login", {"username": name, "password": word}), 401, "invalid_credentials")
        for name in names
        for word in ("wrong", "x" * 2000, "")
        if word or name == "bob"
        if not (name == "bob" and not word)
    ]
    eve = public.post("/auth/login", {"username": "eve", "password": ANN["password"]})
    problems.append(problem_of(eve, 401, "invalid_credentials"))
    assert {problem["detail"] for problem in problems} == {"The user name or the password is wrong."}


def test_a_login_asks_for_both_by_the_names_that_it_knows(public: APIClient) -> None:
    problem = problem_of(public.post("/auth/login", {"username": "ann", "user_name": "x"}), 422, "invalid_field")
    assert set(problem["errors"]) == {"user_name"}
    problem = problem_of(public.post("/auth/login", {"username": "ann"}), 422, "invalid_field")
    assert set(problem["errors"]) == {"password"}


def test_a_token_tells_the_profile_and_changes_the_name(public: APIClient) -> None:
    client = with_token(tokens_of(public))
    assert client.get("/auth/profile").json()["name"] == "Ann"
    assert client.patch("/auth/profile", {"name": "Ann B."}).json()["name"] == "Ann B."
    problem_of(client.patch("/auth/profile", {"role": "admin"}), 422, "invalid_field")
    problem_of(public.get("/auth/profile"), 401, "missing_credentials")


@pytest.mark.parametrize("token", ["", "x", "a.b.c", "km_" + "a" * 48, "x" * 9000], ids=len)
def test_what_is_no_token_of_ours_is_refused(public: APIClient, token: str) -> None:
    problem_of(with_token({"access_token": token}).get("/auth/profile"), 401, "invalid_credentials")


def test_logging_out_ends_the_session_and_its_refresh_token(public: APIClient) -> None:
    tokens, other = tokens_of(public), tokens_of(public)
    assert with_token(tokens).post("/auth/logout").status_code == 204

    problem_of(with_token(tokens).get("/auth/profile"), 401, "invalid_credentials")
    problem_of(public.post("/auth/refresh", {"refresh_token": tokens["refresh_token"]}), 401, "invalid_credentials")
    assert with_token(other).get("/auth/profile").status_code == 200
    (told,) = revocations_after(0)[1]
    assert (told[0], told[1]) == ("session", UserSession.objects.get(revoked_at__isnull=False).pk)


def test_refresh_tokens_rotate_and_a_second_use_ends_the_family(public: APIClient) -> None:
    first = tokens_of(public)
    second = public.post("/auth/refresh", {"refresh_token": first["refresh_token"]}).json()
    third = public.post("/auth/refresh", {"refresh_token": second["refresh_token"]}).json()
    assert len({each["refresh_token"] for each in (first, second, third)}) == 3

    problem_of(public.post("/auth/refresh", {"refresh_token": first["refresh_token"]}), 401, "invalid_credentials")
    problem_of(public.post("/auth/refresh", {"refresh_token": third["refresh_token"]}), 401, "invalid_credentials")
    for tokens in (first, second, third):
        problem_of(with_token(tokens).get("/auth/profile"), 401, "invalid_credentials")
    assert AuditEvent.objects.filter(action="end_user.refresh_reuse").count() == 1
    assert TokenRevocation.objects.filter(what="session").count() == 1


def test_refresh_tokens_expire_and_so_do_sessions(public: APIClient) -> None:
    first, second = tokens_of(public), tokens_of(public)
    RefreshToken.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
    problem_of(public.post("/auth/refresh", {"refresh_token": first["refresh_token"]}), 401, "invalid_credentials")
    RefreshToken.objects.update(expires_at=timezone.now() + timedelta(days=1))
    UserSession.objects.update(ends_at=timezone.now() - timedelta(seconds=1))
    problem_of(public.post("/auth/refresh", {"refresh_token": second["refresh_token"]}), 401, "invalid_credentials")
    problem_of(with_token(second).get("/auth/profile"), 401, "invalid_credentials")


def test_changing_the_password_ends_all_other_sessions(public: APIClient) -> None:
    mine, other = tokens_of(public), tokens_of(public)
    client = with_token(mine)
    wrong = client.post("/auth/change-password", {"current_password": "no", "new_password": OTHER})
    assert set(problem_of(wrong, 422, "invalid_field")["errors"]) == {"current_password"}
    short = client.post("/auth/change-password", {"current_password": ANN["password"], "new_password": "short"})
    assert set(problem_of(short, 422, "invalid_field")["errors"]) == {"new_password"}
    answer = client.post("/auth/change-password", {"current_password": ANN["password"], "new_password": OTHER})

    assert answer.status_code == 200, answer.content
    problem_of(with_token(mine).get("/auth/profile"), 401, "invalid_credentials")
    problem_of(with_token(other).get("/auth/profile"), 401, "invalid_credentials")
    problem_of(public.post("/auth/refresh", {"refresh_token": other["refresh_token"]}), 401, "invalid_credentials")
    assert with_token(answer.json()).get("/auth/profile").status_code == 200
    assert public.post("/auth/refresh", {"refresh_token": mine["refresh_token"]}).status_code == 200
    problem_of(public.post("/auth/login", ANN), 401, "invalid_credentials")
    tokens_of(public, password=OTHER)


def test_who_must_change_the_password_can_do_nothing_else(api: APIClient, public: APIClient, ann: str) -> None:
    made = api.post(f"{ann}/reset-password", {}).json()
    tokens = tokens_of(public, password=made["password"])
    client = with_token(tokens)

    assert tokens["user"]["must_change_password"] is True
    problem_of(client.get("/auth/profile"), 403, "password_change_required")
    changed = client.post("/auth/change-password", {"current_password": made["password"], "new_password": OTHER})
    assert changed.json()["user"]["must_change_password"] is False
    assert with_token(changed.json()).get("/auth/profile").status_code == 200


def test_an_old_hash_is_renewed_by_the_next_login(public: APIClient) -> None:
    EndUser.objects.update(password=make_password(ANN["password"], hasher="pbkdf2_sha256"))
    tokens_of(public)
    assert EndUser.objects.get().password.startswith("argon2$")
    with override_settings(ARGON2_TIME_COST=2):
        tokens_of(public)
    assert "t=2" in EndUser.objects.get().password


def test_guesses_from_elsewhere_do_not_lock_a_user_out_of_a_known_device(public: APIClient) -> None:
    device = tokens_of(public)["device_token"]
    answers = [public.post("/auth/login", {**ANN, "password": f"guess {n}"}) for n in range(12)]

    refusal = answers[-1]
    assert int(problem_of(refusal, 429, "rate_limited")["status"]) == 429
    assert int(refusal["Retry-After"]) > 0
    problem_of(public.post("/auth/login", ANN), 429, "rate_limited")
    tokens_of(public, device_token=device)


def test_the_device_of_a_user_is_known_to_nobody_else_whatever_the_user_is_called(api: APIClient) -> None:
    """``user:1`` is what the panel calls an administrator: the token would give free guesses at that password."""
    EndUserRole.objects.get_or_create(name="staff")
    assert api.post(USERS, {**ANN, "username": "user:1", "role": "staff"}).status_code == 201

    device = tokens_of(APIClient(), username="user:1")["device_token"]

    assert device_of(device, key_of(1), settings.SECRET_KEY, time.time()) == ""


def test_when_too_many_passwords_are_checked_the_next_is_told_to_come_again(
    public: APIClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = HashingRoom(at_once=1, waiting=0)
    monkeypatch.setattr("access.passwords.room", lambda: full)
    with full.place():
        for _ in range(30):  # more than anybody may guess: what was not looked at counts for nothing
            answer = public.post("/auth/login", ANN)
            problem_of(answer, 503, "overloaded")
        assert int(answer["Retry-After"]) > 0
    tokens_of(public)


def test_a_room_has_so_many_places_and_lets_nobody_wait_for_ever() -> None:
    room = HashingRoom(at_once=1, waiting=1, patience_s=0.01)
    with room.place(), pytest.raises(InternalFault), room.place():
        pass
    with room.place():
        pass


# --- what admins do ---
LESS: dict[str, Callable[[APIClient, str], Any]] = {
    "deactivated": lambda api, ann: api.patch(ann, {"isActive": False}),
    "another role": lambda api, ann: api.patch(ann, {"role": "staff"}),
    "password reset": lambda api, ann: api.post(f"{ann}/reset-password", {"password": OTHER}),
    "sessions ended": lambda api, ann: api.post(f"{ann}/end-sessions"),
    "deleted": lambda api, ann: api.delete(ann),
}


@pytest.mark.parametrize("act", LESS.values(), ids=LESS)
def test_what_takes_a_right_away_ends_all_sessions(
    api: APIClient, public: APIClient, ann: str, act: Callable[[APIClient, str], Any]
) -> None:
    EndUserRole.objects.get_or_create(name="staff")
    tokens = [tokens_of(public), tokens_of(public)]
    assert act(api, ann).status_code in (200, 204)
    for each in tokens:
        problem_of(with_token(each).get("/auth/profile"), 401, "invalid_credentials")
        problem_of(public.post("/auth/refresh", {"refresh_token": each["refresh_token"]}), 401, "invalid_credentials")
    assert [told[:2] for told in revocations_after(0)[1]] == [("user", ann.rpartition("/")[2])]


def test_who_logs_in_right_after_all_sessions_ended_gets_tokens_that_hold(
    api: APIClient, public: APIClient, ann: str
) -> None:
    api.post(f"{ann}/end-sessions")
    tokens = tokens_of(public)
    assert with_token(tokens).get("/auth/profile").status_code == 200
    ((_, _, before, _),) = revocations_after(0)[1]
    assert read(tokens["access_token"]).issued_at >= before


def test_an_admin_sees_and_ends_sessions_one_by_one(api: APIClient, public: APIClient, ann: str) -> None:
    tokens = [tokens_of(public), tokens_of(public)]
    listed = api.get(f"{ann}/sessions").json()["sessions"]
    assert len(listed) == 2 and all(each["isLive"] for each in listed)
    assert api.delete(f"{ann}/sessions/{listed[0]['id']}").status_code == 204

    assert [with_token(each).get("/auth/profile").status_code for each in tokens] == [200, 401]
    assert len(api.get(f"{ann}/sessions?isLive=true").json()["sessions"]) == 1


def test_no_hash_enters_the_history_or_an_answer(api: APIClient, public: APIClient, ann: str) -> None:
    api.post(f"{ann}/reset-password", {"password": OTHER})
    changes = list(ConfigChange.objects.filter(kind="end_user").values_list("before", "after"))
    assert len(changes) == 2
    for text in (str(changes), api.get(ann).content.decode(), api.get(USERS).content.decode()):
        assert "argon2" not in text and "'password'" not in text and '"password"' not in text
    assert "tokens_from" not in str(changes)


def test_names_are_compared_without_regard_to_case(api: APIClient, ann: str) -> None:
    problem = problem_of(api.post(USERS, {"username": " ANN@example.com ", "role": "passenger"}), 409, "conflict")
    assert set(problem["errors"]) == {"username"}


def test_a_weak_password_and_an_unknown_role_are_refused(api: APIClient, ann: str) -> None:
    weak = api.post(USERS, {"username": "carol", "role": "passenger", "password": "short"})
    assert set(problem_of(weak, 422, "invalid_field")["errors"]) == {"password"}
    unknown = api.post(USERS, {"username": "carol", "role": "pilot"})
    assert set(problem_of(unknown, 422, "invalid_field")["errors"]) == {"role"}


def test_other_scopes_of_a_role_void_its_tokens_and_not_its_sessions(
    api: APIClient, public: APIClient, ann: str
) -> None:
    role = EndUserRole.objects.get(name="passenger")
    tokens = tokens_of(public)
    assert api.patch(f"{ROLES}/{role.pk}", {"scopes": ["flights:book"]}).status_code == 200
    ((what, value, before, _),) = revocations_after(0)[1]
    assert (what, value) == ("role", "passenger")

    fresh = public.post("/auth/refresh", {"refresh_token": tokens["refresh_token"]}).json()
    assert fresh["user"]["scopes"] == ["flights:book"]
    assert read(fresh["access_token"]).issued_at >= before > read(tokens["access_token"]).issued_at


def test_a_role_that_somebody_has_can_be_neither_deleted_nor_renamed(api: APIClient, ann: str) -> None:
    role = EndUserRole.objects.get(name="passenger")
    problem_of(api.delete(f"{ROLES}/{role.pk}"), 409, "conflict")
    problem_of(api.patch(f"{ROLES}/{role.pk}", {"name": "guest"}), 409, "conflict")
    made = api.post(ROLES, {"name": "crew", "scopes": ["a:b"], "requestsPerHour": 10, "burstLimit": 2})
    assert made.status_code == 201
    assert api.patch(made["Location"], {"name": "cabin-crew"}).status_code == 200
    assert api.delete(made["Location"]).status_code == 204


def test_a_role_gives_no_right_to_administer(api: APIClient) -> None:
    problem = problem_of(api.post(ROLES, {"name": "boss", "scopes": ["admin:*"]}), 422, "invalid_field")
    assert set(problem["errors"]) == {"scopes"}


def test_the_roles_of_the_documents_are_there() -> None:
    roles = EndUserRole.objects.values_list("name", "requests_per_hour", "burst_limit")
    assert set(roles) >= {("passenger", 1000, 50), ("staff", 5000, 100), ("admin", 10_000, 200)}


def test_logins_and_their_failures_are_in_the_audit_trail(public: APIClient) -> None:
    tokens = tokens_of(public)
    public.post("/auth/login", {**ANN, "password": "wrong"})
    public.post("/auth/login", {"username": "my secret password", "password": "wrong"})
    with_token(tokens).post("/auth/logout")
    events = AuditEvent.objects.filter(action__startswith="end_user.").order_by("id")
    assert [(event.action, event.outcome, event.object_name) for event in events] == [
        ("end_user.login", "success", ""),
        ("end_user.login_failed", "failure", "ann@example.com"),
        ("end_user.login_failed", "failure", ""),
        ("end_user.logout", "success", ""),
    ]

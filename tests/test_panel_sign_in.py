"""Getting into the panel and out of it."""

import re
import time
from typing import Any

import pytest
from allauth.mfa.models import Authenticator
from allauth.mfa.totp.internal.auth import format_hotp_value, hotp_value
from allauth.usersessions.models import UserSession
from django.contrib.auth.hashers import MD5PasswordHasher
from django.contrib.auth.models import User
from django.core.cache import cache
from django.http import Http404, HttpResponse
from django.test import Client, RequestFactory
from django.urls import resolve

from access.administration.builtin import SUPER_ADMIN
from access.administration.roles import create_role, update_role
from access.administration.users import ensure_account, update_admin
from admin_panel.middleware import PanelMiddleware
from admin_panel.sign_in.brakes import LOCKOUT
from admin_panel.sign_in.sessions import is_over
from core.models import AuditEvent
from core.tenants import within_tenant
from tests.administrators import ROOT, client_of, make_account
from tests.panel_client import HTMX, PASSWORD, make_admin, signed_in, text_of

pytestmark = pytest.mark.usefixtures("panel")


MOST_PER_ACCOUNT, MOST_PER_ADDRESS = 10, 30


@pytest.fixture(autouse=True)
def forget_failures() -> None:
    cache.clear()
    LOCKOUT.storage.clear()  # type: ignore[attr-defined]


def sign_in(client: Client, username: str = "ann", password: str = PASSWORD, **fields: str) -> Any:
    return client.post("/login", {"username": username, "password": password, **fields})


def test_a_page_leads_to_the_sign_in_page_and_back() -> None:
    client = Client()
    asked = client.get("/services?state=active")
    assert asked.status_code == 302
    assert asked["Location"] == "/login?next=%2Fservices%3Fstate%3Dactive"
    assert sign_in(client, next="/services?state=active")["Location"] == "/services?state=active"
    assert client.get("/services").status_code == 200


def test_an_htmx_request_without_a_session_leads_the_whole_page_to_the_sign_in_page() -> None:
    answer = Client().get("/services", headers=HTMX | {"HX-Current-URL": "http://testserver/routes?q=x"})
    assert answer["HX-Redirect"] == "/login?next=%2Froutes%3Fq%3Dx"
    assert answer.content == b""


@pytest.mark.parametrize(
    "wanted",
    ["https://evil.example/", "//evil.example", "/\\evil.example", "javascript:alert(1)", "", "\x00", "http:///x"],
)
def test_sign_in_leads_nowhere_but_into_the_panel(wanted: str) -> None:
    assert sign_in(Client(), next=wanted)["Location"] == "/"


def test_a_wrong_password_and_an_unknown_name_get_the_same_answer() -> None:
    wrong, unknown = sign_in(Client(), password="wrong"), sign_in(Client(), username="nobody")
    assert wrong.status_code == unknown.status_code == 422
    assert text_of(wrong) == text_of(unknown)
    assert "do not match" in text_of(wrong)


@pytest.mark.parametrize("flags", [{"is_staff": False}, {"is_active": False}])
def test_only_active_staff_gets_in(flags: dict[str, Any]) -> None:
    User.objects.create_user("guest", password=PASSWORD, **{"is_staff": True, **flags})
    assert sign_in(Client(), "guest").status_code == 422


def test_rights_that_are_taken_end_the_session(panel: Client) -> None:
    User.objects.filter(username="ann").update(is_staff=False)
    assert panel.get("/services").status_code == 302


def test_an_account_is_held_back_after_too_many_failures_and_says_how_long() -> None:
    for _ in range(MOST_PER_ACCOUNT):
        assert sign_in(Client(), password="wrong").status_code == 422
    held = sign_in(Client())
    assert held.status_code == 429
    assert 80 <= int(held["Retry-After"]) <= 90
    assert "Too many failed attempts" in text_of(held)


def test_an_address_is_held_back_whatever_names_it_tries() -> None:
    for number in range(MOST_PER_ADDRESS):
        sign_in(Client(), username=f"user{number}", password="wrong")
    assert sign_in(Client()).status_code == 429


def test_behind_a_trusted_proxy_the_client_is_held_back_and_not_the_proxy(settings: Any) -> None:
    settings.TRUSTED_PROXIES = ["127.0.0.1"]
    guesser, admin = ({"X-Forwarded-For": f"203.0.113.{last}"} for last in (7, 8))
    typed = {"username": "ann", "password": PASSWORD}
    for number in range(MOST_PER_ADDRESS):
        Client().post("/login", {"username": f"user{number}", "password": "wrong"}, headers=guesser)
    assert Client().post("/login", typed, headers=guesser).status_code == 429
    assert Client().post("/login", typed, headers=admin).status_code == 302


def test_a_success_forgives_the_account() -> None:
    for _ in range(MOST_PER_ACCOUNT - 1):
        sign_in(Client(), password="wrong")
    assert sign_in(Client()).status_code == 302
    assert sign_in(Client(), password="wrong").status_code == 422


def test_signing_out_takes_a_post_and_ends_the_session(panel: Client) -> None:
    assert panel.get("/logout").status_code == 405
    assert panel.post("/logout")["Location"] == "/login"
    assert panel.get("/services").status_code == 302


def test_session_and_token_cookies_stay_within_the_site() -> None:
    client = Client()
    client.get("/login")
    sign_in(client)
    assert client.cookies["portcullis_session"]["samesite"] == "Strict"
    assert client.cookies["portcullis_session"]["httponly"]


def test_a_form_without_its_token_is_refused() -> None:
    client = Client(enforce_csrf_checks=True)
    client.force_login(User.objects.get(username="ann"))
    assert client.post("/services/new", {"name": "orders"}).status_code == 403
    assert client.post("/logout").status_code == 403


def test_what_workers_hand_over_finds_no_panel() -> None:
    request = RequestFactory().get("/login")
    request.scope = {"server": ["/run/control.sock", None], "client": None}  # type: ignore[attr-defined]
    request.resolver_match = resolve("/login")
    with pytest.raises(Http404):
        PanelMiddleware(lambda _: HttpResponse()).process_view(request)


def test_an_e_mail_address_does_as_a_user_name_and_counts_for_the_same_account() -> None:
    User.objects.filter(username="ann").update(email="ann@example.com")
    assert sign_in(Client(), "Ann@Example.com").status_code == 302
    for number in range(MOST_PER_ACCOUNT):
        name = ("ann", "ann@example.com", " ANN")[number % 3]
        assert sign_in(Client(), name, password="wrong").status_code == 422
    assert sign_in(Client(), "ann@example.com").status_code == 429


def test_a_browser_that_was_in_before_is_not_held_back_by_others_guesses() -> None:
    mine = Client()
    sign_in(mine)
    mine.post("/logout")
    for number in range(MOST_PER_ADDRESS):
        sign_in(Client(), username=f"user{number}", password="wrong")
    assert sign_in(Client()).status_code == 429
    assert sign_in(mine).status_code == 302


@pytest.mark.parametrize("username", ["nobody", "ann", "ann@example.com", "nobody@example.com"])
def test_every_attempt_costs_exactly_one_hash(username: str, monkeypatch: pytest.MonkeyPatch) -> None:
    User.objects.filter(username="ann").update(email="ann@example.com")
    hashed: list[str] = []
    encode = MD5PasswordHasher.encode

    def counted(self: Any, password: str, salt: str) -> str:
        hashed.append(password)
        return str(encode(self, password, salt))

    monkeypatch.setattr(MD5PasswordHasher, "encode", counted)
    sign_in(Client(), username, password="wrong")
    assert hashed == ["wrong"]


def test_signing_in_changes_the_session_and_tells_the_audit_trail_who_from_where_by_what() -> None:
    client = Client()
    sign_in(client, password="wrong")
    before = client.session.session_key
    sign_in(client)
    assert client.session.session_key != before
    client.post("/logout")
    ended, begun, failed = AuditEvent.objects.order_by("-at")[:3]
    assert (ended.action, begun.action, failed.action) == ("session.logout", "session.login", "session.login_failed")
    assert begun.actor_name == "ann"
    assert begun.details == {"methods": ["password"]}
    assert (failed.outcome, failed.actor_kind, failed.actor_name) == ("failure", "anonymous", "ann")
    assert {event.address for event in (ended, begun, failed)} == {"127.0.0.1"}
    assert all(event.request_id for event in (ended, begun, failed))
    assert PASSWORD not in str(AuditEvent.objects.values_list())


def test_a_session_ends_when_it_was_not_used_for_long_and_at_the_latest_after_its_lifetime(settings: Any) -> None:
    assert not is_over(now=100, signed_in_at=0, seen_at=50, idle_s=51, lifetime_s=101)
    assert is_over(now=101, signed_in_at=0, seen_at=50, idle_s=51, lifetime_s=102)
    assert is_over(now=102, signed_in_at=0, seen_at=101, idle_s=51, lifetime_s=102)
    client = Client()
    sign_in(client)
    session = client.session
    session["seen_at"] = time.time() - settings.PANEL_SESSION_IDLE
    session.save()
    assert client.get("/services").status_code == 302
    assert not UserSession.objects.exists()


def test_polling_does_not_keep_a_session_alive() -> None:
    client = Client()
    sign_in(client)
    session = client.session
    session["seen_at"] = seen_at = time.time() - 100
    session.save()
    client.get("/status")
    assert client.session["seen_at"] == seen_at
    client.get("/services")
    assert client.session["seen_at"] > seen_at


def test_a_session_can_be_ended_from_another_one() -> None:
    here, there = Client(), Client(headers={"User-Agent": "Mozilla/5.0 (X11; Linux x86_64) Firefox/140.0"})
    sign_in(here)
    sign_in(there)
    shown = text_of(here.get("/account"))
    assert "Firefox on Linux" in shown
    other = UserSession.objects.get(session_key=there.session.session_key)
    path = f"/account/sessions/{other.pk}/end"
    assert "End the session on Firefox on Linux? You are signed out there" in text_of(here.get(path))
    assert "End all your other sessions?" in text_of(here.get("/account/sessions/end"))
    assert UserSession.objects.filter(pk=other.pk).exists(), "asking ends nothing"
    assert here.post(path)["Location"] == "/account"
    assert there.get("/services").status_code == 302
    assert here.get("/services").status_code == 200
    assert AuditEvent.objects.filter(action="session.ended").count() == 1


def test_nobody_ends_the_session_of_somebody_else_here() -> None:
    ann, bob = Client(), Client()
    make_admin("bob")
    sign_in(ann)
    sign_in(bob, "bob")
    ann.post(f"/account/sessions/{UserSession.objects.get(user__username='bob').pk}/end")
    ann.post("/account/sessions/end")
    assert bob.get("/services").status_code == 200


def test_a_new_password_ends_the_other_sessions_and_must_be_a_good_one() -> None:
    here, there = Client(), Client()
    sign_in(here)
    sign_in(there)
    typed = {"oldpassword": PASSWORD, "password1": "short", "password2": "short"}
    assert here.post("/account/password", typed).status_code == 422
    assert here.post("/account/password", typed | {"password1": "ann-ann-ann-ann"}).status_code == 422
    good = {"password1": "a quite different one", "password2": "a quite different one"}
    assert here.post("/account/password", typed | good | {"oldpassword": "wrong"}).status_code == 422
    assert here.post("/account/password", typed | good)["Location"] == "/account"
    assert here.get("/services").status_code == 200
    assert there.get("/services").status_code == 302
    assert AuditEvent.objects.filter(action="password.changed", actor_name="ann").count() == 1


# --- second factors ------------------------------------------------------------------------------------------------
def add_app(client: Client) -> str:
    """Add an authenticator app to the account that is signed in; its secret."""
    client.post("/account/confirm", {"password": PASSWORD, "next": "/account/app"})
    client.get("/account/app")
    secret = client.session["mfa.totp.secret"]
    assert client.post("/account/app", {"code": code_of(secret)})["Location"] == "/account/recovery-codes"
    return str(secret)


def code_of(secret: str, steps: int = 0) -> str:
    return str(format_hotp_value(hotp_value(secret, int(time.time()) // 30 + steps)))


def test_an_account_with_a_second_factor_gets_a_challenge_and_no_session() -> None:
    owner = Client()
    sign_in(owner)
    secret = add_app(owner)
    client = Client()
    assert sign_in(client, next="/services?state=active")["Location"] == "/login/code"
    assert "_auth_user_id" not in client.session
    assert client.get("/services").status_code == 302
    assert client.get("/admin/routing/services").status_code == 401
    assert client.post("/login/code", {"code": "000000"}).status_code == 422
    assert client.post("/login/code", {"code": code_of(secret)})["Location"] == "/services?state=active"
    assert client.get("/services").status_code == 200
    assert AuditEvent.objects.filter(action="session.login").first().details == {  # type: ignore[union-attr]
        "methods": ["password", "authenticator app"]
    }
    again = Client()
    sign_in(again)
    assert again.post("/login/code", {"code": code_of(secret)}).status_code == 422, "no code counts twice"


@pytest.mark.parametrize("change", [{"password": "another eleven green bottles"}, {"is_active": False}], ids=str)
def test_a_second_factor_ends_no_sign_in_whose_beginning_counts_no_longer(change: dict[str, Any]) -> None:
    owner = Client()
    sign_in(owner)
    secret = add_app(owner)
    client = Client()
    sign_in(client)
    user = User.objects.get(username="ann")
    account = ensure_account(user=user, **ROOT)
    make_account("zoe", SUPER_ADMIN)
    update_admin(account=account, changes=change, **ROOT)
    logins = AuditEvent.objects.filter(action="session.login").count()

    assert client.post("/login/code", {"code": code_of(secret)})["Location"] == "/login"
    assert "_auth_user_id" not in client.session
    assert AuditEvent.objects.filter(action="session.login").count() == logins


def test_a_new_second_factor_stands_in_the_audit_trail(django_capture_on_commit_callbacks: Any) -> None:
    owner = Client()
    sign_in(owner)
    with django_capture_on_commit_callbacks(execute=True):
        add_app(owner)
    added = AuditEvent.objects.filter(action="mfa.added").values_list("details__factor", flat=True)
    assert set(added) == {"authenticator app", "recovery codes"}


def test_a_recovery_code_works_once_and_they_are_shown_once() -> None:
    owner = Client()
    sign_in(owner)
    add_app(owner)
    shown = owner.get("/account/recovery-codes").content.decode()
    codes = re.findall(r"\b\d{8}\b", shown)
    assert len(codes) == 10
    assert "cannot be shown again" in text_of(owner.get("/account/recovery-codes"))
    for status in (302, 422):
        client = Client()
        sign_in(client)
        assert client.post("/login/code", {"code": codes[0]}).status_code == status


def test_guesses_at_the_second_factor_are_held_back() -> None:
    owner = Client()
    sign_in(owner)
    add_app(owner)
    client = Client()
    sign_in(client)
    statuses = [client.post("/login/code", {"code": f"{number:06}"}).status_code for number in range(11)]
    assert statuses == [422] * 10 + [429]


def test_what_changes_how_somebody_signs_in_wants_the_password_again(panel: Client) -> None:
    for path in ("/account/app", "/account/passkeys/new"):
        assert panel.get(path)["Location"].startswith("/account/confirm?next=")
    assert panel.post("/account/confirm", {"password": "wrong"}).status_code == 422
    assert panel.post("/account/confirm", {"password": PASSWORD, "next": "/account/app"}).status_code == 302
    assert panel.get("/account/app").status_code == 200


def test_secrets_of_factors_are_kept_encrypted() -> None:
    owner = Client()
    sign_in(owner)
    secret = add_app(owner)
    kept = str(list(Authenticator.objects.values_list("data", flat=True)))
    assert secret not in kept
    assert "gAAAA" in kept


def test_under_another_secret_key_no_code_is_right_any_more(settings: Any) -> None:
    owner, client = Client(), Client()
    sign_in(owner)
    secret = add_app(owner)
    settings.SECRET_KEY = "another secret key of forty characters..."
    sign_in(client)
    for code in (code_of(secret), code_of("")):
        assert client.post("/login/code", {"code": code}).status_code == 422


@pytest.mark.parametrize("path", ["/", "/services", "/account", "/account/password", "/django-admin/"])
def test_who_must_have_a_second_factor_is_led_to_it_before_anything_else(path: str, settings: Any) -> None:
    settings.REQUIRE_MFA = "admins"
    client = Client()
    sign_in(client)
    assert client.get(path)["Location"] == "/account/second-factor"
    assert client.get("/admin/routing/services").status_code == 403
    assert client.get("/account/second-factor").status_code == 200


def test_once_it_is_there_everything_opens(settings: Any) -> None:
    settings.REQUIRE_MFA = "all"
    client = Client()
    sign_in(client)
    add_app(client)
    assert client.get("/services").status_code == 200
    assert client.get("/admin/routing/services").status_code == 200


@pytest.mark.parametrize("password", [PASSWORD, None], ids=["by password", "by an identity provider"])
def test_a_role_demands_a_second_factor_of_whoever_has_it(password: str | None) -> None:
    careful = create_role(name="CAREFUL", require_mfa=True, **ROOT)
    account = make_account("cleo", "KEY_VIEWER", "CAREFUL", password=password)
    key = client_of(account)
    client = signed_in(account.user)
    assert client.get("/api-keys")["Location"] == "/account/second-factor"
    refused = client.get("/keys", headers={"Accept": "application/json"})
    assert (refused.status_code, refused.json()["code"]) == (403, "blocked")
    assert client.get("/account/app").status_code in (200, 302), "the way to one is open"
    assert key.get("/keys").status_code == 200, "programs go on"

    update_role(role=careful, changes={"require_mfa": False}, **ROOT)
    assert client.get("/api-keys").status_code == 200
    update_role(role=careful, changes={"require_mfa": True}, **ROOT)
    assert client.get("/api-keys").status_code == 302, "with the next request"
    Authenticator.objects.create(user=account.user, type="totp", data={"secret": "x"})
    assert client.get("/api-keys").status_code == 200


def test_a_role_of_the_same_name_in_another_tenant_demands_nothing_here() -> None:
    create_role(name="CAREFUL", permissions=["admin:keys:read"], **ROOT)
    make_account("zed", tenant="acme")
    with within_tenant("acme"):
        create_role(name="CAREFUL", require_mfa=True, **ROOT)
    assert signed_in(make_account("cleo", "CAREFUL").user).get("/api-keys").status_code == 200

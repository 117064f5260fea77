"""A forgotten password, and the link that is mailed for a new one."""

import re
from collections.abc import Callable
from typing import Any

import pytest
from allauth.mfa.models import Authenticator
from allauth.usersessions.models import UserSession
from django.contrib.auth.models import User
from django.core import mail
from django.core.cache import cache
from django.test import Client

from admin_panel.sign_in.brakes import LOCKOUT
from admin_panel.sign_in.forgotten import BEHIND
from core.models import AuditEvent
from tests.administrators import client_of, make_account
from tests.panel_client import PASSWORD, errors_at, text_of

pytestmark = pytest.mark.usefixtures("panel")
CHOSEN = "fourteen white gulls"
BOTH = {"password1": CHOSEN, "password2": CHOSEN}


@pytest.fixture(autouse=True)
def mails(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mail server, and what happens behind the answers before them: the tests' transaction is this thread's."""
    settings.MAILS = True
    cache.clear()
    LOCKOUT.storage.clear()  # type: ignore[attr-defined]
    monkeypatch.setattr(BEHIND, "run", lambda work: work())


@pytest.fixture
def bob() -> User:
    return make_account("bob", "KEY_VIEWER", email="bob@example.com", password=PASSWORD).user


def ask(email: str = "bob@example.com", client: Client | None = None) -> Any:
    return (client or Client()).post("/login/forgotten", {"email": email})


def mailed_code() -> str:
    return str(re.findall(r"/login/password#(\S+)", str(mail.outbox[-1].body))[0])


def opened(code: str, client: Client | None = None) -> tuple[Client, Any]:
    """The browser in which the link was opened, and what it shows."""
    client = client or Client()
    led = client.post("/login/password", {"code": code})
    return client, client.get(led["Location"]) if led.status_code == 302 else led


def sign_in(password: str, client: Client | None = None) -> Any:
    return (client or Client()).post("/login", {"username": "bob", "password": password})


def test_a_link_by_mail_leads_to_a_new_password_and_ends_all_sessions(bob: User) -> None:
    there = Client()
    sign_in(PASSWORD, there)
    programs = client_of(bob.admin_account)
    assert 'href="/login/forgotten"' in Client().get("/login").content.decode()
    assert ask("BOB@example.com")["Location"] == "/login/forgotten/sent"
    assert "Look into your mail" in text_of(Client().get("/login/forgotten/sent"))
    assert mail.outbox[0].to == ["bob@example.com"]
    here, form = opened(mailed_code())
    assert form.status_code == 200
    assert here.post(form.request["PATH_INFO"], BOTH)["Location"] == "/login/password-changed"
    assert "_auth_user_id" not in here.session, "nobody is signed in by a mail"
    assert there.get("/api-keys").status_code == 302
    assert not UserSession.objects.filter(user=bob).exists()
    assert sign_in(PASSWORD).status_code == 422
    assert sign_in(CHOSEN).status_code == 302
    assert programs.get("/keys").status_code == 200
    events = AuditEvent.objects.filter(action__startswith="password.").order_by("at")
    assert [(each.action, each.outcome, each.actor_name) for each in events] == [
        ("password.reset_asked", "success", "BOB@example.com"),
        ("password.reset", "success", "bob"),
    ]
    assert all(each.request_id and each.address == "127.0.0.1" for each in events)
    assert mailed_code() not in str(list(AuditEvent.objects.values()))


def test_a_link_works_once(bob: User) -> None:
    ask()
    here, form = opened(mailed_code())
    other, theirs = opened(mailed_code())
    assert here.post(form.request["PATH_INFO"], BOTH).status_code == 302
    again = {"password1": "somebody else entirely", "password2": "somebody else entirely"}
    assert "opens nothing any more" in text_of(other.post(theirs.request["PATH_INFO"], again))
    assert opened(mailed_code())[1].status_code == 404
    assert sign_in(CHOSEN).status_code == 302


def test_a_second_factor_is_asked_for_with_the_new_password(bob: User) -> None:
    Authenticator.objects.create(user=bob, type="totp", data={"secret": "x"})
    ask()
    here, form = opened(mailed_code())
    here.post(form.request["PATH_INFO"], BOTH)
    assert sign_in(CHOSEN, here)["Location"] == "/login/code"
    assert here.get("/api-keys").status_code == 302
    assert Authenticator.objects.filter(user=bob).exists()


def _leave(user: User) -> None:
    User.objects.filter(pk=user.pk).update(is_active=False)


def _come_by_a_provider(user: User) -> None:
    user.set_unusable_password()
    user.save()


def _share(user: User) -> None:
    User.objects.create(username="twin", email="BOB@example.com", is_staff=True)


@pytest.mark.parametrize("change", [None, _leave, _come_by_a_provider, _share], ids=["unknown", "left", "sso", "two"])
def test_who_gets_no_link_is_answered_as_those_who_do(bob: User, change: Callable[[User], None] | None) -> None:
    known, unknown = ask(), None
    cache.clear()
    mail.outbox.clear()
    if change is not None:
        change(bob)
    unknown = ask("nobody@example.com" if change is None else "bob@example.com")
    assert (unknown.status_code, unknown["Location"], unknown.content) == (302, known["Location"], known.content)
    assert not mail.outbox
    assert AuditEvent.objects.filter(action="password.reset_asked").latest("at").outcome == "failure"


@pytest.mark.parametrize("change", [_leave, _come_by_a_provider])
def test_a_link_opens_nothing_for_whom_none_would_be_made_any_more(bob: User, change: Callable[[User], None]) -> None:
    ask()
    here, form = opened(mailed_code())
    change(bob)
    assert here.post(form.request["PATH_INFO"], BOTH).status_code == 404
    assert opened(mailed_code())[1].status_code == 404


@pytest.mark.parametrize("code", ["", "-", "1-", "zzzzzzzzzzzzz-x", "1-set-password", "\x00-x", "ü" * 5000, "1"])
def test_other_codes_open_nothing(bob: User, code: str) -> None:
    assert opened(code)[1].status_code == 404
    assert Client().get("/login/password/1").status_code == 404
    assert Client().get("/login/password/zzzzzzzzzzzzz").status_code == 404


def test_a_link_is_too_old_after_an_hour(bob: User, settings: Any) -> None:
    ask()
    settings.PASSWORD_RESET_TIMEOUT = -1
    assert opened(mailed_code())[1].status_code == 404


def test_the_link_leads_to_the_panel_whatever_host_somebody_names(bob: User, settings: Any) -> None:
    Client().post("/login/forgotten", {"email": "bob@example.com"}, headers={"Host": "evil.example"})
    assert f"http://127.0.0.1:{settings.ADMIN_PORT}/login/password#" in str(mail.outbox[0].body)
    cache.clear()
    settings.PANEL_URL = "https://gateway.example.com"
    ask()
    assert "\nhttps://gateway.example.com/login/password#" in str(mail.outbox[1].body)


def test_few_links_go_to_one_address_and_few_questions_come_from_one(bob: User) -> None:
    assert [ask().status_code for _ in range(10)] == [302] * 10
    assert len(mail.outbox) == 1
    assert ask("nobody@example.com").status_code == 429
    assert AuditEvent.objects.filter(action="password.reset_asked", outcome="denied").count() == 9


def test_a_mail_that_could_not_be_sent_may_be_asked_for_again(bob: User, settings: Any) -> None:
    settings.EMAIL_BACKEND, settings.EMAIL_PORT = "django.core.mail.backends.smtp.EmailBackend", 9
    assert ask().status_code == 302
    settings.EMAIL_BACKEND = "django.core.mail.backends.locmem.EmailBackend"
    ask()
    assert len(mail.outbox) == 1


def test_what_is_wrong_stands_at_its_field(bob: User) -> None:
    assert "valid email" in errors_at(ask("bob"), "email")
    ask()
    here, form = opened(mailed_code())
    path = form.request["PATH_INFO"]
    short = here.post(path, {"password1": "short", "password2": "short"})
    assert short.status_code == 422
    assert "too short" in errors_at(short, "password1")
    assert here.post(path, {"password1": CHOSEN, "password2": "another one 14"}).status_code == 422
    assert here.post(path, BOTH).status_code == 302


def test_whoever_is_signed_in_as_somebody_else_is_signed_out(bob: User, panel: Client) -> None:
    ask()
    here, form = opened(mailed_code(), panel)
    here.post(form.request["PATH_INFO"], BOTH)
    assert panel.get("/services").status_code == 302


def test_without_a_mail_server_there_is_no_such_thing(settings: Any) -> None:
    settings.MAILS = False
    assert "Forgot" not in text_of(Client().get("/login"))
    assert Client().get("/login/forgotten").status_code == 404
    assert Client().post("/login/forgotten", {"email": "bob@example.com"}).status_code == 404
    assert Client().get("/login/password").status_code == 404
    assert Client().get("/login/password/1").status_code == 404

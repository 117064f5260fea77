"""What is alike in the panel: lists, forms, deletion; passwords and sessions of end users; tests of alert channels."""

from typing import Any

import pytest
from django.contrib.auth.hashers import check_password
from django.test import Client
from django.utils import timezone

from access.end_users.accounts import create_user
from access.models import (
    AlertChannel,
    AlertMessage,
    EndUser,
    EndUserRole,
    LimitUse,
    LimitViolation,
    RateLimit,
    TokenIssuer,
)
from access.services import create_application
from admin_panel.views.subjects import SUBJECTS
from keys.services import create_key
from tests.panel_client import BOB, errors_at, latest_revision, text_of

WEBHOOK = {"name": "on call", "medium": "webhook", "url": "https://alerts.example.com/x", "min_interval_s": "60"}


def new_user(name: str = "ada@example.com", **fields: Any) -> EndUser:
    return create_user(username=name, role="passenger", **fields, **BOB)


@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda subject: subject.word)
def test_every_list_and_every_empty_form_is_shown(panel: Client, subject: Any) -> None:
    assert subject.plural in text_of(panel.get(f"/{subject.word}")).lower()
    assert f"New {subject.noun}" in text_of(panel.get(f"/{subject.word}/new"))
    assert "No" in text_of(panel.get(f"/{subject.word}?q=nothing-is-called-this"))
    assert panel.get(f"/{subject.word}/nothing").status_code == 404
    assert panel.get(f"/{subject.word}/nothing/edit").status_code == 404
    assert panel.get(f"/{subject.word}/nothing/delete").status_code == 404
    assert panel.post(f"/{subject.word}/new", {}).status_code == 422


def test_a_channel_is_made_changed_tested_and_deleted(panel: Client) -> None:
    assert panel.post("/alert-channels/new", WEBHOOK).status_code == 302
    row = AlertChannel.objects.get()
    assert (row.min_interval_s, row.is_active) == (60, False)  # a box that is not ticked
    edited = panel.post(f"/alert-channels/{row.pk}/edit", WEBHOOK | {"is_active": "on", "revision": row.revision})
    assert edited.status_code == 302
    assert panel.post(f"/alert-channels/{row.pk}/test").status_code == 302
    assert "test On its way" in text_of(panel.get(f"/alert-channels/{row.pk}"))
    AlertMessage.objects.update(failed_at="2026-01-01T00:00:00Z", error="the endpoint answered 410")
    assert "the endpoint answered 410 Given up" in text_of(panel.get(f"/alert-channels/{row.pk}"))
    stale = panel.post(f"/alert-channels/{row.pk}/edit", WEBHOOK | {"name": "x", "revision": row.revision})
    assert stale.status_code == 412
    assert "Somebody saved this before you" in text_of(stale)
    assert panel.post(f"/alert-channels/{row.pk}/delete").status_code == 302
    assert not AlertChannel.objects.exists()


def test_why_something_was_deleted_stands_in_the_history(panel: Client) -> None:
    panel.post("/alert-channels/new", WEBHOOK)
    path = f"/alert-channels/{AlertChannel.objects.get().pk}/delete"
    assert "Reason optional" in text_of(panel.get(path))
    assert panel.post(path, {"reason": "The team has another pager"}).status_code == 302
    assert latest_revision().reason == "The team has another pager"


def test_what_is_wrong_stands_at_its_field(panel: Client) -> None:
    answer = panel.post("/alert-channels/new", WEBHOOK | {"url": "ftp://x"})
    assert answer.status_code == 422
    assert "http or https URL" in text_of(answer)


def test_an_end_user_is_made_with_a_password_that_stands_nowhere(panel: Client) -> None:
    fields = {"username": "Ada@Example.com", "role": "passenger", "password": "a long passphrase 17", "is_active": "on"}
    answer = panel.post("/end-users/new", fields, follow=True)
    assert "a long passphrase" not in answer.content.decode()
    user = EndUser.objects.get()
    assert user.username == "ada@example.com"
    assert check_password("a long passphrase 17", user.password)
    assert "password" not in panel.get(f"/end-users/{user.pk}/edit").content.decode().split('name="password"')[0][-1:]
    assert "a long passphrase" not in panel.post("/end-users/new", fields | {"role": ""}).content.decode()


def test_a_new_password_is_shown_once(panel: Client) -> None:
    user = new_user()
    asked = panel.get(f"/end-users/{user.pk}/password")
    assert "A new password for ada@example.com?" in text_of(asked)
    answer = panel.post(f"/end-users/{user.pk}/password")
    assert answer.headers["Cache-Control"] == "no-store"
    user.refresh_from_db()
    shown = answer.content.decode().split('value="')[1].split('"')[0]
    assert check_password(shown, user.password)
    assert user.must_change_password
    assert shown not in panel.get(f"/end-users/{user.pk}").content.decode()


def test_all_sessions_of_a_user_are_ended(panel: Client) -> None:
    user = new_user()
    before = EndUser.objects.get(pk=user.pk).tokens_from
    assert "End all sessions" in text_of(panel.get(f"/end-users/{user.pk}/end-sessions"))
    ended = text_of(panel.post(f"/end-users/{user.pk}/end-sessions", follow=True))
    assert "All sessions of ada@example.com have ended." in ended and "Nothing to save" not in ended
    assert EndUser.objects.get(pk=user.pk).tokens_from != before
    assert "end_user.sessions_ended" in text_of(panel.get("/audit"))


def test_a_role_shows_its_limit_and_who_has_it(panel: Client) -> None:
    new_user()
    role = EndUserRole.objects.get(name="passenger")
    assert "1,000 per hour, 50 at once" in text_of(panel.get("/end-user-roles"))
    assert "ada@example.com" in text_of(panel.get(f"/end-user-roles/{role.pk}"))
    refused = panel.post(f"/end-user-roles/{role.pk}/delete")
    assert refused.status_code == 409


LIMIT = {
    "name": "checkout",
    "algorithm": "token_bucket",
    "limit": "10",
    "period": "day",
    "per": ["key", "endpoint"],
    "outage": "share",
}


def test_a_limit_is_made_and_shows_who_uses_it(panel: Client) -> None:
    fields = LIMIT | {"outage": "closed", "mode": "", "is_active": "on", "alert": "on", "services": "billing"}
    answer = panel.post("/limits/new", fields)
    assert answer.status_code == 302, text_of(answer)
    row = RateLimit.objects.get()
    expected = {"limit": 10, "per": ["key", "endpoint"], "outage": "closed", "alert": True, "services": ["billing"]}
    assert row.rule | expected == row.rule
    assert "10 in each 60 s, token bucket billing key endpoint" in text_of(panel.get("/limits"))
    now = timezone.now()
    key = create_key(name="production", application=create_application(name="mobile", **BOB), **BOB).row
    LimitUse.objects.create(
        limit_id=row.pk, subject="key:key_a", node="host", used=7, admitted=7, refused=3, seen_at=now
    )
    LimitViolation.objects.create(
        minute=now, limit_id=row.pk, limit_name="checkout", subject=f"key:{key.pk}", refused=99
    )
    shown = text_of(panel.get(f"/limits/{row.pk}"))
    assert "key key_a 7 3 7 3" in shown
    assert "key production of mobile 99" in shown
    edited = panel.post(
        f"/limits/{row.pk}/edit", LIMIT | {"outage": "share", "mode": "strict", "revision": row.revision}
    )
    assert edited.status_code == 302, text_of(edited)
    row.refresh_from_db()
    assert (row.rule["mode"], row.rule["outage"], row.rule["alert"]) == ("strict", "share", False)
    assert not row.is_active


def test_fields_of_another_algorithm_are_neither_judged_nor_kept(panel: Client) -> None:
    fields = LIMIT | {"algorithm": "leaky_bucket", "window_s": "10", "queue": "7", "burst": "many", "period": "month"}
    answer = panel.post("/limits/new", fields)
    assert answer.status_code == 302, text_of(answer)
    row = RateLimit.objects.get()
    assert row.rule.items() >= {"windowS": 10, "queue": 7, "burst": None, "period": "day"}.items()
    changed = {"algorithm": "quota", "period": "month", "window_s": "x", "revision": row.revision}
    answer = panel.post(f"/limits/{row.pk}/edit", fields | changed)
    assert answer.status_code == 302, text_of(answer)
    row.refresh_from_db()
    assert row.rule.items() >= {"windowS": 60, "queue": 100, "burst": None, "period": "month"}.items()


def test_fields_of_the_chosen_algorithm_are_judged(panel: Client) -> None:
    answer = panel.post("/limits/new", LIMIT | {"burst": "many", "queue": "many"})
    assert answer.status_code == 422
    assert "whole number" in errors_at(answer, "burst")
    assert errors_at(answer, "queue") == ""


def test_what_is_wrong_of_a_limit_stands_at_its_field(panel: Client) -> None:
    answer = panel.post("/limits/new", LIMIT | {"outage": "share", "per": ["planet"]})
    assert answer.status_code == 422
    assert "planet" in errors_at(answer, "per")
    answer = panel.post("/limits/new", LIMIT | {"outage": "share", "limit": ""})
    assert answer.status_code == 422
    assert "limit" in text_of(answer)


def test_the_plain_fields_of_an_issuer_are_refused_where_they_stand(panel: Client) -> None:
    answer = panel.post("/token-issuers/new", {"algorithms": ["RS256"], "leeway_s": "30"})
    assert answer.status_code == 422
    assert "blank" in errors_at(answer, "name")
    assert "blank" in errors_at(answer, "issuer")


def test_an_issuer_is_made_with_its_rules(panel: Client) -> None:
    create_application(name="mobile", **BOB)
    fields = {
        "name": "company login",
        "issuer": "https://login.example.com",
        "application": "mobile",
        "algorithms": ["RS256", "ES256"],
        "jwks_url": "https://login.example.com/jwks",
        "leeway_s": "30",
        "scope_claim": "scope",
        "roles_claim": "realm_access.roles",
        "permissions_claim": "permissions",
        "role_map": '{"realm-admin": "admin"}',
        "is_active": "on",
    }
    answer = panel.post("/token-issuers/new", fields)
    assert answer.status_code == 302, text_of(answer)
    row = TokenIssuer.objects.get()
    assert row.application is not None
    assert row.rules["rolesClaim"] == "realm_access.roles"
    assert row.rules["roleMap"] == {"realm-admin": "admin"}
    shown = text_of(panel.get("/token-issuers"))
    assert "https://login.example.com mobile RS256 ES256" in shown
    assert "None" not in shown  # of all that may be said, only what is
    assert panel.get(f"/token-issuers/{row.pk}/edit").status_code == 200
    wrong = panel.post("/token-issuers/new", fields | {"name": "b", "issuer": "b", "application": "nobody"})
    assert "There is no application named nobody" in text_of(wrong)
    mixed = panel.post("/token-issuers/new", fields | {"name": "b", "issuer": "b", "algorithms": ["HS256", "RS256"]})
    assert "never with both" in text_of(mixed)

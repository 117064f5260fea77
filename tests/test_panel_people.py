"""Users, roles and invitations, in the panel and by the API beside it."""

import re
from datetime import timedelta
from typing import Any

import pytest
from allauth.mfa.models import Authenticator
from allauth.usersessions.models import UserSession
from django.contrib.auth.models import User
from django.core import mail
from django.test import Client
from django.utils import timezone

from access.administration.sessions import live_sessions
from access.models import AdminAccount, AdminRole, Invitation
from core.models import AuditEvent
from tests.administrators import client_with, make_account
from tests.panel_client import errors_at, make_admin, signed_in, text_of

pytestmark = pytest.mark.usefixtures("panel")
INVITATIONS = "/admin/access/invitations"
PASSWORD = "seven green bottles"
CHOSEN = {"username": "bob", "name": "Bob", "password": PASSWORD, "again": PASSWORD}


def invited(panel: Client, email: str = "bob@example.com", *roles: str) -> str:
    """The code of a new invitation."""
    answer = panel.post("/invitations/new", {"email": email, "roles": roles or ("KEY_ADMIN",)})
    assert answer.status_code == 200, text_of(answer)
    return str(re.findall(r"http://testserver/invitation#(inv_[\w-]+)", answer.content.decode())[0])


def enter(username: str, password: str = PASSWORD) -> Client:
    client = Client(headers={"User-Agent": "Mozilla/5.0 (Windows NT 10.0) Firefox/140.0"})
    assert client.post("/login", {"username": username, "password": password}).status_code == 302
    return client


# --- invitations ---------------------------------------------------------------------------------------------------
def test_whoever_is_invited_chooses_a_name_and_a_password_and_is_in_with_the_roles(panel: Client) -> None:
    code = invited(panel)
    guest = Client()
    assert "bob@example.com to administer this gateway as KEY_ADMIN" in text_of(
        guest.post("/invitation", {"code": code})
    )
    assert guest.post("/invitation", CHOSEN)["Location"] == "/"
    assert guest.get("/api-keys").status_code == 200
    assert guest.get("/services").status_code == 403
    account = AdminAccount.objects.get(user__username="bob")
    assert (account.roles, account.name, account.user.email) == (["KEY_ADMIN"], "Bob", "bob@example.com")
    assert enter("bob@example.com").get("/account").status_code == 200
    trail = AuditEvent.objects.filter(object_kind="invitation").order_by("at").values_list("action", "actor_name")
    assert list(trail) == [("invitation.created", "ann"), ("invitation.accepted", "bob@example.com")]


def test_whoever_accepts_an_invitation_adds_a_second_factor_first_where_one_is_required(
    panel: Client, settings: Any
) -> None:
    settings.REQUIRE_MFA = "all"
    User.objects.filter(username="ann").update(password="!")  # she comes by an identity provider
    guest, code = Client(), invited(signed_in(User.objects.get(username="ann")))
    guest.post("/invitation", {"code": code})
    guest.post("/invitation", CHOSEN)
    assert guest.get("/")["Location"] == "/account/second-factor"
    assert guest.get("/account/app").status_code == 200, "the new password is proof enough"


def test_a_code_works_once_and_only_its_digest_is_kept(panel: Client) -> None:
    code = invited(panel)
    first, second = Client(), Client()
    for client in (first, second):
        client.post("/invitation", {"code": code})
    assert first.post("/invitation", CHOSEN).status_code == 302
    assert "Code of the invitation" in text_of(second.post("/invitation", CHOSEN | {"username": "eve"}))
    assert Client().post("/invitation", {"code": code}).status_code == 404
    assert not User.objects.filter(username="eve").exists()
    kept = str(list(Invitation.objects.values()) + list(AuditEvent.objects.values()))
    assert code not in kept


@pytest.mark.parametrize(
    "change", [{"expires_at": timezone.now() - timedelta(seconds=1)}, {"withdrawn_at": timezone.now()}]
)
def test_an_invitation_that_is_over_opens_nothing(panel: Client, change: dict[str, Any]) -> None:
    code = invited(panel)
    guest = Client()
    guest.post("/invitation", {"code": code})
    Invitation.objects.update(**change)
    assert "Code of the invitation" in text_of(guest.post("/invitation", CHOSEN))
    assert "not valid any more" in text_of(Client().post("/invitation", {"code": code}))
    assert not User.objects.filter(username="bob").exists()


@pytest.mark.parametrize("code", ["", "inv_", "inv_" + "x" * 43, "\x00", "ü" * 5000])
def test_other_codes_open_nothing(panel: Client, code: str) -> None:
    invited(panel)
    assert Client().post("/invitation", {"code": code}).status_code == 404


@pytest.mark.parametrize(
    ("change", "field", "sentence"),
    [
        ({"again": "something else 99"}, "again", "not the same"),
        ({"password": "short", "again": "short"}, "password", "too short"),
        ({"password": "bob@example.com", "again": "bob@example.com"}, "password", "too similar"),
        ({"username": "ANN"}, "username", "exists already"),
        ({"username": ""}, "username", "cannot be blank"),
    ],
)
def test_what_is_wrong_stands_at_its_field_and_the_invitation_stays(
    panel: Client, change: dict[str, str], field: str, sentence: str
) -> None:
    guest = Client()
    guest.post("/invitation", {"code": invited(panel)})
    refused = guest.post("/invitation", CHOSEN | change)
    assert refused.status_code == 422
    assert sentence in errors_at(refused, field)
    assert guest.post("/invitation", CHOSEN).status_code == 302


def test_a_second_invitation_of_an_address_replaces_the_first(panel: Client) -> None:
    first, second = invited(panel), invited(panel, "BOB@example.com")
    assert Client().post("/invitation", {"code": first}).status_code == 404
    assert Client().post("/invitation", {"code": second}).status_code == 200


def test_nobody_invites_to_more_than_they_may_themselves() -> None:
    keeper = signed_in(make_account("una", "USER_ADMIN", password=PASSWORD).user)
    refused = keeper.post("/invitations/new", {"email": "eve@example.com", "roles": ["SUPER_ADMIN"]})
    assert refused.status_code == 403
    assert "beyond your own permissions" in text_of(refused)
    answer = client_with("USER_ADMIN", username="uno").post(
        INVITATIONS, {"email": "e@example.com", "roles": ["KEY_ADMIN"]}
    )
    assert answer.status_code == 403
    assert not Invitation.objects.exists()


def test_the_link_is_mailed_where_there_is_a_mail_server(panel: Client, settings: Any) -> None:
    settings.MAILS, settings.PANEL_URL = True, "https://gateway.example.com"
    answer = text_of(panel.post("/invitations/new", {"email": "bob@example.com", "roles": ["SUPPORT"]}))
    assert "The link was mailed" in answer
    (sent,) = mail.outbox
    assert sent.to == ["bob@example.com"]
    assert "https://gateway.example.com/invitation#inv_" in sent.body


def test_the_api_invites_lists_and_withdraws(api: Any) -> None:
    made = api.post(INVITATIONS, {"email": "bob@example.com", "roles": ["KEY_ADMIN"]})
    assert made.status_code == 201, made.content
    assert "/invitation#inv_" in made.json()["link"]
    assert made.json()["mailed"] is False
    (listed,) = api.get(f"{INVITATIONS}?status=open").json()["invitations"]
    assert listed["email"] == "bob@example.com"
    assert "link" not in listed
    assert api.delete(made["Location"]).status_code == 204
    assert api.get(made["Location"]).json()["status"] == "withdrawn"
    assert api.delete(made["Location"]).status_code == 409
    assert api.post(INVITATIONS, {"email": "nobody", "roles": []}).status_code == 422
    assert api.get(f"{INVITATIONS}?status=open").json()["invitations"] == []


# --- users ---------------------------------------------------------------------------------------------------------
def test_the_list_and_the_page_of_a_user_say_what_they_may(panel: Client) -> None:
    bob = make_account("bob", "KEY_VIEWER", "SUPPORT", email="bob@example.com")
    assert "bob@example.com" in text_of(panel.get("/users"))
    shown = text_of(panel.get(f"/users/{bob.pk}"))
    assert "KEY_VIEWER SUPPORT" in shown
    assert "logs The audit log yes" in shown
    assert "services" not in shown.partition("Effective permissions")[2].partition("Second factor")[0]


def test_editing_roles_previews_what_they_give_and_takes_effect_at_once(panel: Client) -> None:
    bob = make_account("bob", "KEY_VIEWER", password=PASSWORD)
    theirs = enter("bob")
    assert "tasks" not in text_of(panel.get("/users/rights?roles=KEY_ADMIN"))
    assert "Everything" in text_of(panel.get("/users/rights?roles=SUPER_ADMIN"))
    form = {"username": "bob", "email": "", "name": "", "roles": ["USER_ADMIN"], "revision": bob.revision}
    assert panel.post(f"/users/{bob.pk}/edit", form)["Location"] == f"/users/{bob.pk}"
    assert theirs.get("/users").status_code == 200
    assert theirs.get("/api-keys").status_code == 403


def test_deactivating_somebody_ends_their_sessions_at_once(panel: Client) -> None:
    bob = make_account("bob", "KEY_VIEWER", password=PASSWORD)
    theirs = enter("bob")
    assert panel.post(f"/users/{bob.pk}/switch")["Location"] == f"/users/{bob.pk}"
    assert theirs.get("/api-keys").status_code == 302
    assert Client().post("/login", {"username": "bob", "password": PASSWORD}).status_code == 422
    panel.post(f"/users/{bob.pk}/switch")
    assert theirs.get("/api-keys").status_code == 302, "the old session stays over"
    assert enter("bob").get("/api-keys").status_code == 200


def test_sessions_of_others_are_listed_and_ended_in_panel_and_api(panel: Client, api: Any) -> None:
    bob = make_account("bob", "KEY_VIEWER", password=PASSWORD)
    one, two, three = (enter("bob") for _ in range(3))
    assert "Firefox on Windows" in text_of(panel.get(f"/users/{bob.pk}"))
    keys = [client.session.session_key for client in (one, two, three)]
    numbers = [UserSession.objects.get(session_key=key).pk for key in keys]
    asked = panel.get(f"/users/{bob.pk}/sessions/{numbers[0]}/end")
    assert "End the session on Firefox on Windows? bob is signed out there" in text_of(asked)
    assert "End all sessions of bob?" in text_of(panel.get(f"/users/{bob.pk}/sessions/end"))
    assert len(live_sessions(bob.user)) == 3, "asking ends nothing"
    panel.post(f"/users/{bob.pk}/sessions/{numbers[0]}/end")
    assert "It has ended already" in text_of(panel.get(f"/users/{bob.pk}/sessions/{numbers[0]}/end"))
    path = f"/admin/access/users/{bob.pk}/sessions"
    assert {row["id"] for row in api.get(path).json()["sessions"]} == {str(number) for number in numbers[1:]}
    assert api.delete(f"{path}/{numbers[1]}").status_code == 204
    assert api.delete(f"{path}/{numbers[1]}").status_code == 404
    assert [client.get("/api-keys").status_code for client in (one, two, three)] == [302, 302, 200]
    assert api.delete(path).status_code == 204
    assert live_sessions(bob.user) == []
    assert AuditEvent.objects.filter(action="session.ended", object_name="bob").count() == 3


def test_resetting_a_second_factor_takes_it_away_and_ends_the_sessions(panel: Client) -> None:
    bob = make_account("bob", "KEY_VIEWER", password=PASSWORD)
    theirs = enter("bob")
    Authenticator.objects.create(user=bob.user, type="totp", data={"secret": "x"})
    panel.post(f"/users/{bob.pk}/factors/reset")
    assert theirs.get("/api-keys").status_code == 302
    assert enter("bob").get("/api-keys").status_code == 200
    assert AuditEvent.objects.filter(action="mfa.removed", actor_name="ann", object_name="bob").exists()


def test_the_api_resets_a_second_factor_as_the_panel_does(api: Any) -> None:
    bob = make_account("bob", "KEY_VIEWER", password=PASSWORD)
    theirs = enter("bob")
    for kind in ("totp", "webauthn", "recovery_codes"):
        Authenticator.objects.create(user=bob.user, type=kind, data={})
    path = f"/admin/access/users/{bob.pk}/factors"
    assert client_with("KEY_ADMIN", username="kay").delete(path).status_code == 403
    assert api.delete(path).status_code == 204
    assert not Authenticator.objects.exists()
    assert theirs.get("/api-keys").status_code == 302
    event = AuditEvent.objects.get(action="mfa.removed")
    assert (event.source, event.object_name, event.details) == ("api", "bob", {"factor": "all", "count": 3})
    assert api.delete(path).status_code == 204
    assert api.delete("/admin/access/users/adm_nobody/factors").status_code == 404


def test_nobody_touches_an_account_that_may_do_more() -> None:
    root = make_account("root", "SUPER_ADMIN", password=PASSWORD)
    session = enter("root")
    key = client_with("USER_ADMIN", username="uno")
    assert key.delete(f"/admin/access/users/{root.pk}/factors").status_code == 403
    keeper = signed_in(make_account("una", "USER_ADMIN", password=PASSWORD).user)
    assert keeper.post(f"/users/{root.pk}/factors/reset").status_code == 403
    assert keeper.post(f"/users/{root.pk}/switch").status_code == 403
    assert keeper.post(f"/users/{root.pk}/delete").status_code == 403
    assert session.get("/services").status_code == 200


def test_the_last_super_admin_stays(panel: Client) -> None:
    User.objects.all().delete()
    root = make_account("root", "SUPER_ADMIN")
    answer = signed_in(root.user).post(f"/users/{root.pk}/delete")
    assert answer.status_code == 409
    assert "is the last SUPER_ADMIN" in text_of(answer)


def test_a_user_is_deleted_with_their_keys_and_sessions(panel: Client) -> None:
    bob = make_account("bob", "KEY_VIEWER", password=PASSWORD)
    theirs = enter("bob")
    assert panel.post(f"/users/{bob.pk}/delete")["Location"] == "/users"
    assert theirs.get("/api-keys").status_code == 302
    assert panel.get(f"/users/{bob.pk}").status_code == 404


# --- roles ---------------------------------------------------------------------------------------------------------
def test_a_role_of_ones_own_is_made_changed_and_deleted(panel: Client) -> None:
    ticked = ["admin:routes:*", "admin:routes:read", "admin:services:read"]
    made = panel.post("/roles/new", {"name": "ROUTER", "description": "Routes", "permissions": ticked})
    role = AdminRole.objects.get(name="ROUTER")
    assert made["Location"] == f"/roles/{role.pk}"
    assert role.permissions == ["admin:routes:*", "admin:services:read"], "what a wildcard covers is left out"
    make_account("rob", "ROUTER")
    assert "rob" in text_of(panel.get(f"/roles/{role.pk}"))
    assert "has it" in text_of(panel.get(f"/roles/{role.pk}/delete"))
    assert panel.post(f"/roles/{role.pk}/delete").status_code == 409
    form = {"description": "", "permissions": ["admin:routes:read"], "revision": role.revision}
    assert panel.post(f"/roles/{role.pk}/edit", form).status_code == 302
    AdminAccount.objects.all().delete()
    make_admin("amy")
    assert panel.post(f"/roles/{role.pk}/delete")["Location"] == "/roles"


def test_a_role_that_demands_a_second_factor_is_made_in_panel_and_api(panel: Client, api: Any) -> None:
    panel.post("/roles/new", {"name": "CAREFUL", "require_mfa": "on"})
    role = AdminRole.objects.get(name="CAREFUL")
    assert "second factor required" in text_of(panel.get(f"/roles/{role.pk}"))
    path = "/admin/access/roles/CAREFUL"
    assert api.get(path).json()["requireMfa"] is True
    assert api.patch(path, {"description": "Takes care"}).json()["requireMfa"] is True
    assert api.patch(path, {"requireMfa": "no"}).status_code == 422
    assert api.put(path, {"description": "", "permissions": []}).json()["requireMfa"] is False
    assert api.post("/admin/access/roles", {"name": "OTHER", "requireMfa": True}).json()["requireMfa"] is True


def test_a_builtin_role_has_no_editor(panel: Client) -> None:
    support = AdminRole.objects.get(name="SUPPORT")
    assert "Edit" not in text_of(panel.get(f"/roles/{support.pk}")).partition("Permissions")[0]
    assert panel.get(f"/roles/{support.pk}/edit").status_code == 404


def test_somebody_who_may_not_see_users_finds_no_way_there() -> None:
    viewer = signed_in(make_account("vic", "KEY_VIEWER").user)
    assert viewer.get("/users").status_code == viewer.get("/roles").status_code == 403
    assert "Users" not in text_of(viewer.get("/api-keys"))

"""The user administration for emergencies: who may enter, and what becomes of deleted users' keys."""

from typing import Any

import pytest
from django.contrib import admin
from django.contrib.auth.models import Group, User
from django.test import Client

from access.models import AdminAccount
from core.models import ConfigChange, ConfigRevision
from tests.admin_api import admin_with_key
from tests.administrators import make_account
from tests.panel_client import signed_in

USERS = "/django-admin/auth/user/"


@pytest.fixture
def ben(panel: Client) -> User:
    """Somebody with an admin key."""
    return admin_with_key(username="ben")[0]


def last_revision() -> tuple[tuple[str, str], str, list[tuple[str, str]]]:
    """Actor, reason, changes."""
    revision = ConfigRevision.objects.first()
    assert revision is not None
    changes = ConfigChange.objects.filter(revision=revision).values_list("kind", "operation")
    return (revision.actor_kind, revision.actor_name), revision.reason, list(changes)


def test_nothing_but_users_and_groups_is_administered_here() -> None:
    assert set(admin.site._registry) == {User, Group}


def test_one_signs_in_where_guessing_is_braked(panel: Client) -> None:
    for answer in (
        Client().get("/django-admin/login/?next=/django-admin/auth/user/"),
        Client().post("/django-admin/login/?next=/django-admin/auth/user/", {"username": "ann", "password": "guess"}),
    ):
        assert (answer.status_code, answer["Location"]) == (302, "/login?next=/django-admin/auth/user/")


def test_the_history_names_who_deleted_a_user_with_keys(panel: Client, ben: User) -> None:
    assert panel.post(f"{USERS}{ben.pk}/delete/", {"post": "yes"}).status_code == 302

    assert last_revision() == (("user", "ann"), "The user ben was deleted.", [("api_key", "delete")])


def test_users_deleted_together_are_one_revision(panel: Client, ben: User) -> None:
    carl = admin_with_key(username="carl")[0]
    chosen: dict[str, Any] = {"action": "delete_selected", "_selected_action": [ben.pk, carl.pk], "post": "yes"}

    assert panel.post(USERS, chosen).status_code == 302

    assert not User.objects.filter(pk__in=(ben.pk, carl.pk)).exists()
    assert last_revision() == (("user", "ann"), "The users ben, carl were deleted.", [("api_key", "delete")] * 2)


def change(panel: Client, user: User, **flags: str) -> Any:
    """The change form, as a browser sends it; a flag that is not there is off."""
    joined = {"date_joined_0": "2026-01-01", "date_joined_1": "10:00:00"}
    return panel.post(f"{USERS}{user.pk}/change/", {"username": user.username, **joined, **flags}, follow=True)


@pytest.mark.parametrize(
    "flags",
    [
        {"is_staff": "on", "is_superuser": "on"},
        {"is_active": "on", "is_superuser": "on"},
        {"is_active": "on", "is_staff": "on"},
    ],
    ids=["inactive", "no staff", "no superuser"],
)
def test_the_last_super_admin_stays_one(panel: Client, flags: dict[str, str]) -> None:
    ann = User.objects.get(username="ann")

    assert "nn is the last SUPER_ADMIN" in change(panel, ann, **flags).content.decode()
    ann.refresh_from_db()
    assert ann.is_active and ann.is_staff and ann.is_superuser
    assert "last SUPER_ADMIN" in panel.post(f"{USERS}{ann.pk}/delete/", {"post": "yes"}, follow=True).content.decode()


def test_of_the_last_two_who_are_deleted_together_both_stay(panel: Client, ben: User) -> None:
    chosen: dict[str, Any] = {"action": "delete_selected", "post": "yes"}
    both = [user.pk for user in User.objects.all()]

    answer = panel.post(USERS, chosen | {"_selected_action": both}, follow=True)

    assert "last SUPER_ADMIN" in answer.content.decode()
    assert User.objects.count() == 2


def test_the_account_follows_the_flags(panel: Client, ben: User) -> None:
    change(panel, ben, is_active="on", is_staff="on", is_superuser="on")
    assert AdminAccount.objects.get(user=ben).roles == ["SUPER_ADMIN"]

    change(panel, ben, is_staff="on")
    account = AdminAccount.objects.get(user=ben)
    assert account.roles == [] and not account.is_active
    assert last_revision()[0] == ("user", "ann")


def test_who_is_no_superuser_finds_nothing_here(db: None) -> None:
    client = signed_in(make_account("uma", "USER_ADMIN").user)

    assert client.get(USERS).status_code == 302

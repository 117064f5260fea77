"""The user administration for emergencies: who may enter, and what becomes of deleted users' keys."""

from typing import Any

import pytest
from django.contrib import admin
from django.contrib.auth.models import Group, User
from django.test import Client

from core.models import ConfigChange, ConfigRevision
from tests.admin_api import admin_with_key

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

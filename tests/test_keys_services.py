"""The life of API keys: made once, shown once, and what ends them."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import argon2
import pytest
from django.contrib.auth.models import User
from django.utils import timezone

from access.models import Application
from access.services import create_application, update_application
from core.faults import ClientFault, PolicyDenied
from core.models import ConfigChange
from core.permissions import covers
from keys.credential import is_well_formed, lookup_id
from keys.models import ApiKey
from keys.services import (
    IssuedKey,
    activate_key,
    create_admin_key,
    create_key,
    find_live_key,
    revoke_key,
    suspend_key,
    update_key,
)
from keys.setup import complete_setup, is_set_up, mark_set_up
from tests.admin_api import ANN, admin_with_key

pytestmark = pytest.mark.django_db


def _issue(**fields: Any) -> IssuedKey:
    return create_key(**{"name": "server", "owner": "mobile", **fields}, **ANN)


def test_a_key_is_stored_as_hash_and_digest_and_shown_once() -> None:
    issued = _issue()
    row = ApiKey.objects.get()

    assert is_well_formed(issued.key.encode(), b"km_")
    assert row.lookup_id == lookup_id(issued.key)
    assert argon2.PasswordHasher().verify(row.hash, issued.key)
    assert row.hash.startswith("$argon2id$")
    for value in vars(row).values():
        assert issued.key not in str(value)
    assert issued.key not in repr(issued)


def test_the_owner_names_an_application_which_is_made_when_there_is_none() -> None:
    first = _issue(owner="Example Service")
    second = _issue(owner="Example Service")

    application = Application.objects.get()
    assert first.row.application == second.row.application == application
    assert application.allowed_services == []


def test_a_key_of_a_given_application_is_owned_by_it_unless_told_otherwise() -> None:
    application = create_application(name="mobile", **ANN)

    assert create_key(name="k", application=application, **ANN).row.owner == "mobile"
    assert create_key(name="k", application=application, owner="team a", **ANN).row.owner == "team a"
    assert Application.objects.count() == 1
    with pytest.raises(ClientFault, match="owner"):
        create_key(name="k", **ANN)


def test_expiry_is_the_default_a_number_of_days_or_never_with_a_warning() -> None:
    by_default, short, forever = _issue(), _issue(expires_in_days=1), _issue(expires_in_days=None)

    assert by_default.row.expires_at is not None and short.row.expires_at is not None
    assert timedelta(days=364) < by_default.row.expires_at - timezone.now() <= timedelta(days=365)
    assert short.row.expires_at - timezone.now() <= timedelta(days=1)
    assert forever.row.expires_at is None
    assert (by_default.warning, bool(forever.warning)) == ("", True)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("expires_in_days", 0),
        ("expires_in_days", -1),
        ("expires_in_days", 10**9),
        ("expires_in_days", True),
        ("scopes", ["read data"]),
        ("scopes", ["*"]),
        ("scopes", ["a:*:b"]),
        ("scopes", ["read:data", "read:data"]),
        ("scopes", [f"s{number}" for number in range(101)]),
        ("scopes", ["admin:*"]),
        ("scopes", ["read:data", "admin:keys:read"]),
        ("name", ""),
        ("name", "a" * 101),
    ],
)
def test_what_is_no_key_is_refused_at_its_field(field: str, value: Any) -> None:
    with pytest.raises(ClientFault) as raised:
        _issue(**{field: value})

    assert list(raised.value.members["errors"]) == [field]
    assert not ApiKey.objects.exists()


def _expire(issued: IssuedKey) -> None:
    update_key(key=issued.row, changes={"expires_at": timezone.now() - timedelta(seconds=1)}, **ANN)


def _close_application(issued: IssuedKey) -> None:
    assert issued.row.application is not None
    update_application(application=issued.row.application, changes={"is_active": False}, **ANN)


@pytest.mark.parametrize(
    "end",
    [
        lambda issued: revoke_key(key=issued.row, **ANN),
        lambda issued: suspend_key(key=issued.row, **ANN),
        lambda issued: update_key(key=issued.row, changes={"is_active": False}, **ANN),
        _expire,
        _close_application,
    ],
    ids=["revoked", "suspended", "deactivated", "expired", "application closed"],
)
def test_a_key_works_until_it_ends(end: Callable[[IssuedKey], Any]) -> None:
    issued = _issue()
    assert find_live_key(issued.key, admin=False) == issued.row

    end(issued)

    assert find_live_key(issued.key, admin=False) is None


def test_a_suspended_key_works_again_once_activated() -> None:
    issued = _issue()
    suspend_key(key=issued.row, **ANN)
    activate_key(key=issued.row, **ANN)

    assert find_live_key(issued.key, admin=False) == issued.row


def test_revoked_is_final() -> None:
    issued = _issue()
    revoked = revoke_key(key=issued.row, **ANN)
    again = revoke_key(key=issued.row, **ANN)

    assert revoked.status == "revoked"
    assert again.revoked_at == revoked.revoked_at
    attempts: list[Callable[[], Any]] = [
        lambda: activate_key(key=issued.row, **ANN),
        lambda: suspend_key(key=issued.row, **ANN),
        lambda: update_key(key=issued.row, changes={"name": "x"}, **ANN),
    ]
    for attempt in attempts:
        with pytest.raises(ClientFault, match="final") as raised:
            attempt()
        assert raised.value.code == "conflict"


@pytest.mark.parametrize("secret", ["", "km_", "km_" + "0" * 48, "\ud800", "a" * 100_000, "ключ"])
def test_an_unknown_key_of_any_form_is_no_key(secret: str) -> None:
    assert find_live_key(secret, admin=False) is None
    assert find_live_key(secret, admin=True) is None


def test_right_or_wrong_a_key_costs_one_query(django_assert_num_queries: Any) -> None:
    live, revoked = _issue(), _issue()
    revoke_key(key=revoked.row, **ANN)

    for secret in (live.key, revoked.key, "km_unknown"):
        with django_assert_num_queries(1):
            find_live_key(secret, admin=False)


@pytest.mark.parametrize("right", ["is_active", "is_staff"])
def test_an_admin_key_dies_with_the_rights_of_its_user(right: str) -> None:
    user, secret = admin_with_key()
    assert find_live_key(secret, admin=True) is not None
    assert find_live_key(secret, admin=False) is None

    User.objects.filter(pk=user.pk).update(**{right: False})

    assert find_live_key(secret, admin=True) is None


def test_deleting_a_user_ends_the_users_keys_and_the_history_says_so() -> None:
    user, secret = admin_with_key()

    user.delete()

    assert find_live_key(secret, admin=True) is None
    last = ConfigChange.objects.latest("id")
    assert (last.kind, last.operation, last.object_name) == ("api_key", "delete", "laptop")


def test_nobody_gives_more_than_they_have() -> None:
    user, _ = admin_with_key()
    own = ("admin:keys:*",)

    with pytest.raises(PolicyDenied, match="admin:services:read"):
        create_admin_key(user=user, name="k", scopes=["admin:keys:read", "admin:services:read"], own_scopes=own, **ANN)
    with pytest.raises(PolicyDenied):
        create_admin_key(user=user, name="k", scopes=["admin:*"], own_scopes=own, **ANN)
    lesser = create_admin_key(user=user, name="k", scopes=["admin:keys:read"], own_scopes=own, **ANN).row
    with pytest.raises(PolicyDenied):
        update_key(key=lesser, changes={"scopes": ["admin:*"]}, own_scopes=own, **ANN)
    greater = ApiKey.objects.get(name="laptop")
    suspend_key(key=greater, **ANN)
    with pytest.raises(PolicyDenied):
        activate_key(key=greater, own_scopes=own, **ANN)


def test_nobody_changes_a_key_with_more_scopes_than_their_own_but_may_stop_it() -> None:
    admin_with_key()
    greater, own = ApiKey.objects.get(), ("admin:keys:*",)
    for changes in ({"scopes": ["admin:keys:read"]}, {"name": "mine"}, {"expires_at": timezone.now()}):
        with pytest.raises(PolicyDenied, match=r"admin:\*"):
            update_key(key=greater, changes=changes, own_scopes=own, **ANN)
    assert ApiKey.objects.get().scopes == ["admin:*"]
    assert revoke_key(key=suspend_key(key=greater, **ANN), **ANN).status == ApiKey.Status.REVOKED


def test_admin_keys_and_keys_of_applications_do_not_turn_into_each_other() -> None:
    user, _ = admin_with_key()
    for row, scopes in ((_issue().row, ["admin:*"]), (ApiKey.objects.get(user=user), ["read:data"])):
        with pytest.raises(ClientFault, match="scopes"):
            update_key(key=row, changes={"scopes": scopes}, **ANN)
    with pytest.raises(ClientFault, match="scopes"):
        create_admin_key(user=user, name="k", scopes=["admin:*", "read:data"], **ANN)


@pytest.mark.parametrize(
    ("granted", "wanted", "is_covered"),
    [
        ("admin:*", "admin:keys:read", True),
        ("admin:keys:*", "admin:keys:read", True),
        ("admin:keys:*", "admin:keys:*", True),
        ("admin:keys:*", "admin:keysmith:read", False),
        ("admin:keys:*", "admin:*", False),
        ("admin:keys:read", "admin:keys:read", True),
        ("admin:keys:read", "admin:keys:*", False),
        ("admin:keys", "admin:keys:read", False),
        ("read:*", "admin:keys:read", False),
    ],
)
def test_a_wildcard_covers_what_is_below_it(granted: str, wanted: str, is_covered: bool) -> None:
    assert covers([granted], wanted) is is_covered


def test_setup_makes_one_admin_once() -> None:
    first = complete_setup(name="Ann", email="ann@example.com", source="api")

    assert first.user.is_superuser and first.user.check_password(first.password)
    assert find_live_key(first.issued.key, admin=True) == first.issued.row
    assert first.issued.row.scopes == ["admin:*"]
    User.objects.all().delete()
    with pytest.raises(ClientFault, match="done already"):
        complete_setup(name="Bob", email="bob@example.com", source="api")
    assert not User.objects.exists()


def test_setup_is_over_once_an_admin_was_made_otherwise() -> None:
    mark_set_up()
    mark_set_up()

    assert is_set_up()
    with pytest.raises(ClientFault, match="done already"):
        complete_setup(name="Bob", email="bob@example.com", source="api")


@pytest.mark.parametrize(("name", "email"), [("", "a@example.com"), ("A", "nobody"), ("A", "a@" + "b" * 200 + ".com")])
def test_setup_that_is_not_valid_leaves_setup_open(name: str, email: str) -> None:
    with pytest.raises(ClientFault) as raised:
        complete_setup(name=name, email=email, source="api")

    assert raised.value.code == "invalid_field"
    assert not is_set_up()

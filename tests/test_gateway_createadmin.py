"""``manage.py createadmin``: the way back in."""

import io
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.management import CommandError, call_command
from django.db import OperationalError

from access.models import SetupCompletion
from keys.services import find_live_key

pytestmark = pytest.mark.django_db


def _run(*arguments: str) -> dict[str, str]:
    out = io.StringIO()
    call_command("createadmin", *arguments, stdout=out)
    lines = [line.rsplit(maxsplit=1) for line in out.getvalue().splitlines()]
    return {words[0]: words[1] for words in lines if words[0] in ("username", "password", "admin key")}


def test_a_new_admin_gets_a_password_and_on_demand_a_key() -> None:
    printed = _run("--username", "ann", "--email", "ann@example.com", "--key")

    user = User.objects.get(username="ann")
    assert user.is_superuser and user.check_password(printed["password"])
    key = find_live_key(printed["admin key"], admin=True)
    assert key is not None and key.user == user
    assert SetupCompletion.objects.exists()


def test_a_lost_admin_comes_back_with_a_new_password() -> None:
    User.objects.create_user("ann", "ann@example.com", "forgotten", is_active=False)

    printed = _run("--username", "ann")

    user = User.objects.get()
    assert user.is_superuser and user.is_staff and user.is_active
    assert user.check_password(printed["password"])
    assert user.email == "ann@example.com"
    assert "admin key" not in printed


def test_a_name_in_another_case_is_the_same_admin() -> None:
    """Two of one name could neither sign in to the panel."""
    User.objects.create_user("Ann", "ann@example.com", "forgotten")

    printed = _run("--username", "ann")

    assert User.objects.get().check_password(printed["password"])
    assert printed["username"] == "Ann"


def test_an_address_is_one_admins_alone() -> None:
    User.objects.create_user("ann", "ann@example.com", "forgotten")

    with pytest.raises(CommandError, match="Another user has this address"):
        _run("--username", "bob", "--email", "Ann@example.com")
    assert User.objects.count() == 1


def test_a_password_is_read_and_not_printed(monkeypatch: Any) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("correct horse battery staple\n"))

    printed = _run("--username", "ann", "--email", "ann@example.com", "--password-stdin")

    assert User.objects.get().check_password("correct horse battery staple")
    assert "password" not in printed


@pytest.mark.parametrize(
    ("arguments", "stdin", "sentence"),
    [
        (["--username", "ann"], "", "email"),
        (["--username", "ann", "--email", "nowhere"], "", "email"),
        (["--username", "a b", "--email", "a@example.com"], "", "username"),
        (["--username", "ann", "--email", "a" * 300 + "@example.com"], "", "email"),
        (["--username", "ann", "--email", "a@example.com", "--password-stdin"], "short\n", "short"),
        (["--username", "ann", "--email", "a@example.com", "--password-stdin"], "half a \udcff surrogate\n", "UTF-8"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(
    monkeypatch: Any, arguments: list[str], stdin: str, sentence: str
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(stdin))

    with pytest.raises(CommandError, match=sentence):
        _run(*arguments)

    assert not User.objects.exists() and not SetupCompletion.objects.exists()


@pytest.mark.parametrize("email", ["nowhere", "a" * 300 + "@example.com"])
def test_a_lost_admin_keeps_an_address_that_is_one(email: str) -> None:
    User.objects.create_user("ann", "ann@example.com", "forgotten")

    with pytest.raises(CommandError, match="email"):
        _run("--username", "ann", "--email", email)

    user = User.objects.get()
    assert (user.email, user.is_superuser, user.check_password("forgotten")) == ("ann@example.com", False, True)


def test_an_admin_without_an_address_comes_back_too() -> None:
    User.objects.create_superuser("ann", password="forgotten")

    printed = _run("--username", "ann")

    assert User.objects.get().check_password(printed["password"])


def test_a_database_that_is_away_is_said_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def away(**_: Any) -> None:
        raise OperationalError("connection refused\n\tIs the server running?")

    monkeypatch.setattr("gateway_project.management.commands.createadmin.mark_set_up", away)
    with pytest.raises(CommandError, match=r"^The database cannot be used: connection refused$"):
        _run("--username", "ann", "--email", "ann@example.com")

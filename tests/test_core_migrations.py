"""Migrations, both ways."""

from pathlib import Path
from typing import Any

from django.contrib.auth.models import User
from django.core.management import call_command
from django.db import connection

from access.administration.builtin import SUPER_ADMIN
from access.administration.rights import permissions_of
from core.models import DEFAULT_TENANT, Tenant
from tests.administrators import make_account
from tests.agents import sqlite_database

UPPERMOST_FIRST = ("routing", "queues", "keys", "access", "core")


def test_nobody_gets_more_rights_by_going_back_to_a_version_without_roles(
    django_db_blocker: Any, tmp_path: Path
) -> None:
    """There, and when it is replaced again, whoever is staff may do everything."""
    with django_db_blocker.unblock(), sqlite_database(tmp_path / "portcullis.sqlite3"):
        make_account("ann", SUPER_ADMIN)
        make_account("kim", "KEY_VIEWER")
        make_account("far", SUPER_ADMIN, tenant="acme")

        for app, name in (("routing", "0008"), ("keys", "0001"), ("access", "0002"), ("core", "0001")):
            call_command("migrate", app, name, verbosity=0)
        staff = list(User.objects.filter(is_staff=True).values_list("username", flat=True))
        call_command("migrate", verbosity=0)

        assert staff == ["ann"]
        rights = {user.username: permissions_of(user) for user in User.objects.all()}
        assert rights == {"ann": ("admin:*",), "kim": (), "far": ()}


def test_what_the_migrations_make_can_be_undone_and_made_again(django_db_blocker: Any, tmp_path: Path) -> None:
    with django_db_blocker.unblock(), sqlite_database(tmp_path / "portcullis.sqlite3"):
        for app in UPPERMOST_FIRST:
            call_command("migrate", app, "zero", verbosity=0)
        left = {name for name in connection.introspection.table_names() if name.startswith("gateway_")}
        assert left == set()

        call_command("migrate", verbosity=0)
        assert [tenant.pk for tenant in Tenant.objects.all()] == [DEFAULT_TENANT]

"""Migrations, both ways."""

from pathlib import Path
from typing import Any

from django.core.management import call_command
from django.db import connection

from core.models import DEFAULT_TENANT, Tenant
from tests.agents import sqlite_database

UPPERMOST_FIRST = ("routing", "queues", "keys", "access", "core")


def test_what_the_migrations_make_can_be_undone_and_made_again(django_db_blocker: Any, tmp_path: Path) -> None:
    with django_db_blocker.unblock(), sqlite_database(tmp_path / "portcullis.sqlite3"):
        for app in UPPERMOST_FIRST:
            call_command("migrate", app, "zero", verbosity=0)
        left = {name for name in connection.introspection.table_names() if name.startswith("gateway_")}
        assert left == set()

        call_command("migrate", verbosity=0)
        assert [tenant.pk for tenant in Tenant.objects.all()] == [DEFAULT_TENANT]

"""Fills a database for the benchmarks, with Django: ``python -m bench.seed fill|touch``. Prints what it made as JSON.

``fill`` makes services ``s0``, ``s1``, … of two versions each (weights 90 and 10), applications of ten whitelist
entries and a hundred keys each, and the one application and key that requests are made with. All keys share one
argon2 hash: 100,000 of them would take 26 minutes. ``touch`` changes services in one revision.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import sys
from collections.abc import Iterable
from typing import Any

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "gateway_project.settings")
django.setup()

from django.conf import settings  # noqa: E402
from django.contrib.auth.models import User  # noqa: E402
from django.core.management import call_command  # noqa: E402
from django.db import connection  # noqa: E402
from django.db.models import Model  # noqa: E402

from access.models import Application, EndpointWhitelist  # noqa: E402
from core.models import ConfigRevision  # noqa: E402
from core.revisions import Actor, revision  # noqa: E402
from keys.credential import Digester, generate  # noqa: E402
from keys.models import ApiKey  # noqa: E402
from keys.pepper import pepper  # noqa: E402
from keys.services import create_admin_key, create_key  # noqa: E402
from routing.models import ServiceConfig, ServiceVersion  # noqa: E402

ACTOR = Actor("command", name="bench")
MEASURED_SERVICE = 977
KEYS_OF_ONE = 100
ENTRIES_OF_ONE = 10
NO_LIMIT = 100_000_000  # requests per minute: charged and told, never reached


def fill(services: int, keys: int, upstream: str) -> dict[str, Any]:
    """Migrates first. Returns the ``client_key``, its ``client_key_id`` and the ``admin_key``."""
    call_command("migrate", verbosity=0)
    number = 1
    ConfigRevision.objects.create(number=number, token=secrets.token_hex(8), actor_kind="command", source="command")
    _make_services(services, upstream, number)
    applications = [_application(f"client-{i}", number) for i in range(max(keys // KEYS_OF_ONE, 1))]
    measured = _application("bench", number)
    _store([*applications, measured])
    _store(_entry(each, n, number) for each in applications for n in range(ENTRIES_OF_ONE))
    _store(_entry(measured, MEASURED_SERVICE - n, number) for n in range(ENTRIES_OF_ONE))
    issued = create_key(name="bench", application=measured, actor=ACTOR, source="command")
    _make_keys(keys, applications, issued.row.hash, number)
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("ANALYZE")  # else the planner guesses until autovacuum comes by
    admin = User.objects.create_superuser("bench", "bench@example.com", secrets.token_urlsafe(16))
    admin_key = create_admin_key(user=admin, name="bench", actor=ACTOR, source="command")
    return {"client_key": issued.key, "client_key_id": issued.row.pk, "admin_key": admin_key.key}


def touch(services: int) -> dict[str, Any]:
    """Changes so many services in one revision, whose number it returns."""
    with revision(actor=ACTOR, source="command", reason="bench") as change:
        for service in ServiceConfig.objects.order_by("pk")[:services]:
            before = service.recorded()
            service.description = f"touched in revision {change.number}"
            change.save(service, before)
    return {"revision": change.number}


def _make_services(count: int, upstream: str, number: int) -> None:
    services = [
        ServiceConfig(name=f"s{i}", default_url=upstream, current_version="v1", revision=number) for i in range(count)
    ]
    _store(services)
    _store(
        ServiceVersion(service=service, version=version, url=upstream, weight=weight, revision=number)
        for service in services
        for version, weight in (("v1", 90), ("v2", 10))
    )


def _application(name: str, number: int) -> Application:
    return Application(
        name=name,
        allowed_services=["*"],
        endpoint_mode=Application.EndpointMode.LISTED,
        rate_limit=NO_LIMIT,
        revision=number,
    )


def _entry(application: Application, service: int, number: int) -> EndpointWhitelist:
    path = f"/api/v1/s{service}/*"
    return EndpointWhitelist(
        application=application, endpoint_path=path, allowed_methods=["GET", "POST"], revision=number
    )


def _make_keys(count: int, applications: list[Application], shared_hash: str, number: int) -> None:
    digester = Digester(pepper())
    _store(
        ApiKey(
            application=applications[i % len(applications)],
            name=f"key {i}",
            owner="bench",
            lookup_id=f"{i:010}",
            hash=shared_hash,
            digest=digester(generate(settings.API_KEY_PREFIX).key.encode()).hex(),
            revision=number,
        )
        for i in range(count - 1)
    )


def _store(rows: Iterable[Model]) -> None:
    rows = list(rows)
    if rows:
        type(rows[0])._default_manager.bulk_create(rows, batch_size=2_000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    filling = commands.add_parser("fill")
    filling.add_argument("--services", type=int, required=True)
    filling.add_argument("--keys", type=int, required=True)
    filling.add_argument("--upstream", required=True)
    touching = commands.add_parser("touch")
    touching.add_argument("--services", type=int, required=True)
    options = vars(parser.parse_args())
    made = fill(**options) if options.pop("command") == "fill" else touch(**options)
    json.dump(made, sys.stdout)


if __name__ == "__main__":
    main()

"""``manage.py demo --embedded``: the gateway with something to serve."""

import asyncio
import json
import os
import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import CommandParser
from django.db import DatabaseError, connection
from django.db.models import Max

from core.models import ConfigRevision
from deploy.demo.seed import ADMIN_USER, APPLICATION, END_USER, QUEUES, Credentials, seed
from gateway_project import launch
from gateway_project.companions import CALM_CELERY
from gateway_project.management.commands import rungateway
from gateway_project.probes import answers_on, serves_revision
from gateway_project.processes import ProcessSpec
from gateway_project.supervisor import say
from queues.folder_broker import make_folders

SERVICES = ("auth", "monolith", "pipeline")  # on DEMO_PORT and the two ports after it
DEFAULT_PORT = 7200
SETTLE_TRIES = 100  # a tenth of a second each, for the workers to learn the newest configuration


class Command(rungateway.Command):
    help = """Run the gateway with a demonstration beside it: three small services, a Celery worker that takes what is
queued, and a configuration that is made once.

Settings by environment, besides the gateway's own:
  DEMO_PORT   the auth service's port, 7200 unless set; monolith takes the next one, pipeline the one after

What one needs to try it is printed and kept in VAR_DIR/demo.json."""

    def create_parser(self, prog_name: str, subcommand: str, **kwargs: Any) -> CommandParser:
        return super().create_parser(prog_name, subcommand, formatter_class=RawDescriptionHelpFormatter, **kwargs)

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument(
            "--seed-only",
            metavar="URL",
            help="make the configuration and end: the services run elsewhere, at a URL such as http://{name}:{port}",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        self._port = _demo_port()
        if not settings.END_USER_APPLICATION:  # for the gateway's processes too, which read the environment
            settings.END_USER_APPLICATION = os.environ["END_USER_APPLICATION"] = APPLICATION
        if options["seed_only"] is None:
            super().handle(*args, **options)
            return
        with self.errors_as_sentences():
            launch.make_var_dir()
            self.prepare()
            self._seed(options["seed_only"])
            self._print_what_to_try()

    def extra_addresses(self) -> list[tuple[str, str, int]]:
        return [("DEMO_PORT", "127.0.0.1", self._port + index) for index in range(len(SERVICES))]

    def extra_processes(self) -> list[ProcessSpec]:
        self._seed("http://127.0.0.1:{port}")
        return [*(_service(name, self._port + index) for index, name in enumerate(SERVICES)), _consumer()]

    async def announce(self) -> None:
        await super().announce()
        # A worker that began with the last good snapshot may not know yet to which ports the services have moved.
        for _ in range(SETTLE_TRIES):
            if await serves_revision(settings.BIND, settings.PORT, self._revision, launch.probe_preamble()):
                break
            await asyncio.sleep(0.1)
        self._print_what_to_try()

    def _seed(self, template: str) -> None:
        urls = {name: template.format(name=name, port=self._port + index) for index, name in enumerate(SERVICES)}
        path = settings.VAR_DIR / "demo.json"
        former = _read(path)
        try:
            credentials = seed(urls, former)
            self._revision = ConfigRevision.objects.aggregate(latest=Max("number"))["latest"] or 0
        except DatabaseError as error:
            raise launch.CannotStart(f"The database cannot be used: {error}") from None
        finally:
            connection.close()
        if former is None:
            say(f"the demo's configuration is made; its keys are kept in {path}")
        self._facts = {
            "gatewayUrl": f"http://127.0.0.1:{settings.PORT}",
            "panelUrl": f"http://127.0.0.1:{settings.ADMIN_PORT}",
            "adminUser": ADMIN_USER,
            "adminPassword": credentials.admin_password,
            "adminKey": credentials.admin_key,
            "clientKey": credentials.client_key,
            "endUser": END_USER,
            "endUserPassword": credentials.end_user_password,
        }
        _write(path, self._facts)

    def _print_what_to_try(self) -> None:
        facts = self._facts
        lines = [
            "",
            f"  Panel       {facts['panelUrl']}",
            f"  Login       {facts['adminUser']}  {facts['adminPassword']}",
            f"  Client key  {facts['clientKey']}",
            "",
            "  Try:",
            *(f"    {line}" for line in curl_lines(facts["gatewayUrl"], facts["clientKey"])),
            "",
            "  Log in as an end user, and send the access_token as Authorization: Bearer …",
            f"    {login_line(facts)}",
            "",
        ]
        self.stdout.write("\n".join(lines))
        self.stdout.flush()


def curl_lines(gateway_url: str, key: str) -> list[str]:
    """Five requests, each of another kind: an implicit route, a version asked for, a rewritten path, a public
    endpoint, and a task for a queue."""
    with_key = f"-H 'X-API-Key: {key}'"
    as_json = "-H 'Content-Type: application/json'"
    return [
        f"curl {with_key} {gateway_url}/api/v1/monolith/products",
        f"curl {with_key} -H 'X-API-Version: v2' {gateway_url}/api/v1/pipeline/pipelines",
        f'curl {with_key} {as_json} -d \'{{"username": "ada"}}\' {gateway_url}/api/v1/auth/login',
        f"curl {gateway_url}/api/v1/auth/status",
        f'curl {with_key} {as_json} -d \'{{"to": "ada@example.com", "subject": "Hello"}}\''
        f" {gateway_url}/api/v1/notifications/email",
    ]


def login_line(facts: Mapping[str, str]) -> str:
    body = json.dumps({"username": facts["endUser"], "password": facts["endUserPassword"]})
    return f"curl -H 'Content-Type: application/json' -d '{body}' {facts['gatewayUrl']}/auth/login"


def _demo_port() -> int:
    value = os.environ.get("DEMO_PORT") or str(DEFAULT_PORT)
    if not value.isascii() or not value.isdigit() or not 1 <= int(value) <= 65536 - len(SERVICES):
        sys.stderr.write(f"portcullis: DEMO_PORT must be from 1 to {65536 - len(SERVICES)}, not {value}.\n")
        sys.exit(2)
    return int(value)


def _service(name: str, port: int) -> ProcessSpec:
    return ProcessSpec(
        name=name,
        command=(
            *(sys.executable, "-m", "uvicorn", f"deploy.demo.services:{name}", "--lifespan", "off"),
            *("--host", "127.0.0.1", "--port", str(port), "--log-level", "warning", "--no-access-log"),
        ),
        environment=_plain_environment(),
        is_ready=lambda _: answers_on("127.0.0.1", port),
    )


def _consumer() -> ProcessSpec:
    if settings.CELERY_BROKER_URL.startswith("filesystem:"):
        folder = settings.VAR_DIR / "broker"
        make_folders(folder)
        broker = {"DEMO_BROKER_DIR": str(folder)}
    else:
        broker = {"DEMO_BROKER_URL": settings.CELERY_BROKER_URL}
    return ProcessSpec(
        name="consumer",
        command=(
            *(sys.executable, "-m", "celery", "--quiet", "-A", "deploy.demo.consumer", "worker", "-E"),
            *("-P", "solo", "-Q", ",".join(QUEUES), "-n", f"demo-{os.getpid()}@%h", "-l", "WARNING"),
            *("--without-gossip", "--without-mingle"),
        ),
        environment=_plain_environment() | CALM_CELERY | broker,
    )


def _plain_environment() -> dict[str, str]:
    """The demo knows nothing of the gateway, and none of its secrets."""
    return {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TZ", "VIRTUAL_ENV") if name in os.environ}


def _read(path: Path) -> Credentials | None:
    try:
        facts = json.loads(path.read_text())
        return Credentials(
            str(facts["adminPassword"]),
            str(facts["adminKey"]),
            str(facts["clientKey"]),
            str(facts.get("endUserPassword", "")),
        )
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _write(path: Path, facts: dict[str, str]) -> None:
    """Private from the first byte on, and never half written."""
    draft = path.with_suffix(".new")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump(facts, file, indent=2)
        file.write("\n")
    draft.replace(path)

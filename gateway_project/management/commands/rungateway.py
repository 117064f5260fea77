"""``manage.py rungateway``: every process of the gateway on this host, supervised."""

import asyncio
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandParser

from gateway_project import companions, launch
from gateway_project.processes import CrashLoop, ProcessSpec
from gateway_project.static_files import collect_if_stale
from gateway_project.supervisor import Supervisor, say


class Command(BaseCommand):
    help = (
        "Run the gateway on this host: workers on PORT, the agent, the panel and admin API on ADMIN_PORT, and the "
        "events worker. SIGTERM or Ctrl-C drains and stops all of it, SIGHUP replaces the workers one at a time."
    )
    requires_system_checks = ()

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--workers", type=int, metavar="N", help="data-plane processes; overrides WORKERS")
        parser.add_argument(
            "--embedded",
            action="store_true",
            help="need no server: SQLite and a file-system broker under VAR_DIR, everything bound to loopback",
        )
        parser.add_argument(
            "--no-events-worker", action="store_true", help="the events worker runs elsewhere, as a service of its own"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        if options["workers"] is not None:
            self._set_workers(options["workers"])
        with self.errors_as_sentences():
            self._run(has_events_worker=not options["no_events_worker"])

    @contextmanager
    def errors_as_sentences(self) -> Iterator[None]:
        """Exit code 1 and the sentence, not a stack trace."""
        try:
            yield
        except (launch.CannotStart, CrashLoop) as error:
            self.stderr.write(f"portcullis: {error}")
            sys.exit(1)

    def extra_addresses(self) -> list[tuple[str, str, int]]:
        """``(setting, host, port)`` of what runs beside the gateway."""
        return []

    def extra_processes(self) -> list[ProcessSpec]:
        """What runs beside the gateway. Called when the database is ready."""
        return []

    async def announce(self) -> None:
        """Everything is ready."""
        tls = f" and https://{settings.BIND}:{settings.TLS_PORT}" if settings.TLS_PORT else ""
        say(
            f"gateway on http://{settings.BIND}:{settings.PORT}{tls}, panel on http://{settings.PANEL_BIND}:{settings.ADMIN_PORT}"
        )

    def prepare(self) -> None:
        """Database and static files, before any process needs them. Raises CannotStart."""
        collect_if_stale()
        os.umask(0o077)  # everything in VAR_DIR is this user's alone
        launch.prepare_database()

    def _set_workers(self, count: int) -> None:
        if not 1 <= count <= 512:
            self.stderr.write(f"portcullis: --workers must be from 1 to 512, not {count}.")
            sys.exit(2)
        settings.WORKERS = count
        os.environ["WORKERS"] = str(count)

    def _run(self, *, has_events_worker: bool) -> None:
        launch.check_ports([*launch.gateway_addresses(), *self.extra_addresses()])
        launch.make_var_dir()
        launch.check_access_log()
        launch.check_certificates()
        with launch.exclusive(settings.VAR_DIR):
            self.prepare()
            launch.raise_descriptor_limit()
            setup_token = launch.make_setup_token()
            if settings.WORKERS > 1 and settings.RATE_LIMIT_MODE == "local":
                say("rate limits count per worker: every worker admits each limit by itself")
            control = companions.control(settings.VAR_DIR / "control.sock")
            others = [control, *self._events_worker(has_events_worker), *self.extra_processes()]
            agent = companions.agent(settings.VAR_DIR / "agent.sock")
            asyncio.run(self._supervise([launch.workers(), others, [agent]], setup_token))
        say("stopped")

    def _events_worker(self, is_wanted: bool) -> list[ProcessSpec]:
        if not is_wanted:
            return []
        if not settings.CELERY_BROKER_URL:
            say("queue routes cannot deliver: CELERY_BROKER_URL is not set")
            return []
        return [launch.events_worker()]

    async def _supervise(self, stages: Sequence[Sequence[ProcessSpec]], setup_token: str | None) -> None:
        async def when_ready() -> None:
            await self.announce()
            if setup_token is not None:
                say(f"set up the first admin with: POST /setup, header X-Setup-Token: {setup_token}")

        await Supervisor(stages, settings.VAR_DIR / "processes.json", when_ready).run()

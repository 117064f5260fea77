import asyncio
import logging
import signal
from typing import Any

import uvloop
from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from gateway_project.agent.main import AgentCannotStart, run_agent


class Command(BaseCommand):
    help = "Runs the agent of this host: it brings the configuration to the workers. The supervisor starts it."
    requires_system_checks = []  # they may ask the database, which need not be there

    def handle(self, *args: Any, **options: Any) -> None:
        logging.basicConfig(level=settings.LOG_LEVEL, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        try:
            uvloop.run(_run_until_signal())
        except AgentCannotStart as error:
            raise CommandError(str(error)) from None


async def _run_until_signal() -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await run_agent(stop)

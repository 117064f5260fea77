"""Has alerts written down and handed to the events worker. Of all hosts' agents one does it at a time."""

import asyncio
import contextlib
import logging
from datetime import timedelta

from celery import Celery
from django.conf import settings
from django.utils import timezone
from kombu.exceptions import OperationalError

from access.alerts import collect, published, unsent
from access.models import AlertChannel
from core.locks import sole_holder
from gateway_project.agent.database import DatabaseAway, DatabaseThread

logger = logging.getLogger("portcullis.agent")

LOOK_S = 5.0
_SEND = "gateway.send_alert"  # `access.tasks`, which the agent need not load
_AGAIN_AFTER = timedelta(hours=2)  # longer than the longest wait between two tries


class Alerts:
    """``app`` publishes; without a broker alerts wait, and the panel says so."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._database = DatabaseThread("alerts")

    async def run(self) -> None:
        """Until cancelled."""
        try:
            while True:
                with contextlib.suppress(DatabaseAway):  # the follower says so
                    ids = await self._database.run(_due_ids)
                    if ids and settings.CELERY_BROKER_URL:
                        await self._hand_over(ids)
                await asyncio.sleep(LOOK_S)
        finally:
            await self._database.close()

    async def _hand_over(self, ids: list[str]) -> None:
        try:
            await asyncio.to_thread(self._publish, ids)
        except (OperationalError, OSError) as error:
            logger.warning("alerts wait for the broker: %s", error)
            return
        await self._database.run(published, ids, timezone.now())

    def _publish(self, ids: list[str]) -> None:
        with self._app.connection_for_write() as connection:
            for message_id in ids:
                self._app.send_task(_SEND, [message_id], connection=connection, retry=False)


def _due_ids() -> list[str]:
    if not AlertChannel.objects.exists():
        return []
    with sole_holder("alerts") as is_ours:
        if not is_ours:
            return []
        now = timezone.now()
        collect(now)
        return unsent(now, _AGAIN_AFTER)

"""Forgets what is older than the operator wants to keep (A22), a little at a time: nobody waits for a large delete.

Revisions are never forgotten: they are the history of the configuration, and hold no secret. What has its own reason to
end (sessions, revocations, uses) goes where it is kept.
"""

import asyncio
import logging
import random
from collections.abc import Callable
from datetime import timedelta
from typing import Any, NamedTuple

from django.conf import settings
from django.db.models import Q, QuerySet
from django.utils import timezone

from access.models import AlertMessage, Invitation
from core import audit
from core.models import AuditEvent
from core.revisions import Actor
from gateway_project.agent.database import DatabaseAway, DatabaseThread
from queues.models import QueuedTask

logger = logging.getLogger("portcullis.agent")

EVERY_S = 3600.0
BATCH = 500
_BETWEEN_S = 0.5  # two batches
_ACTOR = Actor("gateway", "", "retention")


class Kept(NamedTuple):
    """``days`` 0: for ever. ``older`` gives the rows from before a time."""

    name: str
    days: Callable[[], int]
    older: Callable[[Any], QuerySet[Any]]


KEPT = (
    Kept("auditEvents", lambda: settings.AUDIT_DAYS, lambda at: AuditEvent.objects.filter(at__lt=at).order_by("at")),
    Kept(
        "tasks",
        lambda: settings.TASK_DAYS,
        lambda at: QueuedTask.objects.filter(
            Q(finished_at__lt=at) | Q(finished_at__isnull=True, published_at__lt=at)  # not all consumers tell
        ).order_by("sequence"),
    ),
    Kept(
        "alertMessages",
        lambda: settings.TASK_DAYS,
        lambda at: AlertMessage.objects.filter(Q(sent_at__lt=at) | Q(failed_at__lt=at)).order_by("id"),
    ),
    Kept(
        "invitations",
        lambda: settings.TASK_DAYS,
        lambda at: Invitation.objects.filter(expires_at__lt=at).order_by("id"),
    ),
)


def prune_batch() -> dict[str, int]:
    """Delete up to `BATCH` rows of each kind: how many went, by kind, without those of which none did."""
    now = timezone.now()
    gone = {}
    for kept in KEPT:
        if days := kept.days():
            ids = list(kept.older(now - timedelta(days=days)).values_list("pk", flat=True)[:BATCH])
            if ids:
                kept.older(now).filter(pk__in=ids).delete()
                gone[kept.name] = len(ids)
    return gone


def note(gone: dict[str, int]) -> None:
    audit.record("retention.pruned", actor=_ACTOR, source="gateway", details=dict(gone))


class Retention:
    """One for each host; that several delete the same does no harm."""

    def __init__(self) -> None:
        self._database = DatabaseThread("retention")

    async def run(self) -> None:
        """Until cancelled."""
        try:
            while True:
                await asyncio.sleep(EVERY_S * random.uniform(0.02, 1.0))  # not all hosts at once
                await self.prune()
        finally:
            await self._database.close()

    async def prune(self) -> dict[str, int]:
        """All that is due. What went is noted in the audit trail."""
        total: dict[str, int] = {}
        try:
            while gone := await self._database.run(prune_batch):
                for name, count in gone.items():
                    total[name] = total.get(name, 0) + count
                await asyncio.sleep(_BETWEEN_S)
            if total:
                await self._database.run(note, total)
        except DatabaseAway:
            pass  # the follower says so, once
        except Exception:
            logger.exception("what is too old could not be forgotten")
        return total

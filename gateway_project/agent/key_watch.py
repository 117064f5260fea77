"""What the agent does for keys beside the configuration: it recognises those of another pepper, and sees ends coming.

Recognising costs 16 ms of a core, so it is done in two threads, for so many at once that all of them are answered in
seconds; who comes then is told to come again. What a worker sends is a key: it goes no further than the verification,
and into no log.
"""

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

from django.utils import timezone
from prometheus_client.core import Metric

from core import audit
from core.faults import InternalFault
from core.models import AuditEvent
from core.revisions import Actor
from core.wire import Message
from gateway_project.agent.database import DatabaseAway, DatabaseThread
from keys import recognition
from keys.models import ApiKey
from keys.pepper import pepper_id
from keys.recognition import Candidate

logger = logging.getLogger("portcullis.agent")

WITHIN = {"1d": timedelta(days=1), "7d": timedelta(days=7), "30d": timedelta(days=30)}
_TOLD_WITHIN = WITHIN["7d"]
_LOOK_S = 60.0
_AGAIN_S = 1.0
_AT_ONCE = 2
_MOST_WAITING = 100
_MOST_TOLD = 200  # in one look
_MAX_KEY = 256
_EXPIRING = "key.expiring"


class KeyWatch:
    """News for workers (`agent.server`): whether there are keys of another pepper. ``on_change`` is called when there
    are, or are no more."""

    def __init__(self, node_name: str, on_change: Any) -> None:
        self._actor = Actor("gateway", node_name[:64], node_name[:150])
        self._on_change = on_change
        self._database = DatabaseThread("keys")
        self._argon2 = ThreadPoolExecutor(_AT_ONCE, "argon2")
        self._waiting = 0
        self._others: bool | None = None
        self._expiring: dict[str, int] = {}
        self._unknown = 0
        self.handlers = {"recognise_key": self.recognise}

    async def run(self) -> None:
        """Until cancelled."""
        try:
            while True:
                wait_s = _LOOK_S
                try:
                    await self._look()
                except DatabaseAway:
                    wait_s = _AGAIN_S  # the follower says so, once
                except Exception:
                    logger.exception("the keys could not be looked at")
                await asyncio.sleep(wait_s)
        finally:
            self._argon2.shutdown(wait=False, cancel_futures=True)
            await self._database.close()

    async def _look(self) -> None:
        others = await self._database.run(recognition.is_needed)
        if others != self._others:
            if others:
                logger.warning("there are keys of another pepper: they are recognised as they come (docs/keys.md)")
            self._others = others
            self._on_change()
        self._expiring, self._unknown = await self._database.run(_counts)
        for name in await self._database.run(tell_expiring, self._actor):
            logger.warning("the key %s expires within %d days", name, _TOLD_WITHIN.days)

    # --- for workers ---
    def since(self, told: bool | None) -> tuple[bool | None, Message | None]:
        """``told`` is what the worker was told last. Before that is known, there may be such keys: none is to be called
        wrong that is not."""
        others = self._others is not False
        return others, None if told == others else {"type": "peppers", "others": others}

    async def recognise(self, params: dict[str, Any]) -> dict[str, Any]:
        """``{"key"}`` → ``{"is_known"}``: whether it is a key, whose record the workers then get, if they have not yet.

        Raises InternalFault: ``overloaded``, ``dependency_unavailable``.
        """
        key = params["key"]
        if not isinstance(key, str) or len(key) > _MAX_KEY:
            return {"is_known": False}
        if self._waiting >= _MOST_WAITING:
            raise InternalFault("overloaded", "Too many keys are being looked at.", retry_after_s=1)
        self._waiting += 1
        try:
            return {"is_known": await self._recognise(key)}
        except DatabaseAway:
            raise InternalFault("dependency_unavailable", "The database is away.", retry_after_s=2) from None
        finally:
            self._waiting -= 1

    async def _recognise(self, key: str) -> bool:
        found: Candidate = await self._database.run(recognition.candidate, key)
        loop = asyncio.get_running_loop()
        if not await loop.run_in_executor(self._argon2, recognition.verifies, found.hash, key) or found.row is None:
            return False
        return found.is_current or await self._database.run(recognition.rebuild, found)

    # --- for metrics ---
    def metrics(self) -> list[Metric]:
        expiring = Metric("portcullis_keys_expiring", "Keys that expire soon and have no successor", "gauge")
        for within, count in self._expiring.items():
            expiring.add_sample("portcullis_keys_expiring", {"within": within}, count)
        unknown = Metric("portcullis_keys_of_another_pepper", "Keys to be recognised when they come", "gauge")
        unknown.add_sample("portcullis_keys_of_another_pepper", {}, self._unknown)
        return [expiring, unknown]


def _counts() -> tuple[dict[str, int], int]:
    expiring = {within: ApiKey.objects.expiring(span).count() for within, span in WITHIN.items()}
    return expiring, ApiKey.objects.of_another_pepper(pepper_id()).count()


def tell_expiring(actor: Actor) -> list[str]:
    """Note in the audit log, once for each end of each key, that it is near. Several hosts may note the same."""
    keys = list(ApiKey.objects.expiring(_TOLD_WITHIN)[:_MOST_TOLD])
    since = timezone.now() - _TOLD_WITHIN - timedelta(days=1)
    known = set(
        AuditEvent.objects.filter(action=_EXPIRING, at__gte=since, object_id__in=[key.pk for key in keys]).values_list(
            "object_id", "details__expiresAt"
        )
    )
    told = []
    for key in keys:
        assert key.expires_at is not None  # or it would not expire
        end = key.expires_at.isoformat()
        if (key.pk, end) not in known:
            audit.record(
                _EXPIRING,
                actor=Actor(actor.kind, actor.id, actor.name, tenant_id=str(key.tenant_id)),
                source="gateway",
                object_kind=ApiKey.kind,
                object_id=key.pk,
                object_name=key.name,
                details={"expiresAt": end},
            )
            told.append(f"{key.name!r} ({key.pk})")
    return told

"""Waiting until the gateways have applied a change (rule 30): the change stands, whatever comes of the waiting."""

import time
from datetime import timedelta

from django.db import DatabaseError
from django.utils import timezone

from core.models import GatewayNode

LIVE_FOR = timedelta(seconds=3)
DEFAULT_WAIT_S = 1.0
_POLL_S = 0.015


def wait_for_nodes(number: int, timeout_s: float = DEFAULT_WAIT_S) -> list[str]:
    """Wait until every live node has applied revision ``number``. Returns the ids of those that have not.

    A node is live if it was seen in the last 3 seconds. With no live nodes, or ``timeout_s`` 0, nobody waits.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            pending = pending_nodes(number)
        except DatabaseError:
            return ["unknown"]  # the database went away after it took the change
        if not pending or time.monotonic() >= deadline:
            return pending
        time.sleep(_POLL_S)


def pending_nodes(number: int) -> list[str]:
    """Ids of the live nodes that have not applied revision ``number`` yet."""
    live = GatewayNode.objects.filter(seen_at__gt=timezone.now() - LIVE_FOR)
    return list(live.filter(applied_revision__lt=number).order_by("id").values_list("id", flat=True))

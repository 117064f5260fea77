"""Waiting until the gateways have applied a change (rule 30): the change stands, whatever comes of the waiting."""

import time
from datetime import timedelta

from django.db import DatabaseError
from django.db.models import Q, QuerySet
from django.db.models.functions import Now

from core.models import GatewayNode

LIVE_FOR = timedelta(seconds=3)  # without a heartbeat
IS_LIVE = Q(seen_at__gt=Now() - LIVE_FOR)  # by the database's clock, which all hosts share
DEFAULT_WAIT_S = 1.0
_POLL_S = 0.015
# A node that is silent may serve on: its agent starts anew, or the database was away, for all nodes at once.
_WAITED_FOR = timedelta(minutes=1)  # after the latest heartbeat of any node
_FORGOTTEN = timedelta(hours=1)


def wait_for_nodes(number: int, timeout_s: float = DEFAULT_WAIT_S) -> list[str]:
    """Wait until every node has applied revision ``number``. Returns the ids of those that have not.

    A node counts until it has ended in order or has been silent for a minute longer than others. With no nodes, or
    ``timeout_s`` 0, nobody waits.
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


def live_nodes() -> QuerySet[GatewayNode]:
    """Those that were seen lately."""
    return GatewayNode.objects.filter(IS_LIVE).order_by("id")


def pending_nodes(number: int) -> list[str]:
    """Ids of the nodes that have not applied revision ``number`` yet."""
    known = GatewayNode.objects.filter(seen_at__gt=Now() - _FORGOTTEN).order_by("id")
    nodes = list(known.values_list("id", "seen_at", "applied_revision"))
    latest = max((seen_at for _, seen_at, _ in nodes), default=None)
    return [
        node
        for node, seen_at, applied in nodes
        if applied < number and latest is not None and seen_at > latest - _WAITED_FOR
    ]

"""Whoever changes something learns which nodes run it (rule 30)."""

import threading
from datetime import timedelta

import pytest
from django.db import connection
from django.utils import timezone

from core.models import GatewayNode
from core.propagation import pending_nodes, wait_for_nodes

pytestmark = pytest.mark.django_db


def _node(slot: int, applied: int, seen_s_ago: float = 0) -> GatewayNode:
    seen = timezone.now() - timedelta(seconds=seen_s_ago)
    return GatewayNode.objects.create(id=f"host/{slot}", host="host", slot=slot, applied_revision=applied, seen_at=seen)


def test_without_live_nodes_nobody_waits() -> None:
    _node(0, applied=1, seen_s_ago=10)

    assert wait_for_nodes(5, timeout_s=60) == []


def test_nodes_that_have_it_already_are_not_waited_for() -> None:
    _node(0, applied=5)
    _node(1, applied=6)

    assert wait_for_nodes(5, timeout_s=60) == []


def test_those_that_are_behind_in_the_end_are_named() -> None:
    _node(0, applied=5)
    _node(1, applied=4)

    assert wait_for_nodes(5, timeout_s=0.05) == ["host/1"]
    assert pending_nodes(5) == ["host/1"]


@pytest.mark.django_db(transaction=True)
def test_the_wait_ends_as_soon_as_the_last_node_acknowledges() -> None:
    _node(0, applied=4)

    def acknowledge() -> None:
        GatewayNode.objects.update(applied_revision=5)
        connection.close()

    later = threading.Timer(0.1, acknowledge)
    later.start()

    assert wait_for_nodes(5, timeout_s=60) == []
    later.join()

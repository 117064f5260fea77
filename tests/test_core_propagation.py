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


def test_nodes_that_are_long_gone_are_not_waited_for() -> None:
    _node(0, applied=1, seen_s_ago=3700)
    assert wait_for_nodes(5, timeout_s=60) == []
    _node(1, applied=5)
    _node(2, applied=1, seen_s_ago=70)
    assert wait_for_nodes(5, timeout_s=60) == []


def test_a_node_that_was_silent_for_a_moment_still_counts() -> None:
    _node(0, applied=5)
    _node(1, applied=1, seen_s_ago=10)  # its agent starts anew
    assert wait_for_nodes(5, timeout_s=0.05) == ["host/1"]


def test_silence_of_all_nodes_is_taken_for_an_outage_of_the_database() -> None:
    _node(0, applied=5, seen_s_ago=600)
    _node(1, applied=4, seen_s_ago=601)
    _node(2, applied=4, seen_s_ago=900)
    assert wait_for_nodes(5, timeout_s=0.05) == ["host/1"]


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

"""What is too old is forgotten in small pieces, and that is noted (A22)."""

from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from core import audit
from core.models import AuditEvent
from core.revisions import Actor
from gateway_project.agent import retention
from queues.models import QueuedTask

pytestmark = pytest.mark.django_db
ACTOR = Actor("user", "1", "ann")


def task(days: int, **changes: Any) -> QueuedTask:
    at = timezone.now() - timedelta(days=days)
    values = {"queue_route_id": "que_1", "task_name": "t", "queue": "q", "arguments": "body", "body": {}}
    return QueuedTask.objects.create(**values, accepted_at=at, **dict.fromkeys(changes, at))


def test_what_is_older_than_the_settings_say_goes_and_the_rest_stays(settings: Any) -> None:
    settings.AUDIT_DAYS, settings.TASK_DAYS = 10, 5
    old, young = (audit.record("session.login", actor=ACTOR, source="panel") for _ in range(2))
    AuditEvent.objects.filter(pk=old.pk).update(at=timezone.now() - timedelta(days=11))
    for days, changes in ((6, {"finished_at": 1}), (6, {"published_at": 1}), (6, {}), (4, {"finished_at": 1})):
        task(days, **changes)
    assert retention.prune_batch() == {"auditEvents": 1, "tasks": 2}
    assert list(AuditEvent.objects.values_list("pk", flat=True)) == [young.pk]
    assert QueuedTask.objects.count() == 2  # one that waits still, one that is young
    assert retention.prune_batch() == {}


def test_a_batch_is_small_and_zero_days_are_for_ever(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.AUDIT_DAYS, settings.TASK_DAYS = 1, 0
    monkeypatch.setattr(retention, "BATCH", 2)
    for _ in range(5):
        audit.record("session.login", actor=ACTOR, source="panel")
    AuditEvent.objects.update(at=timezone.now() - timedelta(days=2))
    task(900, finished_at=1)
    assert [retention.prune_batch() for _ in range(4)] == [
        {"auditEvents": 2},
        {"auditEvents": 2},
        {"auditEvents": 1},
        {},
    ]
    assert QueuedTask.objects.count() == 1


def test_what_went_stands_in_the_audit_trail(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The part of the agent, without its own thread, whose connection would not see this transaction."""
    settings.AUDIT_DAYS = 1
    audit.record("session.login", actor=ACTOR, source="panel")
    AuditEvent.objects.update(at=timezone.now() - timedelta(days=2))

    class Here:
        async def run(self, function: Any, *arguments: Any) -> Any:
            return function(*arguments)

    monkeypatch.setattr(retention, "_BETWEEN_S", 0.0)
    monkeypatch.setattr(retention, "DatabaseThread", lambda name: Here())
    pruning = retention.Retention().prune()
    pruning.send(None)  # a pause between two batches; a loop would have a connection of its own
    with pytest.raises(StopIteration) as ended:
        pruning.send(None)
    assert ended.value.value == {"auditEvents": 1}
    (event,) = AuditEvent.objects.all()
    assert (event.action, event.actor_name, event.details) == ("retention.pruned", "retention", {"auditEvents": 1})

"""What the worker events of consumers tell of tasks."""

import time
from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from queues import states
from queues.models import QueuedTask
from queues.worker_events import handle

pytestmark = pytest.mark.django_db


@pytest.fixture
def task() -> QueuedTask:
    return QueuedTask.objects.create(
        queue_route_id="que_1",
        queue_route_name="mail",
        task_name="email.send",
        queue="mail",
        arguments="members",
        body={},
        state="published",
    )


@pytest.mark.parametrize(
    ("event", "status", "error"),
    [
        ({"type": "task-received"}, "published", None),
        ({"type": "task-started"}, "started", None),
        ({"type": "task-retried", "exception": "OSError()"}, "published", None),
        ({"type": "task-failed", "exception": "ValueError('no')"}, "failed", "ValueError('no')"),
        ({"type": "task-revoked", "expired": True}, "failed", "expired before a consumer took it"),
        ({"type": "task-revoked", "expired": False, "terminated": True}, "failed", "revoked"),
        ({"type": "task-rejected"}, "failed", "rejected by its consumer"),
        ({}, "published", None),
    ],
    ids=lambda value: value.get("type", "no type") if isinstance(value, dict) else "",
)
def test_an_event_moves_its_task(task: QueuedTask, event: dict[str, Any], status: str, error: str | None) -> None:
    handle({**event, "uuid": task.id})
    document = states.document(task.id, "")
    assert (document["status"], document["error"]) == (status, error)


@pytest.mark.parametrize("uuid", [None, 7, "", "3f2a", "task_of_another_gateway"])
def test_events_of_tasks_that_are_not_ours_change_nothing(task: QueuedTask, uuid: object) -> None:
    handle({"type": "task-failed", "uuid": uuid, "exception": "ValueError()"})
    assert states.document(task.id, "")["status"] == "published"


@pytest.mark.parametrize(
    "timestamp",
    [None, "soon", 1e300, float("nan"), time.time() + 3600],
    ids=["none", "soon", "huge", "nan", "an hour later"],
)
def test_a_start_is_never_later_than_now_whatever_the_consumers_clock_says(task: QueuedTask, timestamp: object) -> None:
    handle({"type": "task-started", "uuid": task.id, "timestamp": timestamp})
    task.refresh_from_db()
    assert task.started_at is not None
    assert timedelta(0) <= timezone.now() - task.started_at < timedelta(seconds=10)

"""The outbox: accepted tasks wait in the database until the broker has them (rule 19)."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db import DataError, connection, transaction
from django.db.models import F, Min
from django.utils import timezone

from core.faults import ClientFault, GatewayFault
from core.locks import sole_holder
from queues.models import QueuedTask, QueueRoute

_EXPIRED = "expired before it could be published"
State = QueuedTask.State


@dataclass(frozen=True, slots=True)
class Submission:
    """One queue request as its worker has let it through: ``body`` has passed `queues.envelope.parse_body`."""

    queue_route_id: str
    body: Any
    application_id: str = ""  # empty: an anonymous sender
    key_id: str = ""
    user_id: str = ""
    request_id: str = ""
    traceparent: str = ""


def accept(submissions: Sequence[Submission]) -> list[QueuedTask | GatewayFault]:
    """Store tasks durably, all in one commit; the answers stand in the order of the submissions.

    A submission that cannot be stored gets a fault and does not keep the others from it. Raises
    `django.db.OperationalError` or `InterfaceError` when the database is away: then none is stored.
    """
    try:
        return _accept_together(submissions)
    except DataError:  # one of them holds what the database cannot; find out which
        return [_accept_alone(submission) for submission in submissions]


def _accept_alone(submission: Submission) -> QueuedTask | GatewayFault:
    try:
        return _accept_together([submission])[0]
    except DataError:
        return ClientFault("invalid_field", "The body holds something that cannot be stored.")


def _accept_together(submissions: Sequence[Submission]) -> list[QueuedTask | GatewayFault]:
    with transaction.atomic():
        if connection.vendor == "postgresql":
            with connection.cursor() as cursor:
                cursor.execute("SET LOCAL synchronous_commit TO on")  # whatever the server's default: a 202 is durable
        routes = QueueRoute.objects.in_bulk({submission.queue_route_id for submission in submissions})
        now = timezone.now()
        answers = [_task(submission, routes.get(submission.queue_route_id), now) for submission in submissions]
        QueuedTask.objects.bulk_create([task for task in answers if isinstance(task, QueuedTask)])
    return answers


def _task(submission: Submission, route: QueueRoute | None, now: datetime) -> QueuedTask | GatewayFault:
    if route is None or not route.is_active:
        return ClientFault("no_route", "The route leads to a queue that is not there any more.")
    available_at = now + timedelta(seconds=route.delay_s)
    expires_at = None if route.expires_s is None else available_at + timedelta(seconds=route.expires_s)
    return QueuedTask(
        tenant_id=route.tenant_id,
        queue_route_id=route.id,
        queue_route_name=route.name,
        task_name=route.task_name,
        queue=route.queue,
        arguments=route.arguments,
        headers=route.headers,
        priority=route.priority,
        body=submission.body,
        application_id=submission.application_id,
        key_id=submission.key_id,
        user_id=submission.user_id,
        request_id=submission.request_id[:64],
        traceparent=submission.traceparent[:64],
        accepted_at=now,
        available_at=available_at,
        expires_at=expires_at,
    )


def depth() -> int:
    """How many tasks wait to be published."""
    return QueuedTask.objects.filter(state=State.QUEUED).count()


def queues_with_work() -> list[str]:
    """Queues that have a task to publish now, the one that has waited longest first."""
    waiting = QueuedTask.objects.filter(state=State.QUEUED, available_at__lte=timezone.now())
    return list(
        waiting.values("queue").annotate(first=Min("sequence")).order_by("first").values_list("queue", flat=True)
    )


def next_batch(queue: str, limit: int) -> list[QueuedTask]:
    """The tasks of a queue that are to be published next, in the order of their acceptance."""
    due = QueuedTask.objects.filter(queue=queue, state=State.QUEUED, available_at__lte=timezone.now())
    return list(due.order_by("sequence")[:limit])


def expire(queue: str) -> int:
    """End the tasks of a queue whose time ran out while they waited; return their number."""
    now = timezone.now()
    overdue = QueuedTask.objects.filter(queue=queue, state=State.QUEUED, expires_at__lte=now)
    return overdue.update(state=State.FAILED, finished_at=now, error=_EXPIRED)


def attempted(task: QueuedTask) -> None:
    """Count an attempt to publish that failed."""
    QueuedTask.objects.filter(sequence=task.sequence).update(attempts=F("attempts") + 1)


def sole_publisher(queue: str) -> AbstractContextManager[bool]:
    """Whether this thread may publish to the queue; while it may, nobody else does, on no host."""
    return sole_holder(f"queue {queue}")

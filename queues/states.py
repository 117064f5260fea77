"""A task's way through its states, and what its sender is told of it.

    queued → published → started → succeeded | failed

Word of a task comes from several sides (the relay, callbacks, worker events), twice, late, or out of order. So every
step is one conditional UPDATE that never leads back: the first end stays the end.
"""

from datetime import datetime
from typing import Any

from django.db.models import Case, F, QuerySet, Value, When
from django.db.models.functions import Coalesce
from django.utils import timezone

from core.faults import ClientFault
from queues.json_values import restored, storable, storable_text
from queues.models import QueuedTask

ERROR_LIMIT = 2000  # characters
_REASON_UNKNOWN = "The task failed. Its consumer did not tell the reason (only one started with -E does)."
State = QueuedTask.State


def published(sequences: list[int], now: datetime) -> None:
    """The broker has these tasks. Some may have ended already: a consumer can be faster than this UPDATE."""
    QueuedTask.objects.filter(sequence__in=sequences).update(
        state=_step([State.QUEUED], State.PUBLISHED),
        published_at=Coalesce(F("published_at"), Value(now)),
        attempts=F("attempts") + 1,
    )


def started(task_id: str, at: datetime) -> None:
    """A consumer has begun to work on the task. A repeated start (a retry) keeps the first time."""
    QueuedTask.objects.filter(id=task_id).update(
        state=_step([State.QUEUED, State.PUBLISHED], State.STARTED), started_at=Coalesce(F("started_at"), Value(at))
    )


def succeeded(task_id: str, result: Any) -> bool:
    """The task's end, with what it returned. False if it had ended before."""
    changed = _unfinished(task_id).update(
        state=State.SUCCEEDED, finished_at=timezone.now(), result=storable(result), error=""
    )
    return changed == 1


def failed(task_id: str, error: str) -> bool:
    """The task's end. False if it had ended before; an error text then still completes a failure without one."""
    error = storable_text(error)[:ERROR_LIMIT]
    if _unfinished(task_id).update(state=State.FAILED, finished_at=timezone.now(), error=error) == 1:
        return True
    if error:
        QueuedTask.objects.filter(id=task_id, state=State.FAILED, error="").update(error=error)
    return False


def document(task_id: str, application_id: str, user_id: str = "") -> dict[str, Any]:
    """What a task's sender may know (rule 20). Times are ISO 8601, or None.

    Raises ClientFault ``not_found`` for a task of another application, or of another user of it. A task that was sent
    without credentials is found by whoever knows its unguessable id.
    """
    task = QueuedTask.objects.filter(id=task_id).first()
    is_anonymous = task is not None and not task.application_id
    if task is None or (not is_anonymous and (task.application_id, task.user_id) != (application_id, user_id)):
        raise ClientFault("not_found", "There is no such task.")
    error = (task.error or _REASON_UNKNOWN) if task.state == State.FAILED else None
    return {
        "task_id": task.id,
        "status": task.state,
        "queue": task.queue_route_name,
        "accepted_at": _iso(task.accepted_at),
        "published_at": _iso(task.published_at),
        "started_at": _iso(task.started_at),
        "finished_at": _iso(task.finished_at),
        "result": restored(task.result),
        "error": error,
    }


def _step(before: list[str], after: str) -> Case:
    return Case(When(state__in=before, then=Value(after)), default=F("state"))


def _unfinished(task_id: str) -> QuerySet[QueuedTask]:
    return QueuedTask.objects.filter(id=task_id).exclude(state__in=(State.SUCCEEDED, State.FAILED))


def _iso(time: datetime | None) -> str | None:
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z") if time else None

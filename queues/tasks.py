"""What the events worker does: takes completions from ``gateway.events`` and records them.

Consumers call these two tasks without knowing them: every message carries them as ``link`` and ``link_error``.
"""

from typing import Any

from celery import shared_task
from django.db import InterfaceError, OperationalError

from queues import states
from queues.broker import FAILED, SUCCEEDED

# A database that is away must not lose a completion: the message goes back to the queue until it is there again.
_PATIENT: dict[str, Any] = {
    "autoretry_for": (OperationalError, InterfaceError),
    "max_retries": None,
    "retry_backoff": True,
    "retry_backoff_max": 30,
    "acks_late": True,
    "reject_on_worker_lost": True,
    "ignore_result": True,
}


@shared_task(name=SUCCEEDED, **_PATIENT)
def task_succeeded(result: Any, task_id: str) -> None:
    states.succeeded(task_id, result)


@shared_task(name=FAILED, **_PATIENT)
def task_failed(task_id: str) -> None:
    """An errback of a consumer that does not know our task gets the id alone; the reason comes by worker event."""
    states.failed(task_id, "")

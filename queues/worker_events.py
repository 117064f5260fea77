"""Worker events of consumers that run with ``-E``: when a task was started, and why it failed.

A thread of the events worker listens to Celery's event exchange. On AMQP all hosts share one durable queue there, which
keeps what comes while no events worker runs (an hour at most). On Redis events are broadcast and not kept.
"""

import logging
from datetime import UTC, datetime
from threading import Event, Thread
from typing import Any

from celery import Celery, bootsteps
from celery.events.receiver import EventReceiver
from django.db import Error, close_old_connections, connections
from django.utils import timezone

from queues import states

_KEPT_S, _UNUSED_S = 3600, 24 * 3600
_RECONNECT_S = 2.0
_TICK_S = 1.0
_OUR_IDS = "task_"
_log = logging.getLogger(__name__)


def handle(event: dict[str, Any]) -> None:
    """Record one worker event. Events of tasks that are not ours change nothing."""
    task_id = str(event.get("uuid", ""))
    if not task_id.startswith(_OUR_IDS):
        return
    match event.get("type"):
        case "task-started":
            states.started(task_id, _time_of(event))
        case "task-failed":
            states.failed(task_id, str(event.get("exception", "")))
        case "task-revoked":
            states.failed(task_id, "expired before a consumer took it" if event.get("expired") else "revoked")
        case "task-rejected":
            states.failed(task_id, "rejected by its consumer")


class WorkerEvents(Thread):
    """Listens until told to stop, and connects anew whenever the broker comes back."""

    def __init__(self, app: Celery) -> None:
        super().__init__(name="worker-events", daemon=True)
        self._app = app
        self._stopping = Event()
        self._receiver: EventReceiver | None = None

    def run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._listen()
            except Exception as error:
                _log.warning("Worker events are not heard: %s: %s", type(error).__name__, error)
            self._stopping.wait(_RECONNECT_S)
        connections.close_all()

    def stop(self) -> None:
        self._stopping.set()
        if self._receiver is not None:
            self._receiver.should_stop = True
        self.join(5 * _TICK_S)

    def _listen(self) -> None:
        with self._app.connection_for_read() as connection:
            connection.ensure_connection(max_retries=0)
            self._receiver = EventReceiver(
                connection,
                handlers={"*": self._handle},
                routing_key="task.#",
                # One name for all hosts: they share the queue, and none is left behind by a worker that died.
                node_id=self._app.conf.task_default_queue,
                app=self._app,
                queue_ttl=_KEPT_S,
                queue_expires=_UNUSED_S,
                queue_exclusive=False,
                queue_durable=True,
            )
            for _ in self._receiver.consume(limit=None, safety_interval=_TICK_S, wakeup=False):
                if self._stopping.is_set():
                    return

    def _handle(self, event: dict[str, Any]) -> None:
        close_old_connections()
        try:
            handle(event)
        except Error as error:
            _log.warning("A worker event is lost: %s: %s", type(error).__name__, error)


class WorkerEventsStep(bootsteps.StartStopStep):
    """Starts and stops the thread with the worker."""

    def __init__(self, worker: Any, **options: Any) -> None:
        super().__init__(worker, **options)
        self._thread: WorkerEvents | None = None

    def start(self, worker: Any) -> None:
        self._thread = WorkerEvents(worker.app)
        self._thread.start()

    def stop(self, worker: Any) -> None:
        if self._thread is not None:
            self._thread.stop()

    terminate = stop


def _time_of(event: dict[str, Any]) -> datetime:
    """When the consumer says it happened; never later than now, whatever its clock says."""
    now = timezone.now()
    timestamp = event.get("timestamp")
    if not isinstance(timestamp, int | float):
        return now
    try:
        return min(datetime.fromtimestamp(timestamp, UTC), now)
    except (OverflowError, OSError, ValueError):
        return now

"""The broker: names that both sides use, and Celery's configuration for each kind of broker. Imports no models."""

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from celery import Celery

from queues.folder_broker import make_folders

SUCCEEDED, FAILED = "gateway.task_succeeded", "gateway.task_failed"
CONNECT_TIMEOUT_S = 4
_REDIS = ("redis", "rediss", "sentinel", "valkey", "valkeys")
_AMQP = ("amqp", "amqps", "pyamqp", "py-amqp")


def make_app(broker_url: str, folder: Path, events_queue: str, *, current: bool = True) -> Celery:
    """A Celery app that publishes tasks and, as the events worker, runs ``queues.tasks``.

    ``folder`` is the filesystem broker's place. ``events_queue`` is where completions come back: its default queue.
    Nothing is connected yet: a broker that is away is waited for, by the events worker and by the relay.
    """
    if _scheme(broker_url) == "filesystem":
        broker_url = "filesystem://localhost"  # kombu warns of a URL without a host
    app = Celery("gateway", set_as_current=current)
    app.conf.update(
        # All three: by itself Celery lets the environment decide where the last two point.
        broker_url=broker_url,
        broker_read_url=broker_url,
        broker_write_url=broker_url,
        broker_connection_timeout=CONNECT_TIMEOUT_S,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        **_transport(broker_url, folder),
        accept_content=["json"],
        task_serializer="json",
        task_ignore_result=True,  # there is no result backend
        task_default_queue=events_queue,
        imports=["queues.tasks", "access.tasks"],
        timezone="UTC",
        worker_pool="threads",
        worker_concurrency=4,
        worker_prefetch_multiplier=8,
        worker_enable_remote_control=False,
        worker_cancel_long_running_tasks_on_connection_loss=True,  # they run again: completions may be told twice
        # Else, after a lost connection, a pool thread and the main thread read the new one at the same time.
        worker_enable_prefetch_count_reduction=False,
    )
    app.steps["worker"].add("queues.worker_events:WorkerEventsStep")
    return app


def _transport(broker_url: str, folder: Path) -> dict[str, Any]:
    scheme = _scheme(broker_url)
    if scheme == "filesystem":
        return {
            "broker_transport": "queues.folder_broker:Transport",
            "broker_transport_options": make_folders(folder),
        }
    if scheme in _AMQP:
        return {"broker_transport_options": {"confirm_publish": True, "write_timeout": 10}}
    if scheme in _REDIS:
        return {"broker_transport_options": {"socket_connect_timeout": CONNECT_TIMEOUT_S}}
    return {}


def _scheme(url: str) -> str:
    return urlsplit(url).scheme

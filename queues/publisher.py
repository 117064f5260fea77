"""Tasks to messages: Celery's message protocol 2, handed to the broker and confirmed by it.

The gateway is a producer like any other Celery app, so that a consumer needs to know no more of it than a task's name.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

from celery import Celery
from kombu import Connection, Producer, Queue
from kombu.exceptions import OperationalError

from queues.broker import FAILED, SUCCEEDED
from queues.json_values import restored
from queues.models import RESERVED_HEADERS, QueuedTask, QueueRoute

CONFIRM_TIMEOUT_S = 10
# RabbitMQ writes down within two seconds that a queue exists (Erlang's disk_log); killed before, it forgets the queue
# together with its confirmed messages.
SETTLING_TAKES_S = 2.5
ERROR_LIMIT = 2000  # characters of an error that are kept

# What a lost connection looks like, beside what its transport lists. AttributeError: kombu's own warning in
# kombu.transport.pyamqp, "it's very annoying that pyamqp sometimes raises AttributeError if the connection is lost".
_AWAY = (OperationalError, OSError, EOFError, AttributeError)
_HIGHEST_PRIORITY = 9
_NOT_FOUND, _PRECONDITION_FAILED = 404, 406  # reply codes of AMQP 0-9-1


class BrokerUnavailable(Exception):
    """The broker is away, or refuses for a reason that has nothing to do with the message. Try again later."""


class Unpublishable(Exception):
    """The broker will never take this message."""


class Publisher:
    """One connection to the broker, opened when it is needed. Belongs to one thread."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._connection: Connection | None = None
        self._producer: Producer | None = None
        self._declared: set[str] = set()
        self._settling: dict[str, float] = {}  # queues that we have made, and when they are safe

    def publish(self, task: QueuedTask) -> None:
        """Return once the broker has the message (AMQP: confirmed; Redis: answered; filesystem: synced).

        Raises BrokerUnavailable or Unpublishable. After BrokerUnavailable the broker may have it all the same.
        """
        try:
            message = self._message(task)
        except Exception as error:
            raise Unpublishable(_sentence(error)) from error
        try:
            producer = self._ready(task.queue)
        except Exception as error:
            self.close()
            raise BrokerUnavailable(_sentence(error)) from error
        try:
            self._send(producer, task, message)
        except Exception as error:
            failure = BrokerUnavailable if self._is_away(error) else Unpublishable
            self.close()
            raise failure(_sentence(error)) from error

    def settle(self, queue: str) -> None:
        """Return once a queue that `publish` had to make is itself safe, at once for others. Raises BrokerUnavailable.

        What was published to it before counts only then: while `is_settling`, an outage may take queue and messages.
        """
        safe_at = self._settling.get(queue)
        if safe_at is None:
            return
        time.sleep(max(safe_at - time.monotonic(), 0))
        try:
            self._ready(queue)
            _look_for(self._connection, queue)
        except Exception as error:
            self.close()
            raise BrokerUnavailable(_sentence(error)) from error
        if self._settling[queue] != safe_at:
            raise BrokerUnavailable("the broker has lost the queue, which was new")
        del self._settling[queue]

    def is_settling(self, queue: str) -> bool:
        return queue in self._settling

    def close(self) -> None:
        connection, self._connection, self._producer = self._connection, None, None
        self._declared.clear()
        if connection is None:
            return
        with suppress(*_AWAY, *connection.connection_errors, *connection.channel_errors):
            connection.release()

    def _ready(self, queue: str) -> Producer:
        if self._connection is None:
            self._connection = self._app.connection_for_write()
            # Every host of the URL once, and no waiting here: the relay does that.
            tries = len(self._connection.alt)
            self._connection.ensure_connection(max_retries=tries, interval_start=0, interval_step=0.1)
        if queue not in self._declared:
            self._declare(self._connection, queue)
            self._declared.add(queue)
        if self._producer is None:
            self._producer = Producer(self._connection.channel(), auto_declare=False)
        return self._producer

    def _declare(self, connection: Connection, queue: str) -> None:
        """See to it that the queue exists and is durable, however its consumer has declared it.

        A consumer may give its queue arguments (``x-max-priority``, ``x-queue-type``); declaring it without them would
        be refused. So it is looked for first (passively), on a channel of its own, which a miss closes.
        """
        if connection.transport.driver_type != "amqp":
            return  # queues of the others come to be with their first message
        try:
            _look_for(connection, queue)
        except connection.channel_errors as error:
            if getattr(error, "reply_code", None) != _NOT_FOUND:
                raise
            with connection.channel() as channel:
                Queue(queue, channel=channel, durable=True).queue_declare()
            self._settling[queue] = time.monotonic() + SETTLING_TAKES_S

    def _send(self, producer: Producer, task: QueuedTask, message: Any) -> None:
        self._app.amqp.send_task_message(
            producer,
            task.task_name,
            message,
            queue=Queue(task.queue),  # by the default exchange, which leads to every queue by its name
            declare=[],  # done by _declare
            retry=False,
            serializer="json",
            delivery_mode=2,
            mandatory=True,  # a queue deleted since it was declared: returned to us, not dropped
            message_id=task.id,
            confirm_timeout=CONFIRM_TIMEOUT_S,
            headers=_headers(task),
            **self._priority(task),
        )

    def _message(self, task: QueuedTask) -> Any:
        as_members = task.arguments == QueueRoute.Arguments.MEMBERS
        body = restored(task.body)
        back = {"queue": self._app.conf.task_default_queue, "serializer": "json"}
        return self._app.amqp.as_task_v2(
            task.id,
            task.task_name,
            args=() if as_members else (body,),
            kwargs=body if as_members else {},
            # In the message, for the consumer to see: as the broker's own TTL the task would vanish without a word.
            expires=task.expires_at,
            callbacks=[self._app.signature(SUCCEEDED, kwargs={"task_id": task.id}, options=back)],
            errbacks=[self._app.signature(FAILED, options=back)],
        )

    def _priority(self, task: QueuedTask) -> dict[str, int]:
        if task.priority is None:
            return {}
        if self._connection and self._connection.transport.driver_type == "redis":
            return {"priority": _HIGHEST_PRIORITY - task.priority}  # kombu's Redis transport serves 0 first
        return {"priority": task.priority}

    def _is_away(self, error: Exception) -> bool:
        """Whether the broker, not the message, is to blame."""
        if getattr(error, "reply_code", None) == _PRECONDITION_FAILED:
            return False  # RabbitMQ refuses a message over its max_message_size with it
        connection = self._connection
        listed = (*connection.connection_errors, *connection.channel_errors) if connection else ()
        return isinstance(error, (*_AWAY, *listed))


def _look_for(connection: Connection, queue: str) -> None:
    """Raises what the transport raises when the queue is not there."""
    with connection.channel() as channel:
        Queue(queue, channel=channel).queue_declare(passive=True)


def _headers(task: QueuedTask) -> dict[str, Any]:
    """The queue route's header fields and the trace; `send_task_message` lays them over Celery's own."""
    headers: dict[str, Any] = {
        name: value for name, value in task.headers.items() if name.lower() not in RESERVED_HEADERS
    }
    if task.traceparent:
        headers["traceparent"] = task.traceparent
    if task.request_id:
        headers["request_id"] = task.request_id
    return headers


def _sentence(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:ERROR_LIMIT]

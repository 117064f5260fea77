"""What workers ask of the agent about tasks: ``accept`` one, and tell the state of one (``task``)."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from django.conf import settings
from django.db import Error, close_old_connections, connections

from core.faults import GatewayFault, InternalFault
from queues import outbox, states
from queues.models import QueuedTask
from queues.outbox import Submission

T = TypeVar("T")
Params = dict[str, Any]
Answer = QueuedTask | GatewayFault
MAX_BATCH = 500  # tasks in one commit
RETRY_AFTER_S = 2
_DEPTH_COUNTS_FOR_S = 1.0
_log = logging.getLogger(__name__)


class TaskCalls:
    """Handlers for the agent's server.

    Tasks that arrive together share a commit: while one is under way the next ones gather, so that the more there are
    the cheaper each becomes, and a lone one waits for nobody.
    """

    def __init__(self, on_accepted: Callable[[set[str]], None], limit: int | None = None) -> None:
        """``on_accepted`` is told the queues that have new tasks; ``limit`` is the most that may wait."""
        self._on_accepted = on_accepted
        self._limit = settings.OUTBOX_LIMIT if limit is None else limit
        self._waiting: list[tuple[Submission, asyncio.Future[Answer]]] = []
        self._committing: asyncio.Task[None] | None = None
        self._is_closed = False
        self._depth = 0
        self._depth_known_at = -_DEPTH_COUNTS_FOR_S
        # One thread each, so one database connection each: status requests do not wait behind commits.
        self._writer = ThreadPoolExecutor(1, "accept")
        self._reader = ThreadPoolExecutor(1, "task")
        self.handlers: dict[str, Callable[[Params], Awaitable[Params]]] = {"accept": self.accept, "task": self.task}

    async def accept(self, params: Params) -> Params:
        """``{"queue_route", "application", "key", "user", "body", "request_id", "traceparent"}`` → ``{"task_id"}``.

        All but queue_route and body may be absent. Answers after the commit. Raises GatewayFault: ``no_route``,
        ``invalid_field``, ``overloaded`` (the outbox is full), ``dependency_unavailable`` (the database is away, no
        broker is configured, or the agent is stopping).
        """
        if self._is_closed or not settings.CELERY_BROKER_URL:
            reason = "The gateway is stopping." if self._is_closed else "The gateway has no broker for its queues."
            raise InternalFault("dependency_unavailable", reason, retry_after_s=RETRY_AFTER_S)
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((_submission(params), answer))
        if self._committing is None:
            self._committing = asyncio.create_task(self._commit_waiting())
        task = await answer
        if isinstance(task, GatewayFault):
            raise task
        return {"task_id": task.id}

    async def task(self, params: Params) -> Params:
        """``{"id", "application", "user"}`` → `queues.states.document`.

        Raises GatewayFault: ``not_found``, ``dependency_unavailable``.
        """
        task_id, application, user = params["id"], params.get("application") or "", params.get("user") or ""
        return await _in_thread(self._reader, lambda: states.document(task_id, application, user))

    async def close(self) -> None:
        """Finish what is under way and let go of the database."""
        self._is_closed = True
        if self._committing is not None:
            await self._committing
        for executor in (self._writer, self._reader):
            await asyncio.get_running_loop().run_in_executor(executor, connections.close_all)
            executor.shutdown()

    async def _commit_waiting(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[:MAX_BATCH], self._waiting[MAX_BATCH:]
                answers = await self._commit([submission for submission, _ in batch])
                for (_, future), answer in zip(batch, answers, strict=True):
                    if not future.done():  # else its caller has given up
                        future.set_result(answer)
        finally:
            self._committing = None

    async def _commit(self, submissions: list[Submission]) -> list[Answer]:
        try:
            answers = await _in_thread(self._writer, lambda: self._store(submissions))
        except GatewayFault as fault:
            return [fault] * len(submissions)
        except Exception:
            # Whoever waits must get an answer, whatever has gone wrong here.
            _log.exception("Tasks could not be stored")
            return [InternalFault("internal_error", "The task could not be stored.")] * len(submissions)
        queues = {answer.queue for answer in answers if isinstance(answer, QueuedTask)}
        if queues:
            self._on_accepted(queues)
        return answers

    def _store(self, submissions: list[Submission]) -> list[Answer]:
        now = time.monotonic()
        if now - self._depth_known_at >= _DEPTH_COUNTS_FOR_S:
            self._depth, self._depth_known_at = outbox.depth(), now
        room = max(self._limit - self._depth, 0)
        answers = outbox.accept(submissions[:room]) if room else []
        self._depth += len(answers)
        return [*answers, *(_full() for _ in submissions[room:])]


async def _in_thread(executor: ThreadPoolExecutor, work: Callable[[], T]) -> T:
    return await asyncio.get_running_loop().run_in_executor(executor, _database_work, work)


def _database_work(work: Callable[[], T]) -> T:
    """Do it; a database that is away, starting up or read-only becomes a fault."""
    close_old_connections()
    try:
        return work()
    except Error as error:
        _log.warning("The database failed: %s: %s", type(error).__name__, error)
        raise InternalFault(
            "dependency_unavailable", "The gateway's database is away.", retry_after_s=RETRY_AFTER_S
        ) from error


def _submission(params: Params) -> Submission:
    return Submission(
        queue_route_id=params["queue_route"],
        body=params["body"],
        application_id=params.get("application") or "",
        key_id=params.get("key") or "",
        user_id=params.get("user") or "",
        request_id=params.get("request_id") or "",
        traceparent=params.get("traceparent") or "",
    )


def _full() -> InternalFault:
    return InternalFault(
        "overloaded", "Too many tasks wait for the broker; send the request again later.", retry_after_s=RETRY_AFTER_S
    )

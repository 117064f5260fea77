"""The relay: takes accepted tasks from the outbox to the broker.

Each queue with work has one lane, which publishes batch after batch until the queue is empty; a lane whose broker is
away waits and tries again, and nothing is lost meanwhile. Only one lane of all hosts works on a queue at a time, which
keeps a queue's order. A crash between publishing and recording it publishes a batch again: at least once.
"""

import asyncio
import logging
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from enum import Enum

from celery import Celery
from django.db import Error, close_old_connections, connections
from django.utils import timezone

from queues import outbox, states
from queues.models import QueuedTask
from queues.publisher import BrokerUnavailable, Publisher, Unpublishable

THREADS = 4
BATCH = 100
BATCH_TAKES_S = 1.0  # a batch ends early after this, since its lock is a transaction
LOOK_EVERY_S = 1.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 5.0  # while the broker is away
_log = logging.getLogger(__name__)


class Outcome(Enum):
    """What became of one batch."""

    MORE = "there may be more to publish"
    DONE = "nothing is left, or another host publishes to this queue"
    AWAY = "the broker or the database is away"


class _Thread:
    """A thread with its own connections to database and broker, and the number of lanes that use it."""

    def __init__(self, app: Celery, number: int) -> None:
        self.executor = ThreadPoolExecutor(1, f"relay-{number}")
        self.publisher = Publisher(app)
        self.lanes = 0

    def close(self) -> None:
        self.executor.submit(self.publisher.close)
        self.executor.submit(connections.close_all)
        self.executor.shutdown()


class Relay:
    """Runs in the agent's loop; what touches database or broker happens in its threads."""

    def __init__(self, app: Celery) -> None:
        self._threads = [_Thread(app, number) for number in range(THREADS)]
        self._has_broker = bool(app.conf.broker_write_url)
        self._lanes: dict[str, asyncio.Task[None]] = {}
        self._woken: set[str] = set()
        self._stopping = threading.Event()
        self._looker: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Without a configured broker nothing is published, and nothing is accepted either."""
        if not self._has_broker:
            return
        self._looker = asyncio.create_task(self._look())

    async def stop(self) -> None:
        """Let the messages under way be confirmed, and disconnect. What is not published stays in the outbox."""
        self._stopping.set()
        running = [task for task in (self._looker, *self._lanes.values()) if task is not None]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await asyncio.gather(*(asyncio.to_thread(thread.close) for thread in self._threads))

    def wake(self, queues: set[str]) -> None:
        """These queues have new tasks. Call it in the agent's loop."""
        for queue in queues:
            self._woken.add(queue)
            if queue not in self._lanes and not self._stopping.is_set():
                self._lanes[queue] = asyncio.create_task(self._run_lane(queue))

    async def _look(self) -> None:
        """Find what nobody wakes us for: tasks whose delay is over, of other hosts, of before our start."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                self.wake(set(await loop.run_in_executor(self._threads[0].executor, _queues_with_work)))
            except Error as error:
                _log.warning("The outbox cannot be read: %s", error)
            await asyncio.sleep(LOOK_EVERY_S)

    async def _run_lane(self, queue: str) -> None:
        loop = asyncio.get_running_loop()
        thread = min(self._threads, key=lambda thread: thread.lanes)
        thread.lanes += 1
        failures = 0
        try:
            while queue in self._woken:
                self._woken.discard(queue)
                outcome = await loop.run_in_executor(thread.executor, self._publish_batch, thread.publisher, queue)
                if outcome is not Outcome.DONE:
                    self._woken.add(queue)
                failures = failures + 1 if outcome is Outcome.AWAY else 0
                if failures:
                    await asyncio.sleep(_pause_s(failures))
        finally:
            thread.lanes -= 1
            del self._lanes[queue]

    def _publish_batch(self, publisher: Publisher, queue: str) -> Outcome:
        close_old_connections()
        try:
            with outbox.sole_publisher(queue) as is_ours:
                return self._publish_next(publisher, queue) if is_ours else Outcome.DONE
        except Error as error:
            _log.warning("Tasks for queue %s wait, the database is away: %s", queue, error)
        except Exception:
            _log.exception("Tasks for queue %s wait", queue)
        return Outcome.AWAY

    def _publish_next(self, publisher: Publisher, queue: str) -> Outcome:
        outbox.expire(queue)
        tasks = outbox.next_batch(queue, BATCH)
        if not tasks:
            return Outcome.DONE
        outcome = Outcome.MORE if len(tasks) == BATCH else Outcome.DONE
        deadline = time.monotonic() + BATCH_TAKES_S
        sent: list[int] = []
        try:
            for task in tasks:
                if self._stopping.is_set() or time.monotonic() > deadline:
                    outcome = Outcome.MORE
                    break
                if _publish(publisher, task):
                    sent.append(task.sequence)
            publisher.settle(queue)
        except BrokerUnavailable as error:
            _log.warning("Tasks for queue %s wait, the broker is away: %s", queue, error)
            if publisher.is_settling(queue):
                sent.clear()
            outbox.attempted(task)
            outcome = Outcome.AWAY
        states.published(sent, timezone.now())
        return outcome


def _publish(publisher: Publisher, task: QueuedTask) -> bool:
    """False for a task that can never be published: it ends here and holds up no other."""
    try:
        publisher.publish(task)
    except Unpublishable as error:
        _log.error("Task %s cannot be published: %s", task.id, error)
        states.failed(task.id, f"could not be published: {error}")
        return False
    return True


def _queues_with_work() -> list[str]:
    close_old_connections()
    return outbox.queues_with_work()


def _pause_s(failures: int) -> float:
    """Twice as long after each failure, with jitter, so that hosts do not return to a broker all at once."""
    longest: float = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(failures - 1, 10))
    return longest * random.uniform(0.5, 1.0)

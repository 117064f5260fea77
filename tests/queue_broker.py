"""A broker for queue tests, with names of the test's own, and the processes that consume from it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import kombu
import redis
from celery import Celery
from django.db import connection

from gateway_project.agent.calls import TaskCalls
from gateway_project.agent.relay import Relay
from gateway_project.processes import ROOT
from queues.broker import make_app
from queues.models import QueueRoute

START_TIMEOUT_S = 40.0


@dataclass
class Broker:
    """``url`` is shared with other tests; queue names are not."""

    url: str
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="portcullis-broker-")))
    token: str = field(default_factory=lambda: uuid.uuid4().hex[:8])
    app: Celery = field(init=False)
    _queues: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.app = make_app(self.url, self.folder / "broker", self.events_queue, current=False)

    @property
    def kind(self) -> str:
        return urlsplit(self.url).scheme

    @property
    def events_queue(self) -> str:
        return f"test.events.{self.token}"

    def queue(self, name: str) -> str:
        """A queue of the test's own, deleted at its end."""
        full = f"test.{name}.{self.token}"
        if full not in self._queues:
            self._queues.append(full)
        return full

    def messages(self, queue: str) -> list[kombu.Message]:
        """Take what is in the queue."""
        messages = []
        with self.app.connection_for_read() as link, link.SimpleQueue(kombu.Queue(queue)) as box:
            try:
                while True:
                    messages.append(box.get(timeout=0.5))
                    messages[-1].ack()
            except box.Empty:
                return messages

    def destroy(self) -> None:
        queues = [*self._queues, self.events_queue, f"celeryev.{self.events_queue}"]
        if self.kind == "amqp":
            with self.app.connection_for_write() as link, link.channel() as channel:
                for queue in queues:
                    channel.queue_delete(queue)
        elif self.kind == "redis":
            with redis.Redis.from_url(self.url) as client:
                for queue in queues:
                    client.delete(queue, *(f"{queue}\x06\x16{step}" for step in (3, 6, 9)))
                    client.delete(f"_kombu.binding.{queue}", f"_kombu.binding_permanent.{queue}")
        shutil.rmtree(self.folder, ignore_errors=True)


class CeleryWorker:
    """``celery worker`` in a process of its own; its output is in a file."""

    def __init__(self, module: str, queues: list[str], environment: dict[str, str], *options: str) -> None:
        self._log = tempfile.NamedTemporaryFile(prefix="portcullis-worker-", suffix=".log")  # noqa: SIM115
        name = f"worker-{uuid.uuid4().hex[:8]}@localhost"
        command = [sys.executable, "-m", "celery", "-A", module, "worker", "-Q", ",".join(queues), "-n", name]
        self._process = subprocess.Popen(
            [*command, "--without-gossip", "--without-mingle", "-l", "INFO", *options],
            cwd=ROOT,
            env={**os.environ, **environment},
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )

    def output(self) -> str:
        return Path(self._log.name).read_text(errors="replace")

    def wait_until_ready(self) -> CeleryWorker:
        deadline = time.monotonic() + START_TIMEOUT_S
        while " ready." not in self.output():
            assert self._process.poll() is None and time.monotonic() < deadline, self.output()
            time.sleep(0.05)
        return self

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self.kill()
        self._log.close()


def consumer(broker: Broker, queues: list[str], *options: str, module: str = "deploy.demo.consumer") -> CeleryWorker:
    """The demo's consumer: it knows the broker and nothing else of us."""
    where = {"DEMO_BROKER_URL": broker.url}
    if broker.kind == "filesystem":
        where = {"DEMO_BROKER_DIR": str(broker.folder / "broker")}
    return CeleryWorker(module, queues, {**where, "DJANGO_SETTINGS_MODULE": ""}, "-P", "solo", *options)


def events_worker(broker: Broker) -> CeleryWorker:
    """Our events worker, on the test's database."""
    environment = {
        "CELERY_BROKER_URL": broker.url,
        "EVENTS_QUEUE": broker.events_queue,
        "VAR_DIR": str(broker.folder),
        "DATABASE_URL": database_url(),
        "PYTHONWARNINGS": "error::DeprecationWarning:celery",
    }
    return CeleryWorker("gateway_project.celery_app", [broker.events_queue], environment)


def database_url() -> str:
    """The test database, for another process."""
    parts = urlsplit(os.environ["DATABASE_URL"])
    return parts._replace(path=f"/{connection.settings_dict['NAME']}").geturl()


def queue_route(queue: str, **fields: Any) -> QueueRoute:
    defaults = {"name": f"route-{uuid.uuid4().hex[:8]}", "task_name": "email.send", "queue": queue}
    return QueueRoute.objects.create(**{**defaults, **fields})


@contextlib.asynccontextmanager
async def agent(app: Celery, limit: int | None = None) -> AsyncIterator[TaskCalls]:
    """The agent's part in queues: calls and relay, in this process and on the test's database."""
    relay = Relay(app)
    calls = TaskCalls(relay.wake, limit)
    relay.start()
    try:
        yield calls
    finally:
        await calls.close()
        await relay.stop()


async def send(calls: TaskCalls, route: QueueRoute, body: Any, **fields: str) -> str:
    """Accept one task; return its id."""
    answer = await calls.accept({"queue_route": route.id, "body": body, **fields})
    return str(answer["task_id"])


async def task_when(
    calls: TaskCalls, task_id: str, is_so: Callable[[dict[str, Any]], Any], timeout_s: float = 30.0
) -> dict[str, Any]:
    """The task's public document as soon as it is so."""
    deadline = time.monotonic() + timeout_s
    while not is_so(document := await calls.task({"id": task_id, "application": ""})):
        assert time.monotonic() < deadline, document
        await asyncio.sleep(0.05)
    return document


@contextlib.contextmanager
def stopping(*workers: CeleryWorker) -> Iterator[None]:
    try:
        for worker in workers:
            worker.wait_until_ready()
        yield
    finally:
        for worker in workers:
            worker.stop()

"""Nothing that was answered 202 is lost, whatever stops in between."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from gateway_project.agent.calls import TaskCalls
from gateway_project.processes import ROOT
from queues.models import QueuedTask
from tests.gateway_process import eventually
from tests.private_servers import PrivateServer, free_port
from tests.queue_broker import (
    Broker,
    agent,
    consumer,
    database_url,
    events_worker,
    queue_route,
    send,
    stopping,
    task_when,
)

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def hands() -> Iterator[ThreadPoolExecutor]:
    """Starts and stops a server beside the test's loop. The server ends with the thread that has started it."""
    with ThreadPoolExecutor(1) as executor:
        yield executor


@pytest.fixture
def broker(private_rabbitmq: PrivateServer, hands: ThreadPoolExecutor) -> Iterator[Broker]:
    broker = Broker(private_rabbitmq.url)
    yield broker
    broker.destroy()


def waiting() -> int:
    return QueuedTask.objects.filter(state="queued").count()


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_a_broker_that_goes_and_comes_back_under_traffic_loses_nothing(
    broker: Broker, private_rabbitmq: PrivateServer, hands: ThreadPoolExecutor, end: str
) -> None:
    queues = [broker.queue("mail"), broker.queue("sms")]
    routes = [queue_route(queue) for queue in queues]

    async def traffic(calls: TaskCalls, sent: list[str], is_over: asyncio.Event) -> None:
        while not is_over.is_set():
            sent += [await send(calls, route, {"n": len(sent)}) for route in routes]
            await asyncio.sleep(0.01)

    async def scenario() -> list[str]:
        sent: list[str] = []
        is_over = asyncio.Event()
        async with agent(broker.app) as calls:
            sender = asyncio.create_task(traffic(calls, sent, is_over))
            while len(sent) < 100:
                await asyncio.sleep(0.01)
            await asyncio.wrap_future(hands.submit(getattr(private_rabbitmq, end)))
            at_the_end = len(sent)
            while len(sent) < at_the_end + 100:  # accepted while no broker is there
                await asyncio.sleep(0.01)
            await asyncio.wrap_future(hands.submit(private_rabbitmq.start))
            is_over.set()
            await sender
            for task_id in sent[-2:]:
                await task_when(calls, task_id, lambda task: task["published_at"])
        return sent

    sent = asyncio.run(scenario())
    assert waiting() == 0
    for number, queue in enumerate(queues):
        delivered = [message.headers["id"] for message in broker.messages(queue)]
        first_deliveries = list(dict.fromkeys(delivered))
        assert first_deliveries == sent[number::2]  # all of them, in order; some perhaps twice


def test_consumer_and_events_worker_that_start_before_their_broker_serve_once_it_is_there(
    broker: Broker, private_rabbitmq: PrivateServer, hands: ThreadPoolExecutor
) -> None:
    queue = broker.queue("mail")
    route = queue_route(queue)

    async def scenario() -> None:
        async with agent(broker.app) as calls:
            early = await send(calls, route, {"to": "a@b"})
            await asyncio.wrap_future(hands.submit(private_rabbitmq.start))
            await task_when(calls, early, lambda task: task["status"] == "succeeded", timeout_s=60)
            await asyncio.wrap_future(hands.submit(private_rabbitmq.restart))
            late = await send(calls, route, {"to": "a@b"})
            document = await task_when(calls, late, lambda task: task["finished_at"] and task["started_at"], 60)
            assert document["result"] == {"delivered_to": "a@b", "bytes": 0}

    private_rabbitmq.stop()
    workers = events_worker(broker), consumer(broker, [queue], "-E")
    try:
        eventually(lambda: all("Connection refused" in worker.output() for worker in workers), 30)
        asyncio.run(scenario())
    finally:
        with stopping(*workers):
            pass


def test_a_relay_killed_between_publishing_and_recording_delivers_the_same_message_again(rabbitmq: str) -> None:
    broker = Broker(rabbitmq)
    queue = broker.queue("mail")
    route = queue_route(queue)

    async def accept_before_any_relay_runs() -> list[str]:
        calls = TaskCalls(lambda _: None)
        try:
            return [await send(calls, route, {"n": n}) for n in range(20)]
        finally:
            await calls.close()

    async def relay_again(last: str) -> None:
        async with agent(broker.app) as calls:
            await task_when(calls, last, lambda task: task["published_at"])

    try:
        sent = asyncio.run(accept_before_any_relay_runs())
        command = [sys.executable, "-m", "tests.relay_that_dies", broker.url, str(broker.folder), broker.events_queue]
        died = subprocess.run(command, cwd=ROOT, env={**os.environ, "DATABASE_URL": database_url()}, timeout=60)
        assert died.returncode == -signal.SIGKILL
        assert waiting() == 20

        asyncio.run(relay_again(sent[-1]))
        delivered = [message.headers["id"] for message in broker.messages(queue)]
        assert delivered == [*sent, *sent]
    finally:
        broker.destroy()


def test_while_no_broker_is_there_tasks_wait_are_counted_and_expire(tmp_path: Any) -> None:
    broker = Broker(f"amqp://guest:guest@127.0.0.1:{free_port()}//", folder=tmp_path)
    patient, hasty = queue_route("mail"), queue_route("mail", expires_s=1)

    async def scenario() -> None:
        async with agent(broker.app) as calls:
            waits, expires = await send(calls, patient, {}), await send(calls, hasty, {})
            document = await task_when(calls, expires, lambda task: task["finished_at"])
            assert (document["status"], document["error"]) == ("failed", "expired before it could be published")
            assert (await calls.task({"id": waits}))["status"] == "queued"

    asyncio.run(scenario())
    assert QueuedTask.objects.get(state="queued").attempts > 0

"""From a worker's ``accept`` to a real Celery consumer and back, on each kind of broker."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar

import kombu
import pytest
from django.db.models.functions import Now

from gateway_project.agent.calls import TaskCalls
from queues.models import QueuedTask, QueueRoute
from tests.gateway_process import eventually
from tests.queue_broker import Broker, agent, consumer, events_worker, queue_route, send, stopping, task_when

pytestmark = pytest.mark.django_db(transaction=True)
TRACEPARENT = "00-" + "1" * 32 + "-" + "2" * 16 + "-01"
Document = dict[str, Any]
T = TypeVar("T")


@pytest.fixture(scope="module")
def amqp_broker(rabbitmq: str) -> Iterator[Broker]:
    broker = Broker(rabbitmq)
    yield broker
    broker.destroy()


@pytest.fixture(scope="module", params=["rabbitmq", "redis", "filesystem"])
def broker(request: pytest.FixtureRequest) -> Iterator[Broker]:
    if request.param == "rabbitmq":
        yield request.getfixturevalue("amqp_broker")
        return
    url = "filesystem://"
    if request.param == "redis":
        url = request.getfixturevalue("redis_server")
    broker = Broker(url)
    yield broker
    broker.destroy()


@pytest.fixture(scope="module")
def running(broker: Broker, django_db_setup: None, django_db_blocker: Any) -> Iterator[Broker]:
    """The broker with our events worker and a consumer that tells its events."""
    with django_db_blocker.unblock():
        back = events_worker(broker)
    with stopping(back, consumer(broker, [broker.queue("served")], "-E", module="tests.queue_consumer")):
        yield broker


def with_agent(broker: Broker, work: Callable[[TaskCalls], Awaitable[T]]) -> T:
    async def scenario() -> T:
        async with agent(broker.app) as calls:
            return await work(calls)

    return asyncio.run(scenario())


def outcome(broker: Broker, route: QueueRoute, body: Any, **fields: str) -> Document:
    """Send one task and wait for its end, and for the word that it was started."""

    async def scenario(calls: TaskCalls) -> Document:
        task_id = await send(calls, route, body, **fields)
        return await task_when(calls, task_id, lambda task: task["finished_at"] and task["started_at"])

    return with_agent(broker, scenario)


def published(broker: Broker, route: QueueRoute, bodies: list[Any]) -> list[str]:
    """Send tasks one after the other and wait until the broker has them all."""

    async def scenario(calls: TaskCalls) -> list[str]:
        ids = [await send(calls, route, body) for body in bodies]
        for task_id in ids:
            await task_when(calls, task_id, lambda task: task["published_at"])
        return ids

    return with_agent(broker, scenario)


def ids_in(broker: Broker, queue: str) -> list[str]:
    return [message.headers["id"] for message in broker.messages(queue)]


def test_a_task_reaches_its_consumer_whole_and_its_result_comes_back(running: Broker) -> None:
    headers = {"x-team": "blue", "task": "evil.task"}
    route = queue_route(running.queue("served"), task_name="test.echo", headers=headers, expires_s=600)
    document = outcome(running, route, {"to": "a@b", "n": 1e22}, traceparent=TRACEPARENT, request_id="r-1")

    assert (document["status"], document["error"]) == ("succeeded", None)
    seen = document["result"]
    assert (seen["id"], seen["message_id"]) == (document["task_id"], document["task_id"])
    assert (seen["args"], seen["kwargs"]) == ([], {"to": "a@b", "n": 1e22})
    assert isinstance(seen["kwargs"]["n"], float)
    assert seen["headers"] == {
        "traceparent": TRACEPARENT,
        "request_id": "r-1",
        "x-team": "blue",
        "task": "test.echo",  # a queue route cannot lay a header over Celery's own
    }
    assert seen["routing_key"] == running.queue("served")
    assert seen["expires"]
    assert document["accepted_at"] <= document["published_at"] <= document["finished_at"]


def test_a_body_that_is_one_argument_arrives_as_one(running: Broker) -> None:
    route = queue_route(running.queue("served"), task_name="test.echo", arguments="body")
    document = outcome(running, route, [1, {"reply-to": None}])
    assert (document["result"]["args"], document["result"]["kwargs"]) == ([[1, {"reply-to": None}]], {})


def test_the_demo_mail_is_sent(running: Broker) -> None:
    document = outcome(running, queue_route(running.queue("served")), {"to": "a@b", "subject": "Hi", "body": "Hello"})
    assert document["result"] == {"delivered_to": "a@b", "bytes": 5}


def test_a_failure_comes_back_with_its_reason(running: Broker) -> None:
    route = queue_route(running.queue("served"), task_name="reports.broken")

    async def scenario(calls: TaskCalls) -> Document:
        task_id = await send(calls, route, {})
        return await task_when(calls, task_id, lambda task: "RuntimeError" in (task["error"] or ""))

    document = with_agent(running, scenario)
    assert (document["status"], document["result"]) == ("failed", None)
    assert "the report's data source is away" in document["error"]


def test_a_task_that_no_consumer_knows_fails(running: Broker) -> None:
    route = queue_route(running.queue("served"), task_name="no.such.task")

    async def scenario(calls: TaskCalls) -> Document:
        return await task_when(calls, await send(calls, route, {}), lambda task: task["finished_at"])

    assert "NotRegistered('no.such.task')" in with_agent(running, scenario)["error"]


def test_a_queue_keeps_the_order_of_acceptance(broker: Broker) -> None:
    queue = broker.queue("ordered")
    ids = published(broker, queue_route(queue), [{"n": n} for n in range(150)])
    assert ids_in(broker, queue) == ids


def test_a_delayed_task_waits_in_the_outbox(broker: Broker) -> None:
    queue = broker.queue("delayed")
    late, soon = queue_route(queue, delay_s=2), queue_route(queue)

    async def scenario(calls: TaskCalls) -> tuple[str, str]:
        first, second = await send(calls, late, {}), await send(calls, soon, {})
        await task_when(calls, second, lambda task: task["published_at"])
        await task_when(calls, first, lambda task: task["published_at"])
        return first, second

    first, second = with_agent(broker, scenario)
    task = QueuedTask.objects.get(id=first)
    assert task.published_at is not None
    assert (task.published_at - task.accepted_at).total_seconds() >= 2
    messages = broker.messages(queue)
    assert [message.headers["id"] for message in messages] == [second, first]
    assert [message.headers["eta"] for message in messages] == [None, None]


def test_what_was_accepted_before_the_agent_started_is_published(broker: Broker) -> None:
    queue = broker.queue("earlier")
    route = queue_route(queue)

    async def scenario() -> str:
        calls = TaskCalls(lambda _: None)  # no relay yet
        task_id = await send(calls, route, {})
        await calls.close()
        async with agent(broker.app) as later:
            await task_when(later, task_id, lambda task: task["published_at"])
        return task_id

    assert [asyncio.run(scenario())] == ids_in(broker, queue)


def test_a_failure_whose_consumer_tells_no_events_has_no_reason(amqp_broker: Broker) -> None:
    queue = amqp_broker.queue("quiet")
    route = queue_route(queue, task_name="reports.broken")

    async def scenario(calls: TaskCalls) -> Document:
        return await task_when(calls, await send(calls, route, {}), lambda task: task["finished_at"])

    with stopping(events_worker(amqp_broker), consumer(amqp_broker, [queue])):
        document = with_agent(amqp_broker, scenario)
    assert (document["status"], document["started_at"]) == ("failed", None)
    assert "did not tell the reason" in document["error"]


def test_a_task_that_expires_in_the_broker_fails_once_its_consumer_finds_it(amqp_broker: Broker) -> None:
    queue = amqp_broker.queue("expiring")
    (task_id,) = published(amqp_broker, queue_route(queue, expires_s=1), [{"to": "a@b"}])
    eventually(QueuedTask.objects.filter(id=task_id, expires_at__lt=Now()).exists)

    async def scenario(calls: TaskCalls) -> Document:
        return await task_when(calls, task_id, lambda task: task["finished_at"])

    with stopping(events_worker(amqp_broker), consumer(amqp_broker, [queue], "-E")):
        document = with_agent(amqp_broker, scenario)
    assert (document["status"], document["error"]) == ("failed", "expired before a consumer took it")


def test_a_queue_is_taken_as_its_consumer_has_declared_it_and_higher_priorities_come_first(amqp_broker: Broker) -> None:
    queue = amqp_broker.queue("priorities")
    with amqp_broker.app.connection_for_write() as link, link.channel() as channel:
        kombu.Queue(queue, channel=channel, max_priority=10).queue_declare()
    (low,) = published(amqp_broker, queue_route(queue, priority=1), [{}])
    (high,) = published(amqp_broker, queue_route(queue, priority=8), [{}])
    with amqp_broker.app.connection_for_read() as link, link.channel() as channel:
        first, second = (channel.basic_get(queue, no_ack=True) for _ in range(2))
    assert [message.headers["id"] for message in (first, second)] == [high, low]
    assert (first.properties["priority"], first.properties["delivery_mode"]) == (8, 2)


def test_higher_priorities_come_first_on_redis_too(redis_server: str) -> None:
    broker = Broker(redis_server)
    try:
        queue = broker.queue("priorities")
        (low,) = published(broker, queue_route(queue, priority=1), [{}])
        (high,) = published(broker, queue_route(queue, priority=8), [{}])
        assert ids_in(broker, queue) == [high, low]
    finally:
        broker.destroy()


def test_a_task_that_can_never_be_published_fails_and_holds_up_no_other(amqp_broker: Broker) -> None:
    queue = amqp_broker.queue("partly")
    bad, good = queue_route(queue, headers={"x" * 300: "an AMQP name has 255 bytes"}), queue_route(queue)

    async def scenario(calls: TaskCalls) -> tuple[Document, str]:
        refused, task_id = await send(calls, bad, {}), await send(calls, good, {})
        await task_when(calls, task_id, lambda task: task["published_at"])
        return await calls.task({"id": refused}), task_id

    document, task_id = with_agent(amqp_broker, scenario)
    assert document["status"] == "failed"
    assert document["error"].startswith("could not be published")
    assert ids_in(amqp_broker, queue) == [task_id]


def test_a_queue_that_is_deleted_meanwhile_is_made_again_rather_than_losing_tasks(amqp_broker: Broker) -> None:
    queue = amqp_broker.queue("deleted")
    route = queue_route(queue)

    async def scenario(calls: TaskCalls) -> str:
        await task_when(calls, await send(calls, route, {}), lambda task: task["published_at"])
        with amqp_broker.app.connection_for_write() as link, link.channel() as channel:
            channel.queue_delete(queue)
        task_id = await send(calls, route, {})
        await task_when(calls, task_id, lambda task: task["published_at"])
        return task_id

    task_id = with_agent(amqp_broker, scenario)
    assert ids_in(amqp_broker, queue) == [task_id]
    assert QueuedTask.objects.get(id=task_id).attempts == 2

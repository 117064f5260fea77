"""The outbox and the states of tasks, on the real database and without a broker."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from datetime import datetime, timedelta
from typing import Any, TypeVar

import orjson
import pytest
from django.db import connection, connections
from django.test import override_settings
from django.utils import timezone
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.faults import ClientFault, GatewayFault
from gateway_project.agent.calls import TaskCalls
from queues import outbox, states
from queues.json_values import storable
from queues.models import QueuedTask, QueueRoute
from tests.private_servers import free_port
from tests.queue_broker import queue_route

pytestmark = pytest.mark.django_db(transaction=True)
T = TypeVar("T")


@pytest.fixture
def route() -> QueueRoute:
    return queue_route("mail", headers={"x-team": "blue"}, priority=4)


def with_calls(work: Callable[[TaskCalls], Awaitable[T]], limit: int = 1000) -> tuple[T, list[set[str]]]:
    """What ``work`` returns, and the queues that the relay would have been woken for."""
    woken: list[set[str]] = []

    async def scenario() -> T:
        calls = TaskCalls(woken.append, limit)
        try:
            return await work(calls)
        finally:
            await calls.close()

    return asyncio.run(scenario()), woken


def call(route_id: str, body: Any = None, **fields: str) -> dict[str, Any]:
    return {"queue_route": route_id, "body": {} if body is None else body, **fields}


def accept_one(route: QueueRoute, **fields: Any) -> QueuedTask:
    (task,) = outbox.accept([outbox.Submission(route.id, {"to": "a@b"}, **fields)])
    assert isinstance(task, QueuedTask)
    return task


def fault_of(calls: TaskCalls, params: dict[str, Any]) -> Awaitable[GatewayFault]:
    async def refused() -> GatewayFault:
        with pytest.raises(GatewayFault) as caught:
            await calls.accept(params)
        return caught.value

    return refused()


def test_an_accepted_task_stands_in_the_database_with_all_that_its_route_says(route: QueueRoute) -> None:
    params = call(route.id, {"to": "a@b"}, application="app_1", key="key_1", request_id="r1", traceparent="00-1-2-01")
    answer, woken = with_calls(lambda calls: calls.accept(params))

    task = QueuedTask.objects.get(id=answer["task_id"])
    assert (task.state, task.queue, task.task_name) == ("queued", "mail", "email.send")
    assert (task.body, task.headers, task.priority) == ({"to": "a@b"}, {"x-team": "blue"}, 4)
    assert (task.application_id, task.key_id, task.request_id, task.traceparent) == (
        "app_1",
        "key_1",
        "r1",
        "00-1-2-01",
    )
    assert woken == [{"mail"}]


def test_delay_and_expiry_count_from_the_moment_of_acceptance() -> None:
    task = accept_one(queue_route("mail", delay_s=60, expires_s=5))
    assert task.available_at - task.accepted_at == timedelta(seconds=60)
    assert task.expires_at is not None
    assert task.expires_at - task.available_at == timedelta(seconds=5)
    assert outbox.queues_with_work() == []
    assert outbox.next_batch("mail", 10) == []


def test_tasks_that_arrive_together_share_commits(route: QueueRoute) -> None:
    async def many(calls: TaskCalls) -> list[dict[str, Any]]:
        return await asyncio.gather(*(calls.accept(call(route.id, {"n": n})) for n in range(300)))

    answers, _ = with_calls(many)

    stored = QueuedTask.objects.order_by("sequence")
    assert [task.id for task in stored] == [answer["task_id"] for answer in answers]
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(DISTINCT xmin::text) FROM gateway_queued_task")
        (transactions,) = cursor.fetchone()
    assert transactions <= 3


def test_an_unknown_or_inactive_queue_route_is_no_route_and_keeps_nobody_else_out(route: QueueRoute) -> None:
    inactive = queue_route("mail", is_active=False)

    async def mixed(calls: TaskCalls) -> list[Any]:
        ids = ("que_unknown", route.id, inactive.id)
        return await asyncio.gather(*(calls.accept(call(id_)) for id_ in ids), return_exceptions=True)

    (unknown, accepted, switched_off), _ = with_calls(mixed)
    assert (unknown.code, switched_off.code) == ("no_route", "no_route")
    assert QueuedTask.objects.get().id == accepted["task_id"]


def test_a_body_that_the_database_cannot_hold_is_refused_alone(route: QueueRoute) -> None:
    async def mixed(calls: TaskCalls) -> list[Any]:
        bodies = ({"n": 1}, {"text": "\x00"}, {"n": 2})
        return await asyncio.gather(*(calls.accept(call(route.id, body)) for body in bodies), return_exceptions=True)

    (_, refused, _), _ = with_calls(mixed)
    assert (refused.status, refused.code) == (422, "invalid_field")
    assert [task.body for task in QueuedTask.objects.order_by("sequence")] == [{"n": 1}, {"n": 2}]


def test_a_full_outbox_is_overloaded_with_a_time_to_come_back(route: QueueRoute) -> None:
    async def too_many(calls: TaskCalls) -> list[Any]:
        return await asyncio.gather(*(calls.accept(call(route.id)) for _ in range(5)), return_exceptions=True)

    answers, _ = with_calls(too_many, limit=3)
    faults = [answer for answer in answers if isinstance(answer, GatewayFault)]
    assert [(fault.status, fault.code) for fault in faults] == [(503, "overloaded")] * 2
    assert all(fault.retry_after_s for fault in faults)
    assert outbox.depth() == 3


@pytest.fixture
def database_away(route: QueueRoute) -> Iterator[None]:
    """Whoever connects from now on finds nobody there."""
    database = connections.databases["default"]
    port, database["PORT"] = database["PORT"], free_port()
    yield
    database["PORT"] = port


@pytest.mark.usefixtures("database_away")
def test_without_its_database_the_gateway_accepts_nothing_and_says_when_to_come_back(route: QueueRoute) -> None:
    fault, woken = with_calls(lambda calls: fault_of(calls, call(route.id)))
    assert (fault.status, fault.code) == (503, "dependency_unavailable")
    assert fault.retry_after_s
    assert woken == []


def test_a_caller_that_has_given_up_does_not_disturb_the_others(route: QueueRoute) -> None:
    async def one_leaves(calls: TaskCalls) -> dict[str, Any]:
        leaver = asyncio.create_task(calls.accept(call(route.id)))
        stayer = asyncio.create_task(calls.accept(call(route.id)))
        await asyncio.sleep(0)
        leaver.cancel()
        return await stayer

    answer, _ = with_calls(one_leaves)
    assert QueuedTask.objects.filter(id=answer["task_id"]).exists()


@pytest.mark.parametrize(
    ("owner", "asker", "is_found"),
    [
        ("app_1", "app_1", True),
        ("app_1", "app_2", False),
        ("app_1", "", False),
        ("", "", True),
        ("", "app_2", True),
    ],
    ids=["own", "another's", "another's, anonymously", "anonymous", "anonymous, with a key"],
)
def test_a_task_is_shown_to_its_sender_alone(route: QueueRoute, owner: str, asker: str, is_found: bool) -> None:
    task = accept_one(route, application_id=owner)

    async def ask(calls: TaskCalls) -> Any:
        return (await asyncio.gather(calls.task({"id": task.id, "application": asker}), return_exceptions=True))[0]

    answer, _ = with_calls(ask)
    if is_found:
        assert (answer["task_id"], answer["status"], answer["queue"]) == (task.id, "queued", route.name)
        assert datetime.fromisoformat(answer["accepted_at"]).tzinfo is not None
    else:
        assert (answer.status, answer.code) == (404, "not_found")


def test_an_unknown_task_is_not_found() -> None:
    with pytest.raises(ClientFault, match="no such task"):
        states.document("task_unknown", "")


def test_a_completion_that_comes_before_the_word_of_publishing_stands(route: QueueRoute) -> None:
    task = accept_one(route)
    states.succeeded(task.id, {"ok": True})
    states.published([task.sequence], timezone.now())
    states.started(task.id, timezone.now())

    document = states.document(task.id, "")
    assert (document["status"], document["result"]) == ("succeeded", {"ok": True})
    assert document["published_at"] and document["started_at"] and document["finished_at"]


def test_the_reason_of_a_failure_may_come_after_the_failure(route: QueueRoute) -> None:
    task = accept_one(route)
    states.failed(task.id, "")
    assert "did not tell" in states.document(task.id, "")["error"]
    states.failed(task.id, "ValueError('no')")
    states.failed(task.id, "something else")
    assert states.document(task.id, "")["error"] == "ValueError('no')"


STEPS: dict[str, Callable[[QueuedTask], Any]] = {
    "published": lambda task: states.published([task.sequence], timezone.now()),
    "started": lambda task: states.started(task.id, timezone.now()),
    "succeeded": lambda task: states.succeeded(task.id, "done"),
    "failed": lambda task: states.failed(task.id, "no"),
}
RANK = {"queued": 0, "published": 1, "started": 2, "succeeded": 3, "failed": 3}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(sorted(STEPS)), max_size=8))
def test_no_order_of_events_leads_a_task_back_or_changes_its_end(route: QueueRoute, steps: list[str]) -> None:
    task = accept_one(route)
    before = states.document(task.id, "")
    for step in steps:
        STEPS[step](task)
        after = states.document(task.id, "")
        assert RANK[after["status"]] == max(RANK[before["status"]], RANK[step])
        if before["finished_at"]:
            kept = ("status", "result", "error", "finished_at")
            assert [after[name] for name in kept] == [before[name] for name in kept]
        before = after


hostile_texts = st.text(max_size=20)
hostile_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | hostile_texts | st.dates() | st.decimals() | st.uuids(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(hostile_texts, inner, max_size=4) | st.tuples(inner),
    max_leaves=15,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(hostile_values, hostile_texts)
def test_whatever_a_consumer_returns_or_raises_can_be_stored_and_shown(
    route: QueueRoute, result: object, error: str
) -> None:
    good, bad = accept_one(route), accept_one(route)
    assert states.succeeded(good.id, result)
    assert states.failed(bad.id, error)
    orjson.dumps([states.document(good.id, ""), states.document(bad.id, "")])


@pytest.mark.parametrize("result", ["x" * 70_000, [[[]] * 40_000]], ids=["long", "many"])
def test_a_result_that_is_too_large_leaves_a_note(result: object) -> None:
    assert "more than the 65536 that are kept" in storable(result)["omitted"]


def test_a_result_that_is_too_deep_leaves_a_note() -> None:
    result: list[Any] = []
    for _ in range(500):
        result = [result]
    assert "nested more than" in storable(result)["omitted"]


def test_batches_come_in_the_order_of_acceptance_and_only_from_their_queue(route: QueueRoute) -> None:
    other = queue_route("sms")
    tasks = [accept_one(route), accept_one(other), accept_one(route), accept_one(route)]
    assert [task.id for task in outbox.next_batch("mail", 2)] == [tasks[0].id, tasks[2].id]
    states.published([tasks[0].sequence], timezone.now())
    assert [task.id for task in outbox.next_batch("mail", 9)] == [tasks[2].id, tasks[3].id]
    assert outbox.queues_with_work() == ["sms", "mail"]


def test_a_task_whose_time_runs_out_in_the_outbox_fails_as_expired() -> None:
    task = accept_one(queue_route("mail", expires_s=0))
    alive = accept_one(queue_route("mail", expires_s=60))
    assert outbox.expire("mail") == 1
    assert states.document(task.id, "")["error"].startswith("expired")
    assert outbox.next_batch("mail", 9) == [alive]


def test_only_one_thread_at_a_time_publishes_to_a_queue() -> None:
    answers: list[bool] = []

    def try_both() -> None:
        for queue in ("mail", "sms"):
            with outbox.sole_publisher(queue) as is_ours:
                answers.append(is_ours)
        connection.close()

    with outbox.sole_publisher("mail") as is_ours:
        assert is_ours
        other = threading.Thread(target=try_both)
        other.start()
        other.join()
    with outbox.sole_publisher("mail") as is_ours_again:
        assert is_ours_again
    assert answers == [False, True]


def test_without_a_configured_broker_nothing_is_accepted(route: QueueRoute) -> None:
    with override_settings(CELERY_BROKER_URL=""):
        fault, _ = with_calls(lambda calls: fault_of(calls, call(route.id)))
    assert (fault.status, fault.code) == (503, "dependency_unavailable")
    assert outbox.depth() == 0

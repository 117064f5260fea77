"""Tasks through a whole gateway while the broker or the gateway's own processes are away: no 202 is lost."""

import json
import os
import re
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import httpx
import pytest

from tests.gateway_process import GatewayFactory, GatewayProcess, eventually
from tests.gateway_traffic import NO_LIMIT, Traffic, ask, create, new_key, panel_api, traffic
from tests.private_servers import PrivateServer
from tests.queue_broker import Broker, CeleryWorker, consumer, stopping

QUEUES = ("email", "sms", "reports")
RECEIVED = re.compile(r"Task [a-z.]+\[([^\]]+)\] received")


@dataclass
class Post:
    """A gateway with a route to each queue."""

    gateway: GatewayProcess
    broker: Broker
    key: str

    @contextmanager
    def consumer(self) -> Iterator[CeleryWorker]:
        """A plain Celery app that takes tasks from all queues."""
        worker = consumer(self.broker, [self.broker.queue(queue) for queue in QUEUES], "-E")
        with stopping(worker):
            yield worker

    def request(self, client: int, count: int) -> bytes:
        """Each client has a queue of its own, so that the order of acceptance is the order of its requests."""
        queue = QUEUES[client]
        body = {"email": {"to": "a@b.example"}, "sms": {"to": "+49", "text": "hi"}, "reports": {}}[queue]
        data = ask("POST", f"/api/{queue}", self.key, json.dumps(body).encode())
        return data.replace(b"\r\n", b"\r\nContent-Type: application/json\r\n", 1)

    def assert_delivered(self, flow: Traffic, worker: CeleryWorker) -> None:
        """Every task was consumed, each queue's in the order of acceptance, and its end is known to its sender."""
        accepted = accepted_by_queue(flow)
        headers = {"X-API-Key": self.key}
        with httpx.Client(base_url=self.gateway.url, headers=headers, trust_env=False, timeout=20) as sender:
            ends = {
                task_id: eventually(partial(end_of, sender, task_id), 60, f"the end of {task_id}, a task of {queue}")
                for queue, ids in accepted.items()
                for task_id in reversed(ids)
            }
        seen = dict.fromkeys(RECEIVED.findall(worker.output()))  # some perhaps twice: the first time counts
        for queue, ids in accepted.items():
            assert [each for each in seen if each in set(ids)] == ids
            assert {ends[task_id] for task_id in ids} == {"failed" if queue == "reports" else "succeeded"}


def end_of(sender: httpx.Client, task_id: str) -> str | None:
    """What became of a task; None as long as nobody knows."""
    answer = sender.get(f"/api/v1/tasks/{task_id}")
    assert answer.status_code == 200, answer.text
    document = answer.json()
    return document["status"] if document["finished_at"] else None


def accepted_by_queue(flow: Traffic) -> dict[str, list[str]]:
    """Task ids in the order of acceptance. Whatever was not accepted was told when to come back."""
    accepted: dict[str, list[str]] = {queue: [] for queue in QUEUES[: flow.clients]}
    for result in flow.results:
        assert result.answer is not None
        if result.status == 202:
            document = json.loads(result.answer.body)
            accepted[QUEUES[result.client]].append(document["task_id"])
        else:
            assert (result.status, result.code) == (503, "dependency_unavailable")
            assert int(result.answer.field("retry-after") or 0) > 0
    assert all(accepted.values())
    return accepted


def post_office(gateway: GatewayProcess, broker: Broker) -> Post:
    with panel_api(gateway) as admin:
        for queue, task in zip(QUEUES, ("email.send", "sms.send", "reports.broken"), strict=True):
            create(admin, "/admin/routing/queue-routes", name=f"to-{queue}", taskName=task, queue=broker.queue(queue))
            create(admin, "/admin/routing/routes", name=queue, path=f"/api/{queue}", queueRoute=f"to-{queue}")
        application = create(
            admin, "/admin/access/applications", name="shop", allowedServices=["*"], rateLimit=NO_LIMIT
        )
        key = new_key(admin, application["id"])["key"]
    return Post(gateway, broker, key)


@pytest.mark.postgres
def test_every_accepted_task_is_consumed_though_broker_and_events_worker_were_killed(
    start_gateway: GatewayFactory, private_rabbitmq: PrivateServer
) -> None:
    broker = Broker(private_rabbitmq.url)
    gateway = start_gateway(database="postgres", broker=broker.url, EVENTS_QUEUE=broker.events_queue, WORKERS="2")
    post = post_office(gateway, broker)
    with ExitStack() as stack:
        with traffic(gateway, post.request, clients=3, pace_s=0.1) as flow:
            private_rabbitmq.kill()
            flow.goes_on(30)
            private_rabbitmq.start()
            flow.goes_on(30)
            # Only now: one that runs a task at the moment of the kill can tell nobody how that has ended.
            worker = stack.enter_context(post.consumer())
            kill(gateway, "events")
            flow.goes_on(30)
        assert flow.statuses() == {202}
        post.assert_delivered(flow, worker)


def test_every_accepted_task_is_consumed_though_the_agent_was_killed(start_gateway: GatewayFactory) -> None:
    gateway = start_gateway()
    post = post_office(gateway, Broker("filesystem://", folder=gateway.var_dir))
    with post.consumer() as worker:
        with traffic(gateway, post.request, clients=3, pace_s=0.1) as flow:
            kill(gateway, "agent")
            flow.goes_on(30)
        assert flow.statuses() <= {202, 503}
        post.assert_delivered(flow, worker)


def kill(gateway: GatewayProcess, name: str) -> None:
    """Returns when its successor is there."""
    former = gateway.children()[name]
    os.kill(former, signal.SIGKILL)
    eventually(lambda: gateway.children().get(name) not in (None, former) and gateway.is_ready(), 40, f"a new {name}")

"""Queues through a whole gateway: HTTP in, a Celery consumer, HTTP out."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from tests.gateway_process import GatewayFactory, GatewayProcess, eventually
from tests.queue_broker import Broker, consumer, stopping

MAIL = "/api/v1/notifications/email"


@dataclass
class Running:
    gateway: GatewayProcess
    broker: Broker
    key: str
    foreign_key: str

    def send(self, body: Any, **headers: str) -> httpx.Response:
        return httpx.post(self.gateway.url + MAIL, json=body, headers={"X-API-Key": self.key} | headers)

    def task(self, url: str, key: str | None = None) -> httpx.Response:
        return httpx.get(self.gateway.url + url, headers={"X-API-Key": key or self.key})

    def outcome(self, url: str) -> dict[str, Any]:
        """The task's document once it has ended and its start is known."""

        def ended() -> dict[str, Any] | None:
            document: dict[str, Any] = self.task(url).json()
            return document if document["finished_at"] and document["started_at"] else None

        document: dict[str, Any] = eventually(ended, 40, "the task's end")
        return document


@pytest.fixture(scope="module", params=["filesystem", "rabbitmq"])
def running(request: pytest.FixtureRequest, start_module_gateway: GatewayFactory) -> Iterator[Running]:
    if request.param == "filesystem":
        gateway = start_module_gateway()
        broker = Broker("filesystem://", folder=gateway.var_dir)
    else:
        broker = Broker(request.getfixturevalue("rabbitmq"))
        gateway = start_module_gateway(database="postgres", broker=broker.url, EVENTS_QUEUE=broker.events_queue)
    queue = broker.queue("mail")
    with gateway.admin() as admin:
        create(admin, "/admin/routing/queue-routes", name="mail", taskName="email.send", queue=queue)
        create(admin, "/admin/routing/routes", name="mail", path=MAIL, queueRoute="mail", methods=["POST"])
        keys = [key_for(admin, name) for name in ("shop", "other")]
    try:
        with stopping(consumer(broker, [queue], "-E")):
            yield Running(gateway, broker, *keys)
    finally:
        gateway.end()
        broker.destroy()


def create(admin: httpx.Client, where: str, **fields: Any) -> dict[str, Any]:
    answer = admin.post(where, json=fields)
    assert answer.status_code == 201, answer.text
    document: dict[str, Any] = answer.json()
    return document


def key_for(admin: httpx.Client, name: str) -> str:
    application = create(admin, "/admin/access/applications", name=name, allowedServices=["mail"])
    return str(create(admin, "/keys", name=name, owner=name, applicationId=application["id"])["key"])


def test_a_request_is_accepted_consumed_and_its_result_shown(running: Running) -> None:
    answer = running.send({"to": "a@b.example", "subject": "Hi", "body": "Hello"})

    accepted = answer.json()
    assert answer.status_code == 202
    assert accepted["status"] == "queued"
    assert answer.headers["location"] == accepted["status_url"] == f"/api/v1/tasks/{accepted['task_id']}"
    assert int(answer.headers["retry-after"]) >= 1
    document = running.outcome(accepted["status_url"])
    assert (document["status"], document["queue"]) == ("succeeded", "mail")
    assert document["result"] == {"delivered_to": "a@b.example", "bytes": 5}


def test_a_task_that_fails_says_why(running: Running) -> None:
    accepted = running.send({"subject": "nobody to send it to"}).json()
    document = running.outcome(accepted["status_url"])
    assert document["status"] == "failed"
    eventually(lambda: "TypeError" in running.task(accepted["status_url"]).json()["error"], 10, "the reason")


def test_a_task_is_no_other_applications_business(running: Running) -> None:
    accepted = running.send({"to": "a@b.example"}).json()
    answer = running.task(accepted["status_url"], running.foreign_key)
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    anonymous = httpx.get(running.gateway.url + accepted["status_url"])
    assert anonymous.status_code == 404


@pytest.mark.parametrize(
    ("body", "content_type", "status"),
    [
        (b"to=a", "application/x-www-form-urlencoded", 415),
        (b'{"to": ', "application/json", 400),
        (b"[1]", "application/json", 422),
        (b'{"reply-to": 1}', "application/json", 422),
        (b'"' + b"x" * 1_100_000 + b'"', "application/json", 413),
    ],
    ids=["a form", "half of JSON", "no object", "no keyword", "too much"],
)
def test_a_bad_body_is_refused_and_nothing_queued(
    running: Running, body: bytes, content_type: str, status: int
) -> None:
    headers = {"X-API-Key": running.key, "Content-Type": content_type}
    answer = httpx.post(running.gateway.url + MAIL, content=body, headers=headers)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"

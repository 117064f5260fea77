"""What admins may do with queue routes."""

from typing import Any

import pytest

from core.faults import ClientFault
from queues.models import QueueRoute
from queues.services import create_queue_route, delete_queue_route, update_queue_route
from routing.services import create_route, delete_route
from tests.admin_api import ANN

pytestmark = pytest.mark.django_db


def _email(**fields: Any) -> QueueRoute:
    return create_queue_route(**{"name": "email", "task_name": "email.send", "queue": "email_queue", **fields}, **ANN)


def test_a_queue_route_names_task_queue_and_options() -> None:
    queue_route = _email(priority=9, delay_s=60, expires_s=3600, headers={"tenant": "acme"}, arguments="body")

    assert QueueRoute.objects.get().headers == {"tenant": "acme"}
    assert (queue_route.is_active, queue_route.priority) == (True, 9)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "Email"),
        ("name", "tasks"),
        ("task_name", ""),
        ("task_name", "send mail"),
        ("task_name", "a" * 201),
        ("queue", "-"),
        ("queue", "a\nb"),
        ("arguments", "pickle"),
        ("priority", 10),
        ("priority", -1),
        ("delay_s", -1),
        ("delay_s", 10**9),
        ("expires_s", 0),
        ("headers", []),
        ("headers", {"a": 1}),
        ("headers", {"a b": "x"}),
        ("headers", {"task": "other.task"}),
        ("headers", {"a": "\x00"}),
        ("headers", {f"h{number}": "" for number in range(33)}),
        ("headers", None),
    ],
)
def test_what_no_broker_should_get_is_refused_at_its_field(field: str, value: Any) -> None:
    with pytest.raises(ClientFault) as raised:
        _email(**{field: value})

    assert raised.value.code == "invalid_field"
    assert list(raised.value.members["errors"]) == [field]


def test_a_queue_route_keeps_its_name_and_takes_other_changes() -> None:
    queue_route = _email()

    assert update_queue_route(queue_route=queue_route, changes={"queue": "slow"}, **ANN).queue == "slow"
    with pytest.raises(ClientFault, match="name"):
        update_queue_route(queue_route=queue_route, changes={"name": "mail"}, **ANN)
    with pytest.raises(ClientFault, match="already") as raised:
        _email()
    assert raised.value.code == "conflict"


def test_a_queue_route_that_routes_lead_to_stays_and_the_routes_are_named() -> None:
    queue_route = _email()
    route = create_route(name="send mail", path="/api/v1/mail", queue_route=queue_route, **ANN)

    with pytest.raises(ClientFault, match="send mail") as raised:
        delete_queue_route(queue_route=queue_route, **ANN)
    assert (raised.value.code, raised.value.members["routes"]) == ("conflict", ["send mail"])

    delete_route(route=route, **ANN)
    delete_queue_route(queue_route=queue_route, **ANN)
    assert not QueueRoute.objects.exists()

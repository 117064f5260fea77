"""Queue routes and tasks over HTTP."""

import pytest
from rest_framework.test import APIClient

from queues.models import QueuedTask
from tests.admin_api import problem_of

pytestmark = pytest.mark.django_db
QUEUE_ROUTES = "/admin/routing/queue-routes"
EMAIL = {"name": "email", "taskName": "email.send", "queue": "email_queue"}


def test_a_queue_route_is_made_changed_and_deleted(api: APIClient) -> None:
    made = api.post(QUEUE_ROUTES, EMAIL | {"priority": 5, "headers": {"tenant": "acme"}})

    assert made.status_code == 201
    assert set(made.json()) == {
        *("id", "name", "description", "taskName", "queue", "arguments", "priority", "delayS", "expiresS", "headers"),
        *("isActive", "revision", "createdAt", "updatedAt"),
    }
    assert api.patch(made["Location"], {"delayS": 60}).json()["delayS"] == 60
    assert api.get(f"{QUEUE_ROUTES}?queue=email_queue").json()["count"] == 1
    assert api.delete(made["Location"]).status_code == 204


def test_a_queue_route_that_a_route_leads_to_stays(api: APIClient) -> None:
    made = api.post(QUEUE_ROUTES, EMAIL)
    api.post("/admin/routing/routes", {"name": "send", "path": "/api/v1/mail", "queueRoute": "email"})

    assert problem_of(api.delete(made["Location"]), 409, "conflict")["routes"] == ["send"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"priority": 10}, "priority"),
        ({"headers": {"a": 5}}, "headers.a"),
        ({"headers": "a"}, "headers"),
        ({"arguments": "pickle"}, "arguments"),
        ({"taskName": "send mail"}, "taskName"),
        ({"expiresS": 0}, "expiresS"),
    ],
)
def test_what_is_wrong_is_said_at_its_field(api: APIClient, body: dict[str, object], field: str) -> None:
    problem = problem_of(api.post(QUEUE_ROUTES, EMAIL | body), 422, "invalid_field")

    assert list(problem["errors"]) == [field]


def _task(**fields: object) -> QueuedTask:
    return QueuedTask.objects.create(
        **{
            "queue_route_id": "que_1",
            "queue_route_name": "email",
            "task_name": "email.send",
            "queue": "email_queue",
            "arguments": "members",
            "body": {"to": "somebody@example.com"},
            **fields,
        }
    )


def test_tasks_are_read_newest_first_and_without_their_payload(api: APIClient) -> None:
    first, second = _task(state="failed", error="boom"), _task(application_id="app_1")

    page = api.get("/admin/queues/tasks").json()
    assert [task["id"] for task in page["tasks"]] == [second.id, first.id]
    assert api.get("/admin/queues/tasks?state=failed").json()["tasks"][0]["error"] == "boom"
    assert api.get("/admin/queues/tasks?application=app_1").json()["count"] == 1
    shown = api.get(f"/admin/queues/tasks/{second.id}")
    assert (shown.json()["applicationId"], shown.json()["state"]) == ("app_1", "queued")
    assert b"somebody@example.com" not in shown.content
    problem_of(api.get("/admin/queues/tasks?state=lost"), 422, "invalid_field")
    problem_of(api.get("/admin/queues/tasks/task_x"), 404, "not_found")


def test_pages_of_tasks_follow_each_other(api: APIClient) -> None:
    ids = [_task().id for _ in range(5)]

    first = api.get("/admin/queues/tasks?limit=3").json()
    rest = api.get(f"/admin/queues/tasks?limit=3&cursor={first['cursor']}").json()

    assert [task["id"] for task in first["tasks"] + rest["tasks"]] == ids[::-1]
    assert rest["cursor"] is None

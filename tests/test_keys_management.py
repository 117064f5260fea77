"""``/api/v1/management/api-keys``: document 001's shapes."""

from datetime import datetime
from typing import Any

import pytest
from rest_framework.test import APIClient

from access.models import Application
from keys.models import ApiKey
from tests.admin_api import problem_of

pytestmark = pytest.mark.django_db
PATH = "/api/v1/management/api-keys"
DOCUMENTED: dict[str, Any] = {
    "name": "Mobile App Key",
    "scopes": ["read", "write"],
    "restrictions": {"allowed_ips": ["192.168.1.0/24"]},
}


def test_a_key_is_made_as_documented(api: APIClient) -> None:
    answer = api.post(PATH, DOCUMENTED)

    made = answer.json()
    assert answer.status_code == 201, answer.content
    assert made["key"].startswith("km_")
    assert {name: made[name] for name in ("name", "scopes")} == {"name": "Mobile App Key", "scopes": ["read", "write"]}
    assert made["restrictions"]["allowed_ips"] == ["192.168.1.0/24"]
    assert datetime.fromisoformat(made["created_at"]) < datetime.fromisoformat(made["expires_at"])
    assert answer["Location"] == f"{PATH}/{made['id']}"
    row = ApiKey.objects.select_related("application").get(pk=made["id"])
    assert row.application == Application.objects.get(name="Mobile App Key")
    assert api.get(f"/keys/{made['id']}").json()["restrictions"]["ips"] == ["192.168.1.0/24"]
    read = api.get(answer["Location"])
    assert "key" not in read.json()
    assert read.json() == {name: value for name, value in made.items() if name != "key"}
    assert read["ETag"] == answer["ETag"]


def test_keys_are_listed_changed_and_revoked(api: APIClient) -> None:
    made = api.post(PATH, DOCUMENTED | {"expires_in_days": None}).json()
    where = f"{PATH}/{made['id']}"

    listed = api.get(f"{PATH}?name=Mobile App Key").json()
    changed = api.put(where, {"name": "renamed", "restrictions": None, "is_active": False}).json()

    assert "never expires" in made["warning"]
    assert [each["id"] for each in listed["api_keys"]] == [made["id"]]
    assert (changed["name"], changed["status"], changed["restrictions"]) == ("renamed", "suspended", None)
    assert changed["scopes"] == ["read", "write"]
    revoked = api.delete(where)
    assert (revoked.status_code, revoked.json()["status"]) == (200, "revoked")
    assert api.get(f"{PATH}?status=revoked").json()["count"] == 1
    problem_of(api.put(where, {"name": "x"}), 409, "conflict")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"name": ""}, "name"),
        ({"name": "x", "application_id": "app_none"}, "application_id"),
        ({"name": "x", "expires_in_days": 0}, "expires_in_days"),
        ({"name": "x", "restrictions": {"allowed_ips": "all"}}, "restrictions.allowed_ips"),
        ({"name": "x", "restrictions": {"hours": [{"days": ["someday"]}]}}, "restrictions.hours.0.days.0"),
        ({"name": "x", "restrictions": {"time_zone": "Mars"}}, "restrictions"),
        ({"name": "x", "restrictions": {"ips": []}}, "restrictions.ips"),
        ({"name": "x", "expiresInDays": 5}, "expiresInDays"),
    ],
)
def test_what_is_no_key_is_said_at_its_field(api: APIClient, body: dict[str, Any], field: str) -> None:
    problem = problem_of(api.post(PATH, body), 422, "invalid_field")
    assert list(problem["errors"]) == [field]

"""Rotation, and how far an admin key reaches (K4, rule 14)."""

from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.utils import timezone
from rest_framework.test import APIClient

from access.models import Application
from core.faults import GatewayFault
from core.models import AuditEvent
from core.revisions import Actor
from gateway_project.agent.key_watch import tell_expiring
from keys import services as use_cases
from keys.compile import compile_api_key, keys_to_compile
from keys.models import ApiKey, KeyCaller
from keys.rotation import rotate_key
from tests.admin_api import admin_with_key, client_with_key, problem_of

pytestmark = pytest.mark.django_db
BY: dict[str, Any] = {"actor": Actor("command"), "source": "command"}
RESTRICTIONS = {"ips": ["192.0.2.0/24"], "quota": {"limit": 10, "period": "day"}}
DAY = timedelta(days=1)


@pytest.fixture
def key() -> ApiKey:
    application = Application.objects.create(name="mobile")
    made = use_cases.create_key(
        name="app", application=application, scopes=["read:data"], expires_in_days=30, restrictions=RESTRICTIONS, **BY
    )
    return made.row


def own_key(client_key: str) -> ApiKey:
    found = use_cases.find_live_key(client_key)
    assert found is not None
    return found


def refused(code: str, call: Any, **arguments: Any) -> GatewayFault:
    with pytest.raises(GatewayFault) as raised:
        call(**arguments)
    assert raised.value.code == code
    return raised.value


def test_a_rotated_key_is_answered_as_documented(api: APIClient, key: ApiKey) -> None:
    answer = api.post(f"/keys/{key.pk}/rotate", {"transitionPeriodDays": 7})

    assert answer.status_code == 201, answer.content
    old, new = answer.json()["oldKey"], answer.json()["newKey"]
    assert set(old) == {"id", "status", "expiresAt"}
    assert (old["id"], old["status"]) == (key.pk, "deprecated")
    assert old["expiresAt"] == pytest.approx((timezone.now() + 7 * DAY).timestamp() * 1000, abs=60_000)
    assert new["key"].startswith("km_")
    assert (new["name"], new["owner"], new["scopes"], new["status"]) == ("app", "mobile", ["read:data"], "active")
    assert (new["applicationId"], new["replacesId"]) == (key.application_id, key.pk)
    assert new["restrictions"]["ips"] == ["192.0.2.0/24"]
    assert new["expiresAt"] - new["createdAt"] == pytest.approx(30 * DAY.total_seconds() * 1000, abs=60_000)
    assert answer["Location"] == f"/keys/{new['id']}"
    assert new["key"] not in api.get(f"/keys/{new['id']}").content.decode()
    assert [each["id"] for each in api.get(f"/keys?replaces={key.pk}").json()["keys"]] == [new["id"]]


def test_both_keys_work_and_count_as_one(key: ApiKey) -> None:
    second = rotate_key(key=key, **BY).issued.row
    third = rotate_key(key=second, **BY).issued.row

    compiled = {row.id: compile_api_key(row) for row in keys_to_compile()}

    assert set(compiled) == {key.pk, second.pk, third.pk}
    assert [compiled[each.pk].get("bucket") for each in (key, second, third)] == [None, key.pk, key.pk]
    assert [compiled[each.pk].get("deprecated") for each in (key, second, third)] == [True, True, None]


def test_without_a_transition_the_old_key_ends_at_once(key: ApiKey) -> None:
    rotation = rotate_key(key=key, transition_days=0, **BY)

    assert [row.id for row in keys_to_compile()] == [rotation.issued.row.pk]


def test_a_transition_prolongs_nothing(key: ApiKey) -> None:
    end = timezone.now() + DAY
    use_cases.update_key(key=key, changes={"expires_at": end}, **BY)

    assert rotate_key(key=key, transition_days=30, **BY).old.expires_at == end


def test_a_key_without_end_gets_one_and_its_successor_none() -> None:
    key = use_cases.create_key(name="app", owner="mobile", expires_in_days=None, **BY).row

    rotation = rotate_key(key=key, **BY)

    assert rotation.old.expires_at is not None
    assert rotation.issued.row.expires_at is None


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({"status": "revoked"}, "revoked"),
        ({"status": "suspended"}, "activate it"),
        ({"status": "deprecated"}, "rotated already"),
        ({"expires_at": timezone.now() - DAY}, "has expired"),
    ],
    ids=["revoked", "suspended", "deprecated", "expired"],
)
def test_only_an_active_key_is_rotated(api: APIClient, key: ApiKey, state: dict[str, Any], said: str) -> None:
    ApiKey.objects.filter(pk=key.pk).update(**state)

    problem = problem_of(api.post(f"/keys/{key.pk}/rotate", {}), 409, "conflict")

    assert said in problem["detail"]
    assert ApiKey.objects.filter(replaces=key).count() == 0


@pytest.mark.parametrize("days", [-1, 91, 1.5, "7", None, True])
def test_a_transition_is_bounded(api: APIClient, key: ApiKey, days: Any) -> None:
    problem = problem_of(api.post(f"/keys/{key.pk}/rotate", {"transitionPeriodDays": days}), 422, "invalid_field")
    assert list(problem["errors"]) == ["transitionPeriodDays"]


def test_a_key_that_was_rotated_is_given_more_time_but_not_without_end(api: APIClient, key: ApiKey) -> None:
    api.post(f"/keys/{key.pk}/rotate", {})
    later = round((timezone.now() + 20 * DAY).timestamp() * 1000)

    assert api.patch(f"/keys/{key.pk}", {"expiresAt": later}).json()["expiresAt"] == later
    for end in (None, later + 90 * 86_400_000):
        problem_of(api.patch(f"/keys/{key.pk}", {"expiresAt": end}), 422, "invalid_field")


def test_a_rotated_key_that_was_suspended_goes_on_as_deprecated(api: APIClient, key: ApiKey) -> None:
    api.post(f"/keys/{key.pk}/rotate", {})
    api.post(f"/keys/{key.pk}/suspend")

    assert api.post(f"/keys/{key.pk}/activate").json()["status"] == "deprecated"


def test_rotating_needs_both_permissions(key: ApiKey) -> None:
    for scope in ("admin:keys:create", "admin:keys:update"):
        client = client_with_key(admin_with_key(scope)[1])
        problem_of(client.post(f"/keys/{key.pk}/rotate", {}), 403, "insufficient_scope")
    client = client_with_key(admin_with_key("admin:keys:create", "admin:keys:update")[1])
    assert client.post(f"/keys/{key.pk}/rotate", {}).status_code == 201


# --- admin keys (rule 14) ------------------------------------------------------------------------------------------
def test_an_admin_key_that_ends_makes_none_that_outlives_it() -> None:
    client = client_with_key(secret := admin_with_key()[1])
    acting = own_key(secret)
    body = {"name": "x", "scopes": ["admin:keys:read"], "expiresInDays": None}

    made = client.post("/keys", body).json()
    rotated = client.post(f"/keys/{acting.pk}/rotate", {}).json()["newKey"]

    ends = round(acting.expires_at.timestamp() * 1000)  # type: ignore[union-attr]
    assert made["expiresAt"] == rotated["expiresAt"] == ends
    assert "outlives" in made["warning"]
    assert "outlives" in rotated["warning"]


def test_an_admin_key_that_ends_prolongs_neither_itself_nor_another() -> None:
    user, secret = admin_with_key()
    acting = own_key(secret)
    other = use_cases.create_admin_key(user=user, name="other", expires_in_days=1, **BY).row
    late = round((timezone.now() + 1000 * DAY).timestamp() * 1000)
    client = client_with_key(secret)

    for pk in (acting.pk, other.pk):
        problem_of(client.patch(f"/keys/{pk}", {"expiresAt": late}), 403, "insufficient_scope")
        problem_of(client.patch(f"/keys/{pk}", {"expiresAt": None}), 403, "insufficient_scope")
    assert client.patch(f"/keys/{acting.pk}", {"name": "renamed"}).status_code == 200


def test_an_admin_key_is_rotated_by_its_own_user_alone(api: APIClient) -> None:
    kim, _ = admin_with_key(username="kim")
    theirs = use_cases.create_admin_key(user=kim, name="theirs", **BY).row

    problem_of(api.post(f"/keys/{theirs.pk}/rotate", {}), 403, "insufficient_scope")

    assert refused("insufficient_scope", rotate_key, key=theirs, actor=Actor("user", "999"), source="panel")
    by_kim = rotate_key(key=theirs, actor=Actor("user", str(kim.pk)), source="panel").issued.row
    assert (by_kim.user, by_kim.scopes) == (User.objects.get(username="kim"), theirs.scopes)


def test_a_restricted_admin_key_makes_and_frees_none_that_is_not() -> None:
    user, _ = admin_with_key()
    restricted = use_cases.create_admin_key(user=user, name="office", restrictions={"ips": ["127.0.0.1"]}, **BY)
    free = use_cases.create_admin_key(user=user, name="free", **BY).row
    client = client_with_key(restricted.key)
    body = {"name": "x", "scopes": ["admin:keys:read"]}

    assert client.post("/keys", body).json()["restrictions"]["ips"] == ["127.0.0.1"]
    problem_of(client.post("/keys", body | {"restrictions": {"ips": ["0.0.0.0/0"]}}), 403, "insufficient_scope")
    problem_of(client.patch(f"/keys/{restricted.row.pk}", {"restrictions": None}), 403, "insufficient_scope")
    problem_of(client.patch(f"/keys/{free.pk}", {"restrictions": {"ips": ["::/0"]}}), 403, "insufficient_scope")
    rotated = client.post(f"/keys/{restricted.row.pk}/rotate", {}).json()["newKey"]
    assert rotated["restrictions"]["ips"] == ["127.0.0.1"]


def test_a_restricted_admin_key_works_where_it_may() -> None:
    user, _ = admin_with_key()
    key = use_cases.create_admin_key(user=user, name="office", restrictions={"ips": ["192.0.2.7"]}, **BY).key
    client = client_with_key(key)

    assert client.get("/keys", REMOTE_ADDR="192.0.2.7").status_code == 200
    problem_of(client.get("/keys", REMOTE_ADDR="192.0.2.8"), 403, "ip_not_allowed")


# --- restrictions, lists, callers ----------------------------------------------------------------------------------
def test_restrictions_are_checked_and_kept_whole(api: APIClient) -> None:
    body = {"name": "a", "owner": "mobile"}
    hours = [{"days": ["mon"], "start": "09:00", "end": "17:00"}]

    made = api.post("/keys", body | {"restrictions": {"hours": hours, "timeZone": "Europe/Berlin"}}).json()
    changed = api.patch(f"/keys/{made['id']}", {"restrictions": {"ips": ["10.0.0.0/8"]}}).json()
    freed = api.patch(f"/keys/{made['id']}", {"restrictions": {"ips": []}}).json()

    assert made["restrictions"] == {
        "ips": [],
        "services": [],
        "hours": hours,
        "timeZone": "Europe/Berlin",
        "quota": None,
    }
    assert (changed["restrictions"]["ips"], changed["restrictions"]["hours"]) == (["10.0.0.0/8"], [])
    assert freed["restrictions"] is None
    for wrong, at in (({"timeZone": "Mars"}, "restrictions"), ({"ips": ["x"]}, "restrictions")):
        problem = problem_of(api.post("/keys", body | {"restrictions": wrong}), 422, "invalid_field")
        assert [name.partition(".")[0] for name in problem["errors"]] == [at]
    admin = {"name": "a", "scopes": ["admin:keys:read"], "restrictions": {"services": ["orders"]}}
    problem_of(api.post("/keys", admin), 422, "invalid_field")


def test_keys_are_found_by_what_becomes_of_them(api: APIClient, key: ApiKey) -> None:
    ApiKey.objects.filter(pk=key.pk).update(last_used_at=timezone.now() - 40 * DAY)
    now = round(timezone.now().timestamp() * 1000)
    month = 86_400_000 * 31

    def found(query: str) -> list[str]:
        answer = api.get(f"/keys?isAdmin=false&{query}")
        assert answer.status_code == 200, answer.content
        return [each["id"] for each in answer.json()["keys"]]

    assert found(f"expiresBefore={now + month}") == [key.pk]
    assert found(f"expiresBefore={now}") == []
    assert found(f"lastUsedBefore={now - month}") == [key.pk]
    assert found(f"lastUsedBefore={now - 2 * month}") == []
    assert found(f"lookupId=km_{key.lookup_id}") == found(f"lookupId={key.lookup_id}") == [key.pk]
    for query in ("expiresBefore=soon", "lookupId=km_" + "0" * 48, "lookupId=x", "lastUsedBefore=9999999999999999"):
        problem_of(api.get(f"/keys?{query}"), 422, "invalid_field")


def test_who_uses_a_key_is_told(api: APIClient, key: ApiKey) -> None:
    for number, address in enumerate(("192.0.2.1", "192.0.2.2")):
        KeyCaller.objects.create(key=key, address=address, requests=5, last_at=timezone.now() + number * DAY)

    page = api.get(f"/keys/{key.pk}/callers?limit=1").json()

    assert (page["count"], [each["address"] for each in page["callers"]]) == (2, ["192.0.2.2"])
    assert set(page["callers"][0]) == {"address", "requests", "lastUsedAt"}
    rest = api.get(f"/keys/{key.pk}/callers?limit=1&cursor={page['cursor']}").json()
    assert [each["address"] for each in rest["callers"]] == ["192.0.2.1"]
    problem_of(api.get("/keys/key_none/callers"), 404, "not_found")


def test_an_application_is_made_only_by_who_may() -> None:
    client = client_with_key(admin_with_key("admin:keys:create")[1])

    problem_of(client.post("/keys", {"name": "x", "owner": "new"}), 403, "insufficient_scope")

    assert not Application.objects.filter(name="new").exists()
    Application.objects.create(name="new")
    assert client.post("/keys", {"name": "x", "owner": "new"}).status_code == 201


def test_keys_that_need_somebodys_attention(key: ApiKey) -> None:
    soon = use_cases.create_key(name="soon", owner="mobile", expires_in_days=3, **BY).row
    rotated = use_cases.create_key(name="rotated", owner="mobile", expires_in_days=3, **BY).row
    rotate_key(key=rotated, **BY)

    assert list(ApiKey.objects.expiring(2 * DAY)) == []
    within_a_week = list(ApiKey.objects.expiring(7 * DAY))

    assert soon in within_a_week
    assert key not in within_a_week
    assert rotated not in within_a_week
    assert list(ApiKey.objects.in_transition()) == [ApiKey.objects.get(pk=rotated.pk)]


def test_the_end_of_a_key_is_noted_once_before_it_comes(key: ApiKey) -> None:
    soon = use_cases.create_key(name="soon", owner="mobile", expires_in_days=3, **BY).row
    agent = Actor("gateway", "node", "node")

    assert len(tell_expiring(agent)) == 1
    assert tell_expiring(agent) == []

    (event,) = AuditEvent.objects.filter(action="key.expiring")
    assert (event.object_id, event.object_name, event.source) == (soon.pk, "soon", "gateway")
    use_cases.update_key(key=soon, changes={"expires_at": timezone.now() + 5 * DAY}, **BY)
    assert len(tell_expiring(agent)) == 1

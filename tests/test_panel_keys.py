"""Keys in the panel beyond making and stopping them: rotation, what they may, who uses them."""

import re
from datetime import timedelta
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone

from access.services import create_application
from keys.models import ApiKey, KeyCaller
from keys.services import create_key, find_live_key
from tests.panel_client import BOB, latest_revision, text_of


@pytest.fixture
def key(db: None) -> ApiKey:
    application = create_application(name="mobile", allowed_services=["*"], **BOB)
    return create_key(name="production", application=application, scopes=["read:data"], **BOB).row


def shown_key(html: str) -> str:
    found = re.search(r'id="new-key"[^>]*value="([^"]+)"', html)
    assert found is not None
    return found[1]


def test_a_key_is_rotated_and_its_successor_shown_once(panel: Client, key: ApiKey) -> None:
    assert "Both work until the old one ends" in text_of(panel.get(f"/api-keys/{key.pk}/rotate"))
    answer = panel.post(f"/api-keys/{key.pk}/rotate", {"transition": "7", "reason": "yearly"})
    assert answer.headers["Cache-Control"] == "no-store"
    successor = find_live_key(shown_key(answer.content.decode()), admin=False)
    assert successor is not None
    assert (successor.replaces_id, successor.scopes) == (key.pk, ["read:data"])
    old = text_of(panel.get(f"/api-keys/{key.pk}"))
    assert "its successor takes its place" in old
    assert "Rotate" not in old.split("Used from")[0].replace("Rotated", "")
    assert latest_revision().reason == "yearly"
    assert "production" in text_of(panel.get("/api-keys?state=deprecated"))


@pytest.mark.parametrize("transition", ["", "-1", "soon", "91", "9" * 30])
def test_a_transition_that_makes_no_sense_is_refused_in_the_dialog(panel: Client, key: ApiKey, transition: str) -> None:
    answer = panel.post(f"/api-keys/{key.pk}/rotate", {"transition": transition})
    assert answer.status_code == 422
    assert "A transition lasts from 0" in text_of(answer)
    assert ApiKey.objects.count() == 1


def test_a_key_that_is_suspended_is_not_rotated(panel: Client, key: ApiKey) -> None:
    panel.post(f"/api-keys/{key.pk}/suspend")
    answer = panel.post(f"/api-keys/{key.pk}/rotate", {"transition": "7"})
    assert answer.status_code == 409
    assert "suspended" in text_of(answer)


def edited(key: ApiKey, **fields: Any) -> dict[str, Any]:
    known = {"name": key.name, "owner": key.owner, "scopes": "read:data", "revision": key.revision}
    return known | {"time_zone": "UTC", "quota__period": "month"} | fields


def test_what_a_key_may_is_edited_and_shown(panel: Client, key: ApiKey) -> None:
    page = panel.get(f"/api-keys/{key.pk}/edit").content.decode()
    assert 'value="read:data"' in page
    fields = edited(key, scopes="read:data, write:data", ips="10.0.0.0/8", expires_at="2099-01-01")
    hours = '[{"days": ["mon"], "start": "08:00", "end": "18:00"}]'
    answer = panel.post(f"/api-keys/{key.pk}/edit", fields | {"hours": hours, "quota__on": "on", "quota__limit": "500"})
    assert answer.status_code == 302, text_of(answer)
    key.refresh_from_db()
    assert key.scopes == ["read:data", "write:data"]
    assert key.restrictions is not None
    assert key.restrictions["ips"] == ["10.0.0.0/8"]
    assert key.restrictions["quota"] == {"limit": 500, "period": "month"}
    shown = text_of(panel.get(f"/api-keys/{key.pk}"))
    assert "ips 10.0.0.0/8" in shown
    assert "quota" in shown
    panel.post(f"/api-keys/{key.pk}/edit", edited(key, revision=key.revision))
    key.refresh_from_db()
    assert (key.restrictions, key.expires_at) == (None, None)
    assert "none beyond its application's" in text_of(panel.get(f"/api-keys/{key.pk}"))


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"ips": "10.0.0.0/99"}, "no address and no network"),
        ({"scopes": "admin:*"}, "keys of applications have none"),
        ({"expires_at": "tomorrow"}, "Write a day"),
        ({"hours": "[{]"}, "Line 1, column 3"),
        ({"ips": "10.0.0.1", "time_zone": "Mars/Olympus"}, "time zone"),
    ],
    ids=["network", "scope", "day", "json", "zone"],
)
def test_what_is_wrong_is_said(panel: Client, key: ApiKey, fields: dict[str, str], sentence: str) -> None:
    answer = panel.post(f"/api-keys/{key.pk}/edit", edited(key, **fields))
    assert answer.status_code == 422
    assert sentence in text_of(answer)


def test_who_uses_a_key_stands_on_its_page(panel: Client, key: ApiKey) -> None:
    assert "Nobody has used it yet" in text_of(panel.get(f"/api-keys/{key.pk}"))
    KeyCaller.objects.create(key=key, address="192.0.2.7", requests=41)
    assert "192.0.2.7 41" in text_of(panel.get(f"/api-keys/{key.pk}"))
    assert "used from 1 address" in text_of(panel.get(f"/api-keys/{key.pk}/rotate"))


def test_keys_that_expire_soon_are_listed(panel: Client, key: ApiKey) -> None:
    assert "No key matches" in text_of(panel.get("/api-keys?state=expiring"))
    ApiKey.objects.update(expires_at=timezone.now() + timedelta(days=3))
    assert "production" in text_of(panel.get("/api-keys?state=expiring"))
    assert "chip-warn" in panel.get("/api-keys").content.decode()


def test_a_new_key_may_have_scopes(panel: Client, key: ApiKey) -> None:
    fields = {"name": "second", "application": "mobile", "scopes": "read:data", "expires_in_days": "30"}
    assert shown_key(panel.post("/api-keys/new", fields).content.decode())
    assert ApiKey.objects.get(name="second").scopes == ["read:data"]

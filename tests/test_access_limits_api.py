"""Limits in the admin API, and what the agent writes down of them (A8, A10, A11)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.utils import timezone
from rest_framework.test import APIClient

from access.limiting.counts import Busy, QuotaPlace, Refused, add_quotas, add_violations, prune, store_uses
from access.limits.periods import period_of
from access.models import LimitUse, LimitViolation, QuotaUse, RateLimit
from tests.admin_api import problem_of

LIMITS = "/admin/access/limits"
RULE: dict[str, Any] = {"limit": 20, "windowS": 10, "per": ["key", "endpoint"]}


def created(api: APIClient, **changes: Any) -> dict[str, Any]:
    answer = api.post(LIMITS, {"name": "burst", "rule": RULE} | changes)
    assert answer.status_code == 201, answer.json()
    document: dict[str, Any] = answer.json()
    return document


@pytest.mark.django_db
def test_a_limit_is_made_changed_and_deleted(api: APIClient) -> None:
    limit = created(api)
    assert limit["rule"]["algorithm"] == "token_bucket", "what was left out is said"
    url = f"{LIMITS}/{limit['id']}"
    changed = api.patch(url, {"rule": RULE | {"algorithm": "quota", "period": "month"}})
    assert (changed.status_code, changed.json()["rule"]["period"]) == (200, "month")
    assert [each["id"] for each in api.get(f"{LIMITS}?search=bur").json()["limits"]] == [limit["id"]]
    assert api.delete(url).status_code == 204
    assert not RateLimit.objects.exists()


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"name": 'a "name"'}, "name"),
        ({"name": ""}, "name"),
        ({"rule": None}, "rule"),
        ({"rule": {"limit": 0}}, "rule.limit"),
        ({"rule": RULE | {"algorithm": "guess"}}, "rule.algorithm"),
        ({"rule": RULE | {"per": ["key", "key"]}}, "rule"),
        ({"rule": RULE | {"paths": ["no/slash"]}}, "rule"),
        ({"rule": RULE | {"window": 5}}, "rule"),
        ({"rule": {"limit": 200_000, "algorithm": "sliding_log"}}, "rule"),
    ],
    ids=["quotes", "no name", "no rule", "nothing", "an algorithm", "twice", "a path", "a member", "a long log"],
)
def test_a_limit_that_could_not_hold_is_refused_at_its_field(
    api: APIClient, changes: dict[str, Any], field: str
) -> None:
    answer = api.post(LIMITS, {"name": "burst", "rule": RULE} | changes)
    assert any(each.startswith(field) for each in problem_of(answer, 422, "invalid_field")["errors"])


@pytest.mark.django_db
def test_names_are_unique(api: APIClient) -> None:
    created(api)
    assert api.post(LIMITS, {"name": "burst", "rule": RULE}).status_code == 409


# --- use ---
@pytest.mark.django_db
def test_the_busiest_subjects_of_all_hosts_are_shown(api: APIClient) -> None:
    limit, now = created(api), timezone.now()
    busy = [Busy(limit["id"], "key:a", 5, 7, 1, is_shared=False), Busy(limit["id"], "key:b", 2, 2, 0, is_shared=False)]
    store_uses("host-1", busy, now - timedelta(seconds=5))
    store_uses("host-1", [Busy(limit["id"], "key:a", 6, 9, 1, is_shared=False)], now)
    store_uses("host-2", [Busy(limit["id"], "key:a", 3, 4, 2, is_shared=False)], now)
    use = api.get(f"{LIMITS}/{limit['id']}/use").json()
    assert use["limit"] == 20 and use["period"] is None
    assert [
        (each["subject"], each["used"], each["remaining"], each["admitted"], each["refused"])
        for each in use["subjects"]
    ] == [("key:a", 9, 11, 13, 3), ("key:b", 2, 18, 2, 0)]
    assert api.get(f"{LIMITS}/lim_none/use").status_code == 404


@pytest.mark.django_db
def test_a_quota_shows_who_has_used_most_in_the_present_period(api: APIClient) -> None:
    limit, now = created(api, rule={"limit": 100, "algorithm": "quota", "period": "month"}), timezone.now()
    period = period_of("month", now.timestamp())
    add_quotas([("default", QuotaPlace(limit["id"], f"key:{name}", period.name), used) for name, used in USED.items()])
    add_quotas([("default", QuotaPlace(limit["id"], "key:old", "2020-01"), 50)])
    store_uses("host-1", [Busy(limit["id"], "key:b", 31, 3, 0, is_shared=True)], now)
    use = api.get(f"{LIMITS}/{limit['id']}/use").json()
    assert (use["period"], use["periodEndsAt"]) == (period.name, period.end * 1000)
    assert [(each["subject"], each["used"]) for each in use["subjects"]] == [("key:b", 31), ("key:a", 90), ("key:c", 1)]


USED = {"a": 90, "b": 30, "c": 1}


@pytest.mark.django_db
def test_quotas_are_added_up_and_told() -> None:
    first, second, third = (QuotaPlace("lim_1", name, "2026-11") for name in ("a", "b", "c"))
    assert add_quotas([("default", first, 3), ("default", second, 4)]) == {first: 3, second: 4}
    assert add_quotas([("default", first, 0), ("default", second, 2), ("", third, 0)]) == {
        first: 3,
        second: 6,
        third: 0,
    }
    assert add_quotas([("default", first, -1)]) == {first: 2}
    assert QuotaUse.objects.count() == 2


@pytest.mark.django_db
def test_refusals_add_up_within_a_minute(api: APIClient) -> None:
    at = datetime(2026, 11, 20, 15, 0, 10, tzinfo=UTC)
    one = Refused("default", "lim_1", "burst", "key:a", "app_1", "192.0.2.1", 3)
    for seconds in (0, 20, 60):
        add_violations([one], at + timedelta(seconds=seconds))
    rows = LimitViolation.objects.order_by("minute").values_list("refused", "last_at", "address")
    assert list(rows) == [
        (6, at + timedelta(seconds=20), "192.0.2.1"),
        (3, at + timedelta(seconds=60), "192.0.2.1"),
    ]
    listed = api.get("/admin/access/limit-violations?limitId=lim_1").json()["violations"]
    assert [each["refused"] for each in listed] == [3, 6]


@pytest.mark.django_db
def test_what_is_long_past_is_forgotten() -> None:
    now = timezone.now()
    add_violations([Refused("", "lim_1", "burst", "a", "", "", 1)], now - timedelta(days=31))
    store_uses("host", [Busy("lim_1", "a", 1, 1, 0, is_shared=False)], now - timedelta(hours=1))
    add_quotas([("", QuotaPlace("lim_1", "a", "2020-01"), 1)])
    QuotaUse.objects.update(updated_at=now - timedelta(days=500))
    prune(now)
    assert not (LimitViolation.objects.exists() or LimitUse.objects.exists() or QuotaUse.objects.exists())

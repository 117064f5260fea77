"""The audit trail: what it holds, how it is searched, paged and exported, and what never stands in it."""

import csv
import io
from datetime import timedelta
from typing import Any

import orjson
import pytest
from django.test import Client
from django.utils import timezone
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rest_framework.test import APIClient

from core import audit, audit_trail
from core.audit_trail import Search
from core.models import AuditEvent, ConfigRevision, Tenant
from core.revisions import Actor
from routing.services import update_service
from tests.admin_api import admin_with_key, client_with_key, problem_of
from tests.panel_client import BOB, make_service, text_of

pytestmark = pytest.mark.django_db
OURS = {"tenant_id": "default"}
EVE = Actor("user", "7", "eve", request_id="req-1", address="192.0.2.7")


def read(answer: Any) -> bytes:
    return b"".join(answer.streaming_content)


def test_changes_and_events_stand_in_one_list_newest_first(api: APIClient) -> None:
    service = make_service("orders")
    update_service(service=service, changes={"description": "new"}, **BOB | {"reason": "why not"})
    audit.record("session.login_failed", actor=EVE, source="panel", outcome="failure", details={"second": False})
    found = api.get("/admin/audit").json()
    assert [entry["action"] for entry in found["entries"]][:3] == [
        "session.login_failed", "service.update", "service.create",
    ]  # fmt: skip
    failed, updated, _ = found["entries"][:3]
    assert failed["actor"] == {"kind": "user", "id": "7", "name": "eve"}
    assert (failed["clientIp"], failed["requestId"], failed["outcome"]) == ("192.0.2.7", "req-1", "failure")
    assert failed["details"] == {"second": False}
    assert updated["changes"] == {"description": {"before": "All about orders", "after": "new"}}
    assert (updated["reason"], updated["resource"]["name"]) == ("why not", "orders")
    assert updated["revision"] == ConfigRevision.objects.latest("number").number
    assert api.get(f"/admin/audit/{updated['id']}").json() == updated
    assert api.get(f"/admin/audit/{failed['id']}").json() == failed


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("action=service.create", {"service.create"}),
        ("action=service.*", {"service.create", "service.update"}),
        ("action=session.*", {"session.login"}),
        ("outcome=denied", {"session.login"}),
        ("actor=eve", {"session.login"}),
        ("actor=7", {"session.login"}),
        ("address=192.0.2.7", {"session.login"}),
        ("requestId=req-1", {"session.login"}),
        ("objectKind=service", {"service.create", "service.update"}),
        ("search=WHY", {"service.update"}),
        ("search=192.0.2", {"session.login"}),
        ("search=Service.Upd", {"service.update"}),
        ("since=253402300799999", set()),
        ("until=0", set()),
    ],
)
def test_it_is_searched(api: APIClient, query: str, expected: set[str]) -> None:
    service = make_service("orders")
    update_service(service=service, changes={"description": "new"}, **BOB | {"reason": "why not"})
    audit.record("session.login", actor=EVE, source="panel", outcome="denied")
    entries = api.get(f"/admin/audit?{query}").json()["entries"]
    assert {entry["action"] for entry in entries} - {"key.create", "admin.create", "role.create"} == expected


@pytest.mark.parametrize(
    "query",
    [
        "cursor=x",
        "cursor=WyJhIiwiYiJd",
        "limit=0",
        "limit=501",
        "since=-1",
        "until=x",
        "outcome=maybe",
        "outcome=",
        "since=",
        "limit=",
        "who=me",
        "search=%00",
        f"actor={'a' * 201}",
    ],
)
def test_bad_parameters_are_named(api: APIClient, query: str) -> None:
    answer = api.get(f"/admin/audit?{query}")
    assert answer.status_code in (400, 422)
    assert answer.json()["code"] in ("bad_request", "invalid_field")


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 2)), max_size=12), st.integers(1, 5))
def test_pages_neither_repeat_nor_hide_whatever_happens_at_the_same_time(
    made: list[tuple[bool, int]], size: int
) -> None:
    AuditEvent.objects.all().delete()
    ConfigRevision.objects.all().delete()
    now = timezone.now()
    for number, (is_event, ago) in enumerate(made):
        at = now - timedelta(seconds=ago)
        if is_event:
            AuditEvent.objects.create(action="a.b", at=at)
        else:
            row = ConfigRevision.objects.create(
                number=number + 1, token="t", actor_kind="user", source="api", created_at=at
            )
            row.changes.create(
                kind="service", object_id=f"svc_{number}", operation="create", after={"tenant_id": "default"}
            )
    everything = audit_trail.entries(Search(), None, 100)
    paged, after = [], None
    while page := audit_trail.entries(Search(), after, size):
        paged += page
        after = audit_trail.position(audit_trail.cursor(page[-1].position))
    assert [entry.id for entry in paged] == [entry.id for entry in everything]
    assert len(paged) == len(made)
    assert [entry.at for entry in paged] == sorted((entry.at for entry in paged), reverse=True)


def test_it_is_exported_as_csv_and_json_and_the_export_is_noted(api: APIClient) -> None:
    make_service("orders")
    audit.record("session.login", actor=Actor("user", "8", "=cmd()"), source="panel")
    rows = list(csv.DictReader(io.StringIO(read(api.get("/admin/audit/export?format=csv")).decode())))
    assert {"session.login", "service.create", "audit.export"} <= {row["action"] for row in rows}
    login = next(row for row in rows if row["action"] == "session.login")
    assert login["actorName"] == "'=cmd()"  # no formula for a spreadsheet
    exported = orjson.loads(read(api.get("/admin/audit/export?format=json&action=session.*")))
    assert [entry["action"] for entry in exported] == ["session.login"]
    assert orjson.loads(read(api.get("/admin/audit/export?actor=nobody"))) == []
    noted = AuditEvent.objects.filter(action="audit.export")
    assert noted.count() == 3
    assert noted.latest("at").details == {"filters": {"actor": "nobody"}, "format": "json"}
    problem_of(api.get("/admin/audit/export?format=xml"), 422, "invalid_field")


def test_only_who_may_read_logs_sees_it() -> None:
    problem_of(client_with_key(admin_with_key("admin:keys:*")[1]).get("/admin/audit"), 403, "insufficient_scope")
    problem_of(client_with_key(admin_with_key("admin:keys:*")[1]).get("/admin/audit/export"), 403, "insufficient_scope")
    assert client_with_key(admin_with_key("admin:logs:read")[1]).get("/admin/audit").status_code == 200


def test_another_tenants_lines_are_not_there(api: APIClient) -> None:
    Tenant.objects.create(id="other", name="Other")
    event = audit.record("session.login", actor=Actor("user", "9", "mallory", tenant_id="other"), source="panel")
    assert "mallory" not in api.get("/admin/audit").content.decode()
    problem_of(api.get(f"/admin/audit/{event.id}"), 404, "not_found")


def test_the_panel_shows_searches_and_exports_it(panel: Client) -> None:
    service = make_service("orders")
    update_service(service=service, changes={"description": "new"}, **BOB)
    event = audit.record("session.login_failed", actor=EVE, source="panel", outcome="failure", details={"tries": 3})
    text = text_of(panel.get("/audit"))
    assert "session.login_failed failure" in text
    assert "service.update" in text
    assert "service.update" not in text_of(panel.get("/audit?action=session.*"))
    assert "Nothing matches" in text_of(panel.get("/audit?q=nothing-has-this"))
    shown = text_of(panel.get(f"/audit/{event.id}"))
    assert "Tries 3" in shown
    assert "192.0.2.7" in shown
    change = next(entry for entry in audit_trail.entries(Search(action="service.update")))
    assert "Description \N{MINUS SIGN} before All about orders + after new" in text_of(panel.get(f"/audit/{change.id}"))
    assert b"session.login_failed" in read(panel.get("/audit/export/csv?outcome=failure"))
    assert AuditEvent.objects.get(action="audit.export").source == "panel"
    assert panel.get("/audit/export/pdf").status_code == 404
    assert panel.get("/audit/aud_nothing").status_code == 404
    assert panel.get("/audit/chg_0").status_code == 404
    assert panel.get("/audit?before=rubbish").status_code == 200

"""Traffic policies in the panel: pages that are made of the policies' own classes."""

from typing import Any

import pytest
from django.test import Client

from admin_panel.policies import policy_form, summary
from admin_panel.policy_words import TITLES
from core.policies import read
from routing.models import Route, ServiceConfig
from routing.policies import ROUTE_POLICIES, SERVICE_POLICIES, Conditions, Retries
from routing.services import create_route, update_service
from tests.panel_client import BOB, errors_at, latest_revision, make_service, text_of

pytestmark = pytest.mark.django_db


def filled(answer: Any) -> dict[str, Any]:
    """What a browser would send of a form that nobody has touched."""
    form = answer.context["form"]
    values: dict[str, Any] = {}
    for bound in form:
        value = bound.value()
        if value is True:
            values[bound.html_name] = "on"
        elif value not in (None, False, ""):
            values[bound.html_name] = (
                ", ".join(value) if isinstance(value, list) and value and isinstance(value[0], str) else value
            )
    return {name: value for name, value in values.items() if not isinstance(value, list)}


@pytest.mark.parametrize("name", [*SERVICE_POLICIES, "upstream_credentials"])
def test_every_policy_of_a_service_has_a_page_that_saves_what_it_shows(panel: Client, name: str) -> None:
    service = make_service("orders", v1=100, v2=0)
    page = panel.get(f"/services/{service.pk}/policies/{name}")
    assert TITLES[name][0] in text_of(page)
    typed = filled(page)
    if name == "mirroring":
        typed["version"] = "v2"
    if name == "health_checks":
        typed["active__on"] = "on"
    if name == "discovery":
        typed["registration__on"] = "on"
    saved = panel.post(f"/services/{service.pk}/policies/{name}", typed)
    assert saved.status_code in (302, 204), text_of(saved)
    service.refresh_from_db()
    stored = getattr(service, name)
    assert stored in ({}, [], {"version": "v2"}, {"active": {}}, {"registration": {}})
    if name in SERVICE_POLICIES:
        read(SERVICE_POLICIES[name], stored)


@pytest.mark.parametrize("name", [name for name in ROUTE_POLICIES if name not in ("aggregation", "rewrite")])
def test_every_policy_of_a_route_has_a_page(panel: Client, name: str) -> None:
    route = create_route(name="r", path="/api/v1/a", service=make_service("orders", v1=100), **BOB)
    page = panel.get(f"/routes/{route.pk}/policies/{name}")
    assert TITLES[name][0] in text_of(page)
    saved = panel.post(f"/routes/{route.pk}/policies/{name}", filled(page))
    assert saved.status_code in (302, 204), text_of(saved)
    assert getattr(Route.objects.get(), name) is not None


def test_a_policy_holds_what_differs_from_its_defaults(panel: Client) -> None:
    service = make_service("orders", v1=100)
    typed = {"revision": service.revision, "attempts": 3, "on": "connect, 503", "base_ms": 25, "max_ms": 250}
    panel.post(f"/services/{service.pk}/policies/retries", typed | {"budget_percent": "12.5"})
    service.refresh_from_db()
    assert service.retries == {"attempts": 3, "on": ["connect", "503"], "budgetPercent": 12.5}
    page = panel.get(f"/services/{service.pk}/policies/retries")
    assert page.context["form"]["attempts"].value() == 3
    shown = text_of(panel.get(f"/services/{service.pk}"))
    assert "attempts 3, on connect, 503, budget 12.5 %" in shown, shown[shown.index("Traffic policies") :]


def test_what_a_policy_refuses_stands_at_its_field(panel: Client) -> None:
    service = make_service("orders", v1=100)
    typed = {"revision": service.revision, "active__on": "on", "active__interval_s": "0.1", "active__method": "GET"}
    answer = panel.post(f"/services/{service.pk}/policies/health_checks", typed)
    assert answer.status_code == 422
    assert errors_at(answer, "active__interval_s") == "At least 0.5."
    assert ServiceConfig.objects.get().health_checks is None


def test_what_a_policy_refuses_as_a_whole_stands_where_it_was_typed(panel: Client) -> None:
    service = make_service("orders", v1=100)
    typed = {"revision": service.revision, "allow": "10.0.0.0/8, 300.1.1.1", "deny": "10.0.0.1"}
    answer = panel.post(f"/services/{service.pk}/policies/ip_access", typed)
    assert answer.status_code == 422
    assert "'300.1.1.1' is no address" in errors_at(answer, "allow")
    assert "10.0.0.0/8, 300.1.1.1" in answer.content.decode()


def test_an_entry_that_is_refused_is_named_and_kept_as_it_was_typed(panel: Client) -> None:
    service = make_service("orders", v1=100)
    typed = {"document__header": ["authorization", ""], "document__value": ["no secret", ""]}
    answer = panel.post(f"/services/{service.pk}/policies/upstream_credentials", typed)
    assert answer.status_code == 422
    assert "Entry 1" in errors_at(answer, "document")
    assert 'value="no secret"' in answer.content.decode()
    typed["document__value"] = ["Bearer {secret://env/UPSTREAM_ORDERS}", ""]
    typed["revision"] = [str(service.revision)]
    assert panel.post(f"/services/{service.pk}/policies/upstream_credentials", typed).status_code == 302
    stored = ServiceConfig.objects.get().upstream_credentials
    assert stored == [{"header": "authorization", "value": "Bearer {secret://env/UPSTREAM_ORDERS}"}]


def test_conditions_are_rows_of_name_comparison_and_value(panel: Client) -> None:
    route = create_route(name="r", path="/api/v1/a", service=make_service("orders", v1=100), **BOB)
    typed = {
        "revision": route.revision,
        "headers__name": ["x-beta", "x-old", ""],
        "headers__how": ["matches", "absent", "equals"],
        "headers__value": ["y.*", "", ""],
    }
    assert panel.post(f"/routes/{route.pk}/policies/conditions", typed).status_code == 302
    conditions = [{"name": "x-beta", "matches": "y.*"}, {"name": "x-old", "present": False}]
    assert Route.objects.get().conditions == {"headers": conditions}
    page = panel.get(f"/routes/{route.pk}/policies/conditions")
    rows = page.context["form"]["headers"].value()
    assert [row["how"] for row in rows] == ["matches", "absent"]
    typed |= {"revision": Route.objects.get().revision, "headers__value": ["(", "", ""]}
    answer = panel.post(f"/routes/{route.pk}/policies/conditions", typed)
    assert answer.status_code == 422
    assert "Entry 1" in errors_at(answer, "headers")


def test_json_that_does_not_parse_says_where(panel: Client) -> None:
    route = create_route(name="r", path="/api/v1/a", service=make_service("orders", v1=100), **BOB)
    typed = {"request__body__on": "on", "request__body__set": '[\n  {"path": "a",}\n]'}
    answer = panel.post(f"/routes/{route.pk}/policies/transformation", typed)
    assert answer.status_code == 422
    assert "Line 2, column 16" in errors_at(answer, "request__body__set")


def test_the_card_groups_policies_and_says_what_holds_without_them(panel: Client, settings: Any) -> None:
    settings.CIRCUIT_BREAKER_FAILURES = 7
    service = make_service("orders", v1=100)
    update_service(service=service, changes={"health_endpoint": "/healthz", "maintenance": {}}, **BOB)
    shown = text_of(panel.get(f"/services/{service.pk}"))
    card = shown[shown.index("Traffic policies") :]
    assert card.index("Choosing") < card.index("Surviving") < card.index("Answering from memory")
    for words in ("7 failures in a row", "by weight", "1 further try", "/healthz every 10 s"):
        assert words in card
    assert "Maintenance set" in card
    route = create_route(name="r", path="/api/v1/a", service=service, **BOB)
    assert "as its service says" in text_of(panel.get(f"/routes/{route.pk}"))
    parts = [{"key": "a", "service": "orders", "path": "/a"}]
    several = create_route(name="several", path="/api/v1/b", aggregation={"parts": parts}, **BOB)
    shown = text_of(panel.get(f"/routes/{several.pk}"))
    assert "Conditions" in shown
    assert "Transformation" not in shown


def test_numbers_are_shown_without_a_useless_point_and_calls_have_no_page_of_their_own(panel: Client) -> None:
    service = make_service("orders", v1=100)
    route = create_route(name="r", path="/api/v1/a", service=service, **BOB)
    page = panel.get(f"/services/{service.pk}/policies/health_checks").content.decode()
    assert 'value="10"' in page
    assert 'value="10.0"' not in page
    assert panel.get(f"/routes/{route.pk}/policies/aggregation").status_code == 404


def test_a_part_that_is_switched_off_is_left_out(panel: Client) -> None:
    service = make_service("orders", v1=100)
    update_service(service=service, changes={"load_balancing": {"sticky": {"ttlS": 60}}}, **BOB)
    service.refresh_from_db()
    page = panel.get(f"/services/{service.pk}/policies/load_balancing")
    assert page.context["form"]["sticky__on"].value() is True
    typed = filled(page)
    del typed["sticky__on"]
    panel.post(f"/services/{service.pk}/policies/load_balancing", typed)
    service.refresh_from_db()
    assert service.load_balancing == {}


def test_removing_a_policy_brings_the_defaults_back(panel: Client) -> None:
    service = make_service("orders", v1=100)
    update_service(service=service, changes={"maintenance": {}}, **BOB)
    path = f"/services/{service.pk}/policies/maintenance/remove"
    assert "Reason optional" in text_of(panel.get(path))
    panel.post(path, {"reason": "The move is over"})
    assert latest_revision().reason == "The move is over"
    service.refresh_from_db()
    assert service.maintenance is None


def test_somebody_else_s_save_in_between_is_shown(panel: Client) -> None:
    service = make_service("orders", v1=100)
    typed = {"revision": service.revision, "message": "Mine", "retry_after_s": 60}
    update_service(service=service, changes={"maintenance": {"message": "Theirs"}}, **BOB)
    answer = panel.post(f"/services/{service.pk}/policies/maintenance", typed)
    assert answer.status_code == 412
    assert "Theirs" in text_of(answer) and "Mine" in text_of(answer)


def test_a_policy_that_is_not_there_is_404(panel: Client) -> None:
    service = make_service("orders", v1=100)
    assert panel.get(f"/services/{service.pk}/policies/nonsense").status_code == 404
    assert panel.get("/services/svc_none/policies/retries").status_code == 404


@pytest.mark.parametrize("kinds", [SERVICE_POLICIES, ROUTE_POLICIES])
def test_every_policy_has_a_title_and_every_member_a_label(kinds: dict[str, Any]) -> None:
    for name, kind in kinds.items():
        assert all(TITLES[name])
        for bound in policy_form(name, kind)():
            assert str(bound.label).strip()


def test_a_summary_says_what_differs() -> None:
    assert summary(Retries, None) == ""
    assert summary(Retries, {}) == "on"
    assert summary(Retries, {"baseMs": 5, "budgetPercent": 10}) == "base 5 ms, budget 10 %"
    assert summary(Retries, {"baseMs": 25, "budgetPercent": 10}) == "budget 10 %"
    assert summary(Conditions, {"headers": [{"name": "x-beta", "present": True}]}) == "headers x-beta"

"""Bundles of policies (A23): what a row says comes first, a change reaches all that have the bundle."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from rest_framework.test import APIClient

from gateway_project.agent.changes import changes_since, everything, latest_position
from tests.admin_api import problem_of

pytestmark = pytest.mark.django_db
BUNDLES, SERVICES, ROUTES = "/admin/access/bundles", "/admin/routing/services", "/admin/routing/routes"
APPLICATIONS, LIMITS = "/admin/access/applications", "/admin/access/limits"
POLICIES: dict[str, Any] = {"ipAccess": {"allow": ["10.0.0.0/8"]}, "cors": {"origins": ["https://app.example.com"]}}


def made(api: APIClient, url: str, **document: Any) -> dict[str, Any]:
    answer = api.post(url, document)
    assert answer.status_code == 201, answer.json()
    stored: dict[str, Any] = answer.json()
    return stored


@pytest.fixture
def edge(api: APIClient) -> dict[str, Any]:
    return made(api, BUNDLES, name="edge", policies=POLICIES)


def service(api: APIClient, name: str = "orders", **document: Any) -> dict[str, Any]:
    return made(api, SERVICES, name=name, defaultUrl="http://10.0.0.1:7000", **document)


def wires(kind: str) -> dict[str, dict[str, Any]]:
    """What workers are sent, by name."""
    _, compiled = everything()
    assert not compiled.problems
    records = [orjson.loads(record) for record in compiled.records[kind].values()]
    return {record["name"]: record for record in records}


def test_a_bundle_is_made_shown_changed_and_deleted(api: APIClient, edge: dict[str, Any]) -> None:
    url = f"{BUNDLES}/edge"
    assert edge["policies"] == POLICIES
    assert edge["usedBy"] == {"services": [], "routes": [], "applications": []}
    changed = api.patch(url, {"policies": {"cors": POLICIES["cors"], "ipAccess": None}, "name": "outer"})
    assert (changed.status_code, changed.json()["policies"]) == (200, {"cors": POLICIES["cors"]})
    assert [each["name"] for each in api.get(f"{BUNDLES}?search=out").json()["bundles"]] == ["outer"]
    assert api.delete(f"{BUNDLES}/outer").status_code == 204
    assert api.get(url).status_code == 404


@pytest.mark.parametrize(
    ("document", "field"),
    [
        ({"policies": {"ipAccess": {"allow": ["nonsense"]}}}, "policies.ipAccess"),
        ({"policies": {"cors": {"origins": ["*"], "credentials": True}}}, "policies.cors"),
        ({"policies": {"retries": {"attempts": "many"}}}, "policies.retries.attempts"),
        ({"policies": {"conditions": {}}}, "policies.conditions"),
        ({"policies": {"magic": {}}}, "policies.magic"),
        ({"policies": []}, "policies"),
        ({"limits": ["nowhere"]}, "limits"),
        ({"name": "Not A Name"}, "name"),
    ],
)
def test_what_no_bundle_can_hold_is_an_error_at_its_place(api: APIClient, document: dict[str, Any], field: str) -> None:
    problem = problem_of(api.post(BUNDLES, {"name": "edge", "policies": {}} | document), 422, "invalid_field")
    assert list(problem["errors"]) == [field]


def test_a_name_is_taken_once(api: APIClient, edge: dict[str, Any]) -> None:
    problem_of(api.post(BUNDLES, {"name": "edge", "policies": {}}), 409, "conflict")


def test_rows_name_bundles_that_exist(api: APIClient, edge: dict[str, Any]) -> None:
    assert service(api, bundles=["edge"])["bundles"] == ["edge"]
    assert api.get(f"{BUNDLES}/edge").json()["usedBy"]["services"] == ["orders"]
    for bundles in (["nowhere"], ["edge", "edge"]):
        problem = problem_of(api.patch(f"{SERVICES}/orders", {"bundles": bundles}), 422, "invalid_field")
        assert list(problem["errors"]) == ["bundles"]
    application = {"name": "web", "bundles": ["nowhere"]}
    assert list(problem_of(api.post(APPLICATIONS, application), 422, "invalid_field")["errors"]) == ["bundles"]


def test_a_rows_own_policies_come_first_and_then_those_of_its_bundles_in_order(
    api: APIClient, edge: dict[str, Any]
) -> None:
    made(api, BUNDLES, name="inner", policies={"ipAccess": {"allow": ["192.168.0.0/16"]}, "retries": {"attempts": 3}})
    own = {"origins": ["https://own.example.com"]}
    service(api, bundles=["inner", "edge"], cors=own)
    made(api, ROUTES, name="way", path="/api/way", service="orders", bundles=["edge"])
    made(api, APPLICATIONS, name="web", bundles=["edge"])
    assert wires("service")["orders"]["policies"] == {
        "cors": own,
        "ip_access": {"allow": ["192.168.0.0/16"]},
        "retries": {"attempts": 3},
    }
    assert wires("route")["way"]["policies"] == {"ip_access": POLICIES["ipAccess"], "cors": POLICIES["cors"]}
    assert wires("application")["web"]["policies"] == {"ip_access": POLICIES["ipAccess"]}  # applications have no cors


def test_a_change_reaches_all_that_have_the_bundle(api: APIClient, edge: dict[str, Any]) -> None:
    having, other = service(api, bundles=["edge"]), service(api, "other")
    route = made(api, ROUTES, name="way", path="/api/way", service="other", bundles=["edge"])
    application = made(api, APPLICATIONS, name="web", bundles=["edge"])
    before = latest_position()
    assert api.patch(f"{BUNDLES}/edge", {"policies": {"ipAccess": {"deny": ["10.0.0.1"]}}}).status_code == 200
    changes = changes_since(before)
    assert changes is not None
    ((_, refs),) = changes.steps
    assert refs == {("service", having["id"]), ("route", route["id"]), ("application", application["id"])}
    assert ("service", other["id"]) not in refs
    (record,) = changes.compiled.records["service"].values()
    assert orjson.loads(record)["policies"] == {"ip_access": {"deny": ["10.0.0.1"]}}


def test_a_bundle_that_something_has_stays_and_keeps_its_name(api: APIClient, edge: dict[str, Any]) -> None:
    service(api, bundles=["edge"])
    made(api, APPLICATIONS, name="web", bundles=["edge"])
    problem = problem_of(api.delete(f"{BUNDLES}/edge"), 409, "conflict")
    assert problem["usedBy"] == {"services": ["orders"], "routes": [], "applications": ["web"]}
    assert "the service orders and 1 more" in problem["detail"]
    problem_of(api.patch(f"{BUNDLES}/edge", {"name": "outer"}), 409, "conflict")


def test_what_would_not_compile_for_one_of_them_is_refused(api: APIClient, edge: dict[str, Any]) -> None:
    service(api)
    made(api, ROUTES, name="way", path="/api/way", service="orders", bundles=["edge"])
    bad = {"request": {"headers": {"set": [{"name": "X-Id", "value": "${path.id}"}]}}}  # the route has no {id}
    problem = problem_of(api.patch(f"{BUNDLES}/edge", {"policies": {"transformation": bad}}), 422, "invalid_field")
    (sentence,) = problem["errors"]["policies"]
    assert sentence.startswith("The route way could not have it")


def test_limits_of_a_bundle_hold_for_what_has_it(api: APIClient) -> None:
    limit = made(api, LIMITS, name="burst", rule={"limit": 20, "windowS": 10})
    assert wires("limit")["burst"]["bundles"] == []
    before = latest_position()
    made(api, BUNDLES, name="edge", policies={}, limits=["burst"])
    service(api, bundles=["edge"])
    assert wires("limit")["burst"]["bundles"] == ["edge"]
    assert wires("service")["orders"]["bundles"] == ["edge"]
    changes = changes_since(before)
    assert changes is not None and ("limit", limit["id"]) in changes.steps[0][1]
    assert problem_of(api.delete(f"{LIMITS}/{limit['id']}"), 409, "conflict")["bundles"] == ["edge"]
    assert api.patch(f"{BUNDLES}/edge", {"limits": []}).status_code == 200
    assert wires("limit")["burst"]["bundles"] == []
    assert api.delete(f"{LIMITS}/{limit['id']}").status_code == 204

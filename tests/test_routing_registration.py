"""Instances that register themselves by HTTP: the credential, what is accepted, and that it is no configuration."""

from datetime import timedelta
from typing import Any

import pytest
from django.db.models.functions import Now
from rest_framework.test import APIClient

from core.models import ConfigRevision
from core.policies import PolicyError, read
from keys.authentication import FAILURES
from routing.models import DiscoveredTarget, RegistrationToken, ServiceConfig, ServiceVersion
from routing.policies import Discovery, server_address
from routing.records import ServiceRecord
from routing.registration import MOST_INSTANCES, forget_expired
from tests.admin_api import SERVICES, admin_with_key, client_with_key, problem_of
from tests.test_agent_feed import add
from tests.wires import service_wire, version_wire

INSTANCE = "/admin/discovery/orders/one"
BODY = {"url": "http://10.0.3.17:7000"}
REGISTRATION: dict[str, Any] = {"registration": {"ttlS": 30}}


# --- the policy ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("document", "field"),
    [
        ({}, ""),
        ({"dns": {"name": ""}}, "dns.name"),
        ({"dns": {"name": "a b"}}, "dns.name"),
        ({"dns": {"name": "x", "server": "name.example"}}, "dns"),
        ({"dns": {"name": "x", "server": "10.0.0.300"}}, "dns"),
        ({"dns": {"name": "x", "type": "MX"}}, "dns.type"),
        ({"registration": {"ttlS": 1}}, "registration.ttlS"),
        ({"registration": {}, "static": "sometimes"}, "static"),
    ],
)
def test_what_is_no_discovery_is_refused_at_its_member(document: dict[str, Any], field: str) -> None:
    with pytest.raises(PolicyError) as refused:
        read(Discovery, document)
    assert refused.value.field.startswith(field)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("10.0.0.2", ("10.0.0.2", 53)),
        ("10.0.0.2:8600", ("10.0.0.2", 8600)),
        ("[fd00::2]", ("fd00::2", 53)),
        ("[fd00::2]:8600", ("fd00::2", 8600)),
    ],
)
def test_a_name_server_is_an_address_with_or_without_a_port(text: str, address: tuple[str, int]) -> None:
    assert server_address(text) == address
    assert read(Discovery, {"dns": {"name": "x", "server": text}})


# --- records -------------------------------------------------------------------------------------------------------
def targets(static: str | None, configured: list[str], found: list[list[Any]], **service: Any) -> dict[str, str]:
    """Host field by URL, of the only version."""
    version = version_wire("v1", 1, "https://orders.internal/base") | {"targets": [[url, 1] for url in configured]}
    policies = {"discovery": {"registration": {}, "static": static}} if static else {}
    wire = service_wire(versions=[version], policies=policies, discovered={"v1": found}, **service)
    record = ServiceRecord.from_wire(wire).versions["v1"]
    assert record.base_path == b"/base"
    assert len(record.targets) == len(record.weights)
    return {f"{each.origin[1]}:{each.origin[2]}": each.host_header.decode() for each in record.targets}


FOUND = [["https://10.0.0.1:7443", 5, ""]]


@pytest.mark.parametrize(
    ("static", "configured", "found", "expected"),
    [
        ("beside", ["https://10.0.0.9"], FOUND, {"10.0.0.1:7443", "10.0.0.9:443"}),
        ("beside", [], FOUND, {"10.0.0.1:7443"}),
        ("beside", [], [], {"orders.internal:443"}),
        ("fallback", ["https://10.0.0.9"], FOUND, {"10.0.0.1:7443"}),
        ("fallback", ["https://10.0.0.9"], [], {"10.0.0.9:443"}),
        ("never", ["https://10.0.0.9"], FOUND, {"10.0.0.1:7443"}),
        ("never", ["https://10.0.0.9"], [], set()),
        (None, ["https://10.0.0.9"], FOUND, {"10.0.0.9:443"}),
    ],
)
def test_found_targets_join_or_replace_those_that_are_configured(
    static: str | None, configured: list[str], found: list[list[Any]], expected: set[str]
) -> None:
    assert set(targets(static, configured, found)) == expected


def test_an_address_behind_a_name_is_called_by_the_name_and_verified_by_it() -> None:
    found = [["https://10.0.0.1:7443", 5, "orders.example"]]
    assert targets("beside", [], found) == {"10.0.0.1:7443": "orders.example:7443"}
    version = version_wire("v1", 1, "https://orders.internal")
    policies = {"discovery": {"dns": {"name": "orders.example"}}, "upstream_tls": {"minVersion": "1.3"}}
    wire = service_wire(versions=[version], policies=policies, discovered={"v1": found})
    (target,) = ServiceRecord.from_wire(wire).versions["v1"].targets
    assert target.tls is not None
    assert (target.tls.server_name, target.tls.min_version) == ("orders.example", "1.3")


# --- the credential ------------------------------------------------------------------------------------------------
@pytest.fixture(autouse=True)
def forget_failures() -> None:
    FAILURES.clear()


@pytest.fixture
def orders(settings: Any) -> ServiceConfig:
    settings.EGRESS_ALLOW = ["10.0.0.0/8"]
    service = ServiceConfig(name="orders", discovery=REGISTRATION)
    add(service, ServiceVersion(service=service, version="v1", url="http://orders.internal", weight=1))
    return service


def bearing(token: str) -> APIClient:
    client = APIClient()
    client.credentials(HTTP_AUTHORIZATION=f"Bearer {token}")
    return client


@pytest.fixture
def instance(api: APIClient, orders: ServiceConfig) -> APIClient:
    return bearing(api.post(f"{SERVICES}/orders/registration-token").json()["token"])


@pytest.mark.django_db
def test_the_token_is_shown_once_and_making_another_ends_the_first(api: APIClient, orders: ServiceConfig) -> None:
    first = api.post(f"{SERVICES}/orders/registration-token")
    assert first.status_code == 201
    assert first["Cache-Control"] == "no-store"
    token = first.json()["token"]
    kept = RegistrationToken.objects.values().get()
    assert token not in str(kept)
    revision = ConfigRevision.objects.first()
    assert revision is not None
    assert first["X-Config-Revision"] == str(revision.number)
    assert revision.reason == "registration token created"
    (change,) = revision.changes.all()
    assert change.before == change.after  # it is told that, and by whom; nothing of the token
    assert bearing(token).put(INSTANCE, BODY).status_code == 201
    second = api.post(f"{SERVICES}/orders/registration-token").json()["token"]
    problem_of(bearing(token).put(INSTANCE, BODY), 401, "invalid_credentials")
    assert bearing(second).put(INSTANCE, BODY).status_code == 200
    assert api.delete(f"{SERVICES}/orders/registration-token").status_code == 204
    problem_of(bearing(second).put(INSTANCE, BODY), 401, "invalid_credentials")
    problem_of(api.delete(f"{SERVICES}/orders/registration-token"), 404, "not_found")


@pytest.mark.django_db
def test_only_the_services_own_token_registers(api: APIClient, instance: APIClient) -> None:
    add(ServiceConfig(name="other", default_url="http://10.0.0.1", discovery=REGISTRATION))
    problem_of(instance.put("/admin/discovery/other/one", BODY), 401, "invalid_credentials")
    problem_of(instance.put("/admin/discovery/nothing/one", BODY), 401, "invalid_credentials")
    problem_of(api.put(INSTANCE, BODY), 401, "missing_credentials")  # an admin key is another thing
    _, key = admin_with_key()
    problem_of(bearing(key).put(INSTANCE, BODY), 401, "invalid_credentials")
    _, reader = admin_with_key("admin:services:read")
    problem_of(client_with_key(reader).post(f"{SERVICES}/orders/registration-token"), 403, "insufficient_scope")


@pytest.mark.django_db
def test_whoever_guesses_is_slowed_down(settings: Any, orders: ServiceConfig) -> None:
    settings.AUTH_FAILURES_PER_MINUTE = 3
    for _ in range(3):
        problem_of(bearing("prt_wrong").put(INSTANCE, BODY), 401, "invalid_credentials")
    problem_of(bearing("prt_wrong").put(INSTANCE, BODY), 429, "rate_limited")


@pytest.mark.django_db
def test_registrations_in_redis_need_one(api: APIClient, orders: ServiceConfig, settings: Any) -> None:
    settings.REDIS_URL = ""
    asking = {"discovery": {"registration": {"redis": True}}}
    problem = problem_of(api.patch(f"{SERVICES}/orders", asking), 422, "invalid_field")
    assert list(problem["errors"]) == ["discovery.registration.redis"]
    settings.REDIS_URL = "redis://127.0.0.1:1/0"
    assert api.patch(f"{SERVICES}/orders", asking).status_code == 200


# --- what is registered --------------------------------------------------------------------------------------------
@pytest.mark.django_db
def test_an_instance_registers_renews_and_leaves_without_a_revision(api: APIClient, instance: APIClient) -> None:
    before = ConfigRevision.objects.count()
    answer = instance.put(INSTANCE, BODY | {"weight": 50, "ttlS": 10})
    assert answer.status_code == 201
    document = answer.json()
    assert document.pop("expiresAt") > 0
    assert document == {"instance": "one", "version": "v1", "url": BODY["url"], "weight": 50, "ttlS": 10}
    assert instance.put(INSTANCE, BODY).status_code == 200
    listed = api.get(f"{SERVICES}/orders/discovery").json()
    assert listed["tokenCreatedAt"] > 0
    assert [(each["instance"], each["weight"]) for each in listed["instances"]] == [("one", 100)]
    assert instance.delete(INSTANCE).status_code == 204
    problem_of(instance.delete(INSTANCE), 404, "not_found")
    assert api.get(f"{SERVICES}/orders/discovery").json()["instances"] == []
    assert ConfigRevision.objects.count() == before


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"url": "ftp://10.0.0.1"}, "url"),
        ({"url": "http://10.0.0.1/path"}, "url"),
        ({"url": "http://user:secret@10.0.0.1"}, "url"),
        ({"url": "http://169.254.169.254"}, "url"),
        ({"url": "http://192.168.0.1"}, "url"),
        ({"url": None}, "url"),
        ({"weight": -1}, "weight"),
        ({"weight": 10_001}, "weight"),
        ({"ttlS": 31}, "ttlS"),
        ({"ttlS": 1}, "ttlS"),
        ({"version": "v9"}, "version"),
        ({"speed": 1}, "speed"),
    ],
)
def test_what_requests_may_not_be_sent_to_is_refused(instance: APIClient, changes: dict[str, Any], field: str) -> None:
    problem = problem_of(instance.put(INSTANCE, BODY | changes), 422, "invalid_field")
    assert list(problem["errors"]) == [field]
    assert not DiscoveredTarget.objects.exists()


@pytest.mark.django_db
def test_an_instance_of_a_version_served_by_https_is_too(instance: APIClient, orders: ServiceConfig) -> None:
    add(ServiceVersion(service=orders, version="v2", url="https://orders.internal"))
    problem_of(instance.put(INSTANCE, BODY | {"version": "v2"}), 422, "invalid_field")
    assert instance.put(INSTANCE, {"url": "https://10.0.0.1", "version": "v2"}).status_code == 201


@pytest.mark.django_db
def test_a_service_that_asks_for_no_registrations_takes_none(api: APIClient, instance: APIClient) -> None:
    api.patch(f"{SERVICES}/orders", {"discovery": {"dns": {"name": "orders.example"}}})
    problem_of(instance.put(INSTANCE, BODY), 409, "conflict")


@pytest.mark.django_db
def test_a_service_has_so_many_instances_and_no_more(instance: APIClient, orders: ServiceConfig) -> None:
    soon = Now() + timedelta(minutes=1)
    DiscoveredTarget.objects.bulk_create(
        DiscoveredTarget(service=orders, instance=f"i{n}", version="v1", url="http://10.0.0.1", expires_at=soon)
        for n in range(MOST_INSTANCES)
    )
    problem_of(instance.put(INSTANCE, BODY), 409, "conflict")
    assert instance.put("/admin/discovery/orders/i7", BODY).status_code == 200


@pytest.mark.django_db
def test_what_has_expired_is_not_listed_and_forgotten_later(api: APIClient, orders: ServiceConfig) -> None:
    for name, ago in (("lately", timedelta(seconds=5)), ("long-ago", timedelta(minutes=5))):
        DiscoveredTarget.objects.create(
            service=orders, instance=name, version="v1", url="http://10.0.0.1", expires_at=Now() - ago
        )
    assert api.get(f"{SERVICES}/orders/discovery").json()["instances"] == []
    forget_expired()
    assert [each.instance for each in DiscoveredTarget.objects.all()] == ["lately"]

"""What admins may do with applications and their whitelists (rule 5)."""

from collections.abc import Callable
from typing import Any

import pytest

from access.models import Application, EndpointWhitelist
from access.services import (
    create_application,
    create_entry,
    delete_application,
    delete_entry,
    update_application,
    update_entry,
)
from core.faults import ClientFault
from core.models import ConfigChange
from keys.models import ApiKey
from keys.services import create_key, find_live_key
from routing.services import create_service, delete_service
from tests.admin_api import ANN

pytestmark = pytest.mark.django_db
PATH = "/api/v1/orders/*"


def _mode(application: Application) -> str:
    return Application.objects.get(pk=application.pk).endpoint_mode


def test_a_new_application_may_call_nothing() -> None:
    application = create_application(name="mobile", **ANN)

    assert (application.allowed_services, application.allowed_versions) == ([], ["*"])
    assert application.endpoint_mode == "all"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", ""),
        ("name", "a" * 101),
        ("name", None),
        ("name", "a\x00b"),
        ("allowed_services", "orders"),
        ("allowed_services", ["Orders"]),
        ("allowed_services", ["orders", "orders"]),
        ("allowed_services", [1]),
        ("allowed_services", None),
        ("allowed_services", [f"s{number}" for number in range(1001)]),
        ("allowed_versions", ["v 1"]),
        ("endpoint_mode", "some"),
        ("rate_limit", 0),
        ("rate_limit", -5),
        ("rate_limit", 10**12),
    ],
)
def test_what_is_no_application_is_refused_at_its_field(field: str, value: Any) -> None:
    with pytest.raises(ClientFault) as raised:
        create_application(**{"name": "mobile", field: value}, **ANN)

    assert raised.value.code == "invalid_field"
    assert list(raised.value.members["errors"]) == [field]


def test_a_name_is_taken_once() -> None:
    create_application(name="mobile", **ANN)
    other = create_application(name="web", **ANN)

    attempts: list[Callable[[], Application]] = [
        lambda: create_application(name="mobile", **ANN),
        lambda: update_application(application=other, changes={"name": "mobile"}, **ANN),
    ]
    for attempt in attempts:
        with pytest.raises(ClientFault, match="already") as raised:
            attempt()
        assert raised.value.code == "conflict"


def test_the_first_entry_that_is_not_public_makes_the_whitelist_binding_and_says_so() -> None:
    application = create_application(name="mobile", **ANN)

    public = create_entry(application=application, endpoint_path="/api/v1/news", is_public=True, **ANN)
    assert (public.became_listed, _mode(application)) == (False, "all")
    first = create_entry(application=application, endpoint_path=PATH, **ANN)
    assert (first.became_listed, _mode(application)) == (True, "listed")
    second = create_entry(application=application, endpoint_path="/api/v1/x", **ANN)
    assert (second.became_listed, _mode(application)) == (False, "listed")


def test_an_entry_that_stops_being_public_counts_as_the_first() -> None:
    application = create_application(name="mobile", **ANN)
    entry = create_entry(application=application, endpoint_path=PATH, is_public=True, **ANN).entry

    assert update_entry(entry=entry, changes={"is_public": False}, **ANN).became_listed
    assert _mode(application) == "listed"


def test_an_admins_choice_of_all_outlives_further_entries() -> None:
    application = create_application(name="mobile", **ANN)
    entry = create_entry(application=application, endpoint_path=PATH, **ANN).entry
    update_application(application=application, changes={"endpoint_mode": "all"}, **ANN)

    assert not create_entry(application=application, endpoint_path="/api/v1/x", **ANN).became_listed
    assert not update_entry(entry=entry, changes={"rate_limit": 5}, **ANN).became_listed
    assert _mode(application) == "all"


def test_the_whitelist_stays_binding_when_its_last_entry_goes() -> None:
    application = create_application(name="mobile", **ANN)
    delete_entry(entry=create_entry(application=application, endpoint_path=PATH, **ANN).entry, **ANN)

    assert not EndpointWhitelist.objects.exists()
    assert _mode(application) == "listed"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("endpoint_path", "orders"),
        ("endpoint_path", "/api//orders"),
        ("endpoint_path", "/api/../orders"),
        ("endpoint_path", "/api/a*b"),
        ("endpoint_path", "/api/x?y=z"),
        ("endpoint_path", ""),
        ("allowed_methods", []),
        ("allowed_methods", ["get"]),
        ("allowed_methods", ["GET "]),
        ("allowed_versions", ["/"]),
        ("rate_limit", 0),
    ],
)
def test_what_is_no_entry_is_refused_at_its_field(field: str, value: Any) -> None:
    application = create_application(name="mobile", **ANN)

    with pytest.raises(ClientFault) as raised:
        create_entry(application=application, **{"endpoint_path": PATH, field: value}, **ANN)

    assert list(raised.value.members["errors"]) == [field]


def test_an_endpoint_is_whitelisted_once_for_an_application() -> None:
    application = create_application(name="mobile", **ANN)
    create_entry(application=application, endpoint_path=PATH, **ANN)

    with pytest.raises(ClientFault, match="already") as raised:
        create_entry(application=application, endpoint_path=PATH, **ANN)
    assert raised.value.code == "conflict"
    assert create_entry(application=create_application(name="web", **ANN), endpoint_path=PATH, **ANN)


def test_deleting_an_application_ends_its_keys() -> None:
    application = create_application(name="mobile", **ANN)
    issued = create_key(name="k", application=application, **ANN)
    create_entry(application=application, endpoint_path=PATH, **ANN)

    delete_application(application=application, **ANN)

    assert find_live_key(issued.key, admin=False) is None
    assert not ApiKey.objects.exists() and not EndpointWhitelist.objects.exists()


def test_the_name_of_what_is_deleted_goes_from_permissions() -> None:
    """Else the next service of that name would be open to whoever was a client of the former one."""
    orders = create_service(name="orders", default_url="http://127.0.0.1:1", **ANN)
    application = create_application(name="shop", allowed_services=["orders", "orders-2"], **ANN)
    everything = create_application(name="all", allowed_services=["*"], **ANN)

    delete_service(service=orders, **ANN)

    for row in (application, everything):
        row.refresh_from_db()
    assert (application.allowed_services, everything.allowed_services) == (["orders-2"], ["*"])
    changed = ConfigChange.objects.filter(revision_id=application.revision)
    assert {(each.kind, each.operation) for each in changed} == {("service", "delete"), ("application", "update")}

"""What admins may do with services, versions, targets and routes, and what is refused with which sentence."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.faults import ClientFault
from core.models import ConfigChange, ConfigRevision
from core.validation import FieldErrors
from queues.services import create_queue_route
from routing.checks import upstream_url
from routing.models import Route, ServiceConfig, ServiceVersion
from routing.records import TargetRecord
from routing.services import (
    create_route,
    create_service,
    create_target,
    create_version,
    delete_service,
    delete_version,
    set_weights,
    update_route,
    update_service,
    update_version,
    weights_revision,
)
from tests.admin_api import ANN

pytestmark = pytest.mark.django_db
URL = "http://orders.internal:7000"


def _errors(fault: pytest.ExceptionInfo[ClientFault]) -> dict[str, list[str]]:
    assert fault.value.code == "invalid_field"
    errors: dict[str, list[str]] = fault.value.members["errors"]
    return errors


def _service(name: str = "orders", **fields: Any) -> ServiceConfig:
    return create_service(name=name, **{"default_url": URL, **fields}, **ANN)


@pytest.mark.parametrize(
    "name", ["", "Orders", "-orders", "or ders", "a" * 64, "tasks", "management", "auth", "v1", "v27"]
)
def test_a_service_must_have_a_name_that_a_path_can_hold(name: str) -> None:
    with pytest.raises(ClientFault) as raised:
        _service(name)

    assert "name" in _errors(raised)


@pytest.mark.parametrize("name", ["orders", "0", "v", "v1x", "task", "a-b-c", "a" * 63])
def test_other_names_are_free(name: str) -> None:
    assert _service(name).name == name


@pytest.mark.parametrize(
    "url",
    [
        "ftp://orders",
        "orders.internal:7000",
        "http://ann:hunter2@orders.internal",
        "http://orders.internal/?a=b",
        "http://orders.internal/#top",
        "http://",
        "http://orders.internal:0",
        "http://orders.internal:70000",
        "http://orders internal",
        "http://orders.internal/../admin",
        "http://orders..internal",
        "http://-orders.internal",
        "http://" + "a" * 64,
        "http://" + "a." * 130 + "internal",
        "http://orders\\internal",
        "http://*.internal",
        "http://{orders}",
        "http://orders%2einternal",
        "http://[::1]x",
        "http://[v1.a]",
        "http://orders.internal/{x}",
        'http://orders.internal/"',
        "http://169.254.169.254/latest/meta-data",
        "http://[fe80::1]:80",
        "http://[::ffff:169.254.169.254]",
        "http://100.100.100.200",
        "http://0.0.0.0:80",
        "http://[::]",
    ],
)
@pytest.mark.parametrize("field", ["default_url", "fallback_url"])
def test_a_url_that_the_gateway_would_not_call_is_refused_at_its_field(field: str, url: str) -> None:
    with pytest.raises(ClientFault) as raised:
        _service(**{field: url})

    errors = _errors(raised)
    assert list(errors) == [field]
    assert errors[field][0].endswith(".") and errors[field][0][0].isupper()
    assert "hunter2" not in repr(raised.value.members)


@given(st.text(max_size=40))
def test_a_url_is_either_refused_with_a_sentence_or_compiles(text: str) -> None:
    url = "http://" + text
    errors = FieldErrors()
    errors.check("url", lambda: upstream_url(url))

    assert errors.has("url") or TargetRecord.from_url(url)


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(ClientFault) as raised:
        create_service(name="X", default_url="x", path_prefix="a//b", request_timeout_ms=0, current_version="!", **ANN)

    assert set(_errors(raised)) == {"name", "default_url", "path_prefix", "request_timeout_ms", "current_version"}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("description", None),
        ("description", "a\x00b"),
        ("description", "\ud800"),
        ("is_active", None),
        ("default_url", "http://a/" + "b" * 600),
        ("request_timeout_ms", 10**30),
        ("request_timeout_ms", -1),
    ],
)
def test_what_no_column_holds_is_refused_at_its_field(field: str, value: Any) -> None:
    with pytest.raises(ClientFault) as raised:
        create_service(name="orders", **{field: value}, **ANN)

    assert list(_errors(raised)) == [field]


def test_a_name_is_taken_once_by_services_and_queue_routes_together() -> None:
    _service("orders")
    create_queue_route(name="email", task_name="email.send", queue="email", **ANN)

    for name, word in (("orders", "service"), ("email", "queue route")):
        with pytest.raises(ClientFault, match=word) as raised:
            _service(name)
        assert raised.value.code == "conflict"
        assert "name" in raised.value.members["errors"]
    with pytest.raises(ClientFault, match="service"):
        create_queue_route(name="orders", task_name="x", queue="x", **ANN)


def test_a_service_keeps_its_name() -> None:
    with pytest.raises(ClientFault) as raised:
        update_service(service=_service(), changes={"name": "other"}, **ANN)

    assert "name" in _errors(raised)


def test_a_field_that_does_not_exist_is_the_callers_mistake() -> None:
    with pytest.raises(TypeError, match="revision"):
        create_service(name="orders", revision=5, **ANN)


def test_a_new_version_takes_no_traffic() -> None:
    version = create_version(service=_service(), version="v2", url=URL, **ANN)

    assert (version.weight, version.is_active) == (0, True)


@pytest.mark.parametrize("name", ["", ".v1", "v 1", "v/1", "a" * 33])
def test_a_version_must_have_a_name_that_a_header_can_hold(name: str) -> None:
    with pytest.raises(ClientFault) as raised:
        create_version(service=_service(), version=name, url=URL, **ANN)

    assert "version" in _errors(raised)


def test_a_version_exists_once_in_a_service() -> None:
    service = _service()
    create_version(service=service, version="v1", url=URL, **ANN)

    for same in ("v1", "1"):  # clients may spell it either way
        with pytest.raises(ClientFault, match="has a version 'v1' already"):
            create_version(service=service, version=same, url=URL, **ANN)
    assert create_version(service=_service("others"), version="v1", url=URL, **ANN)


def test_weights_change_together_in_one_revision() -> None:
    service = _service()
    for name in ("v1", "v2", "v3"):
        create_version(service=service, version=name, url=URL, weight=10, **ANN)
    before = ConfigRevision.objects.count()

    versions = set_weights(service=service, weights={"v1": 90, "v2": 10, "v3": 0}, **ANN)

    assert {version.version: version.weight for version in versions} == {"v1": 90, "v2": 10, "v3": 0}
    assert ConfigRevision.objects.count() == before + 1
    # v2 had that weight before
    assert ConfigChange.objects.filter(revision=weights_revision(service)).count() == 2


@pytest.mark.parametrize("weight", [-1, 10_001, 1.5, True, "5", None])
def test_a_weight_is_a_whole_number_in_range_or_nothing_changes(weight: Any) -> None:
    service = _service()
    create_version(service=service, version="v1", url=URL, weight=7, **ANN)

    with pytest.raises(ClientFault) as raised:
        set_weights(service=service, weights={"v1": weight, "v9": 1}, **ANN)

    assert set(_errors(raised)) == {"weights.v1", "weights.v9"}
    assert ServiceVersion.objects.get().weight == 7


def test_the_split_is_stale_once_a_version_is_gone() -> None:
    service = _service()
    first = create_version(service=service, version="v1", url=URL, **ANN)
    create_version(service=service, version="v2", url=URL, **ANN)
    seen = weights_revision(service)

    delete_version(version=first, **ANN)

    with pytest.raises(ClientFault) as raised:
        set_weights(service=service, weights={"v2": 5}, if_revision=seen, **ANN)
    assert raised.value.code == "stale_revision"
    assert raised.value.members["current"] == weights_revision(service) == seen + 1


def test_the_split_is_stale_once_another_admin_has_changed_it() -> None:
    service = _service()
    create_version(service=service, version="v1", url=URL, **ANN)
    seen = weights_revision(service)
    set_weights(service=service, weights={"v1": 5}, if_revision=seen, **ANN)

    with pytest.raises(ClientFault) as raised:
        set_weights(service=service, weights={"v1": 6}, if_revision=seen, **ANN)

    assert raised.value.code == "stale_revision"


def test_a_target_is_an_address_without_path() -> None:
    version = create_version(service=_service(), version="v1", url=URL + "/base", **ANN)

    with pytest.raises(ClientFault, match="url"):
        create_target(version=version, url=URL + "/base", **ANN)
    assert create_target(version=version, url=URL, **ANN).weight == 100
    with pytest.raises(ClientFault, match="already"):
        create_target(version=version, url=URL, **ANN)


def test_a_service_that_routes_lead_to_stays_and_the_routes_are_named() -> None:
    service = _service()
    create_route(name="documents", path="/api/v1/documents", service=service, **ANN)

    with pytest.raises(ClientFault, match="documents") as raised:
        delete_service(service=service, **ANN)

    assert raised.value.code == "conflict"
    assert raised.value.members["routes"] == ["documents"]


def test_deleting_a_service_takes_versions_and_targets_along_and_says_so() -> None:
    service = _service()
    version = create_version(service=service, version="v1", url=URL, **ANN)
    create_target(version=version, url=URL, **ANN)

    delete_service(service=service, **ANN)

    last = ConfigRevision.objects.first()
    assert last is not None
    assert [change.kind for change in last.changes.all()] == ["target", "version", "service"]
    assert not ServiceVersion.objects.exists()


@pytest.mark.parametrize("changes", [{"default_url": ""}, {"current_version": "v2"}])
def test_a_default_url_that_a_route_pins_stays(changes: dict[str, str]) -> None:
    service = _service(default_url=URL)
    create_route(name="pinned", path="/api/v1/pinned", service=service, version="default", **ANN)

    with pytest.raises(ClientFault) as raised:
        update_service(service=service, changes=changes, **ANN)
    assert raised.value.members["routes"] == ["pinned"]

    assert update_service(service=service, changes={"default_url": URL + "/new"}, **ANN).default_url == URL + "/new"


def test_a_version_that_a_route_pins_stays() -> None:
    service = _service()
    version = create_version(service=service, version="v1", url=URL, **ANN)
    create_route(name="old clients", path="/api/v1/old", service=service, version="v1", **ANN)

    with pytest.raises(ClientFault, match="old clients"):
        delete_version(version=version, **ANN)
    with pytest.raises(ClientFault, match="version"):
        update_version(version=version, changes={"version": "v2"}, **ANN)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("path", "/orders"),
        ("path", "/apis/x"),
        ("path", "api/x"),
        ("path", "/api//x"),
        ("path", "/%61pi/x"),
        ("path", "/api/../x"),
        ("path", "/api/%2e%2e/x"),
        ("path", "/api/x?y"),
        ("path", "/api/a{b}"),
        ("path", "/api/v1/tasks/mine"),
        ("path", "/api/v1/management/x"),
        ("path", "/api/v1/%74asks"),
        ("methods", ["get"]),
        ("methods", ["GET", "GET"]),
        ("methods", "GET"),
        ("methods", [5]),
        ("hosts", ["http://example.com"]),
        ("hosts", ["Example.com"]),
        ("hosts", ["a.*.com"]),
        ("hosts", ["a." * 130 + "com"]),
        ("hosts", ["[::z]"]),
        ("hosts", ["[:]"]),
        ("hosts", ["[0:0::1]"]),
        ("strip_prefix", "/other"),
        ("strip_prefix", "/api/v1/ord"),
        ("replace_prefix", "new"),
        ("replace_prefix", "/a/../b"),
        ("replace_prefix", "/{a}"),
        ("version", "v9"),
        ("request_timeout_ms", 0),
        ("priority", 10**20),
    ],
)
def test_a_route_that_could_not_work_is_refused_at_its_field(field: str, value: Any) -> None:
    fields: dict[str, Any] = {"name": "r", "path": "/api/v1/orders/{id}", "service": _service(), field: value}

    with pytest.raises(ClientFault) as raised:
        create_route(**fields, **ANN)

    assert list(_errors(raised)) == [field]


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({"conditions": {"headers": [{"name": "x-a", "matches": "("}]}}, ["conditions.headers[0].matches"]),
        ({"conditions": {"headers": [{"name": "X-Api-Key", "present": True}]}}, ["conditions.headers[0].name"]),
        (
            {"conditions": {"pathParameters": [{"name": "no", "equals": "a"}, {"name": "id", "matches": "["}]}},
            ["conditions.pathParameters[0].name", "conditions.pathParameters[1].matches"],
        ),
        ({"rewrite": {"pattern": "(a)", "replacement": r"/\2"}}, ["rewrite.replacement"]),
        ({"rewrite": {"pattern": "(?<=a)", "replacement": "/x"}}, ["rewrite.pattern"]),
        ({"rewrite": {"pattern": "a", "replacement": "/x"}, "replace_prefix": "/y"}, ["rewrite"]),
        ({"conditions": {"headers": [{"name": "x"}]}}, ["conditions.headers[0]"]),
        (
            {
                "transformation": {
                    "request": {"headers": {"set": [{"name": "x", "value": "${path.no}"}], "remove": ["Host"]}},
                    "response": {"body": {"remove": ["a", "b["]}},
                }
            },
            [
                "transformation.request.headers.remove[0]",
                "transformation.request.headers.set[0].value",
                "transformation.response.body.remove[1]",
            ],
        ),
        ({"transformation": {"request": {"headers": {"remove": ["x-api-key"]}}}}, ["transformation.request.headers"]),
    ],
)
def test_expressions_that_could_not_work_are_refused_at_their_members(fields: dict[str, Any], wrong: list[str]) -> None:
    with pytest.raises(ClientFault) as raised:
        create_route(name="r", path="/api/v1/orders/{id}", service=_service(), **fields, **ANN)

    assert list(_errors(raised)) == wrong


@pytest.mark.parametrize("policy", ["transformation", "rewrite"])
def test_only_what_goes_to_a_service_is_changed_on_its_way(policy: str) -> None:
    queue_route = create_queue_route(name="email", task_name="email.send", queue="email", **ANN)
    document = {"pattern": "a", "replacement": "/b"} if policy == "rewrite" else {}
    fields: dict[str, Any] = {policy: document}

    with pytest.raises(ClientFault) as raised:
        create_route(name="r", path="/api/v1/x", queue_route=queue_route, **fields, **ANN)

    assert list(_errors(raised)) == [policy]


def test_a_route_leads_to_exactly_one() -> None:
    service = _service()
    queue_route = create_queue_route(name="email", task_name="email.send", queue="email", **ANN)

    destinations: list[dict[str, Any]] = [{}, {"service": service, "queue_route": queue_route}]
    for destination in destinations:
        with pytest.raises(ClientFault, match="service"):
            create_route(name="r", path="/api/v1/x", **destination, **ANN)
    route = create_route(name="r", path="/api/v1/x", service=service, **ANN)
    moved = update_route(route=route, changes={"service": None, "queue_route": queue_route}, **ANN)
    assert moved.queue_route == queue_route
    assert Route.objects.get().service is None


@pytest.mark.parametrize(
    ("prefix", "is_good"),
    [
        ("/api", True),
        ("/api/v1/", True),
        ("/api/v1/{region}", True),
        ("/api/v1/{region}/Zürich", True),
        ("/api/v1/eu", False),
        ("/api/v", False),
        ("/api/v1/{region}/Zürich/*", False),
        ("api", False),
    ],
)
def test_a_prefix_to_strip_is_the_beginning_of_the_path_by_whole_segments(prefix: str, is_good: bool) -> None:
    fields: dict[str, Any] = {"name": "r", "path": "/api/v1/{region}/Zürich/*", "service": _service()}
    fields["strip_prefix"] = prefix
    if is_good:
        assert create_route(**fields, **ANN).strip_prefix == prefix
        return
    with pytest.raises(ClientFault) as raised:
        create_route(**fields, **ANN)
    assert list(_errors(raised)) == ["strip_prefix"]


# --- the end of versions -------------------------------------------------------------------------------------------
@pytest.fixture
def old_and_new() -> tuple[ServiceConfig, ServiceVersion, ServiceVersion]:
    service = create_service(name="ends", default_url=URL, **ANN)
    v1, v2 = (create_version(service=service, version=name, url=URL, **ANN) for name in ("v1", "v2"))
    return service, v1, v2


Ends = tuple[ServiceConfig, ServiceVersion, ServiceVersion]


def test_a_version_is_deprecated_since_now_unless_a_time_is_given(old_and_new: Ends) -> None:
    _, v1, _ = old_and_new
    v1 = update_version(version=v1, changes={"lifecycle": "deprecated"}, **ANN)
    since = v1.deprecated_at
    assert since is not None
    v1 = update_version(version=v1, changes={"deprecated_at": None, "weight": 3}, **ANN)
    assert v1.deprecated_at == since


def test_a_version_that_routes_pin_is_not_retired(old_and_new: Ends) -> None:
    service, v1, _ = old_and_new
    create_route(name="pins", path="/api/pins", service=service, version="v1", **ANN)
    with pytest.raises(ClientFault) as fault:
        update_version(version=v1, changes={"lifecycle": "retired"}, **ANN)
    assert (fault.value.code, fault.value.members["routes"]) == ("conflict", ["pins"])


def test_a_current_or_mirrored_version_is_not_retired(old_and_new: Ends) -> None:
    service, v1, v2 = old_and_new
    update_service(service=service, changes={"current_version": "v1", "mirroring": {"version": "v2"}}, **ANN)
    for version in (v1, v2):
        version.service.refresh_from_db()
        with pytest.raises(ClientFault) as fault:
            update_version(version=version, changes={"lifecycle": "retired"}, **ANN)
        assert list(_errors(fault)) == ["lifecycle"]


def test_a_retired_version_is_neither_current_nor_pinned_nor_mirrored_to(old_and_new: Ends) -> None:
    service, v1, _ = old_and_new
    update_version(version=v1, changes={"lifecycle": "retired"}, **ANN)
    for changes, field in (
        ({"current_version": "v1"}, "current_version"),
        ({"mirroring": {"version": "v1"}}, "mirroring.version"),
        ({"mirroring": {"version": "v9"}}, "mirroring.version"),
    ):
        with pytest.raises(ClientFault) as fault:
            update_service(service=service, changes=changes, **ANN)
        assert list(_errors(fault)) == [field]
    with pytest.raises(ClientFault) as fault:
        create_route(name="pins", path="/api/pins", service=service, version="v1", **ANN)
    assert list(_errors(fault)) == ["version"]


def test_a_version_that_requests_are_mirrored_to_is_not_deleted(old_and_new: Ends) -> None:
    service, _, v2 = old_and_new
    update_service(service=service, changes={"mirroring": {"version": "v2"}}, **ANN)
    with pytest.raises(ClientFault) as fault:
        delete_version(version=v2, **ANN)
    assert fault.value.code == "conflict"

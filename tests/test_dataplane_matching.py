"""What is remembered of routes and of paths changes no decision, and ends with what it was made of."""

import itertools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.context import Exchange
from core.faults import GatewayFault
from gateway_project.dataplane.matching import MatchMemory
from gateway_project.dataplane.snapshot import Snapshot
from routing.paths import canonical
from routing.request_fields import RequestFields
from routing.target_registry import TargetRegistry
from tests.dataplane import DataPlane
from tests.raw_http import Answer
from tests.scripted_upstream import Upstream
from tests.snapshots import built
from tests.wires import application_wire, entry_wire, limit_wire, route_wire, service_wire, version_wire

# --- with a memory and without one -----------------------------------------------------------------------------------
PATHS = (
    "/api/v1/orders/1",
    "/api/v1/orders/2",
    "/api/v2/orders/1",
    "/api/v1/mail/1",
    "/shop/1",
    "/shop/2",
    "/shop/a/b",
)
PATTERNS = st.sampled_from(
    ["/api/v1/orders/*", "/api/v1/orders/1", "/api/v1/{service}/1", "/shop/*", "/shop/{id}", "/shop/2"]
)
METHODS = st.sampled_from([["*"], ["GET"], ["GET", "POST"]])
APPLICATIONS = ("app_1", "app_2")
limits = st.fixed_dictionaries(
    {"per": st.sampled_from([["key"], ["application", "endpoint"], ["service"]])},
    optional={
        "paths": st.lists(PATTERNS, min_size=1, max_size=2, unique=True),
        "methods": st.just(["GET"]),
        "applications": st.sampled_from([["app_1"], ["name of app_2"]]),
        "services": st.sampled_from([["orders"], ["mail"]]),
        "routes": st.just(["shop"]),
    },
)
entries = st.fixed_dictionaries(
    {"path": PATTERNS, "methods": METHODS},
    optional={"rate_limit": st.sampled_from([7, 8]), "versions": st.sampled_from([["v1"], ["v2"]])},
)
configurations = st.fixed_dictionaries(
    {
        "limits": st.lists(limits, max_size=4),
        "entries": st.lists(st.lists(entries, max_size=4), min_size=2, max_size=2),
        "mode": st.sampled_from(["all", "all", "listed"]),
        "cost": st.sampled_from([1, 1, 3]),
        "prefix": st.sampled_from(["", "/one", "/two"]),
        "weight": st.sampled_from([0, 50]),
    }
)
ASKED = tuple(itertools.product(PATHS, (b"GET", b"POST"), APPLICATIONS))


def snapshot_of(configuration: dict[str, Any]) -> Snapshot:
    versions = [version_wire("v1", 50), version_wire("v2", configuration["weight"], "http://10.0.0.2:8000/base")]
    policies = {"charging": {"cost": configuration["cost"]}} if configuration["cost"] > 1 else {}
    return built(
        {
            "service": [
                service_wire(id=f"svc_{name}", name=name, versions=versions, current_version="v1")
                for name in ("orders", "mail")
            ],
            "route": [route_wire("shop", "/shop/*", replace_prefix=configuration["prefix"], policies=policies)],
            "application": [
                application_wire(
                    id=id,
                    name=f"name of {id}",
                    endpoint_mode=configuration["mode"],
                    entries=[entry_wire(f"wle_{id}_{number}", **each) for number, each in enumerate(listed)],
                )
                for id, listed in zip(APPLICATIONS, configuration["entries"], strict=True)
            ],
            "limit": [
                limit_wire(f"lim_{number}", name=f"limit {number}", **rule)
                for number, rule in enumerate(configuration["limits"])
            ],
        }
    )


def decision(memory: MatchMemory, snapshot: Snapshot, path: str, method: bytes, application: str) -> Any:
    """What a request is held to, and what its upstream is asked for."""
    exchange = Exchange()
    exchange.method, exchange.raw_path, exchange.noted, exchange.passed = method, path.encode(), {}, []
    exchange.identity = SimpleNamespace(host=b"gateway.test")
    exchange.snapshot = snapshot
    registry = TargetRegistry(lambda: snapshot.services, failures=1, now=lambda: 0.0)
    caller: Any = SimpleNamespace(id=f"key of {application}", point=0 if application == "app_1" else 2**31)
    try:
        known = exchange.known_path = memory.recall(snapshot, exchange)
        exchange.path = canonical(exchange.raw_path)
        if known is not None:
            match = known.match
        else:
            fields = RequestFields(exchange, exchange.path, b"x-api-key")
            match = memory.find(snapshot, b"gateway.test", method, exchange.path, fields)
        grant = match.grant(snapshot.applications[application], exchange)
        if known is None:
            memory.remember(exchange, match)
        version, _, request_path = match.usual_version(caller, grant, exchange, registry)
    except GatewayFault as fault:
        return fault.code, fault.detail
    return match.destination, match.template, match.api_version, match.method, grant, version, request_path


@settings(max_examples=40, deadline=None)
@given(st.lists(configurations, min_size=1, max_size=3), st.permutations(ASKED))
def test_a_memory_decides_as_somebody_without_one(
    configurations: list[dict[str, Any]], requests: list[tuple[str, bytes, str]]
) -> None:
    memory = MatchMemory()
    for snapshot in map(snapshot_of, configurations):
        for each in requests * 3:
            assert decision(memory, snapshot, *each) == decision(MatchMemory(), snapshot, *each)


# --- through a worker ------------------------------------------------------------------------------------------------
New = Callable[..., Answer]


@pytest.fixture(scope="module")
def upstream(plane: DataPlane) -> Upstream:
    return plane.serve()


@pytest.fixture
def new(plane: DataPlane, upstream: Upstream) -> New:
    """Asks for a path that nobody has asked for, after others of the same service."""
    numbers = itertools.count()

    def ask(key: str, under: str = "new", method: str = "GET") -> Answer:
        return plane.ask(method, f"{upstream.path}/{under}/{next(numbers)}", key=key)

    return ask


def policies(answer: Answer) -> str | None:
    assert answer.status == 200, answer
    return answer.field("ratelimit-policy")


@pytest.fixture
def key(plane: DataPlane) -> str:
    plane.feed.put("application", application_wire(id="app_new", name="new", rate_limit=50))
    return plane.new_key(application="app_new")


BASE = '"application";q=50;w=60'


def test_a_new_path_is_refused_once_its_application_may_not_use_the_service(
    plane: DataPlane, new: New, key: str
) -> None:
    assert [new(key).status for _ in range(3)] == [200] * 3
    plane.feed.put("application", application_wire(id="app_new", name="new", services=["elsewhere"]))
    assert new(key).code == "service_not_allowed"


def test_a_new_path_is_held_to_the_limit_that_its_application_has_now(plane: DataPlane, new: New, key: str) -> None:
    plane.feed.put("limit", limit_wire("lim_new", name="new", applications=["app_new"]))
    try:
        assert [policies(new(key)) for _ in range(3)] == [f'{BASE},"new";q=100;w=60'] * 3
        plane.feed.put("application", application_wire(id="app_new", name="new", rate_limit=60))
        assert policies(new(key)) == '"application";q=60;w=60,"new";q=100;w=60'
    finally:
        plane.feed.drop("limit", "lim_new")


def test_a_new_path_is_held_to_the_limits_that_there_are_now(plane: DataPlane, new: New, key: str) -> None:
    assert [policies(new(key)) for _ in range(3)] == [BASE] * 3
    plane.feed.put("limit", limit_wire("lim_new", name="new", applications=["app_new"], limit=5))
    assert [policies(new(key)) for _ in range(3)] == [f'{BASE},"new";q=5;w=60'] * 3
    plane.feed.put("limit", limit_wire("lim_new", name="new", applications=["app_new"], limit=9))
    assert policies(new(key)) == f'{BASE},"new";q=9;w=60'
    plane.feed.drop("limit", "lim_new")
    assert policies(new(key)) == BASE


def test_paths_of_one_service_are_held_to_the_limits_that_name_them(
    plane: DataPlane, upstream: Upstream, new: New, key: str
) -> None:
    other = plane.new_key(application="app_1")
    few = limit_wire("lim_few", name="few", limit=3, paths=[f"{upstream.path}/few/*"], per=["application", "endpoint"])
    posted = limit_wire("lim_posted", name="posted", limit=2, methods=["POST"], applications=["app_new"])
    plane.feed.put("limit", few, posted)
    try:
        assert [policies(new(key)) for _ in range(3)] == [BASE] * 3
        assert [policies(new(key, "few")) for _ in range(3)] == [f'{BASE},"few";q=3;w=60'] * 3
        assert new(key, "few").status == 429
        assert policies(new(key)) == BASE
        assert '"few";q=3' in (policies(new(other, "few")) or "")
        assert [new(key, "many", "POST").status for _ in range(3)] == [200, 200, 429]
    finally:
        plane.feed.drop("limit", "lim_few", "lim_posted")


def test_a_new_path_of_a_route_is_asked_for_as_the_route_says_now(plane: DataPlane, upstream: Upstream) -> None:
    name = upstream.path.rpartition("/")[2]
    numbers = itertools.count()

    def ask() -> tuple[int, bytes]:
        answer = plane.ask("GET", f"/changing/{next(numbers)}")
        return answer.status, upstream.requests[-1].target

    plane.feed.put("route", route_wire("rte_changing", "/changing/*", service=name, strip_prefix="/changing"))
    assert [ask() for _ in range(3)] == [(200, b"/0"), (200, b"/1"), (200, b"/2")]
    plane.feed.put("route", route_wire("rte_changing", "/changing/*", service=name, replace_prefix="/other"))
    assert ask() == (200, b"/other/changing/3")
    plane.feed.put("route", route_wire("rte_changing", "/changing/*", service=name, is_active=False))
    assert ask()[0] == 404
    plane.feed.drop("route", "rte_changing")


def test_a_new_path_is_refused_to_a_key_that_is_gone(plane: DataPlane, new: New, key: str) -> None:
    assert [new(key).status for _ in range(3)] == [200] * 3
    plane.feed.drop("api_key", f"key_new_{plane._number}")
    assert new(key).status == 401

"""Routes with conditions and rewriting expressions, through a running worker (R4, R5)."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.dataplane import DataPlane
from tests.raw_http import Answer
from tests.scripted_upstream import Upstream
from tests.wires import route_wire

Put = Callable[..., None]


@pytest.fixture(scope="module")
def stable(plane: DataPlane) -> Upstream:
    return plane.serve()


@pytest.fixture(scope="module")
def beta(plane: DataPlane) -> Upstream:
    return plane.serve()


@pytest.fixture
def put(plane: DataPlane, stable: Upstream) -> Put:
    def put_route(path: str, upstream: Upstream = stable, *, name: str = "", **changes: Any) -> None:
        policies = {key: changes.pop(key) for key in ("conditions", "rewrite") if key in changes}
        service = upstream.path.rpartition("/")[2]
        plane.feed.put("route", route_wire(f"rte_{name}{path}", path, service=service, policies=policies, **changes))

    return put_route


def where(answer: Answer, *upstreams: Upstream) -> int:
    """Which of the upstreams has seen the last request with the answer's id."""
    assert answer.status == 200, answer
    request_id = (answer.field("x-request-id") or "").encode()
    seen = [any(each.field("x-request-id") == request_id for each in upstream.requests) for upstream in upstreams]
    assert seen.count(True) == 1
    return seen.index(True)


def test_a_field_leads_to_another_service_however_often_the_path_was_asked_for(
    plane: DataPlane, put: Put, stable: Upstream, beta: Upstream
) -> None:
    put("/api/cond/field", stable)
    put("/api/cond/field", beta, name="beta", conditions={"headers": [{"name": "X-Beta", "equals": "yes"}]})
    with plane.connect() as client:
        for sent in ("no", "yes", "yes", "no", "no", "yes", "no", "yes", "yes", "no"):  # nothing may be remembered
            answer = client.send(plane.request("GET", "/api/cond/field", f"X-Beta: {sent}")).answer()
            assert where(answer, stable, beta) == (sent == "yes")
            assert answer.field("vary") == "x-beta"


def test_the_query_leads_to_another_service(plane: DataPlane, put: Put, stable: Upstream, beta: Upstream) -> None:
    put("/api/cond/query", stable)
    put("/api/cond/query", beta, name="beta", conditions={"query": [{"name": "region", "matches": "eu-[a-z]+"}]})
    for query, expected in (("?region=eu-west", 1), ("?region=us-east", 0), ("", 0), ("?a&region=x&region=eu%2Da", 1)):
        for _ in range(3):
            assert where(plane.ask("GET", f"/api/cond/query{query}"), stable, beta) == expected


def test_a_parameter_of_the_path_decides_and_is_remembered(
    plane: DataPlane, put: Put, stable: Upstream, beta: Upstream
) -> None:
    put("/api/cond/path/{id}", stable)
    numbers = {"pathParameters": [{"name": "id", "matches": "[0-9]+"}]}
    put("/api/cond/path/{id}", beta, name="numbers", conditions=numbers)
    for _ in range(4):
        answer = plane.ask("GET", "/api/cond/path/17")
        assert where(answer, stable, beta) == 1
        assert answer.field("vary") is None
        assert where(plane.ask("GET", "/api/cond/path/me"), stable, beta) == 0


def test_without_a_route_whose_conditions_hold_there_is_none(plane: DataPlane, put: Put) -> None:
    put("/api/cond/none", conditions={"headers": [{"name": "X-Beta", "present": True}]}, methods=["GET"])
    assert plane.ask("GET", "/api/cond/none").code == "no_route"
    assert plane.ask("POST", "/api/cond/none").code == "no_route"
    assert plane.ask("POST", "/api/cond/none", "X-Beta: 1").code == "method_not_allowed"
    assert plane.ask("GET", "/api/cond/none", "X-Beta: 1").status == 200


def test_an_expression_that_others_choke_on_is_answered_at_once(plane: DataPlane, put: Put) -> None:
    put("/api/cond/slow", conditions={"headers": [{"name": "X-A", "matches": "(a+)+$"}]})
    assert plane.ask("GET", "/api/cond/slow", "X-A: " + "a" * 8000 + "!").code == "no_route"
    assert plane.ask("GET", "/api/cond/slow", "X-A: " + "a" * 8000).status == 200


# --- rewriting -------------------------------------------------------------------------------------------------------
AUTH = {"pattern": "^/api/v1/auth/(.*)", "replacement": r"/api/auth/\1"}


@pytest.mark.parametrize(
    ("sent", "got"),
    [
        ("/api/v1/auth/login?next=%2F", b"/api/auth/login?next=%2F"),
        ("/api/v1/auth/a%2fb/%7e", b"/api/auth/a%2fb/%7e"),
        ("/api/v1/auth/", b"/api/auth/"),
    ],
)
def test_an_expression_rewrites_the_path(plane: DataPlane, put: Put, stable: Upstream, sent: str, got: bytes) -> None:
    put("/api/v1/auth/*", rewrite=AUTH)
    for _ in range(3):  # remembered from the second on
        assert plane.ask("GET", sent).status == 200
        assert stable.requests[-1].target == got


def test_an_expression_whose_result_is_no_path_is_400_and_reaches_nobody(
    plane: DataPlane, put: Put, stable: Upstream
) -> None:
    put("/api/odd/*", rewrite={"pattern": "^/api/odd/(.)", "replacement": r"/\1\1/"})
    seen = len(stable.requests)
    answer = plane.ask("GET", "/api/odd/.x")
    assert (answer.status, answer.code) == (400, "bad_path")
    assert len(stable.requests) == seen
    assert plane.ask("GET", "/api/odd/ax").status == 200
    assert stable.requests[-1].target == b"/aa/x"

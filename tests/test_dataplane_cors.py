"""Cross-origin requests through a running worker (rule 18)."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.dataplane import DataPlane
from tests.raw_http import Answer
from tests.scripted_upstream import OK, Upstream, replying
from tests.wires import application_wire, entry_wire, route_wire

ORIGIN = "https://app.example.com"
EXPOSED = "RateLimit, RateLimit-Policy, Retry-After, X-Request-ID"
THEIRS = (
    b"Access-Control-Allow-Origin: *\r\naccess-control-allow-credentials: true\r\nAccess-Control-Expose-Headers: X\r\n"
    b"Access-Control-Allow-Methods: GET\r\nAccess-Control-Allow-Headers: X\r\nAccess-Control-Max-Age: 9\r\n"
)


@pytest.fixture(scope="module")
def open_plane(start_module_plane: Callable[..., DataPlane]) -> DataPlane:
    return start_module_plane(cors_origins=(ORIGIN,))


@pytest.fixture(scope="module")
def upstream(open_plane: DataPlane) -> Upstream:
    return open_plane.serve(replying(OK.replace(b"\r\n\r\n", b"\r\n" + THEIRS + b"Vary: Accept\r\n\r\n")))


def preflight(plane: DataPlane, path: str, method: str = "PUT", origin: str = ORIGIN) -> Answer:
    fields = [f"Origin: {origin}", f"Access-Control-Request-Method: {method}", "Access-Control-Request-Headers: x-a"]
    return plane.ask("OPTIONS", path, *fields, key=None)


def cors(answer: Answer) -> dict[str, str]:
    names = [name for name, _ in answer.fields if name.startswith("access-control-")]
    assert len(names) == len(set(names)), answer.fields
    return {name: answer.field(name) or "" for name in names}


ALLOWED = {
    "access-control-allow-origin": ORIGIN,
    "access-control-allow-credentials": "true",
    "access-control-expose-headers": EXPOSED,
}


def test_a_preflight_is_answered_here_without_a_key(open_plane: DataPlane, upstream: Upstream) -> None:
    seen = len(upstream.requests)
    answer = preflight(open_plane, f"{upstream.path}/x")
    assert (answer.status, answer.body) == (204, b"")
    assert cors(answer) == {
        "access-control-allow-origin": ORIGIN,
        "access-control-allow-methods": "PUT",
        "access-control-allow-headers": "x-a",
        "access-control-allow-credentials": "true",
        "access-control-max-age": "600",
    }
    assert "Origin" in (answer.field("vary") or "")
    assert answer.field("x-request-id")
    assert answer.field("content-length") is None
    assert len(upstream.requests) == seen


def test_a_preflight_charges_nothing(open_plane: DataPlane, upstream: Upstream) -> None:
    open_plane.feed.put("application", application_wire(id="app_cors", rate_limit=1))
    key = open_plane.new_key(application="app_cors")
    for _ in range(5):
        assert preflight(open_plane, f"{upstream.path}/x").status == 204
    assert open_plane.ask("GET", f"{upstream.path}/x", f"Origin: {ORIGIN}", key=key).status == 200


def test_a_preflight_is_matched_by_the_method_that_it_asks_for(open_plane: DataPlane, upstream: Upstream) -> None:
    name = upstream.path.rpartition("/")[2]
    open_plane.feed.put("route", route_wire("rte_put", "/api/put", service=name, methods=["PUT", "OPTIONS"]))
    for _ in range(2):  # also once a real OPTIONS has gone through
        assert preflight(open_plane, "/api/put").status == 204
        assert preflight(open_plane, "/api/put", "DELETE").code == "method_not_allowed"
        assert open_plane.ask("OPTIONS", "/api/put").status == 200
        assert upstream.requests[-1].method == b"OPTIONS"


def test_a_preflight_of_another_origin_is_refused(open_plane: DataPlane, upstream: Upstream) -> None:
    answer = preflight(open_plane, f"{upstream.path}/x", origin="https://evil.example.com")
    assert (answer.status, answer.code, cors(answer)) == (403, "blocked", {})


def test_options_that_is_no_preflight_goes_the_way_of_any_request(open_plane: DataPlane, upstream: Upstream) -> None:
    assert open_plane.ask("OPTIONS", f"{upstream.path}/x", f"Origin: {ORIGIN}", key=None).status == 401
    assert open_plane.ask("OPTIONS", f"{upstream.path}/x", f"Origin: {ORIGIN}").status == 200
    assert upstream.requests[-1].method == b"OPTIONS"
    assert upstream.requests[-1].field("origin") == ORIGIN.encode()


@pytest.mark.parametrize("fields", [[], [f"Origin: {ORIGIN}"]], ids=["no origin", "an origin"])
def test_options_never_passes_as_another_method(plane: DataPlane, fields: list[str]) -> None:
    upstream = plane.serve()
    entry = entry_wire("wle_get", f"{upstream.path}/x", methods=["GET"])
    plane.feed.put("application", application_wire(id="app_get", endpoint_mode="listed", entries=[entry]))
    key = plane.new_key(application="app_get")
    answer = plane.ask("OPTIONS", f"{upstream.path}/x", "Access-Control-Request-Method: GET", *fields, key=key)
    assert answer.status == 403
    assert plane.ask("GET", f"{upstream.path}/x", key=key).status == 200
    assert [each.method for each in upstream.requests] == [b"GET"]


def test_what_the_upstream_says_of_origins_is_replaced(open_plane: DataPlane, upstream: Upstream) -> None:
    answer = open_plane.ask("GET", f"{upstream.path}/x", f"Origin: {ORIGIN}")
    assert (answer.status, cors(answer)) == (200, ALLOWED)
    assert sorted(answer.all("vary")) == ["Accept", "Origin"]
    for fields in ([], ["Origin: https://evil.example.com"], ["Origin: null"]):
        assert cors(open_plane.ask("GET", f"{upstream.path}/x", *fields)) == {}


@pytest.mark.parametrize(
    ("path", "fields", "status"),
    [
        ("/x", ["X-API-Key: wrong"], 401),
        ("/x", [], 401),
        ("/x/../y", [], 400),
        ("/x", ["X-API-Version: v9", "X-API-Key: {key}"], 404),
        ("elsewhere", [], 404),
    ],
)
def test_a_browser_may_read_the_gateways_errors(
    open_plane: DataPlane, upstream: Upstream, path: str, fields: list[str], status: int
) -> None:
    target = upstream.path + path
    fields = [field.format(key=open_plane.key) for field in fields]
    answer = open_plane.ask("GET", target, f"Origin: {ORIGIN}", *fields, key=None)
    assert (answer.status, cors(answer)) == (status, ALLOWED)


def test_a_browser_may_read_a_405(open_plane: DataPlane, upstream: Upstream) -> None:
    name = upstream.path.rpartition("/")[2]
    open_plane.feed.put("route", route_wire("rte_get", "/api/get", service=name, methods=["GET"]))
    answer = open_plane.ask("POST", "/api/get", f"Origin: {ORIGIN}")
    assert (answer.status, cors(answer)) == (405, ALLOWED)


def test_any_origin_may_read_but_never_with_credentials(start_plane: Callable[..., DataPlane]) -> None:
    plane = start_plane(cors_origins=("*",))
    upstream = plane.serve()
    answer = plane.ask("GET", f"{upstream.path}/x", "Origin: https://anybody.example.com")
    assert cors(answer) == {"access-control-allow-origin": "*", "access-control-expose-headers": EXPOSED}
    answer = preflight(plane, f"{upstream.path}/x", origin="https://anybody.example.com")
    assert "access-control-allow-credentials" not in cors(answer)


def test_by_default_no_origin_may_read_anything(plane: DataPlane) -> None:
    upstream = plane.serve(replying(OK.replace(b"\r\n\r\n", b"\r\n" + THEIRS + b"\r\n")))
    assert cors(plane.ask("GET", f"{upstream.path}/x", f"Origin: {ORIGIN}")) == {}
    answer = preflight(plane, f"{upstream.path}/x")
    assert (answer.status, cors(answer)) == (403, {})


# --- of a service, of a route ----------------------------------------------------------------------------------------
OTHER = "https://other.example.com"


@pytest.fixture(scope="module")
def own_rules(open_plane: DataPlane) -> Upstream:
    """A service for other origins than CORS_ORIGINS names; its route ``/api/private`` is for none."""
    upstream = open_plane.serve(policies={"cors": {"origins": [OTHER], "methods": ["GET"], "expose": ["X-Total"]}})
    name = upstream.path.rpartition("/")[2]
    open_plane.feed.put("route", route_wire("rte_private", "/api/private", service=name, policies={"cors": {}}))
    open_plane.feed.put("route", route_wire("rte_plain", "/api/plain", service=name))
    return upstream


def test_the_routes_rules_come_before_the_services_and_those_before_the_gateways(
    open_plane: DataPlane, own_rules: Upstream
) -> None:
    told = {"access-control-allow-origin": OTHER, "access-control-expose-headers": f"{EXPOSED}, X-Total"}
    for path in (f"{own_rules.path}/x", "/api/plain"):
        for _ in range(3):  # remembered or not
            answer = open_plane.ask("GET", path, f"Origin: {OTHER}")
            assert (cors(answer), answer.all("vary")) == (told, ["Origin"])
        assert cors(open_plane.ask("GET", path, f"Origin: {ORIGIN}")) == {}
        assert open_plane.ask("GET", path).all("vary") == ["Origin"]
        refused = open_plane.ask("GET", path, f"Origin: {OTHER}", key=None)
        assert (refused.status, cors(refused)) == (401, told)
    for origin in (ORIGIN, OTHER):
        assert cors(open_plane.ask("GET", "/api/private", f"Origin: {origin}")) == {}
        assert preflight(open_plane, "/api/private", "GET", origin).code == "blocked"


def test_a_preflight_is_judged_by_the_rules_of_where_it_leads(open_plane: DataPlane, own_rules: Upstream) -> None:
    seen = len(own_rules.requests)
    answer = preflight(open_plane, "/api/plain", "PUT", OTHER)
    assert (answer.status, cors(answer)["access-control-allow-methods"]) == (204, "GET")
    assert "access-control-allow-credentials" not in cors(answer)
    assert preflight(open_plane, "/api/plain", "GET", ORIGIN).code == "blocked"
    assert len(own_rules.requests) == seen


def test_a_stored_answer_carries_the_fields_of_whoever_asks(open_plane: DataPlane) -> None:
    policies: dict[str, Any] = {"cors": {"origins": [OTHER, ORIGIN]}, "caching": {}}
    fresh = OK.replace(b"\r\n\r\n", b"\r\nCache-Control: public, max-age=60\r\nAccess-Control-Allow-Origin: *\r\n\r\n")
    upstream = open_plane.serve(replying(fresh), policies=policies)
    told = [
        cors(open_plane.ask("GET", f"{upstream.path}/x", *fields)).get("access-control-allow-origin")
        for fields in ([f"Origin: {OTHER}"], [f"Origin: {ORIGIN}"], [], ["Origin: https://evil.example.com"])
    ]
    assert told == [OTHER, ORIGIN, None, None]
    assert len(upstream.requests) == 1

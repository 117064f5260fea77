"""Conditions of routes (R4): when they hold, and which route they leave a request to."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.context import Exchange
from core.faults import ClientFault
from core.policies import PolicyError
from routing.records import RouteRecord
from routing.request_fields import RequestFields
from routing.table import RouteTable
from tests.wires import route_wire

KEY_HEADER = b"x-api-key"


def fields_of(
    path: str = "/api/x",
    *headers: tuple[str, str],
    query: str | None = None,
    has_headers: bool = True,
) -> RequestFields:
    """A request whose fields nobody has noted but ``accept`` and the key."""
    exchange = Exchange()
    exchange.method = b"GET"
    exchange.noted, exchange.passed = {}, []
    for name, value in headers:
        if name in ("accept", "x-api-key"):
            exchange.noted[name.encode()] = value.encode()
        if name != "x-api-key":
            exchange.passed += (name.encode(), b": ", value.encode(), b"\r\n")
    exchange.query = None if query is None else query.encode()
    return RequestFields(exchange, path.encode(), KEY_HEADER, has_headers=has_headers)


def route(id: str, path: str, conditions: dict[str, Any] | None = None, **changes: Any) -> RouteRecord:
    policies = {} if conditions is None else {"conditions": conditions}
    return RouteRecord.from_wire(route_wire(id, path, policies=policies, **changes))


def taken(
    routes: list[RouteRecord],
    fields: RequestFields,
    host: bytes = b"h.example.com",
    path: bytes = b"/api/x",
    method: bytes = b"GET",
) -> str | None:
    """The id of the route that takes the request, the code of the refusal, or None."""
    table = RouteTable()
    for each in routes:
        table.load(each)
    try:
        found = table.match(host, path, method, fields)
    except ClientFault as fault:
        return fault.code
    return found.id if found else None


def holds(conditions: dict[str, Any], fields: RequestFields, path: str = "/api/x") -> bool:
    return taken([route("r", path, conditions)], fields, path=fields._path) == "r"


HEADER = [
    pytest.param({"equals": "b"}, [("x-a", "b")], True, id="equal"),
    pytest.param({"equals": "b"}, [("x-a", "B")], False, id="values have a case"),
    pytest.param({"equals": "b"}, [], False, id="absent"),
    pytest.param({"equals": ""}, [("x-a", "")], True, id="empty"),
    pytest.param({"equals": ""}, [], False, id="absent is not empty"),
    pytest.param({"equals": "b, c"}, [("x-a", "b"), ("x-b", "z"), ("x-a", "c")], True, id="lines are one list"),
    pytest.param({"prefix": "be"}, [("x-a", "beta")], True, id="prefix"),
    pytest.param({"prefix": "be"}, [("x-a", "abe")], False, id="no prefix"),
    pytest.param({"matches": "b.*a"}, [("x-a", "beta")], True, id="matches"),
    pytest.param({"matches": "et"}, [("x-a", "beta")], False, id="an expression is for the whole value"),
    pytest.param({"matches": "é+"}, [("x-a", "éé")], True, id="expressions are for characters"),
    pytest.param({"present": True}, [("x-a", "")], True, id="present"),
    pytest.param({"present": True}, [], False, id="not present"),
    pytest.param({"present": False}, [], True, id="absent as wished"),
    pytest.param({"present": False}, [("x-a", "b")], False, id="present against the wish"),
]


@pytest.mark.parametrize(("test", "headers", "held"), HEADER)
def test_a_header_condition_holds_or_not(test: dict[str, Any], headers: list[tuple[str, str]], held: bool) -> None:
    assert holds({"headers": [{"name": "X-A", **test}]}, fields_of("/api/x", *headers)) is held


def test_fields_that_steps_note_can_be_asked_for_too() -> None:
    conditions = {"headers": [{"name": "Accept", "prefix": "text/"}]}
    assert holds(conditions, fields_of("/api/x", ("accept", "text/html")))
    assert not holds(conditions, fields_of("/api/x", ("accept", "image/png")))


def test_the_field_of_the_gateways_keys_is_invisible() -> None:
    assert not holds({"headers": [{"name": "X-API-Key", "present": True}]}, fields_of("/api/x", ("x-api-key", "km")))


@pytest.mark.parametrize(
    ("test", "query", "held"),
    [
        ({"equals": "a b"}, "q=a%20b", True),
        ({"equals": "a b"}, "q=a+b", True),
        ({"equals": "a+b"}, "q=a%2Bb", True),
        ({"equals": "b"}, "q=a&q=b", True),
        ({"equals": "b"}, "%71=b", True),
        ({"equals": "b"}, "Q=b", False),
        ({"equals": "é"}, "q=%C3%A9", True),
        ({"equals": ""}, "q", True),
        ({"equals": ""}, None, False),
        ({"present": True}, "&&q&", True),
        ({"present": False}, "p=1", True),
        ({"matches": "[0-9]+"}, "q=x&q=12", True),
        ({"prefix": "1"}, "q=21", False),
    ],
)
def test_a_query_condition_holds_when_any_value_passes(test: dict[str, Any], query: str | None, held: bool) -> None:
    assert holds({"query": [{"name": "q", **test}]}, fields_of(query=query)) is held


@pytest.mark.parametrize(
    ("test", "path", "held"),
    [
        ({"matches": "[0-9]+"}, "/api/7/x", True),
        ({"matches": "[0-9]+"}, "/api/me/x", False),
        ({"equals": "a/b"}, "/api/a%2Fb/x", True),
        ({"prefix": "m"}, "/api/me/x", True),
    ],
)
def test_a_condition_on_a_parameter_of_the_path(test: dict[str, Any], path: str, held: bool) -> None:
    conditions = {"pathParameters": [{"name": "id", **test}]}
    assert holds(conditions, fields_of(path), "/api/{id}/x") is held


@pytest.mark.parametrize(
    ("conditions", "field"),
    [
        ({"headers": [{"name": "x-a", "matches": "("}]}, "conditions.headers[0].matches"),
        (
            {"headers": [{"name": "x-b", "present": True}, {"name": "x a", "present": True}]},
            "conditions.headers[1].name",
        ),
        ({"headers": [{"name": "x_a", "present": True}]}, "conditions.headers[0].name"),
        ({"headers": [{"name": "X-Gateway-Node", "present": True}]}, "conditions.headers[0].name"),
        ({"query": [{"name": "q", "matches": "(?=a)"}]}, "conditions.query[0].matches"),
        ({"query": [{"name": "q", "matches": r"(a)\1"}]}, "conditions.query[0].matches"),
        ({"query": [{"name": "q", "matches": "((a{1,1000}){1,1000})"}]}, "conditions.query[0].matches"),
        ({"pathParameters": [{"name": "no", "equals": "a"}]}, "conditions.pathParameters[0].name"),
        ({"pathParameters": [{"name": "id", "present": True}]}, "conditions.pathParameters[0].present"),
        ({"query": [{"name": "q"}]}, "conditions.query[0]"),
        ({"query": [{"name": "q", "equals": "a", "prefix": "b"}]}, "conditions.query[0]"),
    ],
)
def test_what_does_not_compile_is_refused_at_its_member(conditions: dict[str, Any], field: str) -> None:
    with pytest.raises(PolicyError) as raised:
        route("r", "/api/{id}", conditions)
    assert raised.value.field == field
    assert raised.value.sentence


def test_an_expression_takes_linear_time() -> None:
    conditions = {"query": [{"name": "q", "matches": "(a+)+$"}]}
    # An engine that backtracks would be busy with this for longer than there has been time.
    assert not holds(conditions, fields_of(query="q=" + "a" * 8000 + "!"))


# --- which route takes a request -------------------------------------------------------------------------------------
BETA = {"headers": [{"name": "x-beta", "equals": "yes"}]}
EU = {"query": [{"name": "region", "equals": "eu"}]}


def test_a_route_whose_conditions_do_not_hold_is_passed_over() -> None:
    routes = [route("a", "/api/x", BETA), route("b", "/api/x")]
    assert taken(routes, fields_of("/api/x", ("x-beta", "yes"))) == "a"
    assert taken(routes, fields_of()) == "b"


def test_more_conditions_come_before_fewer_and_priority_before_both() -> None:
    routes = [route("a", "/api/x", BETA), route("b", "/api/x", {**BETA, **EU}), route("c", "/api/x", priority=-1)]
    both = ("/api/x", ("x-beta", "yes"))
    assert taken(routes, fields_of(*both, query="region=eu")) == "b"
    assert taken(routes, fields_of(*both)) == "a"
    assert taken(routes, fields_of()) == "c"
    assert taken([*routes, route("d", "/api/x", priority=1)], fields_of(*both, query="region=eu")) == "d"


def test_when_no_route_of_a_group_holds_the_next_group_and_the_next_host_are_asked() -> None:
    routes = [
        route("host", "/api/x", BETA, hosts=["h.example.com"]),
        route("suffix", "/api/x", EU, hosts=["*.example.com"]),
        route("deep", "/api/x", BETA),
        route("wide", "/api/*"),
    ]
    assert taken(routes, fields_of("/api/x", ("x-beta", "yes"))) == "host"
    assert taken(routes, fields_of(query="region=eu")) == "suffix"
    assert taken(routes, fields_of()) == "wide"
    assert taken(routes[:3], fields_of()) is None


def test_a_method_is_refused_only_by_routes_that_match_all_else() -> None:
    routes = [route("a", "/api/x", BETA, methods=["GET"]), route("b", "/api/x", EU, methods=["PUT"])]
    assert taken(routes, fields_of("/api/x", ("x-beta", "yes")), method=b"PUT") == "method_not_allowed"
    assert taken(routes, fields_of(query="region=eu"), method=b"PUT") == "b"
    assert taken(routes, fields_of(), method=b"PUT") is None
    table = RouteTable()
    for each in routes:
        table.load(each)
    with pytest.raises(ClientFault) as raised:
        table.match(b"", b"/api/x", b"POST", fields_of(query="region=eu"))
    assert raised.value.headers == ((b"allow", b"PUT"),)


def test_an_inactive_route_hides_others_only_where_its_conditions_hold() -> None:
    routes = [route("a", "/api/x", BETA, is_active=False), route("b", "/api/x")]
    assert taken(routes, fields_of("/api/x", ("x-beta", "yes"))) == "no_route"
    assert taken(routes, fields_of()) == "b"


def test_a_preflight_is_routed_as_if_the_fields_that_it_cannot_carry_were_there() -> None:
    routes = [route("a", "/api/x", {**BETA, **EU})]
    assert taken(routes, fields_of(query="region=eu", has_headers=False)) == "a"
    assert taken(routes, fields_of(has_headers=False)) is None


@pytest.mark.parametrize(
    ("routes", "is_read"),
    [
        ([route("a", "/api/{id}")], False),
        ([route("a", "/api/{id}", {"pathParameters": [{"name": "id", "equals": "x"}]})], False),
        ([route("a", "/api/{id}", BETA)], True),
        ([route("a", "/api/{id}", BETA), route("b", "/api/{id}", priority=1)], False),
        ([route("a", "/api/{id}", BETA), route("b", "/api/{id}")], True),
    ],
)
def test_it_is_known_whether_another_request_for_the_same_may_lead_elsewhere(
    routes: list[RouteRecord], is_read: bool
) -> None:
    fields = fields_of()
    taken(routes, fields)
    assert fields.is_read is is_read


# --- against a naive reading of the rule -----------------------------------------------------------------------------
VALUES = st.sampled_from(["", "a", "ab", "b", "a b", "é", "a,b"])
TESTS = st.one_of(
    VALUES.map(lambda value: {"equals": value}),
    VALUES.map(lambda value: {"prefix": value}),
    st.sampled_from(["a+", "[^b]*", "a|b", "a b", ".", ""]).map(lambda value: {"matches": value}),
    st.booleans().map(lambda value: {"present": value}),
)
NAMED = st.builds(lambda name, test: {"name": name, **test}, st.sampled_from(["x-a", "x-b"]), TESTS)
PAIRS = st.lists(st.tuples(st.sampled_from(["x-a", "x-b", "x-c"]), VALUES), max_size=4)


def naive(test: dict[str, Any], values: list[str]) -> bool:
    if "present" in test:
        return bool(values) is test["present"]
    return any(
        ("equals" in test and value == test["equals"])
        or ("prefix" in test and value.startswith(test["prefix"]))
        or ("matches" in test and re.fullmatch(test["matches"], value) is not None)
        for value in values
    )


@given(st.lists(NAMED, max_size=3), st.lists(NAMED, max_size=3), PAIRS, PAIRS, st.booleans())
def test_conditions_hold_as_a_naive_reading_has_it(
    headers: list[dict[str, Any]],
    query: list[dict[str, Any]],
    sent: list[tuple[str, str]],
    parameters: list[tuple[str, str]],
    plus: bool,
) -> None:
    escape = quote_plus if plus else quote
    fields = fields_of("/api/x", *sent, query="&".join(f"{escape(name)}={escape(value)}" for name, value in parameters))

    def lines(name: str) -> list[str]:
        values = [value for key, value in sent if key == name]
        return [", ".join(values)] if values else []

    expected = all(naive(test, lines(test["name"])) for test in headers) and all(
        naive(test, [value for key, value in parameters if key == test["name"]]) for test in query
    )
    assert holds({"headers": headers, "query": query}, fields) is expected

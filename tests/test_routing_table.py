"""Which route takes a request (rule 2)."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.faults import ClientFault
from core.policies import read
from routing.conditions import compile_conditions
from routing.policies import Conditions
from routing.records import RouteRecord
from routing.table import RouteTable, implicit
from tests.test_core_path_trie import naive_rank
from tests.test_routing_conditions import fields_of, taken
from tests.wires import route_wire


def route(id: str, path: str, **changes: Any) -> RouteRecord:
    return RouteRecord.from_wire(route_wire(id, path, **changes))


def table_of(*routes: RouteRecord) -> RouteTable:
    table = RouteTable()
    for each in routes:
        table.load(each)
    return table


def outcome(table: RouteTable, host: bytes, path: bytes, method: bytes = b"GET") -> str | None:
    """The id of the route that takes the request, the code of the refusal, or None."""
    try:
        found = table.match(host, path, method)
    except ClientFault as fault:
        return fault.code
    return found.id if found else None


def test_an_empty_table_matches_nothing() -> None:
    assert RouteTable().match(b"example.com", b"/api/x", b"GET") is None


def test_hosts_go_from_the_exact_one_over_the_longest_suffix_to_any() -> None:
    table = table_of(
        route("any", "/api/x"),
        route("short", "/api/x", hosts=["*.example.com"]),
        route("long", "/api/x", hosts=["*.eu.example.com"]),
        route("exact", "/api/x", hosts=["A.eu.Example.com", "other.net"]),
    )
    assert outcome(table, b"a.eu.example.com", b"/api/x") == "exact"
    assert outcome(table, b"other.net", b"/api/x") == "exact"
    assert outcome(table, b"b.eu.example.com", b"/api/x") == "long"
    assert outcome(table, b"a.b.c.example.com", b"/api/x") == "short"
    assert outcome(table, b"example.com", b"/api/x") == "any"
    assert outcome(table, b"", b"/api/x") == "any"


def test_a_host_without_a_route_for_the_path_leaves_it_to_less_specific_hosts() -> None:
    table = table_of(
        route("exact", "/api/x", hosts=["a.example.com"]),
        route("suffix", "/api/y", hosts=["*.example.com"]),
        route("any", "/api/z"),
    )
    assert outcome(table, b"a.example.com", b"/api/y") == "suffix"
    assert outcome(table, b"a.example.com", b"/api/z") == "any"
    assert outcome(table, b"a.example.com", b"/api/w") is None


@pytest.mark.parametrize(
    ("stronger", "weaker"),
    [
        pytest.param(
            route("b", "/api/x/*", priority=-5), route("a", "/api/*", priority=5), id="literal prefix before priority"
        ),
        pytest.param(
            route("b", "/api/*", priority=1), route("a", "/api/{x}/y", priority=0), id="priority before shape"
        ),
        pytest.param(route("b", "/api/{a}/{b}"), route("a", "/api/*"), id="the whole path before a rest"),
        pytest.param(route("b", "/api/{a}/y"), route("a", "/api/{a}/{b}"), id="literal segments before age"),
        pytest.param(route("b", "/api/{a}/*"), route("a", "/api/*"), id="longer ones before age"),
        pytest.param(route("a", "/api/{a}/y"), route("b", "/api/{b}/y"), id="the oldest in the end"),
    ],
)
def test_the_most_specific_route_wins(stronger: RouteRecord, weaker: RouteRecord) -> None:
    for table in (table_of(stronger, weaker), table_of(weaker, stronger)):
        assert outcome(table, b"h", b"/api/x/y") == stronger.id


def test_the_oldest_of_equals_wins_after_any_change_too() -> None:
    table = table_of(route("b", "/api/x"), route("c", "/api/x"))
    assert outcome(table.changed([route("a", "/api/x")], []), b"h", b"/api/x") == "a"


def test_methods_choose_among_the_routes_of_one_prefix() -> None:
    table = table_of(
        route("read", "/api/x/{id}", methods=["GET"]),
        route("write", "/api/x/*", methods=["POST", "PUT"]),
        route("wide", "/api/*"),
    )
    assert outcome(table, b"h", b"/api/x/1", b"GET") == "read"
    assert outcome(table, b"h", b"/api/x/1", b"PUT") == "write"


def test_a_wrong_method_does_not_fall_through_and_names_those_that_fit() -> None:
    table = table_of(
        route("one", "/api/x", methods=["POST"]),
        route("two", "/api/x", methods=["GET"]),
        route("off", "/api/x", methods=["PATCH"], is_active=False),
        route("wide", "/api/*"),
    )
    with pytest.raises(ClientFault) as refusal:
        table.match(b"h", b"/api/x", b"DELETE")
    assert refusal.value.code == "method_not_allowed"
    assert refusal.value.headers == ((b"allow", b"GET, POST"),)


def test_an_inactive_route_is_not_found_and_does_not_fall_through() -> None:
    table = table_of(route("off", "/api/x", is_active=False, methods=["GET"]), route("wide", "/api/*"))
    assert outcome(table, b"h", b"/api/x") == "no_route"
    assert outcome(table, b"h", b"/api/x", b"POST") == "no_route"
    assert outcome(table, b"h", b"/api/y") == "wide"


def test_a_route_that_does_not_compile_is_refused_when_it_is_read() -> None:
    with pytest.raises(ValueError, match="dot segment"):
        route("bad", "/api/../x")


def test_a_route_pattern_is_compared_in_its_canonical_form() -> None:
    table = table_of(route("r", "/api/%63afé"))
    assert outcome(table, b"h", b"/api/caf%C3%A9") == "r"


HOSTS = st.sampled_from(["", "a.x.io", "*.x.io", "*.io", "x.io"])
PATTERNS = st.sampled_from(
    [
        "/api/*",
        "/api/{n}",
        "/api/{m}",
        "/api/a",
        "/api/a/*",
        "/api/{n}/b",
        "/api/a/b",
        "/api/a/{n}",
        "/api/*/b",
        "/api/{n}/*",
    ]
)
ROUTES = st.lists(
    st.tuples(HOSTS, PATTERNS, st.sampled_from([[], ["GET"], ["POST"]]), st.integers(0, 1), st.booleans()), max_size=8
).map(
    lambda rows: [
        route(f"r{number}", path, hosts=[host] if host else [], methods=methods, priority=priority, is_active=is_active)
        for number, (host, path, methods, priority, is_active) in enumerate(rows)
    ]
)
REQUESTS = st.tuples(
    st.sampled_from([b"a.x.io", b"x.io", b"b.a.x.io", b"y.io", b"io"]),
    st.sampled_from([b"/api/a", b"/api/b", b"/api/a/b", b"/api/a/", b"/api/c/b", b"/api", b"/api/a/b/c"]),
    st.sampled_from([b"GET", b"POST"]),
)


def host_rank(rule: bytes, host: bytes) -> tuple[int, int] | None:
    if rule.startswith(b"*."):
        return (1, -len(rule)) if host.endswith(rule[1:]) and len(host) > len(rule) - 1 else None
    return (0, 0) if rule == host else None


def scanned(routes: list[RouteRecord], host: bytes, path: bytes, method: bytes) -> str | None:
    """What a scan of all routes decides, written as rule 2 reads."""
    ranked = []
    for each in routes:
        rank = naive_rank(each.path, path)
        hosts = [host_rank(rule, host) for rule in each.hosts] if each.hosts else [(2, 0)]
        for by_host in hosts:
            if rank is not None and by_host is not None:
                literals, has_rest, kinds = rank
                conditions = each.when.count if each.when is not None else 0
                order = (-each.priority, -conditions, has_rest, kinds, each.id)
                ranked.append(((by_host, literals), order, each))
    if not ranked:
        return None
    most_specific = min(group for group, _, _ in ranked)
    group = [each for key, _, each in sorted(ranked, key=lambda item: item[:2]) if key == most_specific]
    for each in group:
        if not each.methods or method in each.methods:
            return each.id if each.is_active else "no_route"
    return "method_not_allowed" if any(each.is_active for each in group) else "no_route"


@given(ROUTES, REQUESTS)
def test_matching_equals_a_scan_of_all_routes(routes: list[RouteRecord], request: tuple[bytes, bytes, bytes]) -> None:
    assert outcome(table_of(*routes), *request) == scanned(routes, *request)


def with_conditions(each: RouteRecord, names: list[str]) -> RouteRecord:
    document = {"headers": [{"name": name, "present": True} for name in names]}
    return replace(each, when=compile_conditions(read(Conditions, document), {}))


@given(ROUTES, st.data(), REQUESTS, st.sets(st.sampled_from(["a", "b"])))
def test_matching_with_conditions_equals_a_scan_of_those_whose_conditions_hold(
    routes: list[RouteRecord], data: st.DataObject, request: tuple[bytes, bytes, bytes], sent: set[str]
) -> None:
    names = {each.id: data.draw(st.sampled_from([[], ["a"], ["b"], ["a", "b"]])) for each in routes}
    routes = [with_conditions(each, names[each.id]) for each in routes]
    fields = fields_of(request[1].decode(), *((name, "x") for name in sent))
    expected = scanned([each for each in routes if set(names[each.id]) <= sent], *request)
    assert taken(routes, fields, *request) == expected


@given(ROUTES, st.data(), REQUESTS)
def test_a_changed_table_equals_one_built_anew(
    routes: list[RouteRecord], data: st.DataObject, request: tuple[bytes, bytes, bytes]
) -> None:
    start = [each for each in routes if data.draw(st.booleans())]
    drop = [each for each in start if data.draw(st.booleans())]
    put = [each for each in routes if each not in start]
    table = table_of(*start)
    before = outcome(table, *request)
    changed = table.changed(put, drop)
    assert outcome(changed, *request) == scanned([each for each in routes if each not in drop], *request)
    assert outcome(table, *request) == before
    assert changed.changed([], [each for each in routes if each not in drop]).match(*request) is None


def test_a_route_of_several_hosts_goes_from_all_of_them() -> None:
    both = route("r", "/api/x", hosts=["a.io", "*.b.io"])
    table = table_of(both).changed([], [both])
    assert table.match(b"a.io", b"/api/x", b"GET") is None
    assert table.match(b"c.b.io", b"/api/x", b"GET") is None


@pytest.mark.parametrize(
    ("path", "named"),
    [
        (b"/api/v1/orders/x/y", (b"v1", b"orders")),
        (b"/api/v1/orders", (b"v1", b"orders")),
        (b"/api/v1/orders/", (b"v1", b"orders")),
        (b"/api/v12/orders/x", (b"v12", b"orders")),
        (b"/api/v1/viola/x", (b"v1", b"viola")),
        (b"/api/v1/v/x", (b"v1", b"v")),
        (b"/api/v1/", None),
        (b"/api/v1", None),
        (b"/api/v/orders", None),
        (b"/api/vx/orders", None),
        (b"/api/1/orders", None),
        (b"/api/orders/v1", None),
        (b"/other/v1/orders", None),
        (b"/api/v1//orders", None),
        (b"/api/v1/tasks/task_1", None),
        (b"/api/v1/management/services", None),
        (b"/api/v2/auth/login", None),
        (b"/api/v1/v2/orders", None),
        (b"/", None),
    ],
)
def test_the_implicit_route_names_version_and_service(path: bytes, named: tuple[bytes, bytes] | None) -> None:
    assert implicit(path) == named

"""What the upstream is asked for (rule 3)."""

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.faults import ClientFault
from core.policies import PolicyError
from core.uri_path import canonical_path
from routing.records import RouteRecord
from routing.rewriting import upstream_target
from tests.wires import route_wire


@pytest.mark.parametrize(
    ("base", "raw_path", "query", "target"),
    [
        pytest.param(b"", b"/api/v1/orders/x/1", None, b"/x/1", id="rest"),
        pytest.param(b"/v2/orders", b"/api/v1/orders/x", b"a=1", b"/v2/orders/x?a=1", id="base path and query"),
        pytest.param(b"", b"/api/v1/orders", None, b"/", id="never empty"),
        pytest.param(b"", b"/api/v1/orders", b"a", b"/?a", id="never empty before a query"),
        pytest.param(b"/b", b"/api/v1/orders", None, b"/b", id="nothing to add"),
        pytest.param(b"/b", b"/api/v1/orders/", None, b"/b/", id="trailing slash"),
        pytest.param(b"", b"/api/v1/orders/x", b"", b"/x?", id="an empty query stays"),
        pytest.param(b"", b"/api/v1/orders/%61%2Fb%20;c=1", b"q=%20", b"/%61%2Fb%20;c=1?q=%20", id="original bytes"),
        pytest.param(b"", b"/%61pi/v%31/orders/x", None, b"/x", id="a prefix in other spelling"),
    ],
)
def test_the_implicit_route_forwards_what_follows_the_service(
    base: bytes, raw_path: bytes, query: bytes | None, target: bytes
) -> None:
    assert upstream_target(None, base, raw_path, query) == target


@pytest.mark.parametrize(
    ("strip", "replace", "base", "raw_path", "target"),
    [
        pytest.param("", "", b"", b"/api/users/1", b"/api/users/1", id="as it is"),
        pytest.param("", "", b"/b", b"/api/users/1", b"/b/api/users/1", id="below the base path"),
        pytest.param("", "/v1", b"/b", b"/api/users", b"/b/v1/api/users", id="a prefix added"),
        pytest.param("/api/users", "", b"", b"/api/users/1/x", b"/1/x", id="stripped"),
        pytest.param("/api/users", "", b"", b"/api/users", b"/", id="stripped to nothing"),
        pytest.param("/api/users", "", b"", b"/api/users/", b"/", id="stripped to the slash"),
        pytest.param("/api/users", "/v1/people", b"/b", b"/api/users/1", b"/b/v1/people/1", id="replaced"),
        pytest.param("/api/users/", "/v1/", b"", b"/api/users/1", b"/v1/1", id="closing slashes do not count"),
        pytest.param("/api/users", "/v1", b"", b"/%61pi/users/%61", b"/v1/%61", id="original bytes after the prefix"),
        pytest.param("/api", "", b"", b"/api/a%2Fb//c", b"/a%2Fb//c", id="%2F does not separate, empty segments stay"),
    ],
)
def test_an_explicit_route_replaces_the_prefix_by_whole_segments(
    strip: str, replace: str, base: bytes, raw_path: bytes, target: bytes
) -> None:
    route = RouteRecord.from_wire(route_wire("r", "/api/*", strip_prefix=strip, replace_prefix=replace))
    assert upstream_target(route, base, raw_path, None) == target
    assert upstream_target(route, base, raw_path, b"a=%2F") == target + b"?a=%2F"


# --- by an expression (R5) -------------------------------------------------------------------------------------------
def rewritten(pattern: str, replacement: str, raw_path: bytes, base: bytes = b"", **changes: Any) -> bytes:
    policies = {"rewrite": {"pattern": pattern, "replacement": replacement}}
    route = RouteRecord.from_wire(route_wire("r", "/api/*", policies=policies, **changes))
    return upstream_target(route, base, raw_path, None)


@pytest.mark.parametrize(
    ("pattern", "replacement", "raw_path", "path"),
    [
        pytest.param("^/api/v1/auth/(.*)", r"/api/auth/\1", b"/api/v1/auth/login", b"/api/auth/login", id="a group"),
        pytest.param("^/api/users", "/v1/users", b"/api/users/7/x", b"/v1/users/7/x", id="what follows stays"),
        pytest.param("/x", "/y", b"/api/x/x", b"/api/y/x", id="the first place alone"),
        pytest.param("^/other", "/y", b"/api/x", b"/api/x", id="no match"),
        pytest.param("^/api/([^/]+)/([^/]+)", r"/\2/\1", b"/api/a/b/c", b"/b/a/c", id="groups in another order"),
        pytest.param("^/api(/v[0-9])?/(.*)", r"\1/\2", b"/api/x", b"/x", id="a group that took no part"),
        pytest.param("^/api(.*)", r"\1", b"/api", b"/", id="never empty"),
        pytest.param("^/api/(.*)", r"/n/\1", b"/api/%61%2fB%20%C3%a9", b"/n/%61%2fB%20%C3%a9", id="original bytes"),
        pytest.param("^/api/(a|b)", r"/n/\1", b"/%61pi/%61", b"/n/%61", id="matched as canonical"),
        pytest.param("^/api/x(.*)", r"/y;v=1,2\1", b"/api/x", b"/y;v=1,2", id="other characters"),
    ],
)
def test_an_expression_replaces_what_it_matches(pattern: str, replacement: str, raw_path: bytes, path: bytes) -> None:
    assert rewritten(pattern, replacement, raw_path) == path
    assert rewritten(pattern, replacement, raw_path, b"/base") == b"/base" + (b"" if raw_path == b"/api" else path)


@pytest.mark.parametrize(
    ("pattern", "replacement", "raw_path"),
    [
        pytest.param("^/api/x([.])", r"/\1", b"/api/x./y", id="a dot segment"),
        pytest.param("^/api/(.)a(.)/", r"/\1\2/", b"/api/.a./b", id="dots that meet"),
        pytest.param("^/api/(.*)", r"/\0", b"/api/x", id="two slashes in front"),
        pytest.param("^/api/[^/]*(.*)", r"/n/\1", b"/api/x/y", id="an empty segment"),
        pytest.param("^/api", "", b"/apix", id="no slash in front"),
        pytest.param("^/api/(.)(.*)", r"/\2\1", b"/api/%2F", id="a torn escape"),
        pytest.param("^/api/(%)25(.*)", r"/\1\2", b"/api/%255C", id="an escape by joining"),
    ],
)
def test_a_result_that_could_be_read_in_two_ways_is_refused(pattern: str, replacement: str, raw_path: bytes) -> None:
    with pytest.raises(ClientFault) as raised:
        rewritten(pattern, replacement, raw_path)
    assert raised.value.code == "bad_path"


def test_empty_segments_pass_where_the_route_allows_them() -> None:
    assert rewritten("^/api/(.*)", r"/n/\1", b"/api/a//b", allow_empty_segments=True) == b"/n/a//b"


def test_a_result_is_no_longer_than_a_target_may_be() -> None:
    with pytest.raises(ClientFault) as raised:
        rewritten("^/api/(.*)", r"/\1" * 100, b"/api/" + b"a" * 1000)
    assert raised.value.code == "uri_too_long"


@pytest.mark.parametrize(
    ("pattern", "replacement", "field"),
    [
        ("(", "/x", "rewrite.pattern"),
        ("(?=a)", "/x", "rewrite.pattern"),
        ("(a)", r"/\2", "rewrite.replacement"),
        ("a", "/x y", "rewrite.replacement"),
        ("a", "/x?y", "rewrite.replacement"),
        ("a", "/x#y", "rewrite.replacement"),
        ("a", "/é", "rewrite.replacement"),
        ("a", "/%zz", "rewrite.replacement"),
        ("a", "/x\r\ny", "rewrite.replacement"),
        ("a", r"/\n", "rewrite.replacement"),
        ("a", "/../x", "rewrite.replacement"),
        ("a", "/%2e%2E/x", "rewrite.replacement"),
        ("a", "/%00", "rewrite.replacement"),
    ],
)
def test_an_expression_or_replacement_that_could_not_work_is_refused(
    pattern: str, replacement: str, field: str
) -> None:
    with pytest.raises(PolicyError) as raised:
        rewritten(pattern, replacement, b"/api/x")
    assert raised.value.field == field


PATHS = st.lists(
    st.sampled_from([b"/", b"a", b"b", b".", b"%2e", b"%2F", b"%61", b"%25", b'"', b"%5", b";", b"%C3%A9", b"\\"]),
    max_size=8,
).map(lambda pieces: b"/api/" + b"".join(pieces))


@given(
    PATHS,
    st.sampled_from(["^/api", "^/api/(.*)", "a(.)", "(/)", "(.)(.)$", "%(..)", "[.]+", "^/api/(.?)(.*)(.)"]),
    st.sampled_from(["", "/", "/n/", r"\0", r"/\1", r"/n/\1", "/a.", "%2F", ".b", r"\1\0\1"]),
)
def test_whatever_the_path_and_the_expression_the_result_is_a_path_that_reads_in_one_way(
    raw_path: bytes, pattern: str, replacement: str
) -> None:
    try:
        canonical_path(raw_path)
        result = rewritten(pattern, replacement, raw_path)
    except (ValueError, ClientFault, PolicyError):
        return  # refused, by whoever comes first
    assert result.startswith(b"/")
    assert b"//" not in canonical_path(result) or re.search(pattern, canonical_path(raw_path).decode()) is None
    assert not re.search(rb"[\x00-\x20?#\\]", result)

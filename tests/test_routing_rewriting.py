"""What the upstream is asked for (rule 3)."""

import pytest

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

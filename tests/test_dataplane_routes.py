"""What leads where, and with which bytes: routes, paths and queries through a running worker (rules 1, 2, 3)."""

from collections.abc import Callable

import pytest

from tests.dataplane import DataPlane
from tests.raw_http import Answer
from tests.scripted_upstream import Seen, Upstream
from tests.wires import application_wire, entry_wire, route_wire, version_wire


@pytest.fixture(scope="module")
def upstream(plane: DataPlane) -> Upstream:
    return plane.serve()


@pytest.fixture(scope="module")
def reached(plane: DataPlane, upstream: Upstream) -> Callable[..., Seen]:
    """What the upstream got of a request."""

    def ask(method: str, target: str | bytes, *fields: str | bytes, **options: object) -> Seen:
        seen = len(upstream.requests)
        answer = plane.ask(method, target, *fields, **options)  # type: ignore[arg-type]
        assert answer.status == 200, answer
        assert len(upstream.requests) == seen + 1
        return upstream.requests[-1]

    return ask


Reached = Callable[..., Seen]


def name_of(upstream: Upstream) -> str:
    return upstream.path.rpartition("/")[2]


# --- bytes pass as they are ------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "rest",
    [
        "",
        "/",
        "/a",
        "/a/",
        "/?",
        "/a?b=c&d=%2F..%2f&&=&e",
        '/a?/../?%00%zz\\|{}^`"<>',
        "/%41%2d%7E/%e4%f6",
        "/a%2Fb%2f..c/x",
        "/a;v=1,2/b:c@d!$&'()*+,=~_-.",
        "/.well-known/...x/..a",
        "/a|b/{c}/^d`",
        "/%252e%252e/x",
        "/%C3%A9t%C3%A9",
        "/" + "a" * 7000,
    ],
    ids=lambda rest: rest[:30] or "nothing",
)
def test_the_rest_of_the_path_and_the_query_reach_the_upstream_as_they_were_sent(
    upstream: Upstream, reached: Reached, rest: str
) -> None:
    target = reached("GET", upstream.path + rest).target.decode()
    assert target == (rest if rest.startswith("/") else f"/{rest}")


@pytest.mark.parametrize(
    "method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND", "QUERY", "M-SEARCH", "REPORT"]
)
def test_every_method_that_is_served_reaches_the_upstream(upstream: Upstream, reached: Reached, method: str) -> None:
    assert reached(method, f"{upstream.path}/x").method == method.encode()


def test_a_body_reaches_the_upstream_as_it_was_sent(upstream: Upstream, reached: Reached) -> None:
    body = bytes(range(256)) * 10
    seen = reached("POST", f"{upstream.path}/x", "Content-Type: application/octet-stream", body=body)
    assert (seen.body, seen.field("content-length")) == (body, b"2560")
    assert seen.field("content-type") == b"application/octet-stream"


def test_the_versions_own_path_and_the_services_prefix_stand_before_the_rest(plane: DataPlane) -> None:
    upstream = plane.serve()
    wire = plane.feed.records("service")[f"svc_{name_of(upstream)}"]
    versions = [version_wire("v1", 1, f"{upstream.url}/base/")]
    plane.feed.put("service", wire | {"versions": versions, "path_prefix": "/inner/"})
    for sent, got in (("/x?y", b"/base/inner/x?y"), ("/", b"/base/inner/"), ("", b"/base/inner")):
        assert plane.ask("GET", upstream.path + sent).status == 200
        assert upstream.requests[-1].target == got


def test_targets_of_a_version_take_turns(plane: DataPlane) -> None:
    first, second = plane.serve(), plane.serve()
    wire = plane.feed.records("service")[f"svc_{name_of(first)}"]
    version = version_wire("v1", 1, "http://127.0.0.1:1/base") | {"targets": [[first.url, 1], [second.url, 1]]}
    plane.feed.put("service", wire | {"versions": [version]})
    for _ in range(4):
        assert plane.ask("GET", f"{first.path}/x").status == 200
    assert (len(first.requests), len(second.requests)) == (2, 2)
    assert first.requests[0].target == b"/base/x"


# --- explicit routes -------------------------------------------------------------------------------------------------
@pytest.fixture
def route(plane: DataPlane, upstream: Upstream) -> Callable[..., None]:
    def put(path: str, **changes: object) -> None:
        plane.feed.put("route", route_wire(f"rte_{path}", path, **{"service": name_of(upstream), **changes}))

    return put


Route = Callable[..., None]


@pytest.mark.parametrize(
    ("path", "changes", "sent", "got"),
    [
        ("/api/shop/*", {}, "/api/shop/a?q", b"/api/shop/a?q"),
        ("/api/strip/*", {"strip_prefix": "/api/strip"}, "/api/strip/a/b?q=1", b"/a/b?q=1"),
        ("/api/strip/*", {"strip_prefix": "/api/strip"}, "/api/strip/", b"/"),
        ("/api/bare", {"strip_prefix": "/api/bare"}, "/api/bare?q", b"/?q"),
        ("/api/swap/*", {"strip_prefix": "/api/swap", "replace_prefix": "/v2"}, "/api/swap/%41", b"/v2/%41"),
        ("/api/front/*", {"replace_prefix": "/in/front"}, "/api/front/a", b"/in/front/api/front/a"),
        ("/elsewhere/{id}/x", {}, "/elsewhere/7/x", b"/elsewhere/7/x"),
        ("/api/%73pelled/*", {"strip_prefix": "/api/spelled"}, "/api/spelle%64/a", b"/a"),
    ],
)
def test_a_route_rewrites_the_prefix_and_nothing_else(
    route: Route, reached: Reached, path: str, changes: dict[str, str], sent: str, got: bytes
) -> None:
    route(path, **changes)
    assert reached("GET", sent).target == got


def test_a_route_holds_for_its_host_only(plane: DataPlane, route: Route, reached: Reached) -> None:
    route("/api/hosted", hosts=["api.example.com", "*.example.org"])
    for host in ("api.example.com", "API.EXAMPLE.COM:8443", "api.example.com.", "a.example.org", "a.b.example.org"):
        reached("GET", "/api/hosted", host=host)
    for host in ("example.com", "example.org", "api.example.com.evil.test", "", "[::1]", "[::1]:80"):
        assert plane.ask("GET", "/api/hosted", host=host).code == "no_route"


def test_a_wrong_method_on_a_route_is_405_and_says_which_are_right(plane: DataPlane, route: Route) -> None:
    route("/api/methods", methods=["GET", "PUT"])
    answer = plane.ask("POST", "/api/methods")
    assert (answer.status, answer.code, answer.field("allow")) == (405, "method_not_allowed", "GET, PUT")
    assert plane.ask("PUT", "/api/methods").status == 200


def test_a_disabled_route_is_404_and_hides_what_is_behind_it(plane: DataPlane, upstream: Upstream) -> None:
    path = f"{upstream.path}/disabled"
    assert plane.ask("GET", path).status == 200
    wire = route_wire("rte_disabled", path, service=name_of(upstream), is_active=False)
    plane.feed.put("route", wire)
    assert plane.ask("GET", path).code == "no_route"
    plane.feed.drop("route", "rte_disabled")
    assert plane.ask("GET", path).status == 200


def test_an_explicit_route_comes_before_the_implicit_one(plane: DataPlane, upstream: Upstream) -> None:
    other = plane.serve()
    path = f"{upstream.path}/taken/*"
    plane.feed.put("route", route_wire("rte_taken", path, service=name_of(other)))
    assert plane.ask("GET", f"{upstream.path}/taken/x").status == 200
    assert other.requests[-1].target == f"{upstream.path}/taken/x".encode()


def test_the_gateways_own_endpoints_come_before_any_route(plane: DataPlane, route: Route) -> None:
    route("/health")
    answer = plane.ask("GET", "/health", key=None)
    assert answer.body == b'{"status":"ok"}'


def test_a_route_may_fix_the_version(plane: DataPlane, route: Route, upstream: Upstream) -> None:
    route("/api/fixed", version="v7")
    assert plane.ask("GET", "/api/fixed").code == "unknown_version"


def test_a_route_may_limit_bodies(plane: DataPlane, route: Route, upstream: Upstream) -> None:
    route("/api/small", max_body_bytes=10)
    route("/api/none", max_body_bytes=0)
    chunked = "Transfer-Encoding: chunked"
    for path, size, status in (("/api/small", 10, 200), ("/api/small", 11, 413), ("/api/none", 1, 413)):
        assert plane.ask("POST", path, body=b"x" * size).status == status
        with plane.connect() as client:
            client.send(plane.request("POST", path, chunked))
            client.send_what_is_taken(b"%x\r\n%b\r\n0\r\n\r\n" % (size, b"x" * size))
            assert client.answer("POST").status == status


# --- rule 1: what is refused -----------------------------------------------------------------------------------------
REFUSED = [
    "/../x",
    "/a/..",
    "/a/.",
    "/./a",
    "/%2e%2e/x",
    "/%2E./x",
    "/.%2e",
    "/%2e",
    "/a/..;/x",
    "/a/..;jsessionid=1/x",
    "/a/.;x/b",
    "/a/..%3B/x",
    "/a/..%2fx",
    "/a%2f..%2Fx",
    "/a%2F%2e%2e/x",
    "/a//b",
    "/a//",
    "//a",
    "/a\\b",
    "/a%5Cb",
    "/a/..%5c..%5cx",
    "/a%00",
    "/%00/a",
    "/a%",
    "/a%2",
    "/a%zz",
    "/a%2x/b",
    "/%u002e%u002e/",
    "/%c0%ae%c0%ae/x",
    "/%e0%80%ae/x",
    "/a#b",
]


@pytest.mark.parametrize("rest", REFUSED)
def test_an_ambiguous_path_is_400_and_never_reaches_the_upstream(
    plane: DataPlane, upstream: Upstream, rest: str
) -> None:
    seen = len(upstream.requests)
    answer = plane.ask("GET", upstream.path + rest)
    assert (answer.status, answer.code) == (400, "bad_path")
    assert plane.ask("GET", f"{upstream.path}/after").status == 200
    assert [each.target for each in upstream.requests[seen:]] == [b"/after"]


@pytest.mark.parametrize("target", ["/api/v1/../v1/x", "/..", "/%2e%2e/etc/passwd", "/health/..", "/./health"])
def test_no_dot_segment_leads_to_or_from_the_gateways_own_endpoints(plane: DataPlane, target: str) -> None:
    assert plane.ask("GET", target, key=None).code == "bad_path"


@pytest.mark.parametrize("octet", [*range(0x01, 0x21), *range(0x7F, 0x100)])
def test_an_octet_that_may_not_stand_in_a_target_is_400(plane: DataPlane, upstream: Upstream, octet: int) -> None:
    seen = len(upstream.requests)
    with plane.connect() as client:
        client.send(plane.request("GET", upstream.path.encode() + b"/a" + bytes([octet]) + b"b"))
        assert client.answer().status == 400
    assert len(upstream.requests) == seen


def test_an_escaped_slash_is_data_to_the_whitelist_and_to_routes(plane: DataPlane, upstream: Upstream) -> None:
    entries = [entry_wire("wle_slash", f"{upstream.path}/files/{{name}}", methods=["GET"])]
    plane.feed.put("application", application_wire(id="app_slash", endpoint_mode="listed", entries=entries))
    key = plane.new_key(application="app_slash")
    answer = plane.ask("GET", f"{upstream.path}/files/a%2Fb", key=key)
    assert answer.status == 200
    assert upstream.requests[-1].target == b"/files/a%2Fb"
    assert plane.ask("GET", f"{upstream.path}/files/a/b", key=key).code == "endpoint_not_whitelisted"


def test_a_route_may_allow_empty_segments(plane: DataPlane, route: Route, reached: Reached) -> None:
    route("/api/empty/*", allow_empty_segments=True)
    assert reached("GET", "/api/empty/a//b").target == b"/api/empty/a//b"
    route("/api/empty/*", allow_empty_segments=False)
    assert plane.ask("GET", "/api/empty/a//b").code == "bad_path"


# --- forms of the target (RFC 9112 section 3.2) ----------------------------------------------------------------------
def test_an_absolute_target_is_served_for_the_host_that_it_names(
    plane: DataPlane, upstream: Upstream, route: Route, reached: Reached
) -> None:
    route("/api/absolute", hosts=["named.example.com"])
    seen = reached("GET", "http://named.example.com:81/api/absolute?q", host="other.example.com")
    assert seen.target == b"/api/absolute?q"
    assert seen.field("x-forwarded-host") == b"named.example.com:81"


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("GET", "*"),
        ("GET", "api/v1/x"),
        ("GET", "?x"),
        ("GET", "ftp://example.com/x"),
        ("GET", "http://user:secret@example.com/x"),
        ("GET", "http:///x"),
        ("CONNECT", "example.com:443"),
        ("CONNECT", "/x"),
        ("TRACE", "/x"),
    ],
)
def test_other_forms_and_methods_that_tunnel_or_echo_are_refused(plane: DataPlane, method: str, target: str) -> None:
    with plane.connect() as client:
        answer: Answer = client.send(plane.request(method, target)).answer()
        assert answer.status in (400, 405)
        if answer.status == 405:
            assert answer.field("allow")

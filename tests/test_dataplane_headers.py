"""Which fields pass, which end at the gateway, and which it adds: both ways, through a worker (rules 15, 24)."""

import re
from collections.abc import Callable

import pytest

from tests.dataplane import DataPlane
from tests.raw_http import Answer
from tests.scripted_upstream import Seen, Upstream, replying
from tests.wires import route_wire, service_wire


@pytest.fixture(scope="module")
def upstream(plane: DataPlane) -> Upstream:
    return plane.serve()


@pytest.fixture(scope="module")
def got(plane: DataPlane, upstream: Upstream) -> Callable[..., Seen]:
    """What the upstream gets of a request with these fields."""

    def ask(*fields: str, path: str = "", **options: object) -> Seen:
        assert plane.ask("GET", path or f"{upstream.path}/x", *fields, **options).status == 200  # type: ignore[arg-type]
        return upstream.requests[-1]

    return ask


Got = Callable[..., Seen]


# --- towards the upstream --------------------------------------------------------------------------------------------
def test_the_upstream_learns_who_asks_and_where(plane: DataPlane, upstream: Upstream) -> None:
    answer = plane.ask("GET", f"{upstream.path}/x", host="api.example.com:8443")
    seen = upstream.requests[-1]
    assert seen.field("host") == f"127.0.0.1:{upstream.port}".encode()
    assert seen.field("x-forwarded-for") == b"127.0.0.1"
    assert seen.field("x-forwarded-proto") == b"http"
    assert seen.field("x-forwarded-host") == b"api.example.com:8443"
    assert seen.field("forwarded") == b'for=127.0.0.1;proto=http;host="api.example.com:8443"'
    assert seen.field("via") == b"1.1 portcullis"
    assert seen.field("x-gateway-application") == b"app_1"
    assert seen.field("x-request-id") == (answer.field("x-request-id") or "").encode()


FORGED = [
    "X-Forwarded-For: 6.6.6.6",
    "X-Forwarded-Host: evil.test",
    "X-Forwarded-Proto: https",
    "X-Forwarded-Port: 666",
    "X-Forwarded-Prefix: /evil",
    "X-Forwarded-Server: evil",
    "X-Forwarded-Scheme: https",
    "X-Forwarded-Protocol: ssl",
    "X-Forwarded-Ssl: on",
    "X-Url-Scheme: https",
    "Front-End-Https: on",
    "X-Original-URL: /admin",
    "x-rewrite-url: /admin",
    "X-Real-IP: 6.6.6.6",
    "Forwarded: for=6.6.6.6",
    "X-Request-ID: forged",
    "X-Gateway-Application: app_evil",
    "x-gateway-user: root",
    "X-GATEWAY-Direct: yes",
    "X_Forwarded_For: 6.6.6.6",
    "X_Gateway_Application: app_evil",
    "X-Gateway_Application: app_evil",
    "Content_Length: 6",
    "X_API_KEY: km_x",
    "Any_Name: 6.6.6.6",
]


@pytest.mark.parametrize("field", FORGED)
def test_what_only_the_gateway_may_say_is_dropped_from_a_client(got: Got, field: str) -> None:
    name, _, value = field.partition(": ")
    seen = got(field)
    assert value.encode() not in seen.all(name.lower())
    assert "_" not in "".join(seen.names)


HOP_BY_HOP = {
    "Keep-Alive": "timeout=5",
    "Proxy-Connection": "keep-alive",
    "Proxy-Authorization": "Basic YTpi",
    "Proxy-Authenticate": "Basic",
    "TE": "trailers",
    "Trailer": "X-T",
    "Upgrade": "websocket",
    "HTTP2-Settings": "AAMAAABkAAQAAP__",
    "Connection": "keep-alive",
}


@pytest.mark.parametrize("name", HOP_BY_HOP)
def test_hop_by_hop_fields_end_at_the_gateway(got: Got, name: str) -> None:
    assert name.lower() not in got(f"{name}: {HOP_BY_HOP[name]}").names


@pytest.mark.parametrize(
    "connection", ["X-Hop", "x-hop, keep-alive", " close ,X-HOP", "keep-alive\r\nConnection: X-Hop"]
)
def test_fields_that_connection_names_end_at_the_gateway(got: Got, connection: str) -> None:
    seen = got(f"Connection: {connection}", "X-Hop: 1", "X-Stays: 2", "X-HOP: 3")
    assert "x-hop" not in seen.names
    assert seen.field("x-stays") == b"2"


@pytest.mark.parametrize(
    "name", ["X-Forwarded-For", "X-Request-ID", "X-Gateway-Application", "Host", "Via", "Forwarded", "traceparent"]
)
def test_connection_cannot_take_away_what_the_gateway_says(got: Got, name: str) -> None:
    assert got(f"Connection: {name}").field(name.lower())


def test_connection_may_take_away_cookies_and_authorization(got: Got) -> None:
    seen = got("Connection: cookie, authorization", "Cookie: a=1", "Authorization: Basic YTpi")
    assert not seen.names & {"cookie", "authorization"}


def test_connection_naming_content_length_does_not_change_the_framing(plane: DataPlane, upstream: Upstream) -> None:
    answer = plane.ask("POST", f"{upstream.path}/x", "Connection: content-length", body=b"abc")
    assert answer.status == 200
    assert upstream.requests[-1].body == b"abc"


def test_other_fields_pass_in_order_and_as_often_as_they_were_sent(got: Got) -> None:
    seen = got("X-B: 1", "Accept-Language: de", "X-A: 2", "X-B: 3", "Range: bytes=0-1", 'If-None-Match: "a"')
    ours = [(name, value) for name, value in seen.fields if name in (b"x-b", b"x-a", b"accept-language", b"range")]
    assert ours == [
        (b"x-b", b"1"),
        (b"accept-language", b"de"),
        (b"x-a", b"2"),
        (b"x-b", b"3"),
        (b"range", b"bytes=0-1"),
    ]
    assert seen.field("if-none-match") == b'"a"'


def test_via_is_continued(got: Got) -> None:
    assert got("Via: 1.0 fred, 1.1 p.example.net").field("via") == b"1.0 fred, 1.1 p.example.net, 1.1 portcullis"


# --- credentials and cookies -----------------------------------------------------------------------------------------
def test_credentials_for_the_gateway_never_reach_the_upstream(plane: DataPlane, got: Got) -> None:
    seen = got()
    assert not seen.names & {"x-api-key", "authorization"}
    seen = got(f"Authorization: Bearer {plane.key}", key=None)
    assert not seen.names & {"x-api-key", "authorization"}
    seen = got("Authorization: Bearer some.other.token")
    assert plane.key.encode() not in b"".join(value for _, value in seen.fields)
    assert "authorization" not in seen.names


def test_a_route_may_pass_credentials_on(plane: DataPlane, upstream: Upstream, got: Got) -> None:
    name = upstream.path.rpartition("/")[2]
    plane.feed.put("route", route_wire("rte_credentials", "/api/credentials", service=name, pass_credentials=True))
    assert got(path="/api/credentials").field("x-api-key") == plane.key.encode()
    seen = got(f"Authorization: Bearer {plane.key}", path="/api/credentials", key=None)
    assert seen.field("authorization") == f"Bearer {plane.key}".encode()


def test_an_authorization_that_is_not_for_the_gateway_reaches_the_upstream(got: Got) -> None:
    assert got("Authorization: Basic YTpi").field("authorization") == b"Basic YTpi"
    assert got("Authorization: Digest a=b").field("authorization") == b"Digest a=b"


@pytest.mark.parametrize(
    ("cookies", "passed"),
    [
        (["a=1; portcullis_session=x; b=2"], b"a=1; b=2"),
        (["portcullis_session=x; portcullis_csrf=y"], None),
        (["portcullis_session=x", "a=1"], b"a=1"),
        (["a=1", "b=2"], b"a=1; b=2"),
        (["a=portcullis_session=x"], b"a=portcullis_session=x"),
        (["my_portcullis_session=x"], b"my_portcullis_session=x"),
        (["a=1;portcullis_csrf=y;b=2"], b"a=1;b=2"),
    ],
)
def test_the_panels_cookies_are_stripped_and_others_pass(got: Got, cookies: list[str], passed: bytes | None) -> None:
    assert got(*(f"Cookie: {cookie}" for cookie in cookies)).field("cookie") == passed


# --- towards the client ----------------------------------------------------------------------------------------------
def answered(plane: DataPlane, *lines: str, status: str = "200 OK", body: bytes = b"ok") -> Answer:
    """What the client gets of an answer with these field lines."""
    head = "\r\n".join([f"HTTP/1.1 {status}", *lines, f"Content-Length: {len(body)}", "", ""])
    upstream = plane.serve(replying(head.encode("latin-1") + body))
    return plane.ask("GET", f"{upstream.path}/x")


def test_fields_of_an_answer_pass_and_several_set_cookie_stay_apart(plane: DataPlane) -> None:
    answer = answered(
        plane, "Set-Cookie: a=1; Path=/", "X-A: 1", "Set-Cookie: b=2, c", "set-cookie: d=3", "X-A: 2", 'ETag: W/"x"'
    )
    assert answer.all("set-cookie") == ["a=1; Path=/", "b=2, c", "d=3"]
    assert answer.all("x-a") == ["1", "2"]
    assert answer.field("etag") == 'W/"x"'
    assert answer.field("via") == "1.1 portcullis"


def test_an_upstream_cannot_set_the_panels_cookies(plane: DataPlane) -> None:
    answer = answered(
        plane,
        "Set-Cookie: portcullis_session=x; Path=/",
        "SET-COOKIE:portcullis_csrf=y",
        "Set-Cookie: portcullis_session =x",
        "Set-Cookie: =portcullis_session=x",
        "Set-Cookie: a=1",
        "Set-Cookie: a=portcullis_session=x",
    )
    assert answer.all("set-cookie") == ["a=1", "a=portcullis_session=x"]


HOP_BY_HOP_ANSWER = [
    "Keep-Alive: timeout=5",
    "Proxy-Connection: close",
    "Proxy-Authenticate: Basic",
    "Trailer: X-T",
    "Upgrade: h2c",
    "TE: trailers",
    'Alt-Svc: h3=":443"',
    "X-Request-ID: forged",
    "Connection: X-Other",
]


@pytest.mark.parametrize("field", HOP_BY_HOP_ANSWER)
def test_hop_by_hop_fields_of_an_answer_end_at_the_gateway(plane: DataPlane, field: str) -> None:
    answer = answered(plane, field)
    assert field.partition(": ")[2] not in answer.all(field.partition(": ")[0].lower())


def test_fields_that_an_answers_connection_names_end_at_the_gateway(plane: DataPlane) -> None:
    body = b"\r\nConnection: x-stays\r\n"  # what stands in a body is no field
    answer = answered(plane, "X-Hop: 1", "Connection: x-hop, keep-alive", "X-Stays: 2", "x-HOP: 3", body=body)
    assert answer.all("x-hop") == []
    assert (answer.all("x-stays"), answer.all("connection"), answer.body) == (["2"], [], body)


@pytest.mark.parametrize("status", ["200 OK", "201 Created", "301 Moved", "404 Not Found", "500 Oops", "599 Weird"])
def test_the_upstreams_status_and_body_pass_as_they_are(plane: DataPlane, status: str) -> None:
    answer = answered(plane, "Location: http://elsewhere.example.com/", status=status, body=b"the body")
    assert (answer.status, answer.body) == (int(status[:3]), b"the body")
    assert answer.field("location") == "http://elsewhere.example.com/"
    assert answer.field("proxy-status") is None


def test_a_date_is_added_where_the_upstream_gave_none(plane: DataPlane) -> None:
    assert re.fullmatch(r"\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT", answered(plane).field("date") or "")
    date = "Tue, 15 Nov 1994 08:12:31 GMT"
    assert answered(plane, f"Date: {date}").field("date") == date


def test_octets_beyond_ascii_in_an_answers_fields_pass(plane: DataPlane) -> None:
    assert answered(plane, "X-Latin: café").field("x-latin") == "café"


# --- traces ----------------------------------------------------------------------------------------------------------
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


def test_a_trace_is_continued_with_a_span_of_the_gateways_own(plane: DataPlane, upstream: Upstream) -> None:
    answer = plane.ask("GET", f"{upstream.path}/x", f"traceparent: 00-{TRACE}-00f067aa0ba902b7-01", "tracestate: a=b")
    seen = upstream.requests[-1]
    matched = re.fullmatch(rf"00-{TRACE}-([0-9a-f]{{16}})-01", (seen.field("traceparent") or b"").decode())
    assert matched and matched[1] not in ("00f067aa0ba902b7", "0" * 16)
    assert seen.field("tracestate") == b"a=b"
    assert plane.log_line(answer.field("x-request-id"))["trace_id"] == TRACE


@pytest.mark.parametrize(
    "parent",
    [
        f"00-{TRACE.upper()}-00f067aa0ba902b7-01",
        f"00-{'0' * 32}-00f067aa0ba902b7-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"ff-{TRACE}-00f067aa0ba902b7-01",
        f"00-{TRACE}-00f067aa0ba902b7-01-x",
        f"00-{TRACE}-00f067aa0ba902b7",
        "nonsense",
        "",
    ],
)
def test_a_malformed_trace_is_begun_anew_and_its_state_dropped(got: Got, parent: str) -> None:
    seen = got(f"traceparent: {parent}", "tracestate: a=b")
    assert re.fullmatch(rb"00-[0-9a-f]{32}-[0-9a-f]{16}-00", seen.field("traceparent") or b"")
    assert TRACE.encode() not in (seen.field("traceparent") or b"")
    assert "tracestate" not in seen.names


def test_a_trace_is_begun_where_there_is_none(got: Got) -> None:
    first, second = got().field("traceparent"), got().field("traceparent")
    assert first != second
    assert re.fullmatch(rb"00-[0-9a-f]{32}-[0-9a-f]{16}-00", first or b"")


# --- trusted proxies -------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def behind_proxy(start_module_plane: Callable[..., DataPlane]) -> DataPlane:
    return start_module_plane(trusted_proxies=("127.0.0.2", "10.0.0.0/8"))


@pytest.mark.parametrize(
    ("source", "fields", "client"),
    [
        ("127.0.0.2", ["X-Forwarded-For: 1.2.3.4"], "1.2.3.4"),
        ("127.0.0.2", ["X-Forwarded-For: 6.6.6.6, 1.2.3.4, 10.0.0.7"], "1.2.3.4"),
        ("127.0.0.2", ["X-Forwarded-For: 6.6.6.6", "X-Forwarded-For: 1.2.3.4"], "1.2.3.4"),
        ("127.0.0.2", ["X-Forwarded-For: 2001:db8::1"], "2001:db8::1"),
        ("127.0.0.2", ["X-Forwarded-For: nonsense"], "127.0.0.2"),
        ("127.0.0.2", ["X-Forwarded-For: 6.6.6.6, nonsense, 10.0.0.7"], "10.0.0.7"),
        ("127.0.0.2", [], "127.0.0.2"),
        ("127.0.0.1", ["X-Forwarded-For: 1.2.3.4"], "127.0.0.1"),
    ],
)
def test_the_clients_address_is_read_from_the_right_through_trusted_proxies_only(
    behind_proxy: DataPlane, source: str, fields: list[str], client: str
) -> None:
    upstream = behind_proxy.serve()
    answer = behind_proxy.ask("GET", f"{upstream.path}/x", *fields, source=source)
    seen = upstream.requests[-1]
    assert seen.field("x-forwarded-for") == client.encode()
    node = f'"[{client}]"' if ":" in client else client
    assert seen.field("forwarded") == f"for={node};proto=http;host=gateway.test".encode()
    assert behind_proxy.log_line(answer.field("x-request-id"))["client"] == client


def test_a_trusted_proxy_says_which_scheme_and_host_the_client_used(behind_proxy: DataPlane) -> None:
    upstream = behind_proxy.serve()
    fields = ["X-Forwarded-Proto: https", "X-Forwarded-Host: www.example.com"]
    for source, proto, host in (("127.0.0.2", b"https", b"www.example.com"), ("127.0.0.1", b"http", b"gateway.test")):
        assert behind_proxy.ask("GET", f"{upstream.path}/x", *fields, source=source).status == 200
        seen = upstream.requests[-1]
        assert (seen.field("x-forwarded-proto"), seen.field("x-forwarded-host")) == (proto, host)


def test_two_clients_behind_one_connection_of_a_proxy_are_told_apart(behind_proxy: DataPlane) -> None:
    upstream = behind_proxy.serve()
    with behind_proxy.connect("127.0.0.2") as client:
        for address in ("1.1.1.1", "2.2.2.2"):
            ask = behind_proxy.request("GET", f"{upstream.path}/x", f"X-Forwarded-For: {address}")
            assert client.send(ask).answer().status == 200
            assert upstream.requests[-1].field("x-forwarded-for") == address.encode()


def test_a_service_that_leads_back_to_the_gateway_is_508_after_a_few_turns(plane: DataPlane) -> None:
    url = f"http://127.0.0.1:{plane.port}/round"
    plane.feed.put("service", service_wire(id="svc_round", name="round", default_url=url))
    plane.feed.put("route", route_wire("rte_round", "/round/*", service="round", requires_key=False))
    answer = plane.ask("GET", "/round/x", key=None)
    assert (answer.status, answer.code) == (508, "loop_detected")
    assert "error=proxy_loop_detected" in (answer.field("proxy-status") or "")
    assert len(answer.all("via")) == 9
    one = plane.serve()
    assert plane.ask("GET", one.path, "Via: " + ", ".join(["1.1 portcullis"] * 8)).status == 200
    assert plane.ask("GET", one.path, "Via: " + ", ".join(["1.1 portcullis"] * 9)).status == 508

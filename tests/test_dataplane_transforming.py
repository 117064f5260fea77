"""Transformations of requests and answers, through a running worker (R6)."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

import pytest

from tests.dataplane import DataPlane, failed
from tests.gateway_process import eventually
from tests.raw_http import Client, chunked
from tests.scripted_upstream import OK, TIMEOUT_S, Peer, Script, Seen, Upstream, closing, replying
from tests.websocket_peers import TEXT, agreeing, frame, open_socket
from tests.wires import application_wire, route_wire

JSON = "Content-Type: application/json"


@pytest.fixture
def serve(plane: DataPlane) -> Callable[..., Upstream]:
    """An upstream behind a route of its own with a transformation, at ``upstream.path``."""

    def put(
        script: Script | None = None, *, path: str = "", request: Any = None, response: Any = None, **others: Any
    ) -> Upstream:
        upstream = plane.serve(script)
        name = upstream.path.rpartition("/")[2]
        upstream.path = f"/api/{name}"
        policies = {"transformation": {"request": request, "response": response}, **others}
        plane.feed.put(
            "route",
            route_wire(f"rte_{name}", f"/api/{name}{path}", service=name, policies=policies, strip_prefix="/api"),
        )
        return upstream

    return put


Serve = Callable[..., Upstream]


def answering(body: bytes, *fields: str, status: str = "200 OK") -> bytes:
    lines = "".join(f"{field}\r\n" for field in fields)
    return f"HTTP/1.1 {status}\r\n{lines}Content-Length: {len(body)}\r\n\r\n".encode() + body


# --- request: header fields ------------------------------------------------------------------------------------------
def test_header_fields_are_removed_set_and_added(plane: DataPlane, serve: Serve) -> None:
    headers = {
        "remove": ["X-Internal", "X-Other"],
        "set": [
            {"name": "X-User", "value": "${header.x-user|nobody}"},
            {"name": "X-Where", "value": "${upper(path.id)} ${query.q} of ${request.host}, $$5"},
            {"name": "X-Gone", "value": "${header.x-absent}"},
        ],
        "add": [{"name": "X-List", "value": "${request.method} ${client.address}"}],
    }
    upstream = serve(path="/{id}", request={"headers": headers})
    sent = ("X-Internal: 1", "X-User: ann", "X-Gone: forged", "X-List: a", "X-Kept: k", "x-other: 1", "X-Other: 2")
    assert plane.ask("GET", f"{upstream.path}/ab%20c?q=%C3%A9", *sent).status == 200
    seen = upstream.requests[-1]
    assert seen.field("x-user") == b"ann"
    assert seen.field("x-where") == "AB C é of gateway.test, $5".encode()
    assert seen.all("x-list") == [b"a", b"GET 127.0.0.1"]
    assert seen.field("x-kept") == b"k"
    assert not {"x-internal", "x-other", "x-gone"} & seen.names
    assert plane.ask("GET", f"{upstream.path}/x").status == 200
    assert upstream.requests[-1].field("x-user") == b"nobody"


def test_templates_know_who_asks_and_who_answers(plane: DataPlane, serve: Serve) -> None:
    value = (
        "${application.id}|${application.name}|${service.name}|${version.name}|${request.path}|${request.id}"
        "|${lower(trim(header.x-a))}|${urlencode(query.q|none/x)}"
    )
    upstream = serve(request={"headers": {"set": [{"name": "x-all", "value": value}]}})
    answer = plane.ask("GET", upstream.path, "X-A:  B c ")
    name = upstream.path.rpartition("/")[2]
    expected = f"app_1|web|{name}|default|{upstream.path}|{answer.field('x-request-id')}|b c|none%2Fx"
    assert upstream.requests[-1].field("x-all") == expected.encode()


@pytest.mark.parametrize("value", ["a%0d%0aX-Evil:%201", "a%00b", "a%0ab", "%7f", "%1b[0m"])
def test_a_value_with_a_control_character_is_400_and_injects_nothing(
    plane: DataPlane, serve: Serve, value: str
) -> None:
    upstream = serve(path="/{id}", request={"headers": {"set": [{"name": "x-q", "value": "${query.q}"}]}})
    answer = plane.ask("GET", f"{upstream.path}/x?q={value}")
    assert (answer.status, answer.code) == (400, "bad_request")
    assert upstream.requests == []


def test_a_connection_field_cannot_take_out_what_the_route_sets(plane: DataPlane, serve: Serve) -> None:
    upstream = serve(request={"headers": {"set": [{"name": "x-tenant", "value": "a"}]}})
    answer = plane.ask("GET", upstream.path, "Connection: x-tenant, x-mine", "X-Tenant: forged", "X-Mine: 1")
    assert answer.status == 200
    seen = upstream.requests[-1]
    assert seen.field("x-tenant") == b"a"
    assert "x-mine" not in seen.names


def test_the_gateways_key_is_never_read(plane: DataPlane, serve: Serve) -> None:
    upstream = serve(request={"headers": {"set": [{"name": "x-copy", "value": "[${header.x-api-key}]"}]}})
    assert plane.ask("GET", upstream.path).status == 200
    assert upstream.requests[-1].field("x-copy") == b"[]"


def test_a_value_is_no_longer_than_a_field_may_be(plane: DataPlane, serve: Serve) -> None:
    upstream = serve(request={"headers": {"set": [{"name": "x-q", "value": "${query.q}" * 20}]}})
    assert plane.ask("GET", f"{upstream.path}?q={'a' * 1000}").code == "bad_request"
    assert plane.ask("GET", f"{upstream.path}?q={'a' * 100}").status == 200


# --- request: query --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("sent", "got"),
    [
        ("?debug=1&a=%2F&d%65bug=2&b", b"?a=%2F&b&user=ann%26x%3D1&tag=x%20y&tag=new"),
        ("?tag=1&user=forged", b"?tag=1&user=ann%26x%3D1&tag=x%20y&tag=new"),
        ("", b"?user=ann%26x%3D1&tag=x%20y&tag=new"),
    ],
)
def test_parameters_are_removed_set_and_added(plane: DataPlane, serve: Serve, sent: str, got: bytes) -> None:
    query = {
        "remove": ["debug"],
        "set": [{"name": "user", "value": "${header.x-user}"}, {"name": "none", "value": "${header.x-none}"}],
        "add": [{"name": "tag", "value": "x y"}, {"name": "tag", "value": "new"}],
    }
    upstream = serve(request={"query": query})
    for _ in range(3):
        answer = plane.ask("GET", upstream.path + sent, "X-User: ann&x=1")
        assert answer.status == 200
        assert upstream.requests[-1].target == upstream.path.removeprefix("/api").encode() + got
    assert answer.field("vary") == "x-none, x-user"


def test_a_query_that_loses_everything_loses_its_question_mark(plane: DataPlane, serve: Serve) -> None:
    upstream = serve(request={"query": {"remove": ["a"]}})
    assert plane.ask("GET", f"{upstream.path}?a=1&a").status == 200
    assert upstream.requests[-1].target == upstream.path.removeprefix("/api").encode()


def test_the_fallback_gets_the_changed_request_too(plane: DataPlane, serve: Serve) -> None:
    upstream = serve(request={"query": {"set": [{"name": "a", "value": "b"}]}})
    name = upstream.path.rpartition("/")[2]
    wire = plane.feed.records("service")[f"svc_{name}"]
    plane.feed.put("service", wire | {"default_url": "http://127.0.0.1:1", "fallback_url": upstream.url})
    assert plane.ask("GET", f"{upstream.path}?a=c").status == 200
    assert upstream.requests[-1].target.endswith(b"?a=b")


# --- request: JSON body ----------------------------------------------------------------------------------------------
BODY = {
    "remove": ["admin", "items[*].secret"],
    "rename": [{"path": "user.mail", "to": "email"}],
    "set": [
        {"path": "user.id", "value": "${header.x-user}"},
        {"path": "meta.source.kind", "value": "gateway"},
        {"path": "meta.version", "value": 2},
    ],
}
SENT = (
    b'{"admin":true,"user":{"mail":"a@b","id":"forged"},"items":[{"n":1.10,"secret":1},{"n":1e400}],'
    b'"big":98765432109876543210}'
)
GOT = (
    b'{"user":{"id":"ann","email":"a@b"},"items":[{"n":1.10},{"n":1e400}],"big":98765432109876543210,'
    b'"meta":{"source":{"kind":"gateway"},"version":2}}'
)


def with_body(client: Client, plane: DataPlane, path: str, body: bytes, is_chunked: bool, *fields: str) -> None:
    if is_chunked:
        client.send(plane.request("POST", path, "Transfer-Encoding: chunked", *fields))
        client.send_what_is_taken(chunked(*(body[at : at + 7] for at in range(0, len(body), 7))))
    else:
        client.send_what_is_taken(plane.request("POST", path, *fields, body=body))


@pytest.mark.parametrize("is_chunked", [False, True], ids=["sized", "chunked"])
def test_members_of_a_json_body_are_removed_renamed_and_set(plane: DataPlane, serve: Serve, is_chunked: bool) -> None:
    upstream = serve(request={"body": BODY})
    with plane.connect() as client:
        for _ in range(3):
            with_body(client, plane, upstream.path, SENT, is_chunked, JSON, "X-User: ann", "Content-MD5: x")
            assert client.answer("POST").status == 200
            seen = upstream.requests[-1]
            assert seen.body == GOT
            assert (seen.field("content-length"), seen.field("transfer-encoding")) == (b"%d" % len(GOT), None)
            assert "content-md5" not in seen.names


def test_a_body_that_comes_after_100_continue_is_changed(plane: DataPlane, serve: Serve) -> None:
    upstream = serve(request={"body": BODY})
    with plane.connect() as client:
        head = plane.request("POST", upstream.path, JSON, "Expect: 100-continue", "Content-Length: 14")
        assert client.send(head).answer("POST").status == 100
        assert client.send(b'{"admin":true}').answer("POST").status == 200
    assert json.loads(upstream.requests[-1].body) == {"meta": {"source": {"kind": "gateway"}, "version": 2}}


@pytest.mark.parametrize(
    ("fields", "body", "status", "code"),
    [
        pytest.param((), b"{}", 415, "unsupported_media_type", id="no type"),
        pytest.param(("Content-Type: text/plain",), b"{}", 415, "unsupported_media_type", id="another type"),
        pytest.param((JSON, "Content-Encoding: gzip"), b"{}", 415, "unsupported_media_type", id="compressed"),
        pytest.param((JSON,), b"{", 400, "bad_request", id="cut off"),
        pytest.param((JSON,), b'{"a":NaN}', 400, "bad_request", id="not a number"),
        pytest.param((JSON,), b'{"a":"\xff"}', 400, "bad_request", id="not UTF-8"),
        pytest.param((JSON,), b'{"b":"\\ud800"}', 400, "bad_request", id="half a pair"),
        pytest.param((JSON,), b"[" * 5000 + b"]" * 5000, 400, "bad_request", id="too deep"),
        pytest.param((JSON,), b'"' + b"a" * 100_000 + b'"', 413, "payload_too_large", id="too large"),
    ],
)
@pytest.mark.parametrize("is_chunked", [False, True], ids=["sized", "chunked"])
def test_a_body_that_cannot_be_changed_is_refused_and_reaches_nobody(
    plane: DataPlane,
    serve: Serve,
    fields: tuple[str, ...],
    body: bytes,
    status: int,
    code: str,
    is_chunked: bool,
) -> None:
    upstream = serve(request={"body": {"remove": ["a"], "maxBytes": 50_000}})
    with plane.connect() as client:
        with_body(client, plane, upstream.path, body, is_chunked, *fields)
        answer = client.answer("POST")
        assert (answer.status, answer.code) == (status, code)
    assert upstream.requests == []


def test_a_request_without_a_body_has_none_to_change(plane: DataPlane, serve: Serve) -> None:
    upstream = serve(request={"body": BODY})
    assert plane.ask("GET", upstream.path).status == 200
    assert plane.ask("POST", upstream.path, body=b"").status == 200
    assert [each.body for each in upstream.requests] == [b"", b""]


def test_a_client_that_leaves_within_its_body_leaves_nothing_behind(plane: DataPlane, serve: Serve) -> None:
    upstream = serve(request={"body": BODY})
    with plane.connect() as client:
        client.send(plane.request("POST", upstream.path, JSON, "Content-Length: 100") + b'{"a":')
    assert plane.ask("POST", upstream.path, JSON, body=b"{}").status == 200
    assert len(upstream.requests) == 1


def test_a_changed_body_is_sent_again_to_a_fresh_connection(plane: DataPlane, serve: Serve) -> None:
    """The upstream closes a kept connection just as it is used again (rule 8)."""
    calls: list[Seen] = []

    def script(peer: Peer) -> None:
        seen = peer.read_request()
        if seen is not None:
            calls.append(seen)
            peer.send(OK)
            peer.read_head()  # of the second request; then the connection goes

    upstream = serve(script, request={"body": BODY})
    for _ in range(2):
        assert plane.ask("PUT", upstream.path, JSON, "X-User: ann", body=SENT).status == 200
    assert [each.body for each in calls] == [GOT, GOT]
    assert upstream.connections == 2


# --- answers ---------------------------------------------------------------------------------------------------------
def test_an_answers_fields_are_removed_set_and_added(plane: DataPlane, serve: Serve) -> None:
    headers = {
        "remove": ["Server", "X-Powered-By"],
        "set": [{"name": "X-User", "value": "${header.x-user}"}, {"name": "X-Bad", "value": "${query.bad}"}],
        "add": [{"name": "Link", "value": "</docs>; rel=help"}],
    }
    answer_bytes = answering(b"ok", "Server: x", "X-Powered-By: y", "X-User: u", "Link: <a>", "X-Kept: k", "X-Bad: b")
    upstream = serve(replying(answer_bytes), response={"headers": headers})
    answer = plane.ask("GET", f"{upstream.path}?bad=%0d%0aSet-Cookie:a=b", "X-User: ann")
    assert (answer.status, answer.body) == (200, b"ok")
    assert answer.field("x-user") == "ann"
    assert answer.all("link") == ["<a>", "</docs>; rel=help"]
    assert answer.field("x-kept") == "k"
    assert answer.field("vary") == "x-user"
    names = {name for name, _ in answer.fields}
    assert not {"server", "x-powered-by", "set-cookie", "x-bad"} & names


def test_an_answer_that_tells_who_asked_is_for_nobody_else(plane: DataPlane, serve: Serve) -> None:
    headers = {"set": [{"name": "X-Client", "value": "${client.address}"}]}
    upstream = serve(response={"headers": headers})
    answer = plane.ask("GET", upstream.path)
    assert (answer.field("x-client"), answer.field("vary")) == ("127.0.0.1", "*")


JSON_ANSWER = {"body": {"remove": ["secret", "items[0]"], "set": [{"path": "via", "value": "${request.path}"}]}}
CHANGED = ("Content-Type: application/json", 'ETag: "abc"', "Content-MD5: x", "Accept-Ranges: bytes")


def check_changed(upstream: Upstream, answer: Any) -> None:
    assert json.loads(answer.body) == {"items": [2], "via": upstream.path}
    assert answer.field("content-length") == str(len(answer.body))
    assert answer.field("etag") == 'W/"abc"'
    assert answer.field("content-md5") is None
    assert answer.field("accept-ranges") is None


def test_members_of_a_json_answer_are_changed(plane: DataPlane, serve: Serve) -> None:
    body = b'{"secret":1,"items":[1,2]}'
    upstream = serve(replying(answering(body, *CHANGED)), response=JSON_ANSWER)
    fields = ("Accept-Encoding: gzip", "Range: bytes=0-3", 'If-Range: "abc"')
    check_changed(upstream, plane.ask("GET", upstream.path, *fields))
    seen = upstream.requests[-1]
    assert seen.field("accept-encoding") == b"identity"
    assert not {"range", "if-range"} & seen.names


def test_a_json_answer_that_comes_in_pieces_is_gathered(plane: DataPlane, serve: Serve) -> None:
    fields = "".join(f"{field}\r\n" for field in CHANGED).encode()
    pieces = [b"HTTP/1.1 200 OK\r\n" + fields + b"Transfer-Encoding: chunked\r\n\r\n"]
    pieces += [b"%x\r\n%b\r\n" % (len(piece), piece) for piece in (b'{"secret":1,', b'"items":[1,', b"2]}")]
    upstream = serve(closing(*pieces, b"0\r\n\r\n"), response=JSON_ANSWER)
    check_changed(upstream, plane.ask("GET", upstream.path))


def test_the_head_of_a_json_answer_promises_nothing_about_the_old_bytes(plane: DataPlane, serve: Serve) -> None:
    head = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nETag: "abc"\r\nContent-Length: 26\r\n\r\n'
    unchanged = b'HTTP/1.1 304 Not Modified\r\nETag: "abc"\r\n\r\n'
    upstream = serve(replying(head, unchanged), response=JSON_ANSWER)
    answer = plane.ask("HEAD", upstream.path)
    assert (answer.status, answer.field("content-length"), answer.field("etag")) == (200, None, 'W/"abc"')
    answer = plane.ask("GET", upstream.path, 'If-None-Match: W/"abc"')
    assert (answer.status, answer.field("etag")) == (304, 'W/"abc"')


@pytest.mark.parametrize(
    "fields",
    [
        ("Content-Type: text/plain",),
        (),
        ("Content-Type: application/json", "Content-Encoding: gzip"),
        ("Content-Type: application/jsonp",),
        ("Content-Type: text/event-stream",),
    ],
    ids=["text", "none", "compressed", "another", "events"],
)
def test_other_answers_pass_unchanged(plane: DataPlane, serve: Serve, fields: tuple[str, ...]) -> None:
    upstream = serve(replying(answering(b'{"secret":1}', 'ETag: "abc"', *fields)), response=JSON_ANSWER)
    answer = plane.ask("GET", upstream.path)
    assert (answer.status, answer.body, answer.field("etag")) == (200, b'{"secret":1}', '"abc"')


def test_an_answer_that_is_no_json_streams_through(plane: DataPlane, serve: Serve) -> None:
    may_go_on = threading.Semaphore(0)

    def script(peer: Peer) -> None:
        if peer.read_request() is None:
            return
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for number in range(3):
            assert may_go_on.acquire(timeout=TIMEOUT_S)
            peer.send(b"1\r\n%d\r\n" % number)
        peer.send(b"0\r\n\r\n")

    response = {**JSON_ANSWER, "headers": {"set": [{"name": "x-a", "value": "b"}]}}
    upstream = serve(script, response=response)
    with plane.connect() as client:
        answer, body = client.send(plane.request("GET", upstream.path)).begin_answer()
        assert answer.field("x-a") == "b"
        for number in range(3):
            may_go_on.release()
            assert next(body) == b"%d" % number


LARGE = b'{"a":"' + b"x" * 100_000 + b'"}'


@pytest.mark.parametrize(
    "script",
    [
        replying(answering(LARGE, "Content-Type: application/json")),
        closing(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n",
            chunked(LARGE[:60_000], LARGE[60_000:]),
        ),
    ],
    ids=["sized", "chunked"],
)
def test_an_answer_over_the_limit_is_502(plane: DataPlane, serve: Serve, script: Script) -> None:
    upstream = serve(script, response={"body": {"remove": ["b"], "maxBytes": 50_000}})
    with plane.connect() as client:
        answer = client.send(plane.request("GET", upstream.path)).answer()
        failed(answer, 502, "upstream_invalid_response", "http_response_body_size")
        assert client.send(plane.request("GET", upstream.path)).answer().status == 502


def test_an_answer_that_only_says_that_it_is_json_is_502(plane: DataPlane, serve: Serve) -> None:
    upstream = serve(replying(answering(b"<html>", "Content-Type: application/json")), response=JSON_ANSWER)
    failed(plane.ask("GET", upstream.path), 502, "upstream_invalid_response", "http_protocol_error")


def test_an_answer_that_breaks_off_while_it_is_gathered_is_502(plane: DataPlane, serve: Serve) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n"
    upstream = serve(closing(head + b'{"a":', b"1"), response=JSON_ANSWER)
    failed(plane.ask("GET", upstream.path), 502, "upstream_reset", "connection_terminated")


def test_a_client_that_leaves_while_an_answer_is_gathered_is_the_one_who_left(plane: DataPlane, serve: Serve) -> None:
    may_end = threading.Event()

    def script(peer: Peer) -> None:
        if peer.read_request() is not None:
            peer.send(b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"a":')
            peer.wait_for_end()
            may_end.set()

    upstream = serve(script, response=JSON_ANSWER)
    with plane.connect() as client:
        client.send(plane.request("GET", upstream.path))
        upstream.wait_for()
        client.reset()
    assert may_end.wait(TIMEOUT_S)

    def lines() -> list[dict[str, Any]]:
        return [line for line in plane.log_lines() if line["path"] == upstream.path]

    (line,) = eventually(lines, what="the line of the request")
    assert line["status_code"] == 499
    assert line["code"] is None


def test_a_conditional_change_names_the_services_own_tag(plane: DataPlane, serve: Serve) -> None:
    upstream = serve(response=JSON_ANSWER)
    assert plane.ask("PUT", upstream.path, 'If-Match: W/"a", "b", "W/c"', body=b"x").status == 200
    assert upstream.requests[-1].field("if-match") == b'"a", "b", "W/c"'


def test_an_empty_answer_stays_empty(plane: DataPlane, serve: Serve) -> None:
    upstream = serve(replying(answering(b"", "Content-Type: application/json")), response=JSON_ANSWER)
    answer = plane.ask("GET", upstream.path)
    assert (answer.status, answer.body) == (200, b"")


def test_what_the_gateway_itself_says_is_not_changed(plane: DataPlane, serve: Serve) -> None:
    plane.feed.put("application", application_wire(id="app_no", services=[]))
    upstream = serve(response={"body": {"remove": ["code"]}, "headers": {"set": [{"name": "x-a", "value": "b"}]}})
    answer = plane.ask("GET", upstream.path, key=plane.new_key(application="app_no"))
    assert answer.code == "service_not_allowed"
    assert answer.field("x-a") is None


def test_what_a_websocket_is_opened_with_is_changed_and_its_frames_are_not(plane: DataPlane, serve: Serve) -> None:
    request = {
        "headers": {"set": [{"name": "x-user", "value": "${query.u}"}], "remove": ["x-internal"]},
        "query": {"remove": ["u"]},
    }
    response = {"body": {"remove": ["a"]}, "headers": {"set": [{"name": "x-a", "value": "b"}]}}
    upstream = serve(agreeing(), request=request, response=response)
    with open_socket(plane, f"{upstream.path}?u=ann&v=1", "X-Internal: 1") as socket:
        socket.send(frame(TEXT, b'{"a":1}'))
        assert socket.read().payload == b'{"a":1}'
    seen = upstream.requests[-1]
    assert seen.target.endswith(b"?v=1")
    assert (seen.field("x-user"), seen.field("upgrade")) == (b"ann", b"websocket")
    assert "x-internal" not in seen.names


# --- with the cache --------------------------------------------------------------------------------------------------
def test_what_the_cache_keeps_and_revalidates_is_transformed(plane: DataPlane, serve: Serve) -> None:
    body = b'{"secret":1,"n":%d}'
    fresh = ("Content-Type: application/json", "Cache-Control: max-age=0, stale-while-revalidate=60", 'ETag: "e"')
    upstream = serve(
        replying(*(answering(body % number, *fresh) for number in range(3))),
        response={"body": {"remove": ["secret"]}},
        request={"query": {"set": [{"name": "by", "value": "gateway"}]}},
        caching={},
    )
    assert plane.ask("GET", upstream.path).body == b'{"n":0}'
    assert plane.ask("GET", upstream.path).body == b'{"n":0}'  # stale, while another is asked for
    seen = upstream.wait_for(2)
    assert seen.target.endswith(b"?by=gateway")
    assert (seen.field("if-none-match"), seen.field("accept-encoding")) == (b'W/"e"', b"identity")
    eventually(lambda: plane.ask("GET", upstream.path).body != b'{"n":0}', what="the answer that was asked for")
    assert b"secret" not in plane.ask("GET", upstream.path).body


def test_the_cache_keeps_apart_what_the_route_makes_of_different_fields(plane: DataPlane, serve: Serve) -> None:
    def script(peer: Peer) -> None:
        while (seen := peer.read_request()) is not None:
            peer.send(answering(seen.target, "Cache-Control: max-age=60"))

    query = {"set": [{"name": "user", "value": "${header.x-user}"}]}
    upstream = serve(script, request={"query": query, "headers": {"remove": ["x-user"]}}, caching={})
    for _ in range(2):
        for user in ("ann", "bob"):
            assert plane.ask("GET", upstream.path, f"X-User: {user}").body.endswith(f"?user={user}".encode())
        assert not plane.ask("GET", upstream.path).body.count(b"user")
    assert len(upstream.requests) == 3

"""What RFC 9110 and 9112 ask of an intermediary, clause by clause, where no other file has it (docs/http.md)."""

import threading
import time
from collections.abc import Callable

import pytest

from tests.dataplane import DataPlane, failed
from tests.gateway_process import eventually
from tests.raw_http import CutShort, request
from tests.scripted_upstream import OK, TIMEOUT_S, Peer, Upstream, replying


@pytest.fixture(scope="module")
def upstream(plane: DataPlane) -> Upstream:
    return plane.serve()


# --- methods (RFC 9110 section 9) ------------------------------------------------------------------------------------
METHODS = """
    GET HEAD POST PUT PATCH DELETE OPTIONS QUERY PROPFIND PROPPATCH MKCOL COPY MOVE LOCK UNLOCK SEARCH BIND REBIND
    UNBIND ACL REPORT MKACTIVITY CHECKOUT MERGE M-SEARCH NOTIFY SUBSCRIBE UNSUBSCRIBE PURGE MKCALENDAR LINK UNLINK
    SOURCE
"""


@pytest.mark.parametrize("method", METHODS.split())
def test_every_method_of_http_passes_with_its_body(plane: DataPlane, upstream: Upstream, method: str) -> None:
    with plane.connect() as client:
        answer = client.send(plane.request(method, f"{upstream.path}/m", body=b"abc")).answer(method)
        assert answer.status == 200
        assert client.send(plane.request("GET", upstream.path)).answer().status == 200
    seen = upstream.requests[-2]
    assert (seen.method, seen.body) == (method.encode(), b"abc")


@pytest.mark.parametrize("method", ["DESCRIBE", "SETUP", "PLAY", "RECORD", "PRI", "BREW", "Get", "G@T"])
def test_what_is_no_method_of_http_is_400(plane: DataPlane, upstream: Upstream, method: str) -> None:
    count = len(upstream.requests)
    with plane.connect() as client:
        assert client.send(plane.request(method, upstream.path)).answer().code == "bad_request"
        assert client.half_close().is_at_end()
    assert len(upstream.requests) == count


@pytest.mark.parametrize(
    "data",
    [
        b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n",
        b"CONNECT / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"TRACE / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"TRACE * HTTP/1.1\r\nHost: a\r\n\r\n",
    ],
)
def test_tunnels_and_echoes_are_405_and_what_follows_is_nothing(plane: DataPlane, data: bytes) -> None:
    with plane.connect() as client:
        answer = client.send(data + request("GET", "/health")).answer()
        assert (answer.status, answer.code) == (405, "method_not_allowed")
        assert answer.field("allow")
        assert client.half_close().is_at_end()


# --- forms of the target (RFC 9112 section 3.2) ----------------------------------------------------------------------
@pytest.mark.parametrize("target", ["*", "http://gateway.test", "HTTP://gateway.test:4200"])
def test_options_of_the_gateway_as_a_whole_is_answered_by_it(plane: DataPlane, target: str) -> None:
    with plane.connect() as client:
        answer = client.send(request("OPTIONS", target)).answer("OPTIONS")
        assert (answer.status, answer.body) == (200, b"")
        assert "OPTIONS" in (answer.field("allow") or "")
        assert client.send(request("GET", "*")).answer().status == 400


def test_an_absolute_target_may_have_no_path(plane: DataPlane) -> None:
    with plane.connect() as client:
        answer = client.send(request("GET", "http://gateway.test?a=b")).answer()
        assert (answer.code, answer.problem["instance"]) == ("no_route", "/")


@pytest.mark.parametrize(
    "target", ["http://", "http://a@b/x", "http:///x", "ws://a/x", "http:/a/x", "http://a#b", "//"]
)
def test_a_target_that_names_no_resource_of_ours_is_400(plane: DataPlane, target: str) -> None:
    with plane.connect() as client:
        assert client.send(request("GET", target)).answer().status == 400


# --- Max-Forwards (RFC 9110 section 7.6.2) ---------------------------------------------------------------------------
def test_options_that_may_go_no_further_are_answered_here(plane: DataPlane, upstream: Upstream) -> None:
    count = len(upstream.requests)
    for _ in range(3):
        answer = plane.ask("OPTIONS", upstream.path, "Max-Forwards: 0")
        assert (answer.status, answer.body) == (200, b"")
        assert answer.field("allow")
    assert len(upstream.requests) == count
    assert plane.ask("OPTIONS", upstream.path, "Max-Forwards: 3").body == b"ok"
    assert upstream.requests[-1].field("max-forwards") == b"2"


def test_max_forwards_is_nothing_to_other_methods(plane: DataPlane, upstream: Upstream) -> None:
    assert plane.ask("GET", upstream.path, "Max-Forwards: 0").body == b"ok"
    assert upstream.requests[-1].field("max-forwards") == b"0"


# --- Via (RFC 9110 section 7.6.3) ------------------------------------------------------------------------------------
def test_via_says_in_which_version_the_message_came(plane: DataPlane) -> None:
    upstream = plane.serve(replying(b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok"))
    with plane.connect() as client:
        ask = plane.request("GET", upstream.path, "Via: 1.1 other").replace(b"HTTP/1.1", b"HTTP/1.0")
        assert client.send(ask).answer().field("via") == "1.0 portcullis"
    assert upstream.requests[-1].field("via") == b"1.1 other, 1.0 portcullis"


# --- order of fields (RFC 9110 section 5.3) --------------------------------------------------------------------------
def test_fields_keep_their_order_in_both_directions(plane: DataPlane) -> None:
    names = ["x-c", "accept", "x-a", "x-c", "content-type", "x-b", "x-c"]
    lines = [f"{name}: {number}" for number, name in enumerate(names)]
    head = "\r\n".join(["HTTP/1.1 200 OK", *lines, "Content-Length: 0", "", ""]).encode()
    upstream = plane.serve(replying(head))
    answer = plane.ask("GET", upstream.path, *(line for line in lines if not line.startswith(("accept", "content"))))
    assert [name for name, _ in answer.fields if name in names] == names
    seen = [name.decode() for name, _ in upstream.requests[-1].fields if name.startswith(b"x-") and len(name) == 3]
    assert seen == ["x-c", "x-a", "x-c", "x-b", "x-c"]


# --- framing of answers (RFC 9112 section 6) -------------------------------------------------------------------------
@pytest.mark.parametrize("named", ["content-length", "Content-Length, X-A", "transfer-encoding, content-length"])
@pytest.mark.parametrize("is_streamed", [False, True])
def test_connection_cannot_take_away_an_answers_length(plane: DataPlane, named: str, is_streamed: bool) -> None:
    head = b"HTTP/1.1 200 OK\r\nConnection: %b\r\nX-A: 1\r\nContent-Length: 6\r\n\r\n" % named.encode()

    def script(peer: Peer) -> None:
        while peer.read_request() is not None:
            peer.send(head + b"abc")
            if is_streamed:
                threading.Event().wait(0.1)
            peer.send(b"def")

    upstream = plane.serve(script)
    with plane.connect() as client:
        for _ in range(2):
            answer = client.send(plane.request("GET", upstream.path)).answer()
            assert (answer.field("content-length"), answer.body) == ("6", b"abcdef")


def test_a_chunked_answer_in_http_1_0_is_understood_and_its_connection_not_used_again(plane: DataPlane) -> None:
    answer = b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"
    upstream = plane.serve(replying(answer))
    with plane.connect() as client:
        for _ in range(2):
            assert client.send(plane.request("GET", upstream.path)).answer().body == b"ok"
    assert upstream.connections == 2


@pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified"])
@pytest.mark.parametrize("framing", [b"Transfer-Encoding: chunked\r\n", b"Content-Length: 5\r\n", b""])
def test_an_answer_that_has_no_body_has_none_whatever_its_fields_say(
    plane: DataPlane, status: bytes, framing: bytes
) -> None:
    upstream = plane.serve(replying(b"HTTP/1.1 " + status + b"\r\n" + framing + b"\r\n", OK))
    with plane.connect() as client:
        answer = client.send(plane.request("GET", upstream.path)).answer()
        assert (answer.status, answer.field("transfer-encoding")) == (int(status[:3]), None)
        assert status[:3] == b"304" or answer.field("content-length") is None
        assert client.send(plane.request("GET", upstream.path)).answer().body == b"ok"


def test_205_passes_with_its_length_of_nothing(plane: DataPlane) -> None:
    upstream = plane.serve(replying(b"HTTP/1.1 205 Reset Content\r\nContent-Length: 0\r\n\r\n"))
    answer = plane.ask("GET", upstream.path)
    assert (answer.status, answer.field("content-length")) == (205, "0")


# --- Expect (RFC 9110 section 10.1.1) --------------------------------------------------------------------------------
REFUSALS: dict[str, tuple[list[str], str, int]] = {
    "no key": (["Content-Length: 3"], "none", 401),
    "no route": (["Content-Length: 3"], "/nowhere", 404),
    "too large": (["Content-Length: 99999999"], "", 413),
    "an upstream that is away": (["Content-Length: 3"], "away", 502),
    "chunked, an upstream that is away": (["Transfer-Encoding: chunked"], "away", 502),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_whoever_awaits_100_learns_a_refusal_without_sending_the_body(
    plane: DataPlane, upstream: Upstream, case: str
) -> None:
    fields, where, status = REFUSALS[case]
    path = upstream.path
    if where == "away":
        away = plane.serve()
        away.stop_listening()
        path = away.path
    elif where.startswith("/"):
        path = where
    ask = plane.request("POST", path, "Expect: 100-continue", *fields, key=None if where == "none" else "")
    with plane.connect() as client:
        answer = client.send(ask).answer("POST")
        assert (answer.status, answer.field("connection")) == (status, "close")
        assert client.half_close().is_at_end()


def test_100_comes_once_the_upstream_is_there_and_its_own_100_is_dropped(plane: DataPlane) -> None:
    def script(peer: Peer) -> None:
        head = peer.read_head()
        assert head is not None
        assert head.field("expect") is None
        peer.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        assert peer.read(3) == b"abc"
        peer.send(OK)

    upstream = plane.serve(script)
    with plane.connect() as client:
        client.send(plane.request("POST", upstream.path, "Expect: 100-Continue", "Content-Length: 3"))
        assert client.answer().status == 100
        assert client.send(b"abc").answer("POST").status == 200


def test_a_client_need_not_wait_for_its_100(plane: DataPlane, upstream: Upstream) -> None:
    ask = plane.request("POST", upstream.path, "Expect: 100-continue", "Content-Length: 3") + b"abc"
    with plane.connect() as client:
        status = client.send(ask).answer("POST").status
        assert (client.answer("POST").status if status == 100 else status) == 200
    assert upstream.requests[-1].body == b"abc"


def test_an_answer_before_the_body_is_whole_is_passed_on_at_once(plane: DataPlane) -> None:
    is_over = threading.Event()

    def script(peer: Peer) -> None:
        if peer.read_head() is not None:
            peer.send(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 4\r\n\r\nnope")
            peer.wait_for_end()
            is_over.set()

    upstream = plane.serve(script)
    with plane.connect() as client:
        client.send(plane.request("POST", upstream.path, "Content-Length: 9999999") + b"x" * 1000)
        answer = client.answer("POST")
        assert (answer.status, answer.body, answer.field("connection")) == (403, b"nope", "close")
    assert is_over.wait(TIMEOUT_S)


# --- response splitting ----------------------------------------------------------------------------------------------
SPLITTING = [
    "%0d%0aSet-Cookie:%20evil=1",
    "%0D%0A%0D%0AHTTP/1.1%20200%20OK",
    "%0aX-Evil:1",
    "%E5%98%8A%E5%98%8DX-Evil:1",
]


@pytest.mark.parametrize("evil", SPLITTING)
def test_nothing_of_a_request_becomes_a_field_of_an_answer(plane: DataPlane, upstream: Upstream, evil: str) -> None:
    asks = [
        plane.request("GET", f"/nowhere/{evil}"),
        plane.request("GET", f"{upstream.path}/{evil}?{evil}"),
        plane.request("GET", "/nowhere", f"X-Request-ID: {evil}", f"traceparent: {evil}", f"Origin: {evil}"),
        plane.request("OPTIONS", "/x", f"Origin: {evil}", f"Access-Control-Request-Method: {evil}"),
    ]
    with plane.connect() as client:
        for ask in asks:
            answer = client.send(ask).answer()
            assert not {"set-cookie", "x-evil"} & {name for name, _ in answer.fields}
            assert not any(evil in value for _, value in answer.fields)


# --- what follows a refusal (RFC 9112 section 11.2) ------------------------------------------------------------------
def test_what_follows_a_refused_upload_is_never_taken_for_a_request(plane: DataPlane, upstream: Upstream) -> None:
    count = len(upstream.requests)
    smuggled = plane.request("DELETE", upstream.path)
    for framing in (f"Content-Length: {len(smuggled)}", "Transfer-Encoding: chunked"):
        body = smuggled if framing.startswith("C") else b"%x\r\n%b\r\n0\r\n\r\n" % (len(smuggled), smuggled)
        with plane.connect() as client:
            client.send(plane.request("POST", "/nowhere", framing) + body + request("GET", "/health"))
            assert client.answer("POST").status == 404
            if framing.startswith("C"):
                assert client.answer().body == b'{"status":"ok"}'
    assert len(upstream.requests) == count


def test_an_upstream_in_another_version_is_502(plane: DataPlane) -> None:
    for version in (b"HTTP/2.0", b"HTTP/0.9", b"HTTP/1.2", b"HTTP/3"):
        upstream = plane.serve(replying(version + b" 200 OK\r\nContent-Length: 2\r\n\r\nok"))
        failed(plane.ask("GET", upstream.path), 502, "upstream_invalid_response", "http_protocol_error")


def test_a_stopping_worker_serves_nothing_behind_its_last_answer(start_plane: Callable[..., DataPlane]) -> None:
    """Not even what came in the same read."""
    plane = start_plane()
    with plane.connect() as client:
        assert client.send(request("GET", "/health")).answer().status == 200
        plane.terminate()
        eventually(lambda: plane.ask("GET", "/ready", key=None).status == 503, what="the drain")
        client.send(request("GET", "/health") * 4)
        answers = 0
        while not client.is_at_end():
            assert client.answer().status == 200
            answers += 1
        assert answers >= 1
    plane.process.wait(15)


# --- what never comes to its point -----------------------------------------------------------------------------------
def going_on(beginning: bytes, more: bytes) -> Callable[[Peer], None]:
    def script(peer: Peer) -> None:
        if peer.read_request() is None:
            return
        peer.send(beginning)
        while True:  # until the gateway ends the connection
            peer.send(more)
            time.sleep(0.01)

    return script


def test_interim_answers_without_end_are_no_answer(plane: DataPlane) -> None:
    upstream = plane.serve(going_on(b"", b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"), request_timeout_ms=700)
    failed(plane.ask("GET", upstream.path), 504, "upstream_timeout", "http_response_timeout")


def test_a_chunk_extension_without_end_is_silence(plane: DataPlane) -> None:
    beginning = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n1;"
    upstream = plane.serve(going_on(beginning, b"a" * 1000), idle_timeout_ms=700)
    with plane.connect() as client:
        answer, body = client.send(plane.request("GET", upstream.path)).begin_answer()
        assert (answer.status, next(body)) == (200, b"ok")
        with pytest.raises(CutShort):
            next(body)

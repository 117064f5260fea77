"""The life of a client's connection: versions, upgrades, 100, pipelining, answers without a body (RFC 9110, 9112)."""

import threading

import pytest

from tests.dataplane import DataPlane
from tests.raw_http import CutShort, chunked, request
from tests.scripted_upstream import OK, TIMEOUT_S, Peer, Upstream, closing, replying

CHUNK = b"3\r\nabc\r\n0\r\n\r\n"


@pytest.fixture(scope="module")
def upstream(plane: DataPlane) -> Upstream:
    return plane.serve()


def head(plane: DataPlane, upstream: Upstream, *fields: str | bytes, method: str = "POST") -> bytes:
    return plane.request(method, f"{upstream.path}/x", *fields)


# --- versions and connections ----------------------------------------------------------------------------------------
def http10(plane: DataPlane, path: str, *fields: str) -> bytes:
    lines = [f"GET {path} HTTP/1.0", f"X-API-Key: {plane.key}", *fields]
    return "\r\n".join([*lines, "", ""]).encode()


@pytest.mark.parametrize("field", ["Connection: keep-alive", "Connection: close", "X-None: 1"])
def test_http_1_0_is_served_without_host_and_its_connection_ends(
    plane: DataPlane, upstream: Upstream, field: str
) -> None:
    with plane.connect() as client:
        answer = client.send(http10(plane, f"{upstream.path}/x", field)).answer()
        assert (answer.status, answer.body) == (200, b"ok")
        assert answer.field("connection") == "close"
        assert client.is_at_end()


def test_an_answer_of_unknown_length_to_http_1_0_ends_with_the_connection(plane: DataPlane) -> None:
    streamed = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", b"3\r\ndef\r\n0\r\n\r\n"
    upstream = plane.serve(closing(*streamed))
    with plane.connect() as client:
        answer = client.send(http10(plane, f"{upstream.path}/x")).answer()
        assert answer.field("transfer-encoding") is None
        assert answer.body == b"abcdef"


def test_a_connection_goes_on_until_the_client_says_close(plane: DataPlane, upstream: Upstream) -> None:
    with plane.connect() as client:
        for _ in range(3):
            answer = client.send(head(plane, upstream, method="GET")).answer()
            assert (answer.status, answer.field("connection")) == (200, None)
        answer = client.send(head(plane, upstream, "Connection: close", method="GET")).answer()
        assert (answer.status, answer.field("connection")) == (200, "close")
        assert client.is_at_end()


def test_a_refusal_does_not_end_a_connection_whose_request_was_understood(plane: DataPlane, upstream: Upstream) -> None:
    with plane.connect() as client:
        for key, status in (("wrong", 401), ("", 200), ("wrong", 401), ("", 200)):
            data = plane.request("POST", f"{upstream.path}/x", key=key, body=b"some body")
            assert client.send(data).answer("POST").status == status


@pytest.mark.parametrize("upgrade", ["websocket", "h2c", "TLS/1.2, HTTP/2.0"])
@pytest.mark.parametrize("is_chunked", [None, False, True], ids=["no body", "sized", "chunked"])
def test_an_upgrade_is_ignored_and_the_request_served(
    plane: DataPlane, upstream: Upstream, upgrade: str, is_chunked: bool | None
) -> None:
    fields = ["Connection: Upgrade, HTTP2-Settings", f"Upgrade: {upgrade}", "HTTP2-Settings: AAMAAABkAAQAAP__"]
    if is_chunked:
        data = head(plane, upstream, *fields, "Transfer-Encoding: chunked") + CHUNK
    else:
        body = None if is_chunked is None else b"abc"
        data = plane.request("POST", f"{upstream.path}/x", *fields, body=body)
    following = head(plane, upstream, method="GET")
    with plane.connect() as client:
        assert client.send(data + following).answer("POST").status == 200
        assert client.answer().status == 200
    seen = upstream.requests[-2]
    assert seen.body == (b"" if is_chunked is None else b"abc")
    assert not seen.names & {"upgrade", "http2-settings", "connection"}


def test_thousands_of_upgrades_in_one_read_are_ignored_one_by_one(plane: DataPlane) -> None:
    ask = request("GET", "/health", "Connection: upgrade", "Upgrade: h2c", host="a")
    with plane.connect() as client:
        client.send(ask * 2500)
        for _ in range(2500):
            assert client.answer().status == 200


# --- Expect ----------------------------------------------------------------------------------------------------------
def test_a_client_that_awaits_100_gets_it_when_its_request_is_accepted(plane: DataPlane, upstream: Upstream) -> None:
    with plane.connect() as client:
        client.send(head(plane, upstream, "Expect: 100-continue", "Content-Length: 3"))
        assert client.answer().status == 100
        assert client.send(b"abc").answer("POST").status == 200
    seen = upstream.requests[-1]
    assert (seen.body, seen.field("expect")) == (b"abc", None)


def test_a_client_that_awaits_100_and_is_refused_gets_the_refusal_alone(plane: DataPlane, upstream: Upstream) -> None:
    with plane.connect() as client:
        client.send(
            plane.request("POST", f"{upstream.path}/x", "Expect: 100-continue", "Content-Length: 3", key="wrong")
        )
        answer = client.answer("POST")
        assert (answer.status, answer.field("connection")) == (401, "close")
        assert client.half_close().is_at_end()


def test_http_1_0_knows_no_100(plane: DataPlane, upstream: Upstream) -> None:
    data = head(plane, upstream, "Expect: 100-continue", "Content-Length: 3") + b"abc"
    with plane.connect() as client:
        assert client.send(data.replace(b"HTTP/1.1", b"HTTP/1.0")).answer("POST").status == 200


# --- pipelining ------------------------------------------------------------------------------------------------------
def echo_target(peer: Peer) -> None:
    while (seen := peer.read_request()) is not None:
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(seen.target), seen.target))


@pytest.fixture(scope="module")
def echo(plane: DataPlane) -> Upstream:
    return plane.serve(echo_target)


def test_500_pipelined_requests_are_answered_in_order(plane: DataPlane, echo: Upstream) -> None:
    asks = [plane.request("GET", f"{echo.path}/{number}") for number in range(500)]
    with plane.connect() as client:
        client.send(b"".join(asks))
        for number in range(500):
            assert client.answer().body == b"/%d" % number


def test_more_requests_than_a_connection_may_have_waiting_are_refused(plane: DataPlane) -> None:
    """Each takes memory before it is looked at. Those before the limit are answered."""
    may_answer = threading.Event()

    def script(peer: Peer) -> None:
        assert may_answer.wait(TIMEOUT_S)
        echo_target(peer)

    upstream = plane.serve(script)
    ask = plane.request("GET", f"{upstream.path}/x")
    with plane.connect() as client:
        client.send_what_is_taken(ask + request("GET", "/health", host="a") * 3000)
        may_answer.set()
        assert client.answer().body == b"/x"
        served = 0
        while (answer := client.answer()).status == 200:
            served += 1
        assert (answer.status, answer.field("connection")) == (400, "close")
        assert served == 1000


def test_pipelined_requests_with_bodies_are_answered_in_order(plane: DataPlane, echo: Upstream) -> None:
    asks = []
    for number in range(30):
        path = f"{echo.path}/{number}"
        body = b"x" * (number * 1000)
        if number % 2:
            asks.append(plane.request("POST", path, body=body))
        else:
            asks.append(
                plane.request("POST", path, "Transfer-Encoding: chunked") + (chunked(body, b"y") if body else chunked())
            )
    with plane.connect() as client:
        client.send(b"".join(asks))
        for number in range(30):
            assert client.answer("POST").body == b"/%d" % number


def test_a_refused_request_in_the_middle_does_not_disturb_the_order(plane: DataPlane, echo: Upstream) -> None:
    asks = [plane.request("GET", f"{echo.path}/{number}", key="wrong" if number % 3 else "") for number in range(90)]
    with plane.connect() as client:
        client.send(b"".join(asks))
        for number in range(90):
            assert client.answer().status == (401 if number % 3 else 200)


@pytest.mark.parametrize(
    "malformed",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nxyz\r\n",
    ],
    ids=["noise", "no host", "a bad chunk", "a bad second chunk"],
)
def test_every_request_before_a_malformed_one_is_answered_and_then_that_one_is_refused(
    plane: DataPlane, echo: Upstream, malformed: bytes
) -> None:
    asks = [plane.request("GET", f"{echo.path}/{number}") for number in range(5)]
    with plane.connect() as client:
        client.send(b"".join(asks) + malformed + asks[0])
        for number in range(5):
            assert client.answer().body == b"/%d" % number
        answer = client.answer()
        assert (answer.status, answer.field("connection")) == (400, "close")
        assert client.half_close().is_at_end()


def test_every_request_before_the_clients_end_is_answered(plane: DataPlane, echo: Upstream) -> None:
    asks = [plane.request("GET", f"{echo.path}/{number}") for number in range(5)]
    with plane.connect() as client:
        client.send(b"".join(asks)).half_close()
        for number in range(5):
            assert client.answer().body == b"/%d" % number
        assert client.is_at_end()


def test_nothing_after_a_close_is_served(plane: DataPlane, echo: Upstream) -> None:
    last = plane.request("GET", f"{echo.path}/last", "Connection: close")
    with plane.connect() as client:
        client.send_what_is_taken(last + plane.request("GET", f"{echo.path}/after"))
        assert client.answer().body == b"/last"
        with pytest.raises(CutShort):
            client.answer()
    assert echo.requests[-1].target == b"/last"


def test_many_pipelined_requests_followed_by_part_of_one_wait_for_the_rest_of_it(
    plane: DataPlane, echo: Upstream
) -> None:
    """The reads that hold them say nothing of the size of the head that has only begun."""
    field = "X-Filler: " + "a" * 1000
    asks = [plane.request("GET", f"{echo.path}/{number}", field) for number in range(150)]
    data = b"".join(asks)
    with plane.connect() as client:
        client.send(data[:-20])
        for number in range(149):
            assert client.answer().body == b"/%d" % number
        assert client.send(data[-20:]).answer().body == b"/149"


# --- answers without a body ------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("method", "answer", "length"),
    [
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", "5"),
        ("HEAD", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", None),
        ("HEAD", b"HTTP/1.1 200 OK\r\n\r\n", None),
        ("GET", b"HTTP/1.1 204 No Content\r\n\r\n", None),
        ("GET", b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n", None),
        ("GET", b'HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\nETag: "a"\r\n\r\n', "5"),
        ("GET", b'HTTP/1.1 304 Not Modified\r\nETag: "a"\r\n\r\n', None),
        ("POST", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "0"),
    ],
)
def test_an_answer_without_a_body_leaves_both_connections_usable(
    plane: DataPlane, method: str, answer: bytes, length: str | None
) -> None:
    upstream = plane.serve(replying(answer, OK))
    with plane.connect() as client:
        got = client.send(plane.request(method, f"{upstream.path}/x")).answer(method)
        assert got.status == int(answer[9:12])
        assert got.field("content-length") == length
        assert client.send(plane.request("GET", f"{upstream.path}/x")).answer().body == b"ok"


def test_head_of_what_the_gateway_answers_itself_has_the_length_of_its_get(plane: DataPlane) -> None:
    with plane.connect() as client:
        length = client.send(request("GET", "/health")).answer().field("content-length")
        assert client.send(request("HEAD", "/health")).answer("HEAD").field("content-length") == length
        refusal = client.send(request("HEAD", "/nowhere")).answer("HEAD")
        assert refusal.status == 404
        assert client.send(request("GET", "/health")).answer().status == 200

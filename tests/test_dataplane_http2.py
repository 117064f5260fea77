"""HTTP/2 on the TLS port (RFC 9113): the same behaviour as over HTTP/1.1, its own rules, and what it does not put up
with."""

import itertools
import random
import signal
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import httpx
import pytest
import trustme
from h2.errors import ErrorCodes
from hpack import Decoder, Encoder
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway_project.dataplane import http2
from gateway_project.dataplane import http2_frames as frames
from gateway_project.dataplane.http2 import Http2Protocol
from gateway_project.dataplane.protocol import FLUSH_S
from tests.dataplane import DataPlane
from tests.gateway_process import eventually
from tests.http2_client import Fields, Http2Client, RawHttp2
from tests.memory_transport import MemoryTransport, RecordingGateway, Taken
from tests.private_servers import free_port
from tests.scripted_upstream import OK, TIMEOUT_S, Peer, closing, replying
from tests.tls_clients import TlsClient, is_listening, issue, put_pair, trusting
from tests.wires import route_wire

Start = Callable[..., DataPlane]
HSTS = "max-age=300"


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def directory(ca: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tls")
    put_pair(issue(ca, "localhost"), directory / "gateway.crt", directory / "gateway.key")
    return directory


def tls_settings(directory: Path, **changes: Any) -> dict[str, Any]:
    pair = {"tls_certificate": str(directory / "gateway.crt"), "tls_key": str(directory / "gateway.key")}
    return {"tls_port": free_port(), "hsts": HSTS, **pair} | changes


@pytest.fixture(scope="module")
def plane(start_module_plane: Start, directory: Path) -> DataPlane:
    return start_module_plane(**tls_settings(directory), max_body_bytes=16 * 1024 * 1024)


@pytest.fixture
def client(plane: DataPlane, ca: trustme.CA) -> Iterator[Http2Client]:
    with connect(plane, ca) as client:
        yield client


@pytest.fixture
def raw(plane: DataPlane, ca: trustme.CA) -> Iterator[RawHttp2]:
    with RawHttp2(plane.settings.tls_port, trusting(ca, "h2")) as raw:
        yield raw


def connect(plane: DataPlane, ca: trustme.CA, **options: Any) -> Http2Client:
    return Http2Client(plane.settings.tls_port, trusting(ca, "h2"), plane.key, **options)


def health(authority: str = "gateway.test") -> Fields:
    return [(":method", "GET"), (":scheme", "https"), (":authority", authority), (":path", "/health")]


# --- as over HTTP/1.1 ------------------------------------------------------------------------------------------------
def test_a_request_is_forwarded_and_answered(plane: DataPlane, client: Http2Client) -> None:
    upstream = plane.serve()
    answer = client.ask(
        "GET", f"{upstream.path}/x?a=1", ("accept-language", "de"), ("cookie", "a=1"), ("cookie", "b=2")
    )
    assert (answer.status, answer.body) == (200, b"ok")
    assert answer.headers["content-type"] == "text/plain"
    assert answer.headers["strict-transport-security"] == HSTS
    assert "connection" not in answer.headers
    seen = upstream.requests[-1]
    assert seen.line == b"GET /x?a=1 HTTP/1.1"
    assert seen.field("accept-language") == b"de"
    assert seen.field("cookie") == b"a=1; b=2"  # in pieces on the way here (section 8.2.3)
    assert seen.field("x-forwarded-host") == b"gateway.test"
    assert seen.field("x-forwarded-proto") == b"https"
    assert seen.field("x-forwarded-for") == b"127.0.0.1"
    line = plane.log_line(answer.headers["x-request-id"])
    assert (line["protocol"], line["status_code"], line["bytes_out"]) == ("HTTP/2", 200, 2)


def test_a_body_that_the_route_changes_reaches_the_upstream_changed(plane: DataPlane, client: Http2Client) -> None:
    upstream = plane.serve()
    changes = {"request": {"body": {"set": [{"path": "b", "value": "${upper(header.x-b)}"}]}}}
    name = upstream.path.rpartition("/")[2]
    route = route_wire("rte_changed", "/changed", service=name, policies={"transformation": changes})
    plane.feed.put("route", route)
    answer = client.ask("POST", "/changed", ("content-type", "application/json"), ("x-b", "two"), body=b'{"a":1}')
    assert answer.status == 200
    assert upstream.requests[-1].body == b'{"a":1,"b":"TWO"}'
    assert upstream.requests[-1].field("content-length") == b"17"


def test_a_client_that_takes_a_long_answer_slowly_but_steadily_gets_all_of_it(plane: DataPlane, ca: trustme.CA) -> None:
    size = 400_000
    upstream = plane.serve(replying(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size))
    plane.feed.put("route", route_wire("rte_slow", "/slow", service=upstream.path[8:], idle_timeout_ms=600))
    with connect(plane, ca) as client:
        client.credits = False
        stream = client.request("GET", "/slow")
        answer = client.answers[stream]

        def grant(size: int) -> None:
            client.connection.increment_flow_control_window(size)
            client.connection.increment_flow_control_window(size, stream)
            client.flush()

        while sum(map(len, answer.pieces)) < 65_535:
            client.receive()
        for _ in range(15):
            time.sleep(0.2)
            grant(4096)
        assert not answer.is_over
        grant(size)
        assert len(client.answer(stream).body) == size


def test_whoever_does_not_offer_http2_gets_http_1_1(plane: DataPlane, ca: trustme.CA) -> None:
    upstream = plane.serve()
    for context in (trusting(ca), trusting(ca, "http/1.1", "h3")):
        with TlsClient(plane.settings.tls_port, context) as client:
            answer = client.send(plane.request("GET", f"{upstream.path}/x")).answer()
            assert (answer.status, answer.field("strict-transport-security")) == (200, HSTS)
            assert plane.log_line(answer.field("x-request-id"))["protocol"] == "HTTP/1.1"


def test_http2_can_be_switched_off(start_plane: Start, directory: Path, ca: trustme.CA) -> None:
    plane = start_plane(**tls_settings(directory, http2=False))
    with TlsClient(plane.settings.tls_port, trusting(ca, "h2", "http/1.1")) as client:
        assert client.socket.selected_alpn_protocol() == "http/1.1"
        assert client.send(plane.request("GET", "/health")).answer().status == 200


@pytest.mark.parametrize(
    ("path", "key", "status", "code"),
    [
        ("{upstream}/x", "", 401, "missing_credentials"),
        ("{upstream}/x", "km_wrong", 401, "invalid_credentials"),
        ("/api/v1/nowhere/x", None, 404, "no_route"),
        ("{upstream}/a/../b", None, 400, "bad_path"),
        ("{upstream}/a b", None, 400, "bad_path"),
        ("{upstream}/a#b", None, 400, "bad_path"),
        ("*", None, 400, "bad_path"),
        ("/" + "x" * 9000, None, 414, "uri_too_long"),
    ],
    ids=["no key", "a wrong key", "no route", "dots", "a blank", "a fragment", "an asterisk", "a long path"],
)
def test_refusals_are_those_of_http_1_1(
    plane: DataPlane, ca: trustme.CA, path: str, key: str | None, status: int, code: str
) -> None:
    upstream = plane.serve()
    with connect(plane, ca) as client:
        client.key = plane.key if key is None else key
        answer = client.ask("GET", path.format(upstream=upstream.path))
        assert (answer.status, answer.headers["content-type"]) == (status, "application/problem+json")
        assert code in answer.body.decode()
        assert client.ask("GET", "/health").status == 200  # the others on the connection go on
    assert upstream.requests == []


def test_failures_of_upstreams_are_told(plane: DataPlane, client: Http2Client) -> None:
    upstream = plane.serve()
    upstream.stop_listening()
    answer = client.ask("GET", f"{upstream.path}/x")
    assert answer.status == 502
    assert "error=connection_refused" in answer.headers["proxy-status"]


@pytest.mark.parametrize("size", [0, 1, 16_384, 300_000, 10 * 1024 * 1024])
def test_bodies_of_any_size_pass_in_both_directions(plane: DataPlane, client: Http2Client, size: int) -> None:
    body = bytes(range(256)) * (size // 256) + bytes(size % 256)

    def echo(peer: Peer) -> None:
        while (seen := peer.read_request()) is not None:
            peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(seen.body) + seen.body)

    upstream = plane.serve(echo)
    answer = client.ask("POST", f"{upstream.path}/x", ("content-length", str(size)), body=body)
    assert answer.status == 200
    assert answer.body == body
    assert upstream.requests[-1].field("content-length") == str(size).encode()


def test_repeated_requests_mean_what_they_say(plane: DataPlane, client: Http2Client) -> None:
    """Clients name fields that they have sent before by numbers, and the numbers change with every new field."""
    upstream = plane.serve()
    choose = random.Random(7)
    for number in range(200):
        path, value = choose.choice("abcd"), choose.choice(("1", "22", "333"))
        fields = [("x-value", value)] * choose.randint(0, 2)
        if choose.random() < 0.1:
            fields.append((f"x-new-{number}", "y" * choose.randint(1, 1500)))  # pushes others out of the table
        assert client.ask("GET", f"{upstream.path}/{path}", *fields).status == 200
        seen = upstream.requests[-1]
        assert seen.target == f"/{path}".encode()
        passed = [(name.decode(), each.decode()) for name, each in seen.fields]
        assert [field for field in passed if field[0] in ("x-value", f"x-new-{number}")] == fields


def test_a_body_without_a_length_goes_on_in_chunks(plane: DataPlane, client: Http2Client) -> None:
    upstream = plane.serve()
    assert client.ask("POST", f"{upstream.path}/x", body=b"abc").status == 200
    seen = upstream.requests[-1]
    assert (seen.field("transfer-encoding"), seen.body) == (b"chunked", b"abc")


def test_a_post_without_a_body_says_so_to_the_upstream(plane: DataPlane, client: Http2Client) -> None:
    upstream = plane.serve()
    assert client.ask("POST", f"{upstream.path}/x").status == 200
    assert upstream.requests[-1].field("content-length") == b"0"


@pytest.mark.parametrize(
    ("method", "script", "status"),
    [
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", 200),
        ("GET", b"HTTP/1.1 204 No Content\r\n\r\n", 204),
        ("GET", b"HTTP/1.1 304 Not Modified\r\nETag: x\r\n\r\n", 304),
    ],
    ids=["HEAD", "204", "304"],
)
def test_answers_without_a_body_end_with_their_head(
    plane: DataPlane, client: Http2Client, method: str, script: bytes, status: int
) -> None:
    upstream = plane.serve(replying(script))
    answer = client.ask(method, f"{upstream.path}/x")
    assert (answer.status, answer.body, answer.is_whole) == (status, b"", True)


def test_an_answer_in_pieces_arrives_in_pieces(plane: DataPlane, client: Http2Client) -> None:
    goes_on = threading.Event()

    def script(peer: Peer) -> None:
        if peer.read_request() is not None:
            peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\none \r\n")
            assert goes_on.wait(20)
            peer.send(b"3\r\ntwo\r\n0\r\n\r\n")

    stream = client.request("GET", f"{plane.serve(script).path}/x")
    while client.answers[stream].body != b"one ":
        client.receive()
    goes_on.set()
    assert client.answer(stream).body == b"one two"


def test_a_large_answer_is_compressed_at_the_pace_of_its_windows(plane: DataPlane, client: Http2Client) -> None:
    body = b"".join(b"%x" % zlib.crc32(b"%d" % number) for number in range(500_000))
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n" % len(body)
    upstream = plane.serve(replying(head + body), policies={"compression": {}})
    answer = client.ask("GET", f"{upstream.path}/x", ("accept-encoding", "gzip"))
    assert answer.headers["content-encoding"] == "gzip"
    assert zlib.decompress(bytes(answer.body), 16 + zlib.MAX_WBITS) == body


def test_an_answer_that_the_upstream_cuts_short_is_reset(plane: DataPlane, client: Http2Client) -> None:
    upstream = plane.serve(closing(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf"))
    answer = client.ask("GET", f"{upstream.path}/x")
    assert (answer.status, answer.is_whole) == (200, False)
    assert answer.reset == ErrorCodes.INTERNAL_ERROR
    assert client.ask("GET", "/health").status == 200


def test_trailers_are_dropped(plane: DataPlane, client: Http2Client) -> None:
    upstream = plane.serve()
    stream = client.begin(client.head("POST", f"{upstream.path}/x"), ended=False)
    client.connection.send_data(stream, b"abc")
    client.connection.send_headers(stream, [("x-gateway-application", "other"), ("x-t", "1")], end_stream=True)
    client.flush()
    assert client.answer(stream).status == 200
    seen = upstream.requests[-1]
    assert (seen.body, seen.field("x-t")) == (b"abc", None)


def test_a_client_that_expects_100_is_told_to_go_on(plane: DataPlane, client: Http2Client) -> None:
    upstream = plane.serve()
    fields = client.head("POST", f"{upstream.path}/x", ("expect", "100-continue"), ("content-length", "3"))
    stream = client.begin(fields, ended=False)
    while not client.answers[stream].interim:
        client.receive()
    client.send_body(stream, b"abc")
    assert (client.answer(stream).interim, client.answers[stream].status) == ([100], 200)


def test_httpx_speaks_with_it(plane: DataPlane, ca: trustme.CA) -> None:
    upstream = plane.serve()
    with httpx.Client(http2=True, verify=trusting(ca, "h2", "http/1.1"), trust_env=False, timeout=20) as client:
        url = f"https://localhost:{plane.settings.tls_port}{upstream.path}/x"
        for _ in range(3):
            answer = client.post(url, headers={"X-API-Key": plane.key}, content=b"x" * 100_000)
            assert (answer.status_code, answer.http_version, answer.text) == (200, "HTTP/2", "ok")
        refused = client.post(url, content=b"x" * 30_000)
        assert refused.status_code == 401
        assert client.get(f"https://localhost:{plane.settings.tls_port}/health").status_code == 200


# --- many streams ----------------------------------------------------------------------------------------------------
def test_streams_are_answered_as_their_upstreams_answer(plane: DataPlane, client: Http2Client) -> None:
    goes_on = threading.Event()

    def slow(peer: Peer) -> None:
        if peer.read_request() is not None:
            assert goes_on.wait(20)
            peer.send(OK)

    waiting = [client.request("GET", f"{plane.serve(slow).path}/x") for _ in range(3)]
    quick = plane.serve()
    assert client.ask("GET", f"{quick.path}/x").body == b"ok"
    assert not any(client.answers[stream].is_over for stream in waiting)
    goes_on.set()
    assert [client.answer(stream).body for stream in waiting] == [b"ok"] * 3


def test_a_hundred_streams_at_once_and_no_more(plane: DataPlane, raw: RawHttp2) -> None:
    goes_on = threading.Event()

    def slow(peer: Peer) -> None:
        if peer.read_request() is not None:
            assert goes_on.wait(30)
            peer.send(OK)

    upstream = plane.serve(slow)
    fields = [*health()[:3], (":path", f"{upstream.path}/x"), ("x-api-key", plane.key)]
    raw.send(*(raw.head(stream, fields) for stream in range(1, 203, 2)))
    assert raw.reset_code(201) == frames.REFUSED_STREAM
    goes_on.set()
    raw.send(frames.frame(frames.PING, 0, 0, b"12345678"))
    assert raw.status(1) == 200


def test_a_client_that_resets_its_stream_cancels_the_request_upstream(plane: DataPlane, client: Http2Client) -> None:
    ended = threading.Event()

    def script(peer: Peer) -> None:
        peer.read_request()
        peer.wait_for_end()
        ended.set()

    upstream = plane.serve(script)
    stream = client.request("GET", f"{upstream.path}/gone")
    upstream.wait_for()
    client.connection.reset_stream(stream, ErrorCodes.CANCEL)
    client.flush()
    assert ended.wait(20)
    lines = eventually(lambda: [line for line in plane.log_lines() if line["path"] == f"{upstream.path}/gone"])
    assert lines[0]["status_code"] == 499
    assert client.ask("GET", "/health").status == 200


def test_a_client_that_leaves_while_its_answer_is_gathered_is_not_the_upstreams_failure(
    plane: DataPlane, client: Http2Client
) -> None:
    has_begun = threading.Event()

    def script(peer: Peer) -> None:
        peer.read_request()
        peer.send(b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"a":')
        has_begun.set()
        peer.wait_for_end()

    name = plane.serve(script).path.rpartition("/")[2]
    changes = {"response": {"body": {"set": [{"path": "b", "value": "two"}]}}}
    plane.feed.put("route", route_wire("rte_left", "/left", service=name, policies={"transformation": changes}))
    stream = client.request("GET", "/left")
    assert has_begun.wait(TIMEOUT_S)
    time.sleep(0.1)  # so that the gateway is within the answer; nothing depends on it
    client.connection.reset_stream(stream, ErrorCodes.CANCEL)
    client.flush()
    line = eventually(lambda: next((each for each in plane.log_lines() if each["path"] == "/left"), None))
    assert (line["status_code"], line["code"]) == (499, None)


def test_a_client_that_leaves_cancels_all_its_requests(plane: DataPlane, ca: trustme.CA) -> None:
    ended: list[bool] = []

    def script(peer: Peer) -> None:
        peer.read_request()
        peer.wait_for_end()
        ended.append(True)

    upstream = plane.serve(script)
    with connect(plane, ca) as client:
        for _ in range(3):
            client.request("GET", f"{upstream.path}/x")
        upstream.wait_for(3)
    eventually(lambda: len(ended) == 3, 20.0, "the end of the requests upstream")


# --- flow control ----------------------------------------------------------------------------------------------------
def test_an_upstream_that_does_not_read_holds_its_client_back_and_nobody_else(
    plane: DataPlane, client: Http2Client
) -> None:
    goes_on = threading.Event()

    def script(peer: Peer) -> None:
        head = peer.read_head()
        assert head is not None
        assert goes_on.wait(30)
        peer.read(int(head.field("content-length") or 0))
        peer.send(OK)

    size = 12 * 1024 * 1024
    upstream, other = plane.serve(script), plane.serve()
    before = plane.rss_mib()
    stream = client.begin(client.head("POST", f"{upstream.path}/x", ("content-length", str(size))), ended=False)
    sent = 0

    def send() -> None:
        nonlocal sent
        while room := min(client.connection.local_flow_control_window(stream), 16_384, size - sent):
            client.connection.send_data(stream, bytes(room))
            client.flush()
            sent += room

    quiet = 0
    while quiet < 10:
        earlier = sent
        send()
        assert client.ask("GET", f"{other.path}/x").body == b"ok"  # also reads window updates
        quiet = quiet + 1 if sent == earlier else 0
    assert sent < size  # what sockets and windows hold, no more
    assert plane.rss_mib() < before + 16
    goes_on.set()
    while sent < size:
        client.receive()
        send()
    client.connection.end_stream(stream)
    client.flush()
    assert client.answer(stream).status == 200


def test_a_client_that_opens_no_window_holds_the_upstream_back(plane: DataPlane, client: Http2Client) -> None:
    sent = 0
    piece = b"x" * 65536

    def script(peer: Peer) -> None:
        nonlocal sent
        if peer.read_request() is None:
            return
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (200 * len(piece)))
        for _ in range(200):
            peer.send(piece)
            sent += len(piece)

    upstream = plane.serve(script)
    client.credits = False
    stream = client.request("GET", f"{upstream.path}/x")
    other = client.request("GET", "/health")  # its answer needs the connection's window too
    while len(client.answers[stream].body) + len(client.answers[other].body) < 65_535:
        client.receive()
    still = -1
    while still != sent:
        still = sent
        time.sleep(0.3)  # a moment in which a gateway that does not care would read on
    assert sent < 200 * len(piece)
    client.credits = True
    client.connection.increment_flow_control_window(2**30)
    client.connection.increment_flow_control_window(2**30, stream)
    client.flush()
    assert client.answer(stream).body == piece * 200
    assert client.answer(other).status == 200


def test_an_answer_that_ends_while_its_client_is_slow_leaves_its_connection_fit_for_the_next(
    plane: DataPlane, raw: RawHttp2
) -> None:
    """What is read no further for the client's sake must be read again for the next one."""
    may_end = threading.Event()

    def script(peer: Peer) -> None:
        peer.read_request()
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 90\r\n\r\n" + b"x" * 10)
        assert may_end.wait(TIMEOUT_S)
        peer.send(b"x" * 80)
        while peer.read_request() is not None:
            peer.send(OK)

    upstream = plane.serve(script)
    fields = [*health()[:3], (":path", f"{upstream.path}/x"), ("x-api-key", plane.key)]
    raw.send(frames.settings({frames.INITIAL_WINDOW_SIZE: 50}), raw.head(1, fields))
    assert raw.until(frames.DATA, 1) == (0, b"x" * 10)
    may_end.set()
    assert raw.until(frames.DATA, 1) == (0, b"x" * 40)
    assert plane.ask("GET", f"{upstream.path}/y").status == 200
    assert upstream.connections == 1
    raw.send(frames.window_update(1, 100))
    assert raw.until(frames.DATA, 1) == (frames.END_STREAM, b"x" * 40)


def test_a_client_that_opens_its_window_a_little_at_a_time_gets_all_of_it(plane: DataPlane, raw: RawHttp2) -> None:
    size = 1024 * 1024
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size
    upstream = plane.serve(replying(answer), idle_timeout_ms=700)
    raw.send(raw.head(1, [*health()[:3], (":path", f"{upstream.path}/x"), ("x-api-key", plane.key)]))
    for _ in range(15):
        time.sleep(0.2)
        raw.send(frames.window_update(0, 1000), frames.window_update(1, 1000))
    raw.send(frames.window_update(0, 2**30), frames.window_update(1, 2**30))
    flags, received = 0, 0
    while not flags & frames.END_STREAM:
        flags, data = raw.until(frames.DATA, 1)
        received += len(data)
    assert received == size


def test_a_smaller_window_for_all_streams_counts_for_those_that_are_open(plane: DataPlane, raw: RawHttp2) -> None:
    """INITIAL_WINDOW_SIZE changes windows of open streams too (section 6.9.2)."""
    upstream = plane.serve(replying(b"HTTP/1.1 200 OK\r\nContent-Length: 30\r\n\r\n" + b"x" * 30))
    raw.send(frames.settings({frames.INITIAL_WINDOW_SIZE: 10}))
    fields = [*health()[:3], (":path", f"{upstream.path}/x"), ("x-api-key", plane.key)]
    raw.send(raw.head(1, fields))
    assert raw.until(frames.DATA, 1) == (0, b"x" * 10)
    raw.send(frames.window_update(1, 5))
    assert raw.until(frames.DATA, 1) == (0, b"x" * 5)
    raw.send(frames.settings({frames.INITIAL_WINDOW_SIZE: 100}))
    assert raw.until(frames.DATA, 1) == (frames.END_STREAM, b"x" * 15)


# --- malformed requests: the stream ends, the connection goes on (section 8.1.1) --------------------------------------
H = [(":method", "GET"), (":scheme", "https"), (":authority", "gateway.test"), (":path", "/health")]
MALFORMED: dict[str, Fields] = {
    "connection": [*H, ("connection", "close")],
    "keep-alive": [*H, ("keep-alive", "1")],
    "proxy-connection": [*H, ("proxy-connection", "x")],
    "transfer-encoding": [*H, ("transfer-encoding", "chunked")],
    "upgrade": [*H, ("upgrade", "websocket")],
    "te": [*H, ("te", "gzip")],
    "capitals": [*H, ("X-Big", "1")],
    "a name with a blank": [*H, ("x y", "1")],
    "an empty name": [*H, ("", "1")],
    "CR in a value": [*H, ("x", "a\rb")],
    "LF in a value": [*H, ("x", "a\nGET / HTTP/1.1")],
    "NUL in a value": [*H, ("x", "a\0b")],
    "a blank before a value": [*H, ("x", " a")],
    "a method twice": [*H, (":method", "GET")],
    "a late pseudo-header": [*H[:3], ("x", "1"), H[3]],
    "an unknown pseudo-header": [*H, (":protocol", "websocket")],
    "a status": [*H, (":status", "200")],
    "no method": H[1:],
    "no scheme": [H[0], *H[2:]],
    "no path": H[:3],
    "an empty path": [*H[:3], (":path", "")],
    "a method that is none": [(":method", "GE T"), *H[1:]],
    "another Host": [*H, ("host", "other.test")],
    "a length without a body": [*H, ("content-length", "5")],
    "a length that is none": [*H, ("content-length", "5, 5")],
}


@pytest.mark.parametrize("fields", MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_request_ends_its_stream_alone(raw: RawHttp2, fields: Fields) -> None:
    raw.send(raw.head(1, fields))
    assert raw.reset_code(1) == frames.PROTOCOL_ERROR
    raw.send(raw.head(3, health()))
    assert raw.status(3) == 200


def test_a_malformed_request_stands_in_the_access_log(plane: DataPlane, raw: RawHttp2) -> None:
    raw.send(raw.head(1, [*H[:3], (":path", "/malformed-one"), ("content-length", "7")]))
    assert raw.reset_code(1) == frames.PROTOCOL_ERROR
    lines = eventually(lambda: [line for line in plane.log_lines() if line["path"] == "/malformed-one"])
    assert (lines[0]["status_code"], lines[0]["code"], len(lines[0]["request_id"])) == (400, "bad_request", 32)


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ([*H, ("te", "trailers")], 200),
        ([*H, ("host", "Gateway.Test")], 200),
        ([*H[:2], H[3], ("host", "gateway.test")], 200),
        ([*H[:2], H[3]], 400),
        ([*H[:2], (":authority", "user@gateway.test"), H[3]], 400),
        ([*H, *[(f"x-{number}", "1") for number in range(101)]], 431),
        ([*H, ("x", "1" * 9000)], 431),
        ([(":method", "TRACE"), *H[1:]], 405),
        ([(":method", "CONNECT"), (":authority", "other.test:443")], 405),
    ],
    ids=["te", "the same Host", "Host alone", "no host", "userinfo", "fields", "a large field", "TRACE", "CONNECT"],
)
def test_what_is_well_formed_is_answered(raw: RawHttp2, fields: Fields, status: int) -> None:
    raw.send(raw.head(1, fields))
    assert raw.status(1) == status


@pytest.mark.parametrize(("body", "is_whole"), [(b"abc", True), (b"abcdef", False)], ids=["short", "long"])
def test_a_body_that_is_not_as_long_as_its_content_length_is_an_error(
    plane: DataPlane, raw: RawHttp2, body: bytes, is_whole: bool
) -> None:
    """Nor may the upstream take it for a whole one."""
    seen: list[bytes] = []

    def script(peer: Peer) -> None:
        if peer.read_head() is not None:
            while piece := peer.read_piece():
                seen.append(piece)

    upstream = plane.serve(script)
    fields = [(":method", "POST"), *H[1:3], (":path", f"{upstream.path}/x"), ("content-length", "5")]
    raw.send(raw.head(1, [*fields, ("x-api-key", plane.key)], ended=False))
    eventually(lambda: upstream.connections == 1, what="the upstream's connection")
    raw.send(frames.frame(frames.DATA, frames.END_STREAM if is_whole else 0, 1, body))
    assert raw.reset_code(1) == frames.PROTOCOL_ERROR
    eventually(lambda: upstream.open_connections == 0, what="the end of the upstream's connection")
    assert len(b"".join(seen)) < 5


def test_padding_is_taken_off_and_counts_for_the_windows(plane: DataPlane, raw: RawHttp2) -> None:
    upstream = plane.serve()
    fields = [(":method", "POST"), *H[1:3], (":path", f"{upstream.path}/x"), ("x-api-key", plane.key)]
    padded = b"\x05" + b"\x80\0\0\x03\x10" + raw.block(fields) + bytes(5)
    raw.send(frames.frame(frames.HEADERS, frames.END_HEADERS | frames.PADDED | frames.HAS_PRIORITY, 1, padded))
    raw.send(*(frames.frame(frames.DATA, frames.PADDED, 1, b"\xff" + b"a" * 10 + bytes(255)) for _ in range(20)))
    raw.send(frames.frame(frames.DATA, frames.END_STREAM, 1, b"b"))
    assert raw.status(1) == 200
    assert upstream.requests[-1].body == b"a" * 200 + b"b"


def test_a_header_section_may_come_in_continuations(raw: RawHttp2) -> None:
    block = raw.block(health())
    raw.send(frames.frame(frames.HEADERS, frames.END_STREAM, 1, block[:3]))
    raw.send(frames.frame(frames.CONTINUATION, 0, 1, block[3:9]))
    raw.send(frames.frame(frames.CONTINUATION, frames.END_HEADERS, 1, block[9:]))
    assert raw.status(1) == 200


# --- what ends a connection ------------------------------------------------------------------------------------------
def ping(flags: int = 0, stream: int = 0, payload: bytes = b"12345678") -> bytes:
    return frames.frame(frames.PING, flags, stream, payload)


WRONG: dict[str, tuple[bytes, int]] = {
    "a frame above the limit": (frames.frame(frames.DATA, 0, 1, bytes(16_385)), frames.FRAME_SIZE_ERROR),
    "DATA on no stream": (frames.frame(frames.DATA, 0, 0, b"x"), frames.PROTOCOL_ERROR),
    "DATA on an idle stream": (frames.frame(frames.DATA, 0, 5, b"x"), frames.PROTOCOL_ERROR),
    "HEADERS on an even stream": (frames.frame(frames.HEADERS, 5, 2, b"\x82"), frames.PROTOCOL_ERROR),
    "HEADERS that are no HPACK": (frames.frame(frames.HEADERS, 5, 1, b"\xff\xff\xff\xff"), frames.COMPRESSION_ERROR),
    "CONTINUATION alone": (frames.frame(frames.CONTINUATION, 4, 1, b"\x82"), frames.PROTOCOL_ERROR),
    "PING within HEADERS": (frames.frame(frames.HEADERS, 0, 1, b"\x82") + ping(), frames.PROTOCOL_ERROR),
    "padding without end": (frames.frame(frames.HEADERS, 0xD, 1, b"\xff\x82"), frames.PROTOCOL_ERROR),
    "a push": (frames.frame(frames.PUSH_PROMISE, 4, 1, bytes(4)), frames.PROTOCOL_ERROR),
    "RST_STREAM on an idle stream": (frames.reset(7, 0), frames.PROTOCOL_ERROR),
    "a short RST_STREAM": (frames.frame(frames.RST_STREAM, 0, 1, b"x"), frames.FRAME_SIZE_ERROR),
    "a short PING": (ping(payload=b"x"), frames.FRAME_SIZE_ERROR),
    "PING of a stream": (ping(stream=1), frames.PROTOCOL_ERROR),
    "SETTINGS of a stream": (frames.frame(frames.SETTINGS, 0, 1), frames.PROTOCOL_ERROR),
    "broken SETTINGS": (frames.frame(frames.SETTINGS, 0, 0, b"x"), frames.FRAME_SIZE_ERROR),
    "an ACK with a payload": (frames.frame(frames.SETTINGS, 1, 0, bytes(6)), frames.FRAME_SIZE_ERROR),
    "ENABLE_PUSH 2": (frames.settings({frames.ENABLE_PUSH: 2}), frames.PROTOCOL_ERROR),
    "a frame size of 1": (frames.settings({frames.MAX_FRAME_SIZE: 1}), frames.PROTOCOL_ERROR),
    "a window of 2^31": (frames.settings({frames.INITIAL_WINDOW_SIZE: 2**31}), frames.FLOW_CONTROL_ERROR),
    "an increment of 0": (frames.window_update(0, 0), frames.PROTOCOL_ERROR),
    "a window that overflows": (frames.window_update(0, 2**31 - 1), frames.FLOW_CONTROL_ERROR),
    "a short WINDOW_UPDATE": (frames.frame(frames.WINDOW_UPDATE, 0, 0, b"x"), frames.FRAME_SIZE_ERROR),
    "a short GOAWAY": (frames.frame(frames.GOAWAY, 0, 0, b"x"), frames.FRAME_SIZE_ERROR),
}


@pytest.mark.parametrize(("data", "code"), WRONG.values(), ids=WRONG.keys())
def test_a_frame_that_breaks_the_protocol_ends_the_connection_with_its_code(
    raw: RawHttp2, data: bytes, code: int
) -> None:
    raw.send(data)
    assert raw.goaway_code() == code


@pytest.mark.parametrize(
    "start", [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", frames.PREFACE + ping()], ids=["HTTP/1.1", "no SETTINGS"]
)
def test_a_connection_that_does_not_begin_as_one_is_ended(plane: DataPlane, ca: trustme.CA, start: bytes) -> None:
    with RawHttp2(plane.settings.tls_port, trusting(ca, "h2"), start=start) as raw:
        assert raw.goaway_code() == frames.PROTOCOL_ERROR


def test_frames_of_unknown_kinds_and_settings_are_ignored(raw: RawHttp2) -> None:
    raw.send(frames.frame(0xBB, 0xFF, 0, b"x" * 100), frames.settings({0xABCD: 7}))
    raw.send(frames.frame(frames.PRIORITY, 0, 3, bytes(5)), raw.head(5, health()))
    assert raw.status(5) == 200


def test_frames_on_a_stream_that_has_ended_end_the_connection(raw: RawHttp2) -> None:
    raw.send(raw.head(1, health()))
    assert raw.status(1) == 200
    raw.until(frames.DATA, 1)
    raw.send(frames.frame(frames.DATA, 0, 1, b"x"))
    assert raw.goaway_code() == frames.STREAM_CLOSED


def test_frames_on_a_stream_that_was_reset_are_ignored(raw: RawHttp2) -> None:
    raw.send(raw.head(1, [*H, ("connection", "x")], ended=False))
    raw.send(frames.frame(frames.DATA, 0, 1, b"x" * 1000), raw.head(1, [("x", "1")]), frames.window_update(1, 5))
    raw.send(raw.head(3, health()))
    assert raw.reset_code(1) == frames.PROTOCOL_ERROR
    assert raw.status(3) == 200


def test_more_than_the_windows_admit_is_an_error(plane: DataPlane, raw: RawHttp2) -> None:
    is_over = threading.Event()

    def script(peer: Peer) -> None:
        peer.read_head()
        is_over.wait(30)

    upstream = plane.serve(script)
    fields = [(":method", "POST"), *H[1:3], (":path", f"{upstream.path}/x"), ("x-api-key", plane.key)]
    raw.send(raw.head(1, fields, ended=False))
    flood = frames.frame(frames.DATA, 0, 1, bytes(16_384))
    for _ in range(2000):
        raw.send(flood)  # never looking at a window
    raw.transport.socket.settimeout(30)
    while (frame := raw.frame()) is not None:
        if frame[0] in (frames.RST_STREAM, frames.GOAWAY):
            break
    is_over.set()
    assert frame is not None
    assert int.from_bytes(frame[3][-4:], "big") == frames.FLOW_CONTROL_ERROR


# --- floods ----------------------------------------------------------------------------------------------------------
def rapid_resets(raw: RawHttp2, plane: DataPlane) -> Iterator[bytes]:
    """CVE-2023-44487."""
    fields = [*health()[:3], (":path", "/api/v1/nowhere/x"), ("x-api-key", plane.key)]
    for stream in range(1, 4001, 2):
        yield raw.head(stream, fields, ended=False) + frames.reset(stream, frames.CANCEL)


def continuations(raw: RawHttp2, _: DataPlane) -> Iterator[bytes]:
    """CVE-2024-27316."""
    yield frames.frame(frames.HEADERS, frames.END_STREAM, 1, raw.block(health()))
    for _number in range(1000):
        yield frames.frame(frames.CONTINUATION, 0, 1, b"\x00\x01a\x01b")


def empty_continuations(raw: RawHttp2, _: DataPlane) -> Iterator[bytes]:
    yield frames.frame(frames.HEADERS, frames.END_STREAM, 1, raw.block(health()))
    for _number in range(1000):
        yield frames.frame(frames.CONTINUATION, 0, 1)


def empty_data(raw: RawHttp2, plane: DataPlane) -> Iterator[bytes]:
    """CVE-2019-9518."""
    upstream = plane.serve()
    fields = [(":method", "POST"), *H[1:3], (":path", f"{upstream.path}/x"), ("x-api-key", plane.key)]
    yield raw.head(1, fields, ended=False)
    for _ in range(1000):
        yield frames.frame(frames.DATA, 0, 1)


def pings(_raw: RawHttp2, _: DataPlane) -> Iterator[bytes]:
    """CVE-2019-9512."""
    for _number in range(1000):
        yield ping()


def settings_frames(_raw: RawHttp2, _: DataPlane) -> Iterator[bytes]:
    """CVE-2019-9515."""
    for _number in range(1000):
        yield frames.settings({})


def priorities(_raw: RawHttp2, _: DataPlane) -> Iterator[bytes]:
    for number in range(10_000):
        yield frames.frame(frames.PRIORITY, 0, 2 * number + 1, bytes(5))


def malformed_requests(raw: RawHttp2, _: DataPlane) -> Iterator[bytes]:
    """Each makes us reset a stream."""
    for stream in range(1, 2001, 2):
        yield raw.head(stream, [*H, ("connection", "x")])


def large_tables(raw: RawHttp2, _: DataPlane) -> Iterator[bytes]:
    """A field of 4,000 bytes, named 50,000 times by a byte each: 200 MB (CVE-2016-6581)."""
    entry = b"\x40\x01x" + b"\x7f\xa1\x1e" + b"y" * 4000  # literal with incremental indexing
    block = b"\x82\x87\x84" + entry + b"\xbe" * 12_000  # after :method, :scheme and :path of the static table
    yield frames.frame(frames.HEADERS, frames.END_HEADERS | frames.END_STREAM, 1, block)


@pytest.mark.parametrize(
    "flood",
    [rapid_resets, continuations, empty_continuations, empty_data, pings, settings_frames, priorities,
     malformed_requests, large_tables],
)  # fmt: skip
def test_a_flood_ends_its_connection_and_costs_no_memory(
    plane: DataPlane, raw: RawHttp2, flood: Callable[[RawHttp2, DataPlane], Iterator[bytes]]
) -> None:
    before = plane.rss_mib()
    raw.send(*flood(raw, plane))
    assert raw.goaway_code() == frames.ENHANCE_YOUR_CALM
    assert plane.rss_mib() < before + 16
    assert plane.ask("GET", "/health").status == 200


def test_a_client_that_reads_nothing_is_not_read_either(plane: DataPlane, ca: trustme.CA) -> None:
    """Header sections know no windows: answers without a body would gather without end."""
    before = plane.rss_mib()
    with RawHttp2(plane.settings.tls_port, trusting(ca, "h2"), receive_buffer=4096) as raw:
        block = raw.block([(":method", "HEAD"), *H[1:], ("x-pad", "~" * 500)])
        flags = frames.END_HEADERS | frames.END_STREAM
        raw.transport.socket.settimeout(3)
        stream = 1
        while stream < 800_000:
            requests = (frames.frame(frames.HEADERS, flags, stream + 2 * number, block) for number in range(100))
            try:
                raw.transport.socket.sendall(b"".join(requests))
            except OSError:
                break  # the socket is full and stays so, or the gateway has given up
            stream += 200
        assert stream < 800_000
        assert plane.rss_mib() < before + 16
        assert plane.ask("GET", "/health").status == 200


# --- time ------------------------------------------------------------------------------------------------------------
def test_a_connection_without_a_request_is_given_up(plane: DataPlane, ca: trustme.CA) -> None:
    began = time.monotonic()
    with RawHttp2(plane.settings.tls_port, trusting(ca, "h2")) as idle:
        block = idle.block(health())
        with RawHttp2(plane.settings.tls_port, trusting(ca, "h2")) as slow:
            slow.send(frames.frame(frames.HEADERS, frames.END_STREAM, 1, block))  # and no end of it
            idle.transport.socket.settimeout(30)
            slow.transport.socket.settimeout(30)
            assert idle.goaway_code() == frames.NO_ERROR
            assert slow.goaway_code() == frames.NO_ERROR
    assert time.monotonic() - began > 8


@pytest.mark.parametrize("takes", [True, False])
def test_a_client_is_given_up_when_it_takes_nothing_and_not_because_it_is_slow(takes: bool) -> None:
    gateway = RecordingGateway(holds_answers=True)
    protocol, transport = connected(gateway)
    request = frames.frame(frames.HEADERS, frames.END_HEADERS | frames.END_STREAM, 1, Encoder().encode(health()))
    protocol.data_received(frames.PREFACE + frames.settings({}) + request)
    transport.unsent = 100_000
    protocol.pause_writing()
    protocol.streams[1].answer(200, b"content-length: 20000\r\n", b"x" * 20_000)
    for _ in range(40):
        gateway.time_s += FLUSH_S / 10
        transport.unsent -= 1000 if takes else 0
        if transport.is_open and protocol.deadline <= gateway.time_s:
            protocol.sweep(gateway.time_s)
    assert transport.is_open == takes
    if takes:
        protocol.resume_writing()
        assert transport.written.endswith(frames.frame(frames.DATA, frames.END_STREAM, 1, b"x" * (20_000 - 16_384)))


@pytest.mark.parametrize("takes", [True, False])
def test_a_client_may_take_the_last_answers_slowly_when_its_connection_ends(takes: bool) -> None:
    gateway = RecordingGateway()
    protocol, transport = connected(gateway)
    protocol.data_received(frames.PREFACE + frames.settings({}) + frames.settings({})[:-1] + b"x")
    protocol.data_received(frames.frame(frames.DATA, 0, 0, b"no stream"))
    assert transport.ended == "closed"
    transport.unsent = 100_000
    for _ in range(40):
        gateway.time_s += FLUSH_S / 10
        transport.unsent -= 1000 if takes else 0
        if protocol.deadline <= gateway.time_s:
            protocol.sweep(gateway.time_s)
    assert transport.ended == ("closed" if takes else "aborted")


# --- the end of a worker ---------------------------------------------------------------------------------------------
def test_a_worker_that_stops_says_so_and_finishes_what_has_begun(
    start_plane: Start, directory: Path, ca: trustme.CA
) -> None:
    plane = start_plane(**tls_settings(directory))
    goes_on = threading.Event()

    def slow(peer: Peer) -> None:
        if peer.read_request() is not None:
            assert goes_on.wait(30)
            peer.send(OK)

    upstream = plane.serve(slow)
    with RawHttp2(plane.settings.tls_port, trusting(ca, "h2")) as raw:
        raw.send(raw.head(5, [*H[:3], (":path", f"{upstream.path}/x"), ("x-api-key", plane.key)]))
        upstream.wait_for()
        plane.terminate()
        _, goaway = raw.until(frames.GOAWAY)
        assert goaway == struct.pack("!II", 5, frames.NO_ERROR)
        raw.send(raw.head(7, [*H[:3], (":path", f"{upstream.path}/late"), ("x-api-key", plane.key)], ended=False))
        raw.send(frames.frame(frames.DATA, frames.END_STREAM, 7, b"x"))  # the client may send it again elsewhere
        assert not is_listening(plane.settings.tls_port)
        goes_on.set()
        assert raw.status(5) == 200
        assert raw.goaway_code() == frames.NO_ERROR
    assert plane.process.wait(30) == 0
    assert len(upstream.requests) == 1


def test_a_client_is_told_between_two_requests_to_go_elsewhere(
    start_plane: Start, directory: Path, ca: trustme.CA
) -> None:
    plane = start_plane(**tls_settings(directory))
    upstream = plane.serve()
    with connect(plane, ca) as client:
        plane.terminate()
        statuses = []
        while not client.goaways:
            statuses.append(client.ask("GET", f"{upstream.path}/x").status)
            client.receive()
        assert set(statuses) == {200}
        assert client.end() == (max(client.answers), ErrorCodes.NO_ERROR)
    assert plane.process.wait(30) == 0


# --- turns ------------------------------------------------------------------------------------------------------------
def test_hundreds_of_requests_at_once_leave_others_their_turns(plane: DataPlane, raw: RawHttp2) -> None:
    many = [raw.head(stream, [(":method", "HEAD"), *H[1:3], (":path", "/many")]) for stream in range(1, 801, 2)]
    with plane.connect() as other:
        assert other.send(plane.request("GET", "/health")).answer().status == 200
        raw.send(many[0])
        assert raw.status(1) == 404
        plane.process.send_signal(signal.SIGSTOP)  # so that all of it is there at once
        try:
            raw.send(*many[1:])
            other.send(plane.request("GET", "/other"))
        finally:
            plane.process.send_signal(signal.SIGCONT)
        assert other.answer().status == 404
        assert [raw.status(stream) for stream in range(3, 801, 2)] == [404] * 399

    def paths() -> list[str]:
        return [line["path"] for line in plane.log_lines() if line["path"] in ("/many", "/other")]

    eventually(lambda: len(paths()) == 401, what="the lines of all requests")
    assert paths().index("/other") < 400


# --- whatever arrives ------------------------------------------------------------------------------------------------
def connected(gateway: RecordingGateway) -> tuple[Http2Protocol, MemoryTransport]:
    protocol = Http2Protocol(SimpleNamespace(loaded_app=gateway), SimpleNamespace(connections=set()), b"\r\n")
    transport = MemoryTransport()
    protocol.connection_made(transport)
    return protocol, transport


def conversation() -> bytes:
    """Of a client that uses what there is: tables, padding, priorities, continuations, trailers, resets."""
    encoder = Encoder()
    post = [(":method", "POST"), *H[1:3], (":path", "/upload?x=1"), ("x-a", "b" * 200)]
    first, block = encoder.encode(health()), encoder.encode(post)  # in the order in which they are sent
    return b"".join(
        (
            frames.PREFACE + frames.settings({frames.INITIAL_WINDOW_SIZE: 100_000}),
            frames.frame(frames.HEADERS, frames.END_HEADERS | frames.END_STREAM, 1, first),
            frames.frame(frames.HEADERS, frames.PADDED, 3, b"\x04" + block[:20] + bytes(4)),
            frames.frame(frames.CONTINUATION, frames.END_HEADERS, 3, block[20:]),
            frames.frame(frames.DATA, frames.PADDED, 3, b"\x02abc" + bytes(2)),
            frames.frame(frames.HEADERS, frames.END_HEADERS | frames.END_STREAM, 5, encoder.encode(health())),
            frames.frame(frames.DATA, 0, 3, b"d" * 16_384),
            ping(),
            frames.frame(frames.HEADERS, frames.END_HEADERS | frames.END_STREAM, 3, encoder.encode([("x-t", "1")])),
            frames.frame(frames.HEADERS, frames.END_HEADERS, 7, encoder.encode(post)),
            frames.reset(7, frames.CANCEL),
            frames.window_update(0, 1000),
            frames.frame(frames.HEADERS, frames.END_HEADERS | frames.END_STREAM, 9, encoder.encode(health())),
        )
    )


CONVERSATION = conversation()


def requests(count: int) -> bytes:
    encoder, flags = Encoder(), frames.END_HEADERS | frames.END_STREAM
    sent = (frames.frame(frames.HEADERS, flags, 2 * number + 1, encoder.encode(health())) for number in range(count))
    return b"".join(sent)


def test_hundreds_of_requests_in_one_read_leave_others_their_turns() -> None:
    gateway = RecordingGateway()
    greedy, transport = connected(gateway)
    greedy.data_received(frames.PREFACE + frames.settings({}) + requests(300) + ping())
    assert len(gateway.requests) == http2.TURN_STREAMS
    assert transport.is_reading_paused
    connected(gateway)[0].data_received(frames.PREFACE + frames.settings({}) + requests(1))
    assert len(gateway.requests) == http2.TURN_STREAMS + 1
    greedy.data_received(ping())  # was on its way
    transport.written = b""
    gateway.loop.run()
    assert len(gateway.requests) == 301
    assert transport.written.endswith(2 * ping(frames.ACK))
    assert not transport.is_reading_paused


def test_what_waits_for_its_turn_when_the_client_leaves_is_forgotten() -> None:
    gateway = RecordingGateway()
    greedy, transport = connected(gateway)
    greedy.data_received(frames.PREFACE + frames.settings({}) + requests(300))
    transport.abort()
    greedy.connection_lost(None)
    gateway.loop.run()
    assert len(gateway.requests) == http2.TURN_STREAMS


def spoken(pieces: list[bytes]) -> tuple[list[Taken], bytes, str]:
    gateway = RecordingGateway()
    protocol, transport = connected(gateway)
    for piece in pieces:
        protocol.data_received(piece)
    gateway.loop.run()
    return gateway.requests, transport.written, transport.ended


@given(st.lists(st.integers(0, len(CONVERSATION)), max_size=12), st.sampled_from((1, 2, http2.TURN_STREAMS)))
def test_a_conversation_is_the_same_however_its_bytes_are_split(cuts: list[int], turn: int) -> None:
    edges = [0, *sorted(cuts), len(CONVERSATION)]
    pieces = [CONVERSATION[start:end] for start, end in itertools.pairwise(edges)]
    with patch.object(http2, "TURN_STREAMS", turn):
        requests, written, ended = spoken(pieces)
    assert [(each.method, each.path, each.is_whole) for each in requests] == [
        (b"GET", b"/health", True),
        (b"POST", b"/upload", True),
        (b"GET", b"/health", True),
        (b"POST", b"/upload", False),
        (b"GET", b"/health", True),
    ]
    assert requests[1].body == b"abc" + b"d" * 16_384
    assert (written, ended) == (spoken([CONVERSATION])[1], "")


FRAMES = st.builds(
    frames.frame,
    st.integers(0, 11),
    st.integers(0, 255),
    st.sampled_from((0, 1, 1, 1, 2, 3, 5, 2**31 - 1)),
    st.binary(max_size=40)
    | st.sampled_from((b"\x82\x87\x84\x41\x01a", b"\x83\x87\x84\x41\x01a", bytes(4), bytes(5), bytes(8))),
)


@settings(max_examples=500)
@given(st.lists(FRAMES, max_size=25), st.binary(max_size=20))
def test_any_frames_are_taken_or_end_the_connection_with_a_reason(sent: list[bytes], rest: bytes) -> None:
    _, written, ended = spoken([frames.PREFACE + frames.settings({}), *sent, rest])
    kinds, codes = [], []
    while written:
        size = int.from_bytes(written[:3], "big")
        kinds.append(written[3])
        if written[3] == frames.GOAWAY:
            codes.append(int.from_bytes(written[13:17], "big"))
        written = written[9 + size :]
    assert bool(ended) == bool(codes)
    assert all(code != frames.INTERNAL_ERROR for code in codes)
    assert not codes or kinds[-1] == frames.GOAWAY


# --- header sections -------------------------------------------------------------------------------------------------
FIELD_NAMES = st.from_regex(r"[A-Za-z][A-Za-z0-9-]{0,30}", fullmatch=True)
FIELD_VALUES = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=300)


@settings(max_examples=200)
@given(st.integers(100, 599), st.lists(st.tuples(FIELD_NAMES | st.sampled_from(["Set-Cookie", "Date"]), FIELD_VALUES)))
def test_any_header_section_reads_as_it_was_written(status: int, fields: list[tuple[str, str]]) -> None:
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields).encode()
    read = Decoder().decode(frames.NO_TABLE + frames.header_block(status, lines), raw=True)
    expected = [(":status", str(status)), *((name.lower(), value) for name, value in fields)]
    assert [(name.decode(), value.decode()) for name, value in read] == expected


@pytest.mark.parametrize("size", [0, 16_384, 16_385, 70_000])
def test_a_long_header_section_is_cut_into_frames(size: int) -> None:
    data, block = frames.header_frames(1, bytes(size), ends=True), b""
    flags: list[int] = []
    while data:
        length, kind, flag, _ = struct.unpack("!IBBI", b"\0" + data[:9])
        assert kind == (frames.CONTINUATION if flags else frames.HEADERS)
        flags.append(flag)
        block, data = block + data[9 : 9 + length], data[9 + length :]
    assert len(block) == size
    assert flags[0] & frames.END_STREAM
    assert [bool(flag & frames.END_HEADERS) for flag in flags] == [False] * (len(flags) - 1) + [True]


def test_all_names_of_the_static_table_are_those_of_the_standard() -> None:
    for name in frames.STATIC_NAMES:
        fields = list(Decoder().decode(frames.header_block(200, name + b": 1\r\n"), raw=True))
        assert fields[1] == (name, b"1")

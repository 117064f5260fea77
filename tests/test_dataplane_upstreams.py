"""Upstreams that fail, lie or dawdle, and what the client learns of it (rules 7, 8, 9, 25; RFC 9209)."""

import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
import trustme

from tests.dataplane import DataPlane, failed
from tests.gateway_process import eventually
from tests.private_servers import free_port
from tests.raw_http import CutShort
from tests.scripted_upstream import OK, TIMEOUT_S, Peer, Script, Upstream, closing, replying
from tests.wires import route_wire


# --- connecting ------------------------------------------------------------------------------------------------------
def test_an_upstream_that_refuses_is_502(plane: DataPlane) -> None:
    upstream = plane.serve(default_url=f"http://127.0.0.1:{free_port()}")
    answer = plane.ask("GET", f"{upstream.path}/x")
    failed(answer, 502, "upstream_connect_failed", "connection_refused")
    assert f'next-hop="{upstream.path.rpartition("/")[2]}"' in (answer.field("proxy-status") or "")


@pytest.fixture
def unreachable() -> Iterator[str]:
    """A URL whose server neither accepts nor refuses: its queue is full."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(2):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_an_upstream_that_does_not_accept_is_504_when_the_time_is_up(plane: DataPlane, unreachable: str) -> None:
    upstream = plane.serve(default_url=unreachable, request_timeout_ms=300)
    failed(plane.ask("GET", f"{upstream.path}/x"), 504, "upstream_timeout", "connection_timeout")


def test_an_unknown_name_is_502(plane: DataPlane) -> None:
    upstream = plane.serve(default_url="http://nowhere.invalid")
    failed(plane.ask("GET", f"{upstream.path}/x"), 502, "upstream_connect_failed", "dns_error")


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254",
        "http://[fe80::1]",
        "http://0.0.0.0",
        "http://[::ffff:169.254.169.254]",
        "http://10.1.2.3",
        "http://224.0.0.1",
    ],
)
def test_an_address_that_the_egress_policy_forbids_is_502_and_never_connected_to(plane: DataPlane, url: str) -> None:
    upstream = plane.serve(default_url=url)
    failed(plane.ask("GET", f"{upstream.path}/x"), 502, "upstream_connect_failed", "destination_ip_prohibited")


def test_a_name_is_judged_by_the_address_that_it_resolves_to(start_plane: Callable[..., DataPlane]) -> None:
    plane = start_plane(egress_allow=())
    upstream = plane.serve(upstream=Upstream(host="localhost"))
    answer = plane.ask("GET", f"{upstream.path}/x")
    failed(answer, 502, "upstream_connect_failed", "destination_ip_prohibited")
    assert upstream.connections == 0


# --- TLS -------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def tls_plane(
    ca: trustme.CA, tmp_path_factory: pytest.TempPathFactory, start_module_plane: Callable[..., DataPlane]
) -> DataPlane:
    bundle = tmp_path_factory.mktemp("ca") / "ca.pem"
    ca.cert_pem.write_to_path(str(bundle))
    return start_module_plane(environment={"SSL_CERT_FILE": str(bundle)})


def tls_server(ca: trustme.CA, name: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert(name).configure_cert(context)
    return context


def test_an_upstream_with_a_valid_certificate_is_reached_and_its_connection_used_again(
    tls_plane: DataPlane, ca: trustme.CA
) -> None:
    upstream = tls_plane.serve(upstream=Upstream(tls=tls_server(ca, "localhost"), host="localhost"))
    body = b"x" * 200_000
    for _ in range(3):
        assert tls_plane.ask("POST", f"{upstream.path}/x", body=body).body == b"ok"
    assert upstream.connections == 1
    assert upstream.requests[-1].body == body


@pytest.mark.parametrize("wrong", ["name", "issuer"])
def test_a_certificate_that_is_not_valid_is_502_and_nothing_is_sent(
    tls_plane: DataPlane, ca: trustme.CA, wrong: str
) -> None:
    issuer, name = (ca, "other.test") if wrong == "name" else (trustme.CA(), "localhost")
    upstream = tls_plane.serve(upstream=Upstream(tls=tls_server(issuer, name), host="localhost"))
    answer = tls_plane.ask("GET", f"{upstream.path}/x")
    failed(answer, 502, "upstream_connect_failed", "tls_certificate_error")
    assert upstream.requests == []


def test_an_upstream_that_speaks_no_tls_is_502(tls_plane: DataPlane) -> None:
    upstream = tls_plane.serve(lambda peer: peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n"))
    wire = tls_plane.feed.records("service")[f"svc_{upstream.path.rpartition('/')[2]}"]
    tls_plane.feed.put("service", wire | {"default_url": upstream.url.replace("http:", "https:")})
    failed(tls_plane.ask("GET", f"{upstream.path}/x"), 502, "upstream_connect_failed", "tls_protocol_error")


# --- time ------------------------------------------------------------------------------------------------------------
def hanging(peer: Peer) -> None:
    peer.read_request()
    peer.wait_for_end()


def test_an_upstream_that_does_not_answer_is_504_when_the_time_is_up(plane: DataPlane) -> None:
    upstream = plane.serve(hanging, request_timeout_ms=300)
    for ask in (("GET", None), ("POST", b"body")):
        began = time.monotonic()
        answer = plane.ask(ask[0], f"{upstream.path}/x", body=ask[1])
        failed(answer, 504, "upstream_timeout", "http_response_timeout")
        assert time.monotonic() - began >= 0.3
    assert len(upstream.requests) == 2  # neither was sent again


def test_half_an_answers_head_is_not_the_first_byte(plane: DataPlane) -> None:
    def script(peer: Peer) -> None:
        peer.read_request()
        peer.send(b"HTTP/1.1 200 OK\r\n")
        peer.wait_for_end()

    upstream = plane.serve(script, request_timeout_ms=300)
    failed(plane.ask("GET", f"{upstream.path}/x"), 504, "upstream_timeout", "http_response_timeout")


def test_a_route_may_limit_the_whole_time(plane: DataPlane) -> None:
    def script(peer: Peer) -> None:
        peer.read_request()
        peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            peer.send(b"1\r\n.\r\n")
            time.sleep(0.05)

    upstream = plane.serve(script)
    name = upstream.path.rpartition("/")[2]
    plane.feed.put("route", route_wire("rte_total", "/api/total", service=name, total_timeout_ms=500))
    began = time.monotonic()
    with plane.connect() as client, pytest.raises(CutShort):
        client.send(plane.request("GET", "/api/total")).answer()
    assert 0.5 <= time.monotonic() - began < 5


def test_an_answer_may_take_longer_than_the_time_for_its_beginning(plane: DataPlane) -> None:
    pieces = [b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", *[b"x"] * 5]

    def script(peer: Peer) -> None:
        peer.read_request()
        for piece in pieces:
            peer.send(piece)
            time.sleep(0.15)  # five of them are longer than the limit

    upstream = plane.serve(script, request_timeout_ms=400)
    assert plane.ask("GET", f"{upstream.path}/x").body == b"xxxxx"


# --- reuse and rule 8 ------------------------------------------------------------------------------------------------
def closing_at_reuse(is_reset: bool) -> Script:
    """Answers the first request of the first connection; closes upon the second. Later connections are honest."""

    def script(peer: Peer) -> None:
        while peer.read_request() is not None:
            if peer.number == 1 and len([each for each in peer.upstream.requests if each.connection == 1]) == 2:
                peer.reset() if is_reset else peer.close()
                return
            peer.send(OK)

    return script


@pytest.mark.parametrize("is_reset", [False, True], ids=["close", "reset"])
@pytest.mark.parametrize(
    ("method", "body", "status"),
    [
        ("GET", None, 200),
        ("HEAD", None, 200),
        ("DELETE", None, 200),
        ("PUT", b"x" * 1000, 200),
        ("PUT", b"x" * 60_000, 200),
        ("PUT", b"x" * 500_000, 502),
        ("POST", None, 502),
        ("POST", b"x" * 1000, 502),
        ("PATCH", b"x", 502),
    ],
    ids=lambda value: str(len(value)) if isinstance(value, bytes) else str(value),
)
def test_a_request_whose_reused_connection_dies_is_sent_again_only_if_that_is_safe(
    plane: DataPlane, method: str, body: bytes | None, status: int, is_reset: bool
) -> None:
    upstream = plane.serve(closing_at_reuse(is_reset))
    assert plane.ask("GET", f"{upstream.path}/first").status == 200
    answer = plane.ask(method, f"{upstream.path}/x", body=body)
    assert answer.status == status
    if status == 200:
        assert [each.body for each in upstream.requests[1:]] == [body or b""] * 2
        assert [each.connection for each in upstream.requests] == [1, 1, 2]
    else:
        assert answer.code == "upstream_reset"
        assert len(upstream.requests) <= 2
        assert upstream.connections == 1


@pytest.mark.parametrize("is_chunked", [False, True], ids=["sized", "chunked"])
def test_a_body_that_is_still_arriving_is_sent_again_whole(plane: DataPlane, is_chunked: bool) -> None:
    def script(peer: Peer) -> None:
        if peer.number == 1:
            peer.read_request()
            peer.send(OK)
            peer.read_head()
            peer.read(5)
            return
        while peer.read_request() is not None:
            peer.send(OK)

    upstream = plane.serve(script)
    assert plane.ask("GET", f"{upstream.path}/first").status == 200
    field = "Transfer-Encoding: chunked" if is_chunked else "Content-Length: 2000"
    with plane.connect() as client:
        client.send(plane.request("PUT", f"{upstream.path}/x", field))
        client.send(b"3e8\r\n" + b"a" * 1000 + b"\r\n" if is_chunked else b"a" * 1000)
        eventually(lambda: upstream.connections == 2, what="the second connection")
        client.send(b"3e8\r\n" + b"b" * 1000 + b"\r\n0\r\n\r\n" if is_chunked else b"b" * 1000)
        assert client.answer("PUT").status == 200
    assert upstream.requests[-1].body == b"a" * 1000 + b"b" * 1000


def test_what_arrives_between_two_tries_is_sent_too(plane: DataPlane) -> None:
    """The reused connection is found dead while the worker still has much of a read to look at. Which of both it hears
    of first is chance: hence several rounds."""
    may_close, is_closed = threading.Semaphore(0), threading.Semaphore(0)

    def script(peer: Peer) -> None:
        if peer.number % 2:
            peer.read_request()
            peer.send(OK)
            assert may_close.acquire(timeout=TIMEOUT_S)
            peer.reset()
            is_closed.release()
        elif peer.read_request() is not None:
            peer.send(OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))

    upstream = plane.serve(script)
    chunk = b"4000\r\n" + b"x" * 0x4000 + b"\r\n"
    with plane.connect() as client:
        warm_up = plane.request("PUT", plane.serve().path, body=b"x" * 4_000_000)  # so that much is read at once
        assert client.send(warm_up).answer("PUT").status == 200
        for number in range(1, 9):
            assert client.send(plane.request("GET", upstream.path)).answer().status == 200
            plane.process.send_signal(signal.SIGSTOP)
            may_close.release()
            assert is_closed.acquire(timeout=TIMEOUT_S)
            client.send(plane.request("PUT", upstream.path, "Transfer-Encoding: chunked") + chunk * 12)
            plane.process.send_signal(signal.SIGCONT)
            eventually(lambda: upstream.connections == 2 * number, what="the second connection")  # noqa: B023
            client.send(chunk + b"0\r\n\r\n")
            assert client.answer("PUT").status == 200
            assert len(upstream.requests[-1].body) == 13 * 0x4000


def test_a_route_may_declare_that_posts_are_safe_to_send_again(plane: DataPlane) -> None:
    upstream = plane.serve(closing_at_reuse(False))
    name = upstream.path.rpartition("/")[2]
    plane.feed.put("route", route_wire("rte_again", "/api/again", service=name, retry_unsafe_methods=True))
    assert plane.ask("GET", "/api/again").status == 200
    assert plane.ask("POST", "/api/again", body=b"abc").status == 200
    assert [each.body for each in upstream.requests] == [b"", b"abc", b"abc"]


def test_a_connection_that_closed_while_idle_costs_no_request_anything(plane: DataPlane) -> None:
    upstream = plane.serve(closing(OK))
    for _ in range(20):
        assert plane.ask("POST", f"{upstream.path}/x", body=b"abc").status == 200
        eventually(lambda: upstream.open_connections == 0, what="the end of the connection")
    assert len(upstream.requests) == 20


def test_a_connection_that_closes_just_before_a_request_costs_it_nothing(plane: DataPlane) -> None:
    """The worker hears of both at once, and a POST is not sent again."""
    may_close, is_closed = threading.Semaphore(0), threading.Semaphore(0)

    def script(peer: Peer) -> None:
        peer.read_request()
        peer.send(OK)
        assert may_close.acquire(timeout=TIMEOUT_S)
        peer.close()
        is_closed.release()

    upstream = plane.serve(script)
    with plane.connect() as client:
        for _ in range(8):
            assert client.send(plane.request("POST", f"{upstream.path}/x", body=b"abc")).answer().status == 200
            plane.process.send_signal(signal.SIGSTOP)
            may_close.release()
            assert is_closed.acquire(timeout=TIMEOUT_S)
            client.send(plane.request("POST", f"{upstream.path}/x", body=b"abc"))
            plane.process.send_signal(signal.SIGCONT)
            assert client.answer("POST").status == 200
            may_close.release()
            assert is_closed.acquire(timeout=TIMEOUT_S)
            eventually(lambda: upstream.open_connections == 0, what="the end of the connection")


def test_an_answer_that_says_close_ends_the_upstreams_connection(plane: DataPlane) -> None:
    upstream = plane.serve(replying(OK.replace(b"\r\n\r\n", b"\r\nConnection: Close\r\n\r\n")))
    for _ in range(3):
        assert plane.ask("GET", f"{upstream.path}/x").status == 200
    assert [each.connection for each in upstream.requests] == [1, 2, 3]


def test_connections_are_used_again_one_exchange_at_a_time(plane: DataPlane) -> None:
    upstream = plane.serve()
    for _ in range(10):
        assert plane.ask("GET", f"{upstream.path}/x").status == 200
    assert upstream.connections == 1


def test_an_answer_may_come_before_the_request_is_whole(plane: DataPlane) -> None:
    def script(peer: Peer) -> None:
        if peer.read_head() is not None:
            peer.send(b"HTTP/1.1 422 No\r\nContent-Length: 2\r\n\r\nno")
            peer.wait_for_end()

    upstream = plane.serve(script)
    with plane.connect() as client:
        client.send(plane.request("POST", f"{upstream.path}/x", "Content-Length: 5000000") + b"x" * 1000)
        answer = client.answer("POST")
        assert (answer.status, answer.body, answer.field("connection")) == (422, b"no", "close")
    with plane.connect() as client:  # of a body that is small enough, the rest is read and forgotten
        client.send(plane.request("POST", f"{upstream.path}/x", "Content-Length: 2000") + b"x" * 1000)
        assert client.answer("POST").status == 422
        client.send(b"x" * 1000 + plane.request("GET", "/health"))
        assert client.answer().body == b'{"status":"ok"}'


# --- fallback (rule 7) -----------------------------------------------------------------------------------------------
def test_the_fallback_serves_when_no_byte_has_been_sent_and_gets_no_credentials(plane: DataPlane) -> None:
    fallback = plane.serve()
    url = f"{fallback.url}/standby"
    upstream = plane.serve(default_url=f"http://127.0.0.1:{free_port()}", fallback_url=url)
    fields = ["Authorization: Basic YTpi", "Cookie: session=1", "X-Other: 1"]
    answer = plane.ask("POST", f"{upstream.path}/x?q", *fields, body=b"abc")
    assert (answer.status, answer.body, answer.field("x-gateway-fallback")) == (200, b"ok", "true")
    seen = fallback.requests[-1]
    assert (seen.target, seen.body, seen.field("x-other")) == (b"/standby/x?q", b"abc", b"1")
    assert not seen.names & {"authorization", "cookie", "x-api-key"}
    assert plane.log_line(answer.field("x-request-id"))["status_code"] == 200


def test_the_fallback_serves_when_connecting_takes_too_long(plane: DataPlane, unreachable: str) -> None:
    fallback = plane.serve()
    upstream = plane.serve(default_url=unreachable, fallback_url=fallback.url, request_timeout_ms=300)
    assert plane.ask("GET", f"{upstream.path}/x").field("x-gateway-fallback") == "true"


@pytest.mark.parametrize(
    "script", [hanging, closing(b""), replying(b"nonsense\r\n\r\n"), replying(OK.replace(b"200", b"503"))]
)
def test_the_fallback_is_not_used_once_a_byte_was_sent(plane: DataPlane, script: Script) -> None:
    fallback = plane.serve()
    upstream = plane.serve(script, fallback_url=fallback.url, request_timeout_ms=300)
    assert plane.ask("GET", f"{upstream.path}/x").status in (502, 503, 504)
    assert fallback.requests == []


def test_a_fallback_that_fails_too_is_the_answer(plane: DataPlane) -> None:
    dead = f"http://127.0.0.1:{free_port()}"
    upstream = plane.serve(default_url=dead, fallback_url=dead)
    failed(plane.ask("GET", f"{upstream.path}/x"), 502, "upstream_connect_failed", "connection_refused")

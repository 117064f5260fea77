"""The same pipeline under an ASGI server that is not ours: uvicorn with its stock protocols."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from gateway_project.dataplane.app import Gateway
from tests.dataplane import DataPlane
from tests.gateway_process import eventually
from tests.raw_http import CutShort, chunked
from tests.raw_http import request as request_bytes
from tests.scripted_upstream import OK, TIMEOUT_S, Peer, Upstream, closing
from tests.websocket_peers import ASKS
from tests.wires import application_wire, entry_wire, route_wire

MIB = 1024 * 1024


class AsgiPlane(DataPlane):
    """The gateway as an ASGI application, served by a thread of the test."""

    def __init__(self, directory: Path, http: str) -> None:
        super().__init__(directory, max_body_bytes=4 * MIB)
        options: dict[str, Any] = {"http": http, "ws": "websockets-sansio", "log_config": None, "proxy_headers": False}
        config = uvicorn.Config(Gateway(self.settings), "127.0.0.1", self.port, **options)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run)

    def start(self) -> "AsgiPlane":
        self._thread.start()
        eventually(lambda: self._server.started, TIMEOUT_S, "the server's start")
        self.feed.wait_for_worker()
        return self

    def close(self) -> None:
        try:
            super().close()
        finally:
            self._server.should_exit = True
            self._thread.join(TIMEOUT_S)


@pytest.fixture(scope="module", params=["h11", "httptools"])
def asgi(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AsgiPlane]:
    plane = AsgiPlane(tmp_path_factory.mktemp("asgi"), request.param).start()
    yield plane
    plane.close()


@pytest.fixture(scope="module")
def upstream(asgi: AsgiPlane) -> Upstream:
    return asgi.serve()


def test_a_get_is_proxied_with_its_fields(asgi: AsgiPlane, upstream: Upstream) -> None:
    answer = asgi.ask("GET", f"{upstream.path}/a%2Fb?q=%20", "X-Other: 1", "X-Forwarded-For: 6.6.6.6", "Cookie: a=1")
    assert (answer.status, answer.body) == (200, b"ok")
    assert answer.field("x-request-id") and answer.field("ratelimit")
    seen = upstream.requests[-1]
    assert seen.target == b"/a%2Fb?q=%20"
    assert (seen.field("x-other"), seen.field("x-forwarded-for")) == (b"1", b"127.0.0.1")
    assert (seen.field("cookie"), seen.field("x-api-key")) == (b"a=1", None)
    assert asgi.log_line(answer.field("x-request-id"))["status_code"] == 200


def test_head_has_no_body(asgi: AsgiPlane) -> None:
    upstream = asgi.serve(closing(OK[:-2]))
    with asgi.connect() as client:
        answer = client.send(asgi.request("HEAD", f"{upstream.path}/x")).answer("HEAD")
        assert (answer.status, answer.field("content-length")) == (200, "2")
        assert client.send(asgi.request("HEAD", "/health")).answer("HEAD").status == 200


@pytest.mark.parametrize("is_chunked", [False, True], ids=["sized", "chunked"])
@pytest.mark.parametrize("size", [0, 1, 1000, 3 * MIB])
def test_a_body_reaches_the_upstream_whole(asgi: AsgiPlane, upstream: Upstream, size: int, is_chunked: bool) -> None:
    body = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    with asgi.connect() as client:
        if is_chunked:
            client.send(asgi.request("POST", f"{upstream.path}/x", "Transfer-Encoding: chunked"))
            client.send(chunked(body) if body else chunked())
        else:
            client.send(asgi.request("POST", f"{upstream.path}/x", body=body))
        assert client.answer("POST").status == 200
    assert upstream.requests[-1].body == body


@pytest.mark.parametrize("is_chunked", [False, True], ids=["sized", "chunked"])
def test_a_body_that_the_route_changes_reaches_the_upstream_changed(asgi: AsgiPlane, is_chunked: bool) -> None:
    upstream = asgi.serve()
    name = upstream.path.rpartition("/")[2]
    policies = {"transformation": {"request": {"body": {"set": [{"path": "by", "value": "gateway"}]}}}}
    asgi.feed.put("route", route_wire(f"rte_{name}", f"/api/{name}", service=name, policies=policies))
    with asgi.connect() as client:
        fields = ["Content-Type: application/json", *(["Transfer-Encoding: chunked"] if is_chunked else [])]
        for _ in range(2):
            if is_chunked:
                client.send(asgi.request("POST", f"/api/{name}", *fields) + chunked(b'{"a"', b":1}"))
            else:
                client.send(asgi.request("POST", f"/api/{name}", *fields, body=b'{"a":1}'))
            assert client.answer("POST").status == 200
            assert upstream.requests[-1].body == b'{"a":1,"by":"gateway"}'


@pytest.mark.parametrize("is_chunked", [False, True], ids=["sized", "chunked"])
def test_a_body_over_the_limit_is_413(asgi: AsgiPlane, upstream: Upstream, is_chunked: bool) -> None:
    seen = len(upstream.requests)
    body = b"x" * (4 * MIB + 1)
    with asgi.connect() as client:
        if is_chunked:
            client.send_what_is_taken(asgi.request("POST", f"{upstream.path}/x", "Transfer-Encoding: chunked"))
            client.send_what_is_taken(chunked(body))
        else:
            client.send_what_is_taken(asgi.request("POST", f"{upstream.path}/x", body=body))
        assert client.answer("POST").code == "payload_too_large"
    assert len(upstream.requests) == seen


def test_an_answer_streams(asgi: AsgiPlane) -> None:
    may_go_on = threading.Semaphore(0)

    def script(peer: Peer) -> None:
        if peer.read_request() is None:
            return
        peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for number in range(3):
            assert may_go_on.acquire(timeout=TIMEOUT_S)
            peer.send(b"1\r\n%d\r\n" % number)
        peer.send(b"0\r\n\r\n")

    upstream = asgi.serve(script)
    with asgi.connect() as client:
        _, body = client.send(asgi.request("GET", f"{upstream.path}/x")).begin_answer()
        for number in range(3):
            may_go_on.release()
            assert next(body) == b"%d" % number
        assert list(body) == []


def test_a_large_answer_arrives_whole(asgi: AsgiPlane) -> None:
    size = 20 * MIB

    def script(peer: Peer) -> None:
        if peer.read_request() is None:
            return
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        for _ in range(size // 65536):
            peer.send(b"x" * 65536)

    upstream = asgi.serve(script)
    with asgi.connect(receive_buffer=65536) as client:
        _, body = client.send(asgi.request("GET", f"{upstream.path}/x")).begin_answer()
        assert sum(map(len, body)) == size


def test_refusals_are_the_same_documents(asgi: AsgiPlane, upstream: Upstream) -> None:
    for target, key, code in (
        (f"{upstream.path}/x", None, "missing_credentials"),
        (f"{upstream.path}/x", "nonsense", "invalid_credentials"),
        (f"{upstream.path}/a/../b", "", "bad_path"),
        (f"{upstream.path}/%2e%2e/b", "", "bad_path"),
        ("/nowhere", "", "no_route"),
    ):
        answer = asgi.ask("GET", target, key=key)
        assert answer.code == code
        assert answer.problem["request_id"] == answer.field("x-request-id")
    assert asgi.ask("GET", f"{upstream.path}/x", "X-Long: " + "a" * 9000).code == "header_too_large"


def test_an_upstream_that_fails_is_502_and_one_that_is_cut_off_is_seen(asgi: AsgiPlane) -> None:
    assert asgi.ask("GET", f"{asgi.serve(closing(b'nonsense')).path}/x").code == "upstream_invalid_response"
    cut = asgi.serve(closing(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n", b"part"))
    with asgi.connect() as client, pytest.raises(CutShort):
        client.send(asgi.request("GET", f"{cut.path}/x")).answer()


@pytest.mark.parametrize("beginning", [b"", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"])
@pytest.mark.parametrize("body", [None, b"half"], ids=["GET", "upload"])
def test_an_upstream_learns_that_the_client_left(asgi: AsgiPlane, body: bytes | None, beginning: bytes) -> None:
    has_begun, noticed = threading.Event(), threading.Event()

    def script(peer: Peer) -> None:
        if peer.read_head() is None:
            return
        peer.send(beginning)
        has_begun.set()
        peer.wait_for_end()
        noticed.set()

    upstream = asgi.serve(script)
    with asgi.connect() as client:
        fields = [] if body is None else ["Content-Length: 1000"]
        method = "GET" if body is None else "POST"
        client.send(asgi.request(method, f"{upstream.path}/x", *fields) + (body or b""))
        assert has_begun.wait(TIMEOUT_S)
        if beginning:
            client.begin_answer(method)
        client.socket.close()
        assert noticed.wait(2.0), "the upstream has not learnt that the client left"


def test_any_http_client_is_served(asgi: AsgiPlane, upstream: Upstream) -> None:
    with httpx.Client(base_url=f"http://127.0.0.1:{asgi.port}", headers={"X-API-Key": asgi.key}) as client:
        for _ in range(3):
            assert client.post(f"{upstream.path}/x", json={"a": 1}).text == "ok"
        assert client.get("/health").json() == {"status": "ok"}


def test_public_endpoints_and_routes_hold_here_too(asgi: AsgiPlane, upstream: Upstream) -> None:
    name = upstream.path.rpartition("/")[2]
    asgi.feed.put("route", route_wire("rte_1", "/api/routed/{id}", service=name, methods=["GET"]))
    entry = entry_wire("wle_1", "/api/routed/*", is_public=True)
    asgi.feed.put("application", application_wire(id="app_p", endpoint_mode="listed", entries=[entry]))
    assert asgi.ask("GET", "/api/routed/7", key=None).status == 200
    assert asgi.ask("POST", "/api/routed/7").field("allow") == "GET"


def test_websockets_are_refused_here(asgi: AsgiPlane) -> None:
    with asgi.connect() as client:
        answer = client.send(request_bytes("GET", "/api/v1/any", *ASKS)).answer()
        assert answer.status == 403

"""Copies of requests for another version, through a running worker (R21, rule 10)."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack
from typing import Any

import pytest

from tests.dataplane import DataPlane
from tests.gateway_process import eventually
from tests.raw_http import Answer
from tests.scripted_upstream import OK, Peer, Seen, Upstream, replying
from tests.wires import application_wire, route_wire, version_wire

A_MOMENT_S = 0.3  # long enough for a copy that must not come


class Mirrored:
    """A service whose version v1 answers and whose requests are copied to v2."""

    def __init__(
        self,
        plane: DataPlane,
        mirror: Upstream | None = None,
        *,
        wire: dict[str, Any] | None = None,
        policies: dict[str, Any] | None = None,
        **policy: Any,
    ) -> None:
        self.plane = plane
        self.mirror = mirror or Upstream(replying(OK))
        versions = [version_wire("v1", 1, ""), version_wire("v2", 0, self.mirror.url + "/base")]
        self.real = Upstream(replying(OK))
        versions[0] |= wire or {"url": self.real.url}
        plane._upstreams.append(self.mirror)
        document = {"version": "v2"} | policy
        plane.serve(
            upstream=self.real, default_url="", versions=versions, policies={"mirroring": document} | (policies or {})
        )
        self.path = self.real.path
        self.name = self.path.rpartition("/")[2]

    def ask(self, method: str = "GET", rest: str = "/x", *fields: str, **options: Any) -> Answer:
        return self.plane.ask(method, self.path + rest, *fields, **options)

    def copies(self, count: int) -> list[Seen]:
        eventually(lambda: len(self.mirror.requests) >= count, what=f"{count} copies")
        return self.mirror.requests

    def counted(self) -> dict[str, int]:
        """As the worker last told the agent."""
        reports = [message for message in self.plane.feed.heard if message["type"] == "metrics"]
        counters = reports[-1]["counters"] if reports else []
        return {
            labels["result"]: number
            for name, labels, number in counters
            if name == "api_gateway_mirrored_requests_total" and labels["service"] == self.name
        }

    def until_counted(self, **results: int) -> None:
        eventually(lambda: self.counted() == results, what=f"{results}, not {self.counted()}")


def test_the_other_version_gets_what_the_first_one_gets(plane: DataPlane) -> None:
    service = Mirrored(plane)
    fields = ("X-Custom: a", "Cookie: a=b", "Authorization: Basic dTpw", "Accept: text/plain", "X-Gateway-Mirrored: no")
    assert service.ask("GET", "/a%2Fb?c=d", *fields).status == 200
    (copy,) = service.copies(1)
    (real,) = service.real.requests
    assert copy.target == b"/base" + real.target
    assert copy.field("x-gateway-mirrored") == b"true"
    mine = {name.lower(): value for name, value in real.fields if name.lower() != b"host"}
    copied = {
        name.lower(): value for name, value in copy.fields if name.lower() not in (b"host", b"x-gateway-mirrored")
    }
    assert copied == mine
    assert real.field("x-gateway-mirrored") is None
    service.until_counted(answered=1)


@pytest.mark.parametrize("is_chunked", [False, True], ids=["sized", "chunked"])
@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_bodies_are_copied_whole(plane: DataPlane, method: str, is_chunked: bool) -> None:
    service = Mirrored(plane)
    body = bytes(range(256)) * 100
    if is_chunked:
        with plane.connect() as client:
            head = plane.request(method, f"{service.path}/x", "Transfer-Encoding: chunked")
            client.send(head)
            for start in range(0, len(body), 10_000):
                piece = body[start : start + 10_000]
                client.send(b"%x\r\n%b\r\n" % (len(piece), piece))
            assert client.send(b"0\r\n\r\n").answer(method).status == 200
    else:
        assert service.ask(method, body=body).status == 200
    (copy,) = service.copies(1)
    assert (copy.method, copy.body) == (method.encode(), body)
    assert service.real.requests[0].body == body


@pytest.mark.parametrize("is_chunked", [False, True], ids=["sized", "chunked"])
def test_a_body_over_the_limit_passes_and_is_not_copied(plane: DataPlane, is_chunked: bool) -> None:
    service = Mirrored(plane, maxBodyBytes=1000)
    body = b"x" * 1001
    if is_chunked:
        with plane.connect() as client:
            client.send(plane.request("POST", f"{service.path}/x", "Transfer-Encoding: chunked"))
            answer = client.send(b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)).answer("POST")
    else:
        answer = service.ask("POST", body=body)
    assert answer.status == 200
    assert service.real.requests[0].body == body
    service.until_counted(too_large=1)
    assert service.ask("POST", body=b"x" * 1000).status == 200
    assert [len(copy.body) for copy in service.copies(1)] == [1000]


def test_a_body_that_is_sent_again_as_it_arrives_is_copied_too(plane: DataPlane) -> None:
    tries: list[Peer] = []

    def script(peer: Peer) -> None:
        tries.append(peer)
        if len(tries) == 1:
            peer.read_head()
            peer.read(5)
            return
        while peer.read_request() is not None:
            peer.send(OK)

    targets = [Upstream(script) for _ in range(2)]
    wire = {"url": targets[0].url, "targets": [[target.url, 1] for target in targets]}
    service = Mirrored(plane, policies={"retries": {"attempts": 1, "baseMs": 0}}, wire=wire)
    plane._upstreams += targets
    with plane.connect() as client:
        client.send(plane.request("PUT", f"{service.path}/x", "Content-Length: 2000") + b"a" * 1000)
        eventually(lambda: len(tries) == 2, what="the second try")
        client.send(b"b" * 1000)
        assert client.answer("PUT").status == 200
    assert service.copies(1)[0].body == b"a" * 1000 + b"b" * 1000


def test_the_share_is_kept(plane: DataPlane) -> None:
    service = Mirrored(plane, percent=30)
    with plane.connect() as client:
        for _ in range(300):
            client.send(plane.request("GET", f"{service.path}/x")).answer("GET")
    eventually(lambda: service.counted().get("answered", 0) == len(service.mirror.requests), what="all copies")
    assert 45 < len(service.mirror.requests) < 140  # 90 ± 6 standard deviations


def test_what_the_version_itself_answers_is_not_copied(plane: DataPlane) -> None:
    service = Mirrored(plane)
    assert service.ask("GET", "/x", "X-API-Version: v2").status == 200
    service.ask("GET", "/last")
    assert [seen.target for seen in service.copies(2)] == [b"/base/x", b"/base/last"]
    assert service.mirror.requests[0].field("x-gateway-mirrored") is None


def test_what_is_refused_is_not_copied(plane: DataPlane) -> None:
    service = Mirrored(plane)
    plane.feed.put("application", application_wire(id="app_none", name="none", versions=["v7"]))
    forbidden = plane.new_key(application="app_none")
    assert service.ask(key=None).status == 401
    assert service.ask(key=forbidden).status == 403
    assert service.ask("GET", "/x", "X-API-Version: v9").status == 404
    assert service.ask("GET", "/x", "X-API-Version: 1", "Accept: a/b;version=2").status == 400
    service.ask("GET", "/last")
    assert [seen.target for seen in service.copies(1)] == [b"/base/last"]


def test_a_copy_charges_nobody(plane: DataPlane) -> None:
    service = Mirrored(plane)
    plane.feed.put("application", application_wire(id="app_two", name="two", rate_limit=2))
    key = plane.new_key(application="app_two")
    assert [service.ask(key=key).status for _ in range(3)] == [200, 200, 429]
    assert len(service.copies(2)) == 2


@pytest.mark.parametrize(
    "answer",
    [b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n", b"garbage\r\n\r\n", b""],
    ids=["503", "garbage", "nothing"],
)
def test_a_version_that_fails_is_counted_and_harms_nobody(plane: DataPlane, answer: bytes) -> None:
    def script(peer: Peer) -> None:
        peer.read_request()
        peer.send(answer)
        peer.close()

    service = Mirrored(plane, Upstream(script))
    for _ in range(20):  # no circuit opens
        assert service.ask().status == 200
    service.until_counted(failed=20)
    assert len(service.mirror.requests) == 20  # and none was retried


def test_a_version_that_is_gone_is_counted_and_harms_nobody(plane: DataPlane) -> None:
    service = Mirrored(plane)
    service.mirror.close()
    for _ in range(10):
        assert service.ask().status == 200
    service.until_counted(failed=10)


def test_a_long_answer_is_read_and_forgotten(plane: DataPlane) -> None:
    body = b"x" * 3_000_000
    service = Mirrored(
        plane, Upstream(replying(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)))
    )
    for _ in range(3):
        assert service.ask().status == 200
    service.until_counted(answered=3)


def test_a_version_that_hangs_takes_at_most_fifty_copies(plane: DataPlane) -> None:
    def hang(peer: Peer) -> None:
        peer.read_request()
        peer.wait_for_end()

    service = Mirrored(plane, Upstream(hang))
    with plane.connect() as client:
        for _ in range(80):
            began = time.monotonic()
            assert client.send(plane.request("GET", f"{service.path}/x")).answer("GET").status == 200
            assert time.monotonic() - began < 5  # nobody waits for the one that hangs
    service.until_counted(dropped=30)
    assert len(service.copies(50)) == 50
    assert service.ask("POST", body=b"x").status == 200
    service.until_counted(dropped=31)


def test_a_version_that_is_not_there_is_no_trouble(plane: DataPlane) -> None:
    service = Mirrored(plane, version="v9")
    assert service.ask().status == 200
    time.sleep(A_MOMENT_S)
    assert service.counted() == {}


def test_a_copy_is_transformed_as_the_request_is(plane: DataPlane) -> None:
    service = Mirrored(plane)
    request = {
        "headers": {"set": [{"name": "x-by", "value": "gateway"}], "remove": ["x-internal"]},
        "query": {"set": [{"name": "a", "value": "b"}]},
        "body": {"remove": ["secret"]},
    }
    policies = {"transformation": {"request": request}}
    path = f"/api/{service.name}"
    plane.feed.put("route", route_wire(f"rte_{service.name}", path, service=service.name, policies=policies))
    fields = ("X-Internal: 1", "X-By: me", "Content-Type: application/json")
    for number, body in enumerate((None, b'{"secret":1,"n":2}'), 1):
        assert plane.ask("POST", path, *fields, body=body).status == 200
        copy, real = service.copies(number)[-1], service.real.requests[-1]
        assert (copy.field("x-by"), copy.field("x-gateway-mirrored")) == (b"gateway", b"true")
        assert "x-internal" not in copy.names
        assert copy.target == b"/base" + real.target
        assert real.target.endswith(b"?a=b")
        assert copy.body == real.body == (b"" if body is None else b'{"n":2}')


def test_requests_that_wait_for_the_answer_to_another_are_not_copied(plane: DataPlane) -> None:
    release = threading.Event()

    def slow(peer: Peer) -> None:
        while peer.read_request() is not None:
            release.wait(10)
            peer.send(b"HTTP/1.1 200 OK\r\nCache-Control: public, max-age=60\r\nContent-Length: 2\r\n\r\nok")

    service = Mirrored(plane, policies={"caching": {}})
    service.real.script = slow
    with ExitStack() as stack:
        clients = [stack.enter_context(plane.connect()) for _ in range(5)]
        for client in clients:
            client.send(plane.request("GET", service.path + "/x"))
        service.copies(1)
        time.sleep(A_MOMENT_S)
        release.set()
        assert [client.answer().status for client in clients] == [200] * 5
    time.sleep(A_MOMENT_S)
    assert (len(service.real.requests), len(service.mirror.requests)) == (1, 1)

"""Stale answers: asked about, served all the same, or waited for, through sockets (RFC 9111 section 4.3, RFC 5861)."""

import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.cached_services import answering, cached, cached_script, is_hit, purge, reply, status_of
from tests.dataplane import DataPlane, nowhere
from tests.gateway_process import eventually
from tests.raw_http import Answer, CutShort
from tests.scripted_upstream import Peer, Seen, Upstream
from tests.wires import service_wire

ETAG = 'ETag: "1"'
STALE = "Cache-Control: public, max-age=1"


def stale(*fields: str, body: bytes = b"stored") -> bytes:
    """An answer that is stale when it arrives, and worth keeping."""
    return reply(STALE, *fields, body=body, age_s=3)


def down(status: str = "503 Service Unavailable") -> bytes:
    return reply(status=status, body=b"down")


# --- validation ---
def test_a_stale_answer_is_asked_about(plane: DataPlane) -> None:
    renewal = reply(
        "Cache-Control: public, max-age=60", ETAG, "X-Own: new", "Content-Type: text/odd", status="304 Not Modified"
    )
    modified = "Last-Modified: Fri, 02 Jan 2026 00:00:00 GMT"
    upstream = cached(plane, stale(ETAG, modified, "X-Own: old", "Content-Type: text/plain", "Age: 5"), renewal)
    plane.ask("GET", upstream.path + "/a")
    renewed = plane.ask("GET", upstream.path + "/a", "Accept: */*")
    assert (renewed.status, renewed.body, renewed.field("x-own")) == (200, b"stored", "new")
    assert renewed.field("content-type") == "text/plain"
    assert renewed.field("age") is None
    assert status_of(renewed) == "fwd=stale; fwd-status=304; stored"
    asked = upstream.requests[1]
    assert asked.field("if-none-match") == b'"1"'
    assert asked.field("if-modified-since") == b"Fri, 02 Jan 2026 00:00:00 GMT"
    hit = plane.ask("GET", upstream.path + "/a")
    assert (hit.body, hit.field("x-own"), is_hit(hit)) == (b"stored", "new", True)
    assert len(upstream.requests) == 2


def test_an_answer_that_is_never_fresh_is_asked_about_each_time(plane: DataPlane) -> None:
    upstream = cached(plane, reply("Cache-Control: public, no-cache", ETAG), reply(status="304 Not Modified"))
    for _ in range(3):
        answer = plane.ask("GET", upstream.path + "/a")
        assert (answer.status, answer.body) == (200, b"stored")
    assert status_of(answer) == "fwd=stale; fwd-status=304; stored"
    assert len(upstream.requests) == 3


def test_a_clients_own_condition_does_not_reach_the_upstream(plane: DataPlane) -> None:
    upstream = cached(plane, stale(ETAG), reply(STALE, ETAG, status="304 Not Modified", age_s=3))
    plane.ask("GET", upstream.path + "/a")
    assert plane.ask("GET", upstream.path + "/a", 'If-None-Match: "old"').status == 200
    assert upstream.requests[1].field("if-none-match") == b'"1"'
    assert plane.ask("GET", upstream.path + "/a", 'If-None-Match: "1"').status == 304
    part = plane.ask("GET", upstream.path + "/a", "Range: bytes=0-1")
    assert (part.status, part.body) == (206, b"st")
    assert "range" not in upstream.requests[3].names


def test_a_clients_condition_goes_on_where_nothing_can_be_stored(plane: DataPlane) -> None:
    private = reply("Cache-Control: private, max-age=0", ETAG)
    upstream = cached(plane, private, reply(ETAG, status="304 Not Modified"))
    plane.ask("GET", upstream.path + "/a")
    assert plane.ask("GET", upstream.path + "/a", 'If-None-Match: "1"').status == 304
    assert upstream.requests[1].field("if-none-match") == b'"1"'


def test_a_new_answer_takes_the_old_ones_place(plane: DataPlane) -> None:
    upstream = cached(plane, stale(ETAG), reply("Cache-Control: public, max-age=60", 'ETag: "2"', body=b"new"))
    plane.ask("GET", upstream.path + "/a")
    assert plane.ask("GET", upstream.path + "/a").body == b"new"
    hit = plane.ask("GET", upstream.path + "/a")
    assert (hit.body, is_hit(hit)) == (b"new", True)


def test_an_answer_that_is_not_to_be_stored_ends_the_old_one(plane: DataPlane) -> None:
    private = reply("Cache-Control: private, max-age=60", body=b"mine")
    upstream = cached(plane, stale(ETAG), private, down(), staleIfErrorS=3600)
    plane.ask("GET", upstream.path + "/a")
    assert plane.ask("GET", upstream.path + "/a").body == b"mine"
    assert plane.ask("GET", upstream.path + "/a").body == b"down"
    assert "if-none-match" not in upstream.requests[2].names


def test_a_304_about_something_else_is_not_believed(plane: DataPlane) -> None:
    other = reply("Cache-Control: public, max-age=60", 'ETag: "2"', status="304 Not Modified")
    upstream = cached(plane, stale(ETAG), other, reply("Cache-Control: public, max-age=60", 'ETag: "2"', body=b"new"))
    plane.ask("GET", upstream.path + "/a")
    assert plane.ask("GET", upstream.path + "/a").body == b"new"
    assert "if-none-match" not in upstream.requests[2].names
    assert plane.ask("GET", upstream.path + "/a").body == b"new"
    assert len(upstream.requests) == 3


def test_a_304_with_a_strong_tag_is_about_nothing_that_has_none(plane: DataPlane) -> None:
    """RFC 9111 section 4.3.4."""

    def script(seen: Seen) -> bytes:
        if seen.field("if-modified-since"):
            return reply("Cache-Control: public, max-age=60", 'ETag: "new"', status="304 Not Modified")
        return stale("Last-Modified: Fri, 02 Jan 2026 00:00:00 GMT", body=b"%d" % len(upstream.requests))

    upstream = cached(plane, script)
    assert plane.ask("GET", upstream.path + "/a").body == b"1"
    assert plane.ask("GET", upstream.path + "/a").body == b"3"


def test_the_age_of_a_renewal_counts(plane: DataPlane) -> None:
    """A cache on the way to the service may have said it (RFC 9111 section 4.2.3)."""
    renewal = reply("Cache-Control: public, max-age=60", ETAG, "Age: 50", status="304 Not Modified")
    upstream = cached(plane, stale(ETAG), renewal)
    plane.ask("GET", upstream.path + "/a")
    assert plane.ask("GET", upstream.path + "/a").field("age") == "50"
    assert int(plane.ask("GET", upstream.path + "/a").field("age") or 0) >= 50


def test_an_answer_that_is_too_large_ends_the_old_one(plane: DataPlane) -> None:
    sized, chunks = (
        reply("Cache-Control: public, max-age=60", body=b"new" * 500),
        b"5dc\r\n" + b"new" * 500 + b"\r\n0\r\n\r\n",
    )
    streamed = b"HTTP/1.1 200 OK\r\nCache-Control: public, max-age=60\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks
    for large in (sized, streamed):
        upstream = cached(plane, reply("Cache-Control: public, max-age=60", body=b"old"), large, maxObjectBytes=1000)
        plane.ask("GET", upstream.path + "/a")
        assert plane.ask("GET", upstream.path + "/a", "Cache-Control: no-cache").body == b"new" * 500
        assert plane.ask("GET", upstream.path + "/a").body == b"new" * 500


def test_a_renewed_answer_stays_its_applications_own(plane: DataPlane) -> None:
    def script(seen: Seen) -> bytes:
        if seen.field("if-none-match"):
            return reply("Cache-Control: public, max-age=60", ETAG, status="304 Not Modified")
        return stale(ETAG, "Vary: X-Gateway-Application", body=seen.field("x-gateway-application") or b"")

    upstream = cached(plane, script)
    plane.feed.put("application", {**plane.feed.records("application")["app_1"], "id": "app_2", "name": "other"})
    for _ in range(2):
        assert plane.ask("GET", upstream.path + "/a").body == b"app_1"
    assert plane.ask("GET", upstream.path + "/a", key=plane.new_key(application="app_2")).body == b"app_2"
    assert is_hit(plane.ask("GET", upstream.path + "/a"))


def test_a_renewal_may_say_what_an_answer_varies_by(plane: DataPlane) -> None:
    """RFC 9111 sections 4.1 and 4.3.4: the stored answer has the Vary of the 304 from then on."""

    def script(seen: Seen) -> bytes:
        language = seen.field("accept-language") or b""
        if seen.field("if-none-match") and language == b"de":
            return reply("Cache-Control: public, max-age=60", ETAG, "Vary: Accept-Language", status="304 Not Modified")
        return stale(ETAG, body=language) if language == b"de" else stale(ETAG, "Vary: Accept-Language", body=language)

    upstream = cached(plane, script)
    for _ in range(2):
        assert plane.ask("GET", upstream.path + "/a", "Accept-Language: de").body == b"de"
    assert plane.ask("GET", upstream.path + "/a", "Accept-Language: en").body == b"en"
    assert is_hit(plane.ask("GET", upstream.path + "/a", "Accept-Language: de"))


def test_head_that_says_no_length_ends_what_is_stored(plane: DataPlane) -> None:
    head = b'HTTP/1.1 200 OK\r\nETag: "2"\r\n\r\n'
    upstream = cached(plane, lambda seen: head if seen.method == b"HEAD" else stale(ETAG))
    plane.ask("GET", upstream.path + "/a")
    assert plane.ask("HEAD", upstream.path + "/a").field("etag") == '"2"'
    plane.ask("GET", upstream.path + "/a")
    assert upstream.requests[2].field("if-none-match") is None


def test_head_renews_or_ends_what_is_stored(plane: DataPlane) -> None:
    fresh = reply("Cache-Control: public, max-age=60", ETAG, body=b"").replace(b"Length: 0", b"Length: 6")
    for answer, hits in ((fresh, True), (fresh.replace(b"Length: 6", b"Length: 7"), False)):
        upstream = cached(plane, stale(ETAG), answer, reply("Cache-Control: public, max-age=60"))
        plane.ask("GET", upstream.path + "/a")
        head = plane.ask("HEAD", upstream.path + "/a")
        assert (head.status, head.body) == (200, b"")
        assert is_hit(plane.ask("GET", upstream.path + "/a")) == hits


# --- stale if error ---
@pytest.mark.parametrize("status", ["500 Oops", "502 Bad Gateway", "503 Service Unavailable", "504 Gateway Timeout"])
def test_an_error_is_hidden_behind_a_stale_answer(plane: DataPlane, status: str) -> None:
    upstream = cached(plane, reply("Cache-Control: public, max-age=1, stale-if-error=60", age_s=3), down(status))
    plane.ask("GET", upstream.path + "/a")
    answer = plane.ask("GET", upstream.path + "/a")
    assert (answer.status, answer.body) == (200, b"stored")
    said = status_of(answer)
    assert said.startswith(f"fwd=stale; fwd-status={status[:3]}; ttl=-")
    assert said.endswith("; detail=stale-if-error")
    assert int(answer.field("age") or 0) >= 3


def test_a_large_error_is_hidden_too(plane: DataPlane) -> None:
    error = reply(status="503 Service Unavailable", body=b"x" * 300_000)
    upstream = cached(plane, stale(), error, staleIfErrorS=60)
    with plane.connect() as client:
        for _ in range(3):
            assert client.send(plane.request("GET", upstream.path + "/a")).answer().body == b"stored"


@pytest.mark.parametrize(
    ("control", "policy"),
    [
        ("public, max-age=1", {}),
        ("public, max-age=1, stale-if-error=1", {}),
        ("public, max-age=1, must-revalidate, stale-if-error=60", {}),
        ("s-maxage=1, stale-if-error=60", {}),
        ("public, no-cache, stale-if-error=60", {}),
        ("public, max-age=1, stale-if-error=60", {"staleIfErrorS": 0}),
        ("public, max-age=1, proxy-revalidate", {"serveStaleWhenDown": True, "staleIfErrorS": 60}),
    ],
)
def test_an_error_is_an_error_where_stale_answers_are_not_allowed(
    plane: DataPlane, control: str, policy: dict[str, object]
) -> None:
    upstream = cached(plane, reply(f"Cache-Control: {control}", ETAG, age_s=5), down(), **policy)
    plane.ask("GET", upstream.path + "/a")
    assert plane.ask("GET", upstream.path + "/a").body == b"down"
    upstream.close()
    assert plane.ask("GET", upstream.path + "/a").status in (502, 503)


def test_the_last_answer_is_served_marked_stale_when_nobody_is_there(plane: DataPlane) -> None:
    upstream = cached(plane, stale(), serveStaleWhenDown=True)
    plane.ask("GET", upstream.path + "/a")
    upstream.close()
    for _ in range(8):  # also when the circuit is open
        answer = plane.ask("GET", upstream.path + "/a")
        assert (answer.status, answer.body) == (200, b"stored")
        assert status_of(answer).startswith("fwd=stale; ttl=-")
    part = plane.ask("GET", upstream.path + "/a", "Range: bytes=0-0")
    assert (part.status, part.body) == (206, b"s")
    line = plane.log_line(answer.field("x-request-id"))
    assert (line["status_code"], line["code"]) == (200, "circuit_open")


def test_the_fallback_comes_before_the_last_answer_and_is_never_stored(plane: DataPlane) -> None:
    fallback = Upstream(answering(reply("Cache-Control: public, max-age=60", body=b"fallback")))
    upstream = plane.serve(
        answering(stale()), fallback_url=fallback.url, policies={"caching": {"serveStaleWhenDown": True}}
    )
    plane.ask("GET", upstream.path + "/a")
    upstream.close()
    for _ in range(2):
        answer = plane.ask("GET", upstream.path + "/a")
        assert (answer.body, answer.field("x-gateway-fallback"), is_hit(answer)) == (b"fallback", "true", False)
    fallback.close()
    assert plane.ask("GET", upstream.path + "/a").body == b"stored"


def test_what_was_purged_meanwhile_hides_no_error(plane: DataPlane) -> None:
    opened, count = threading.Event(), iter(range(9))

    def script(seen: Seen) -> bytes:
        if not next(count):
            return stale()
        assert opened.wait(20)
        return down()

    upstream = cached(plane, script, staleIfErrorS=60)
    plane.ask("GET", upstream.path + "/a")
    with plane.connect() as client:
        client.send(plane.request("GET", upstream.path + "/a"))
        upstream.wait_for(2)
        purge(plane, "url", upstream.path + "/a")
        opened.set()
        assert client.answer().body == b"down"


# --- stale while revalidate ---
def test_a_stale_answer_is_served_while_it_is_renewed(plane: DataPlane) -> None:
    swr = "Cache-Control: public, max-age=1, stale-while-revalidate=60"
    fresh = reply("Cache-Control: public, max-age=60", body=b"new")
    upstream = cached(plane, reply(swr, ETAG, age_s=3), fresh)
    plane.ask("GET", upstream.path + "/a", "Cookie: a=b")
    answer = plane.ask("GET", upstream.path + "/a", "Cookie: a=b")
    assert answer.body == b"stored"
    assert status_of(answer).startswith("hit; ttl=-")
    assert status_of(answer).endswith("; detail=stale-while-revalidate")
    asked = upstream.wait_for(2)
    assert (asked.field("if-none-match"), asked.field("cookie")) == (b'"1"', b"a=b")
    eventually(lambda: plane.ask("GET", upstream.path + "/a").body == b"new", what="the new answer")
    assert len(upstream.requests) == 2


def test_one_renewal_at_a_time_and_none_that_fails_harms(plane: DataPlane) -> None:
    gate = threading.Event()
    count = iter(range(100))

    def script(seen: Seen) -> bytes:
        number = next(count)
        if number == 0:
            return stale()
        if number == 1:
            assert gate.wait(20)
            return down()
        return reply("Cache-Control: public, max-age=60", body=b"new")

    upstream = cached(plane, script, staleWhileRevalidateS=60)
    for _ in range(4):
        assert plane.ask("GET", upstream.path + "/a").body == b"stored"
    upstream.wait_for(2)
    assert len(upstream.requests) == 2
    gate.set()
    eventually(lambda: plane.ask("GET", upstream.path + "/a").body == b"new", what="the new answer")


# --- collapsed requests ---
class Gate:
    """An upstream that answers nobody before it is opened."""

    def __init__(self, answer: Callable[[Seen], bytes]) -> None:
        self.opened = threading.Event()
        self._answer = answer

    def __call__(self, seen: Seen) -> bytes:
        assert self.opened.wait(20)
        return self._answer(seen)


def ask_at_once(plane: DataPlane, path: str, count: int, go: Callable[[], None]) -> list[Answer]:
    """So many requests on connections of their own; ``go`` is called when all are sent."""
    clients = [plane.connect() for _ in range(count)]
    try:
        for client in clients:
            client.send(plane.request("GET", path))
        go()
        return [client.answer() for client in clients]
    finally:
        for client in clients:
            client.socket.close()


def test_a_hundred_clients_make_one_request(plane: DataPlane) -> None:
    gate = Gate(lambda seen: reply("Cache-Control: public, max-age=60"))
    upstream = cached(plane, gate)

    def go() -> None:
        upstream.wait_for(1)
        plane.ask("GET", "/health", key=None)  # those before it have been read
        gate.opened.set()

    answers = ask_at_once(plane, upstream.path + "/a", 100, go)
    assert {(each.status, each.body) for each in answers} == {(200, b"stored")}
    assert sorted(map(status_of, answers))[0].startswith("fwd=uri-miss; collapsed")
    assert len(upstream.requests) == 1


def test_nobody_gets_an_answer_that_was_for_another(plane: DataPlane) -> None:
    count = iter(range(100))
    gate = Gate(lambda seen: reply("Cache-Control: private, max-age=60", body=b"%d" % next(count)))
    upstream = cached(plane, gate)

    def go() -> None:
        upstream.wait_for(1)
        gate.opened.set()

    answers = ask_at_once(plane, upstream.path + "/a", 10, go)
    assert sorted(int(each.body) for each in answers) == list(range(10))


def test_an_application_does_not_get_anothers_answer_by_waiting_for_it(plane: DataPlane) -> None:
    gate = Gate(lambda seen: reply("Cache-Control: max-age=60", body=seen.field("x-gateway-application") or b""))
    upstream = cached(plane, gate)
    plane.feed.put("application", {**plane.feed.records("application")["app_1"], "id": "app_2", "name": "other"})
    other = plane.new_key(application="app_2")
    with ThreadPoolExecutor(40) as pool:
        mine = [pool.submit(plane.ask, "GET", upstream.path + "/a") for _ in range(20)]
        upstream.wait_for(1)
        theirs = [pool.submit(plane.ask, "GET", upstream.path + "/a", key=other) for _ in range(20)]
        plane.ask("GET", "/health", key=None)
        gate.opened.set()
        assert {each.result().body for each in mine} == {b"app_1"}
        assert {each.result().body for each in theirs} == {b"app_2"}
    assert len(upstream.requests) <= 4


def test_those_that_wait_go_on_when_the_first_one_fails(plane: DataPlane) -> None:
    count = iter(range(100))
    opened = threading.Event()

    def script(peer: Peer) -> None:
        while peer.read_request() is not None:
            if next(count) == 0:
                assert opened.wait(20)
                peer.send(b"HTTP/1.1 200 OK\r\nCache-Control: public, max-age=60\r\nContent-Length: 10\r\n\r\nhalf")
                peer.reset()
                return
            peer.send(reply("Cache-Control: public, max-age=60", body=b"whole"))

    upstream = cached_script(plane, script)
    with plane.connect() as first:
        first.send(plane.request("GET", upstream.path + "/a"))
        upstream.wait_for(1)
        answers = ask_at_once(plane, upstream.path + "/a", 10, opened.set)
        with pytest.raises((CutShort, ConnectionResetError)):
            first.answer()
    assert {each.body for each in answers} == {b"whole"}
    assert len(upstream.requests) == 2


def test_those_that_wait_go_on_when_the_first_one_leaves(plane: DataPlane) -> None:
    gate = Gate(lambda seen: reply("Cache-Control: public, max-age=60"))
    upstream = cached(plane, gate)
    first = plane.connect()
    first.send(plane.request("GET", upstream.path + "/a"))
    upstream.wait_for(1)

    def go() -> None:
        plane.ask("GET", "/health", key=None)
        first.reset()
        upstream.wait_for(2)
        gate.opened.set()

    answers = ask_at_once(plane, upstream.path + "/a", 10, go)
    assert {each.body for each in answers} == {b"stored"}
    assert len(upstream.requests) == 2


def test_those_that_wait_may_leave(plane: DataPlane) -> None:
    gate = Gate(lambda seen: reply("Cache-Control: public, max-age=60"))
    upstream = cached(plane, gate)
    with plane.connect() as first, plane.connect() as second:
        first.send(plane.request("GET", upstream.path + "/a"))
        upstream.wait_for(1)
        second.send(plane.request("GET", upstream.path + "/a"))
        second.reset()
        plane.ask("GET", "/health", key=None)
        gate.opened.set()
        assert first.answer().body == b"stored"


def test_a_slow_client_does_not_slow_down_those_that_wait(plane: DataPlane) -> None:
    body = b"x" * 900_000
    gate = Gate(lambda seen: reply("Cache-Control: public, max-age=60", body=body))
    upstream = cached(plane, gate)
    with plane.connect(receive_buffer=4096) as slow:
        slow.send(plane.request("GET", upstream.path + "/a"))
        upstream.wait_for(1)
        with ThreadPoolExecutor(5) as pool:
            waiting = [pool.submit(plane.ask, "GET", upstream.path + "/a") for _ in range(5)]
            plane.ask("GET", "/health", key=None)
            gate.opened.set()
            assert {len(each.result(10).body) for each in waiting} == {len(body)}
        assert slow.answer().body == body


@pytest.mark.parametrize("compression", [None, {"minBytes": 1}])
def test_who_comes_while_a_slow_client_holds_up_an_answer_is_not_held_up(plane: DataPlane, compression: Any) -> None:
    body = random.randbytes(8_000_000)
    answer = reply("Cache-Control: public, max-age=60", "Content-Type: text/plain", body=body)
    policies = {"caching": {"maxObjectBytes": 20_000_000}} | ({"compression": compression} if compression else {})
    upstream = plane.serve(answering(answer), policies=policies)
    with plane.connect(receive_buffer=4096) as slow:
        slow.send(plane.request("GET", upstream.path + "/a", "Accept-Encoding: gzip")).begin_answer()
        time.sleep(0.5)  # until it takes nothing more
        other = plane.ask("GET", upstream.path + "/a")
        assert (other.body == body, status_of(other)) == (True, "fwd=uri-miss; collapsed")
    assert len(upstream.requests) == 1


def test_a_policy_may_let_everybody_go_alone(plane: DataPlane) -> None:
    gate = Gate(lambda seen: reply("Cache-Control: public, max-age=60"))
    upstream = cached(plane, gate, collapse=False)

    def go() -> None:
        upstream.wait_for(5)
        gate.opened.set()

    assert {each.body for each in ask_at_once(plane, upstream.path + "/a", 5, go)} == {b"stored"}


def test_an_upstream_that_hangs_holds_nobody_for_ever(start_plane: Callable[..., DataPlane]) -> None:
    plane = start_plane(request_timeout_s=1.0)
    count = iter(range(100))

    def script(peer: Peer) -> None:
        while peer.read_request() is not None:
            if next(count) == 0:
                peer.wait_for_end()
                return
            peer.send(reply("Cache-Control: public, max-age=60"))

    upstream = cached_script(plane, script)
    began = time.monotonic()
    answers = ask_at_once(plane, upstream.path + "/a", 5, lambda: None)
    assert sorted(each.status for each in answers) == [200, 200, 200, 200, 504]
    assert time.monotonic() - began < 15


def test_a_fallback_that_has_the_same_as_is_stored_gives_the_client_the_whole(plane: DataPlane) -> None:
    fallback = Upstream(answering(reply('ETag: "1"', status="304 Not Modified")))
    upstream = cached(plane, reply("Cache-Control: public, max-age=0", 'ETag: "1"'))
    name = upstream.path.rpartition("/")[2]
    plane.serve(upstream=fallback)
    assert plane.ask("GET", f"{upstream.path}/a").body == b"stored"
    policies: dict[str, Any] = {"caching": {}}
    plane.feed.put(
        "service",
        service_wire(id=f"svc_{name}", name=name, default_url=nowhere(), fallback_url=fallback.url, policies=policies),
    )
    answer = plane.ask("GET", f"{upstream.path}/a")
    assert (answer.status, answer.body, answer.field("x-gateway-fallback")) == (200, b"stored", "true")
    assert fallback.requests[-1].field("if-none-match") == b'"1"'
    answer = plane.ask("GET", f"{upstream.path}/a", 'If-None-Match: "1"')
    assert (answer.status, answer.field("x-gateway-fallback")) == (304, "true")

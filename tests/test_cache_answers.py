"""What the cache answers, through sockets (RFC 9111)."""

import gzip
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from email.utils import formatdate
from typing import Any

import pytest

from tests.cached_services import answering, cached, cached_script, is_hit, reply, status_of
from tests.dataplane import DataPlane
from tests.raw_http import CutShort
from tests.scripted_upstream import Peer, Seen, Upstream, closing
from tests.wires import route_wire, version_wire


def test_a_fresh_answer_comes_from_memory(plane: DataPlane) -> None:
    upstream = cached(
        plane, reply("Cache-Control: public, max-age=60", "X-Own: 1", body=b"first"), reply(body=b"second")
    )
    first = plane.ask("GET", upstream.path + "/a?b=1")
    second = plane.ask("GET", upstream.path + "/a?b=1")
    assert (first.status, first.body, status_of(first)) == (200, b"first", "fwd=uri-miss; stored")
    assert (second.status, second.body, second.field("x-own")) == (200, b"first", "1")
    assert status_of(second).startswith("hit; ttl=")
    assert second.field("age") == "0" or second.field("age") == "1"
    assert second.field("date") == first.field("date")
    assert second.field("via") == "1.1 portcullis"
    assert second.field("ratelimit-limit") == first.field("ratelimit-limit")
    assert second.field("x-request-id") != first.field("x-request-id")
    assert len(upstream.requests) == 1


@pytest.mark.parametrize("other", ["/b", "/a?", "/a?x=1"])
def test_another_url_is_another_answer(plane: DataPlane, other: str) -> None:
    upstream = cached(plane, lambda seen: reply("Cache-Control: public, max-age=60", body=seen.target))
    plane.ask("GET", upstream.path + "/a")
    assert plane.ask("GET", upstream.path + other).body == other.encode()
    assert len(upstream.requests) == 2


def test_another_host_is_another_answer(plane: DataPlane) -> None:
    upstream = cached(plane, reply("Cache-Control: public, max-age=60"))
    plane.ask("GET", upstream.path + "/a", host="one.test")
    assert status_of(plane.ask("GET", upstream.path + "/a", host="two.test")) == "fwd=uri-miss; stored"
    assert is_hit(plane.ask("GET", upstream.path + "/a", host="ONE.test:80"))


def test_whatever_origin_a_client_names_its_answer_is_for_that_one(start_plane: Callable[..., DataPlane]) -> None:
    """Scheme and port belong to the URL, and services make links of them (RFC 9111 section 2, RFC 9110 section 4.3)."""
    plane = start_plane(trusted_proxies=("127.0.0.7",))

    def script(seen: Seen) -> bytes:
        told = [seen.field(name) or b"" for name in ("x-forwarded-proto", "x-forwarded-host")]
        return reply("Cache-Control: public, max-age=60", body=b"://".join(told))

    upstream = cached(plane, script)
    for _ in range(2):
        for host in ("gateway.test:1337", "gateway.test"):
            assert plane.ask("GET", upstream.path + "/a", host=host).body == f"http://{host}".encode()
        for proto in ("https", "http"):
            fields = f"X-Forwarded-Proto: {proto}", "X-Forwarded-Host: shop.test"
            answer = plane.ask("GET", upstream.path + "/a", *fields, source="127.0.0.7")
            assert answer.body == f"{proto}://shop.test".encode()
    assert is_hit(answer)
    assert len(upstream.requests) == 4


def test_without_a_policy_nothing_is_stored(plane: DataPlane) -> None:
    for policies in ({}, {"caching": {"enabled": False}}):
        upstream = plane.serve(policies=policies)
        for _ in range(2):
            assert plane.ask("GET", upstream.path + "/a").field("cache-status") is None
        assert len(upstream.requests) == 2


def test_hits_are_limited_and_logged_like_any_request(plane: DataPlane) -> None:
    upstream = cached(plane, reply("Cache-Control: public, max-age=60"))
    plane.ask("GET", upstream.path + "/a")
    hit = plane.ask("GET", upstream.path + "/a")
    line = plane.log_line(hit.field("x-request-id"))
    assert (line["status_code"], line["bytes_out"], line["upstream_time_ms"]) == (200, 6, None)
    assert plane.ask("GET", upstream.path + "/a", key=None).status == 401


@pytest.mark.parametrize(
    "fields",
    [
        ("Cache-Control: no-store",),
        ("Cache-Control: private, max-age=60",),
        ("Cache-Control: max-age=60, no-store, public",),
        ('Cache-Control: public, max-age=60, private="x-own"',),
        ("Cache-Control: public, max-age=60", "Set-Cookie: a=b"),
        ("Cache-Control: public, max-age=60", "Vary: *"),
        ("Cache-Control: public, max-age=60", "Vary: X-Forwarded-For"),
        ("Cache-Control: public, max-age=0",),
        ("Cache-Control: public, max-age=x",),
        ("Cache-Control: public", "Expires: 0"),
        ("CDN-Cache-Control: no-store", "Cache-Control: public, max-age=60"),
        ("X-Says: nothing",),
    ],
    ids=lambda fields: ", ".join(fields),
)
def test_what_must_not_be_stored_is_not(plane: DataPlane, fields: tuple[str, ...]) -> None:
    upstream = cached(plane, reply(*fields))
    for _ in range(2):
        answer = plane.ask("GET", upstream.path + "/a")
        assert (answer.status, answer.body, status_of(answer)) == (200, b"stored", "fwd=uri-miss")
    assert len(upstream.requests) == 2


@pytest.mark.parametrize(
    "fields",
    [
        ("Cache-Control: public, max-age=60",),
        ("Cache-Control: s-maxage=60, max-age=0",),
        ("Cache-Control: public", f"Expires: {formatdate(time.time() + 3600, usegmt=True)}"),
        ("CDN-Cache-Control: public, max-age=60", "Cache-Control: no-store"),
        ("Cache-Control: no-store, must-understand, public, max-age=60",),
        ("Cache-Control: public", "Last-Modified: Fri, 02 Jan 2026 00:00:00 GMT"),
    ],
    ids=["max-age", "s-maxage", "Expires", "targeted", "must-understand", "heuristic"],
)
def test_what_may_be_stored_is(plane: DataPlane, fields: tuple[str, ...]) -> None:
    upstream = cached(plane, reply(*fields))
    plane.ask("GET", upstream.path + "/a")
    assert is_hit(plane.ask("GET", upstream.path + "/a"))


@pytest.mark.parametrize(
    ("policy", "hits"), [({"defaultTtlS": 60}, True), ({"heuristic": False}, False), ({}, True)], ids=str
)
def test_the_policy_says_what_to_assume(plane: DataPlane, policy: dict[str, object], hits: bool) -> None:
    upstream = cached(plane, reply("Last-Modified: Fri, 02 Jan 2026 00:00:00 GMT"), **policy)
    plane.ask("GET", upstream.path + "/a")
    assert is_hit(plane.ask("GET", upstream.path + "/a")) == hits


def test_a_streamed_answer_is_stored_when_it_is_whole(plane: DataPlane) -> None:
    body = b"x" * 300_000
    head = b"HTTP/1.1 200 OK\r\nCache-Control: public, max-age=60\r\nTransfer-Encoding: chunked\r\n\r\n"
    upstream = cached(plane, head + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
    assert plane.ask("GET", upstream.path + "/a").body == body
    hit = plane.ask("GET", upstream.path + "/a")
    assert (hit.body, hit.field("content-length"), is_hit(hit)) == (body, "300000", True)


def test_an_answer_over_the_limit_passes_and_is_not_stored(plane: DataPlane) -> None:
    for size in (1001, 300_000):
        body = b"x" * size
        chunked = b"HTTP/1.1 200 OK\r\nCache-Control: public, max-age=60\r\nTransfer-Encoding: chunked\r\n\r\n"
        chunked += b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
        for answer in (reply("Cache-Control: public, max-age=60", body=body), chunked):
            upstream = cached(plane, answer, maxObjectBytes=1000)
            for _ in range(2):
                passed = plane.ask("GET", upstream.path + "/a")
                assert (passed.body, is_hit(passed)) == (body, False)


def test_a_truncated_answer_is_not_stored(plane: DataPlane) -> None:
    cut = b"HTTP/1.1 200 OK\r\nCache-Control: public, max-age=60\r\nContent-Length: 10\r\n\r\nhalf"

    count = iter(range(100))

    def flaky(peer: Peer) -> None:
        while peer.read_request() is not None:
            if next(count) == 0:
                peer.send(cut)
                peer.close()
                return
            peer.send(reply("Cache-Control: public, max-age=60", body=b"whole"))

    upstream = cached_script(plane, flaky)
    with plane.connect() as client, pytest.raises(CutShort):
        client.send(plane.request("GET", upstream.path + "/a")).answer()
    assert plane.ask("GET", upstream.path + "/a").body == b"whole"
    assert is_hit(plane.ask("GET", upstream.path + "/a"))


def test_an_answer_that_ends_with_its_connection_is_not_stored(plane: DataPlane) -> None:
    upstream = cached_script(plane, closing(b"HTTP/1.1 200 OK\r\nCache-Control: public, max-age=60\r\n\r\n", b"half"))
    for _ in range(2):
        answer = plane.ask("GET", upstream.path + "/a")
        assert (answer.body, status_of(answer)) == (b"half", "fwd=uri-miss")


def test_what_the_gateway_itself_says_is_never_stored(plane: DataPlane) -> None:
    upstream = cached(plane, reply("Cache-Control: public, max-age=60"), defaultTtlS=60)
    upstream.stop_listening()
    for _ in range(2):
        answer = plane.ask("GET", upstream.path + "/a")
        assert (answer.status, answer.field("cache-control"), answer.field("cache-status")) == (502, "no-store", None)


# --- HEAD, conditions, ranges ---
def test_head_is_answered_from_a_stored_get(plane: DataPlane) -> None:
    upstream = cached(plane, reply("Cache-Control: public, max-age=60", 'ETag: "1"'))
    assert plane.ask("HEAD", upstream.path + "/a").field("cache-status") == "portcullis; fwd=uri-miss"
    plane.ask("GET", upstream.path + "/a")
    head = plane.ask("HEAD", upstream.path + "/a")
    assert (head.status, head.body, head.field("content-length"), is_hit(head)) == (200, b"", "6", True)
    assert [seen.method for seen in upstream.requests] == [b"HEAD", b"GET"]


ETAG = 'ETag: "1"'
MODIFIED = "Last-Modified: Fri, 02 Jan 2026 00:00:00 GMT"


@pytest.mark.parametrize(
    ("field", "status"),
    [
        ('If-None-Match: "1"', 304),
        ('If-None-Match: W/"1", "2"', 304),
        ("If-None-Match: *", 304),
        ('If-None-Match: "2"', 200),
        ("If-Modified-Since: Fri, 02 Jan 2026 00:00:00 GMT", 304),
        ("If-Modified-Since: Thu, 01 Jan 2026 00:00:00 GMT", 200),
        ("If-Modified-Since: yesterday", 200),
    ],
)
def test_a_clients_conditions_are_judged_from_memory(plane: DataPlane, field: str, status: int) -> None:
    upstream = cached(plane, reply("Cache-Control: public, max-age=60", ETAG, MODIFIED, "X-Own: 1"))
    for _ in range(2):  # first of all by the whole answer that was fetched to be stored
        answer = plane.ask("GET", upstream.path + "/a", field)
        assert answer.status == status
        assert answer.body == (b"stored" if status == 200 else b"")
        assert answer.field("etag") == '"1"'
        assert answer.field("content-length") == ("6" if status == 200 else None)
    assert is_hit(answer)
    assert answer.field("age") is not None
    assert "if-none-match" not in upstream.requests[0].names
    assert len(upstream.requests) == 1


@pytest.mark.parametrize(
    ("fields", "status", "body", "content_range"),
    [
        (("Range: bytes=0-2",), 206, b"012", "bytes 0-2/10"),
        (("Range: bytes=7-",), 206, b"789", "bytes 7-9/10"),
        (("Range: bytes=-4",), 206, b"6789", "bytes 6-9/10"),
        (("Range: bytes=5-100",), 206, b"56789", "bytes 5-9/10"),
        (("Range: bytes=-100",), 206, b"0123456789", "bytes 0-9/10"),
        (("Range: bytes=10-",), 416, b"", "bytes */10"),
        (("Range: bytes=-0",), 416, b"", "bytes */10"),
        (("Range: bytes=0-1,3-4",), 200, b"0123456789", None),
        (("Range: bytes=4-2",), 200, b"0123456789", None),
        (("Range: lines=1-2",), 200, b"0123456789", None),
        (("Range: bytes=0-2", 'If-Range: "1"'), 206, b"012", "bytes 0-2/10"),
        (("Range: bytes=0-2", 'If-Range: W/"1"'), 200, b"0123456789", None),
        (("Range: bytes=0-2", 'If-Range: "2"'), 200, b"0123456789", None),
        (("Range: bytes=0-2", "If-Range: Fri, 02 Jan 2026 00:00:00 GMT"), 206, b"012", "bytes 0-2/10"),
        (("Range: bytes=0-2", 'If-None-Match: "1"'), 304, b"", None),
    ],
    ids=str,
)
def test_a_part_is_cut_from_memory(
    plane: DataPlane, fields: tuple[str, ...], status: int, body: bytes, content_range: str | None
) -> None:
    upstream = cached(plane, reply("Cache-Control: public, max-age=60", ETAG, MODIFIED, body=b"0123456789"))
    plane.ask("GET", upstream.path + "/a")
    answer = plane.ask("GET", upstream.path + "/a", *fields)
    assert (answer.status, answer.body, answer.field("content-range")) == (status, body, content_range)
    assert is_hit(answer)


def test_a_part_of_what_is_not_stored_is_left_to_the_upstream(plane: DataPlane) -> None:
    part = reply(
        "Cache-Control: public, max-age=60", "Content-Range: bytes 0-2/10", status="206 Partial Content", body=b"012"
    )
    upstream = cached(plane, part)
    for _ in range(2):
        answer = plane.ask("GET", upstream.path + "/a", "Range: bytes=0-2")
        assert (answer.status, status_of(answer)) == (206, "fwd=uri-miss")
    assert upstream.requests[1].field("range") == b"bytes=0-2"


# --- Vary ---
def test_answers_vary_as_the_upstream_says(plane: DataPlane) -> None:
    def by_language(seen: Seen) -> bytes:
        said = seen.field("accept-language") or b"none"
        return reply("Cache-Control: public, max-age=60", "Vary: Accept-Language, X-Own", body=said)

    upstream = cached(plane, by_language)
    for language in ("de", "en"):
        assert plane.ask("GET", upstream.path + "/a", f"Accept-Language: {language}").body == language.encode()
    assert plane.ask("GET", upstream.path + "/a").body == b"none"
    hit = plane.ask("GET", upstream.path + "/a", "Accept-Language: DE")
    assert (hit.body, is_hit(hit)) == (b"de", True)
    assert status_of(plane.ask("GET", upstream.path + "/a", "Accept-Language: fr")) == "fwd=vary-miss; stored"
    assert not is_hit(plane.ask("GET", upstream.path + "/a", "Accept-Language: de", "X-Own: 1"))


def test_what_the_upstream_was_not_told_is_for_nobody_who_tells_it(plane: DataPlane) -> None:
    """A client may have the gateway keep a field to itself (RFC 9110 section 7.6.1)."""

    def by_language(seen: Seen) -> bytes:
        said = seen.field("accept-language") or b"none"
        return reply("Cache-Control: public, max-age=60", "Vary: Accept-Language", body=said)

    upstream = cached(plane, by_language)
    hidden = plane.ask("GET", upstream.path + "/a", "Accept-Language: de", "Connection: keep-alive, Accept-Language")
    assert (hidden.body, status_of(hidden)) == (b"none", "fwd=uri-miss")
    assert plane.ask("GET", upstream.path + "/a", "Accept-Language: de").body == b"de"


def test_private_answers_to_some_keep_no_answers_from_others(plane: DataPlane) -> None:
    def script(seen: Seen) -> bytes:
        who = "private" if seen.field("cookie") else "public"
        return reply(f"Cache-Control: {who}, max-age=60", "Vary: Cookie", body=who.encode())

    upstream = cached(plane, script)
    for cookie, body in (("Cookie: a=b", b"private"), ("X-No: cookie", b"public"), ("Cookie: a=b", b"private")):
        assert plane.ask("GET", upstream.path + "/a", cookie).body == body
    hit = plane.ask("GET", upstream.path + "/a")
    assert (hit.body, is_hit(hit)) == (b"public", True)


# --- what clients ask ---
def test_clients_may_ask_for_something_fresher(plane: DataPlane) -> None:
    upstream = cached(plane, reply("Cache-Control: public, max-age=60", age_s=20))
    plane.ask("GET", upstream.path + "/a")
    for wish in ("no-cache", "max-age=10", "min-fresh=50"):
        assert status_of(plane.ask("GET", upstream.path + "/a", f"Cache-Control: {wish}")) == "fwd=request; stored"
    for wish in ("max-age=30", "min-fresh=20", "no-store", "only-if-cached"):
        assert is_hit(plane.ask("GET", upstream.path + "/a", f"Cache-Control: {wish}")), wish
    assert len(upstream.requests) == 4


def test_a_policy_may_leave_clients_no_say(plane: DataPlane) -> None:
    upstream = cached(plane, reply("Cache-Control: public, max-age=60"), heedClients=False)
    plane.ask("GET", upstream.path + "/a")
    assert is_hit(plane.ask("GET", upstream.path + "/a", "Cache-Control: no-cache"))


def test_a_client_may_want_a_stored_answer_or_none(plane: DataPlane) -> None:
    upstream = cached(plane, reply())
    answer = plane.ask("GET", upstream.path + "/a", "Cache-Control: only-if-cached")
    assert (answer.status, answer.code) == (504, "not_cached")
    assert not upstream.requests


def test_a_client_may_take_a_stale_answer(plane: DataPlane) -> None:
    upstream = cached(plane, reply("Cache-Control: public, max-age=10", ETAG, age_s=20))
    strict = cached(plane, reply("Cache-Control: public, max-age=10, must-revalidate", ETAG, age_s=20))
    for each in (upstream, strict):
        plane.ask("GET", each.path + "/a")
        plane.ask("GET", each.path + "/a", "Cache-Control: max-stale=5")
        plane.ask("GET", each.path + "/a", "Cache-Control: max-stale")
    assert (len(upstream.requests), len(strict.requests)) == (2, 3)


def test_what_a_client_says_is_not_to_be_stored_is_not(plane: DataPlane) -> None:
    upstream = cached(plane, reply("Cache-Control: public, max-age=60"))
    for _ in range(2):
        assert status_of(plane.ask("GET", upstream.path + "/a", "Cache-Control: no-store")) == "fwd=uri-miss"


@pytest.mark.parametrize("field", ['If-Match: "1"', "If-Unmodified-Since: Fri, 02 Jan 2026 00:00:00 GMT"])
def test_preconditions_of_the_origin_go_there(plane: DataPlane, field: str) -> None:
    upstream = cached(plane, reply("Cache-Control: public, max-age=60"))
    plane.ask("GET", upstream.path + "/a")
    assert status_of(plane.ask("GET", upstream.path + "/a", field)) == "fwd=bypass"
    assert field.partition(":")[0].lower() in upstream.requests[1].names


@pytest.mark.parametrize("name", ["X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override"])
def test_what_is_meant_as_another_method_passes_by(plane: DataPlane, name: str) -> None:
    upstream = cached(
        plane, lambda seen: reply("Cache-Control: public, max-age=60", body=b"%d" % len(seen.all(name.lower())))
    )
    assert status_of(plane.ask("GET", upstream.path + "/a", f"{name}: POST")) == "fwd=bypass"
    assert plane.ask("GET", upstream.path + "/a").body == b"0"
    assert plane.ask("GET", upstream.path + "/a", f"{name}: POST").body == b"1"


def test_a_request_with_a_body_passes_by(plane: DataPlane) -> None:
    upstream = cached(plane, reply("Cache-Control: public, max-age=60"))
    for _ in range(2):
        assert status_of(plane.ask("GET", upstream.path + "/a", body=b"{}")) == "fwd=bypass"


# --- invalidation ---
@pytest.mark.parametrize(
    ("method", "status", "is_void"),
    [
        ("POST", "201 Created", True),
        ("DELETE", "204 No Content", True),
        ("PUT", "303 See Other", True),
        ("MKCOL", "200 OK", True),
        ("POST", "409 Conflict", False),
        ("OPTIONS", "200 OK", False),
    ],
)
def test_unsafe_methods_void_what_is_stored(plane: DataPlane, method: str, status: str, is_void: bool) -> None:
    def script(seen: Seen) -> bytes:
        if seen.method == b"GET":
            return reply("Cache-Control: public, max-age=60")
        return reply(status=status, body=b"")

    upstream = cached(plane, script)
    plane.ask("GET", upstream.path + "/a?x=1")
    plane.ask("GET", upstream.path + "/b")
    assert status_of(plane.ask(method, upstream.path + "/%61?x=1")) == "fwd=method"
    assert is_hit(plane.ask("GET", upstream.path + "/a?x=1")) is not is_void
    assert is_hit(plane.ask("GET", upstream.path + "/b"))


@pytest.mark.parametrize(
    "where", ["another route", "another service", "beside a service that stores", "a route that stores nothing"]
)
def test_an_unsafe_request_that_leads_elsewhere_voids_what_is_stored_too(plane: DataPlane, where: str) -> None:
    """RFC 9111 section 4.4 knows URLs alone."""
    script = answering(lambda seen: reply("Cache-Control: public, max-age=60", body=seen.method))
    stores: dict[str, Any] = {"caching": {}}
    does_not: dict[str, Any] = {"caching": {"enabled": False}}
    is_services = where in ("beside a service that stores", "a route that stores nothing")
    upstream = plane.serve(script, policies=stores if is_services else {})
    reader = writer = upstream.path.rpartition("/")[2]
    if where in ("another service", "beside a service that stores"):
        writer = plane.serve(script).path.rpartition("/")[2]
    path, route = f"/shelf/{reader}/*", f"rte_{reader}"
    policies = {} if is_services else stores
    plane.feed.put("route", route_wire(route, path, methods=["GET"], service=reader, policies=policies))
    policies = does_not if where == "a route that stores nothing" else {}
    plane.feed.put("route", route_wire(f"{route}_w", path, methods=["POST"], service=writer, policies=policies))
    plane.ask("GET", f"/shelf/{reader}/a")
    plane.ask("GET", f"/shelf/{reader}/b")
    written = plane.ask("POST", f"/shelf/{reader}/a", body=b"{}")
    assert (written.status, written.body, written.field("cache-status")) == (200, b"POST", None)
    assert [is_hit(plane.ask("GET", f"/shelf/{reader}/{each}")) for each in "ab"] == [False, True]
    plane.feed.drop("route", route)
    assert plane.ask("POST", f"/shelf/{reader}/a", body=b"{}").status == 200


def test_an_unsafe_request_voids_what_a_get_with_its_fields_leads_to(plane: DataPlane) -> None:
    """Others with the same URL may have led to nothing that is stored."""
    upstream = plane.serve(answering(lambda seen: reply("Cache-Control: public, max-age=60", body=seen.method)))
    name = upstream.path.rpartition("/")[2]
    path, route = f"/sides/{name}/*", f"rte_{name}"
    policies = {"caching": {}, "conditions": {"headers": [{"name": "X-Side", "equals": "left"}]}}
    plane.feed.put("route", route_wire(route, path, methods=["GET"], service=name, policies=policies))
    plane.feed.put("route", route_wire(f"{route}_w", path, methods=["POST"], service=name))
    for _ in range(3):  # what it leads to is remembered from the second time on
        assert plane.ask("POST", f"/sides/{name}/a").status == 200
    left = "X-Side: left"
    for _ in range(2):
        plane.ask("GET", f"/sides/{name}/a", left)
        assert is_hit(plane.ask("GET", f"/sides/{name}/a", left))
        assert plane.ask("POST", f"/sides/{name}/a", left).status == 200
        assert not is_hit(plane.ask("GET", f"/sides/{name}/a", left))


def test_what_an_unsafe_answer_names_is_void_too(plane: DataPlane) -> None:
    def script(seen: Seen) -> bytes:
        if seen.method == b"GET":
            return reply("Cache-Control: public, max-age=60")
        return reply(
            f"Location: {upstream.path}/a",
            f"Content-Location: http://gateway.test{upstream.path}/b",
            status="201 Created",
        )

    upstream = cached(plane, script)
    for path in "/a", "/b", "/c":
        plane.ask("GET", upstream.path + path)
    plane.ask("POST", upstream.path + "/list", body=b"{}")
    assert [is_hit(plane.ask("GET", upstream.path + path)) for path in ("/a", "/b", "/c")] == [False, False, True]


# --- whose it is ---
def test_an_answer_without_a_word_about_it_is_its_applications_own(plane: DataPlane) -> None:
    upstream = cached(
        plane, lambda seen: reply("Cache-Control: max-age=60", body=seen.field("x-gateway-application") or b"")
    )
    plane.feed.put("application", {**plane.feed.records("application")["app_1"], "id": "app_2", "name": "other"})
    other = plane.new_key(application="app_2")
    same = plane.new_key()
    assert plane.ask("GET", upstream.path + "/a").body == b"app_1"
    assert plane.ask("GET", upstream.path + "/a", key=other).body == b"app_2"
    for key, body in ((other, b"app_2"), (same, b"app_1")):
        hit = plane.ask("GET", upstream.path + "/a", key=key)
        assert (hit.body, is_hit(hit)) == (body, True)


@pytest.mark.parametrize("word", ["public", "s-maxage=60", "must-revalidate"])
def test_an_answer_that_is_for_others_is_shared(plane: DataPlane, word: str) -> None:
    """RFC 9111 section 3.5."""
    upstream = cached(plane, reply(f"Cache-Control: max-age=60, {word}"))
    plane.feed.put("application", {**plane.feed.records("application")["app_1"], "id": "app_2", "name": "other"})
    plane.ask("GET", upstream.path + "/a")
    assert is_hit(plane.ask("GET", upstream.path + "/a", key=plane.new_key(application="app_2")))


def test_an_answer_to_somebodys_own_credentials_is_stored_for_nobody(plane: DataPlane) -> None:
    for word, hits in (("max-age=60", False), ("max-age=60, public", True)):
        upstream = cached(plane, reply(f"Cache-Control: {word}"))
        plane.ask("GET", upstream.path + "/a", "Authorization: Basic YTpi")
        assert is_hit(plane.ask("GET", upstream.path + "/a", "Authorization: Basic YTpi")) == hits


def test_secrets_that_answers_vary_by_keep_them_apart(plane: DataPlane) -> None:
    upstream = cached(
        plane, lambda seen: reply("Cache-Control: public, max-age=60", "Vary: Cookie", body=seen.field("cookie") or b"")
    )
    for cookie in ("a=1", "a=2", "a=1"):
        answer = plane.ask("GET", upstream.path + "/a", f"Cookie: {cookie}")
        assert answer.body == cookie.encode()
    assert is_hit(answer)


# --- errors and odd codes ---
def test_an_error_is_stored_only_when_it_says_so(plane: DataPlane) -> None:
    for fields, hits in ((("Cache-Control: public, max-age=60",), True), ((), False)):
        upstream = cached(plane, reply(*fields, status="404 Not Found"), defaultTtlS=60)
        plane.ask("GET", upstream.path + "/a")
        answer = plane.ask("GET", upstream.path + "/a", 'If-None-Match: "1"')
        assert (answer.status, is_hit(answer)) == (404, hits)


def test_an_answer_that_has_no_body_by_nature_is_stored(plane: DataPlane) -> None:
    """Nothing needs to say where it ends (RFC 9112 section 6.3)."""
    for length in ((), ("Content-Length: 0",)):
        upstream = cached(plane, reply("Cache-Control: public, max-age=60", *length, status="204 No Content"))
        plane.ask("GET", upstream.path + "/a")
        hit = plane.ask("GET", upstream.path + "/a")
        assert (hit.status, is_hit(hit), hit.field("content-length")) == (204, True, None)


def test_versions_are_kept_apart(plane: DataPlane) -> None:
    old, new = (Upstream(answering(reply("Cache-Control: public, max-age=60", body=each))) for each in (b"old", b"new"))
    plane.serve(
        upstream=old,
        versions=[version_wire("1", 1, old.url), version_wire("2", 0, new.url)],
        policies={"caching": {}},
    )
    for _ in range(2):
        assert plane.ask("GET", old.path + "/a", "X-API-Version: 2").body == b"new"
        assert plane.ask("GET", old.path + "/a", "X-API-Version: 1").body == b"old"
    new.close()


# --- beside other policies, and slow clients ---
JSON = b'{"numbers": [' + b"1234567, " * 30_000 + b"0]}"


def test_stored_answers_are_compressed_for_each_client(plane: DataPlane) -> None:
    upstream = plane.serve(
        answering(reply("Cache-Control: public, max-age=60", ETAG, "Content-Type: application/json", body=JSON)),
        policies={"caching": {}, "compression": {}},
    )
    for _ in range(2):
        plain = plane.ask("GET", upstream.path + "/a")
        coded = plane.ask("GET", upstream.path + "/a", "Accept-Encoding: gzip")
        assert (plain.body, plain.field("content-encoding"), plain.field("etag")) == (JSON, None, '"1"')
        assert (gzip.decompress(coded.body), coded.field("etag")) == (JSON, 'W/"1"')
        assert is_hit(coded)
    known = plane.ask("GET", upstream.path + "/a", "Accept-Encoding: gzip", 'If-None-Match: W/"1"')
    assert (known.status, known.field("etag")) == (304, 'W/"1"')
    part = plane.ask("GET", upstream.path + "/a", "Accept-Encoding: gzip", "Range: bytes=0-9")
    assert (part.status, part.body) == (206, JSON[:10])
    assert len(upstream.requests) == 1


def test_transformed_answers_differ_by_what_their_templates_read(plane: DataPlane) -> None:
    upstream = cached(plane, lambda seen: reply("Cache-Control: public, max-age=60", body=seen.field("x-seen") or b"-"))
    service = list(plane.feed.records("service").values())[-1]
    changes = {"request": {"headers": {"set": [{"name": "X-Seen", "value": "${header.x-from}"}]}}}
    route = route_wire("r_transformed", "/api/shelf/*", service=service["name"], policies={"transformation": changes})
    plane.feed.put("route", route)
    plane.feed.put("service", {**service, "implicit": True})
    for said in ("one", "two", "one"):
        answer = plane.ask("GET", "/api/shelf/a", f"X-From: {said}")
        assert answer.body == said.encode()
    assert is_hit(answer)
    assert len(upstream.requests) == 2


def test_many_slow_clients_of_a_large_answer_take_no_memory(start_plane: Callable[..., DataPlane]) -> None:
    plane = start_plane()
    body = bytes(range(256)) * 16_000  # 4 MB
    upstream = cached(plane, reply("Cache-Control: public, max-age=600", body=body), maxObjectBytes=8_000_000)
    assert plane.ask("GET", upstream.path + "/a").body == body
    before = plane.rss_mib()
    clients = [plane.connect(receive_buffer=4096) for _ in range(50)]
    for client in clients:
        client.send(plane.request("GET", upstream.path + "/a"))
    started = [client.begin_answer() for client in clients]  # the heads have come, and the bodies wait
    assert plane.rss_mib() - before < 50  # 200 MB, if each had its own
    assert all(b"".join(pieces) == body for _, pieces in started[:3])
    for client in clients:
        client.reset()
    assert plane.ask("GET", upstream.path + "/a").body == body
    assert len(upstream.requests) == 1


@pytest.mark.parametrize(
    "asks",
    ["x," + " " * 8000 + ";", ",;" * 4000, 'a="' * 2600, 'a="' + "\\a" * 3900, "a=," * 2600],
    ids=["blanks", "separators", "quotes", "escapes", "directives"],
)
def test_no_cache_control_takes_long_to_read(plane: DataPlane, asks: str) -> None:
    upstream = cached(plane, reply("Cache-Control: public, max-age=60"))
    for _ in range(2):  # a search that goes back and forth would take hours
        assert plane.ask("GET", upstream.path + "/a", f"Cache-Control: {asks}").status == 200


def test_slow_clients_of_what_is_being_stored_take_no_memory(start_plane: Callable[..., DataPlane]) -> None:
    """Beyond what the kernel takes for each of them, a few MB at most."""
    plane = start_plane()
    body = bytes(range(256)) * 64_000  # 16 MB
    upstream = cached(plane, reply("Cache-Control: public, max-age=600", body=body), maxObjectBytes=20_000_000)
    before = plane.rss_mib()
    with ExitStack() as stack:
        clients = [stack.enter_context(plane.connect(receive_buffer=64 * 1024)) for _ in range(12)]
        for number, client in enumerate(clients):
            client.send(plane.request("GET", f"{upstream.path}/{number}"))
        started = [client.begin_answer() for client in clients]
        time.sleep(1)  # so that what is taken too early shows
        assert plane.rss_mib() - before < 100  # else what is stored, and 16 MB for each of them
        assert b"".join(started[0][1]) == body
    again = plane.ask("GET", f"{upstream.path}/0")
    assert (again.body == body, status_of(again)[:3]) == (True, "hit")


def test_a_pipelined_request_gets_what_is_fresh_when_it_is_its_turn(plane: DataPlane) -> None:
    opened = threading.Event()

    def script(seen: Seen) -> bytes:
        assert not seen.target.endswith(b"slow") or opened.wait(20)
        return reply("Cache-Control: public, max-age=1")

    upstream = cached(plane, script)
    plane.ask("GET", upstream.path + "/a")
    with plane.connect() as client:
        client.send(plane.request("GET", upstream.path + "/slow") + plane.request("GET", upstream.path + "/a"))
        upstream.wait_for(2)
        time.sleep(1.5)  # until what is stored is stale
        opened.set()
        assert not is_hit(client.answer())
        assert status_of(client.answer()) == "fwd=stale; stored"


def test_pipelined_requests_never_get_a_negative_age(plane: DataPlane) -> None:
    opened = threading.Event()

    def script(seen: Seen) -> bytes:
        assert opened.wait(20)
        return reply("Cache-Control: public, max-age=60")

    upstream = cached(plane, script)
    with plane.connect() as client:
        client.send(plane.request("GET", upstream.path + "/a") * 3)
        upstream.wait_for(1)
        time.sleep(1.2)  # so that a wrong sum shows
        opened.set()
        ages = [client.answer().field("age") for _ in range(3)]
    assert ages[0] is None
    assert [age for age in ages[1:] if age is None or int(age) < 0] == []

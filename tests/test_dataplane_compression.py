"""Answers are compressed on their way through a worker (R16): what the client gets, and what the upstream hears."""

from __future__ import annotations

import json
import threading
import zlib
from collections.abc import Callable
from typing import Any

import brotli
import pytest
from backports import zstd

from tests.dataplane import DataPlane
from tests.raw_http import Answer, CutShort
from tests.scripted_upstream import Peer, Upstream, replying
from tests.wires import route_wire

BODY = b'{"orders": [1, 2, 3, "and so on"]}' * 2000
DECODE: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda data: zlib.decompress(data, 16 + zlib.MAX_WBITS),
    "br": brotli.decompress,
    "zstd": zstd.decompress,
}
ON: dict[str, Any] = {"policies": {"compression": {}}}


def reply(body: bytes = BODY, *fields: str, status: str = "200 OK", content_type: str = "application/json") -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Type: {content_type}", f"Content-Length: {len(body)}", *fields]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def plain(answer: Answer) -> bytes:
    coding = answer.field("content-encoding")
    return DECODE[coding](answer.body) if coding else answer.body


@pytest.fixture(scope="module")
def upstream(plane: DataPlane) -> Upstream:
    return plane.serve(replying(reply(BODY, 'ETag: "1"', "Accept-Ranges: bytes", "Vary: Origin")), **ON)


@pytest.mark.parametrize("coding", ["zstd", "br", "gzip"])
def test_a_client_gets_the_coding_that_it_accepts(plane: DataPlane, upstream: Upstream, coding: str) -> None:
    answer = plane.ask("GET", f"{upstream.path}/x", f"Accept-Encoding: {coding}, identity;q=0.1")
    assert answer.field("content-encoding") == coding
    assert plain(answer) == BODY
    assert len(answer.body) < len(BODY) / 10
    assert answer.field("vary") == "Origin, Accept-Encoding"
    assert answer.field("etag") == 'W/"1"'
    assert answer.field("accept-ranges") is None
    assert upstream.requests[-1].field("accept-encoding") == f"{coding}, identity;q=0.1".encode()


def test_a_client_that_accepts_none_gets_none(plane: DataPlane, upstream: Upstream) -> None:
    for fields in ((), ("Accept-Encoding: identity",), ("Accept-Encoding: identity;q=0, *;q=0",)):
        answer = plane.ask("GET", f"{upstream.path}/x", *fields)
        assert (answer.status, answer.field("content-encoding"), answer.body) == (200, None, BODY)
        assert answer.field("vary") == "Origin, Accept-Encoding"
        assert (answer.field("etag"), answer.field("content-length")) == ('"1"', str(len(BODY)))


def test_head_says_what_get_says(plane: DataPlane, upstream: Upstream) -> None:
    get, head = (plane.ask(method, f"{upstream.path}/x", "Accept-Encoding: br") for method in ("GET", "HEAD"))
    own = {"date", "x-request-id", "ratelimit", "content-length", "transfer-encoding"}
    assert [each for each in head.fields if each[0] not in own] == [each for each in get.fields if each[0] not in own]
    assert head.body == b""
    assert head.field("content-length") is None


def test_without_the_policy_nothing_is_compressed(plane: DataPlane) -> None:
    upstream = plane.serve(replying(reply()))
    answer = plane.ask("GET", f"{upstream.path}/x", "Accept-Encoding: gzip")
    assert (answer.body, answer.field("vary")) == (BODY, None)


def test_a_route_may_compress_and_may_not(plane: DataPlane) -> None:
    upstream = plane.serve(replying(reply()), name="held", policies={"compression": {"enabled": False}})
    compressing = route_wire("rte_zip", "/api/zip/*", service="held", policies={"compression": {"algorithms": ["br"]}})
    plane.feed.put("route", compressing, route_wire("rte_raw", "/api/raw/*", service="held"))
    answer = plane.ask("GET", "/api/zip/x", "Accept-Encoding: gzip, br, zstd")
    assert (answer.field("content-encoding"), plain(answer)) == ("br", BODY)
    assert plane.ask("GET", "/api/raw/x", "Accept-Encoding: gzip, br, zstd").body == BODY
    assert upstream.requests


CODED = zlib.compress(BODY)
UNTOUCHED = [
    reply(CODED, "Content-Encoding: deflate", 'ETag: "1"'),
    reply(BODY, "Cache-Control: no-transform", 'ETag: "1"'),
    reply(BODY, "Set-Cookie: session=1", 'ETag: "1"'),
    reply(BODY[:100], f"Content-Range: bytes 0-99/{len(BODY)}", status="206 Partial Content"),
    reply(BODY, content_type="image/png"),
    reply(BODY[:1000]),
    b"HTTP/1.1 204 No Content\r\nContent-Type: application/json\r\n\r\n",
]


@pytest.mark.parametrize("sent", UNTOUCHED)
def test_what_must_not_be_coded_again_passes_as_it_is(plane: DataPlane, sent: bytes) -> None:
    upstream = plane.serve(replying(sent), **ON)
    answer = plane.ask("GET", f"{upstream.path}/x", "Accept-Encoding: gzip, br, zstd")
    head, _, body = sent.partition(b"\r\n\r\n")
    assert answer.body == body
    assert answer.field("vary") == ("Accept-Encoding" if answer.status == 206 else None)
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.decode().partition(": ")
        assert answer.field(name.lower()) == value


def test_a_compressed_answer_is_revalidated_at_the_upstream_under_its_own_tag(plane: DataPlane) -> None:
    def script(peer: Peer) -> None:
        while (seen := peer.read_request()) is not None:
            if b'"1"' in (seen.field("if-none-match") or b""):
                peer.send(b'HTTP/1.1 304 Not Modified\r\nETag: "1"\r\n\r\n')
            elif seen.field("if-match") == b'"1"' or seen.method == b"GET":
                peer.send(reply(BODY, 'ETag: "1"'))
            else:
                peer.send(b"HTTP/1.1 412 Precondition Failed\r\nContent-Length: 0\r\n\r\n")

    path = plane.serve(script, **ON).path + "/x"
    accept = "Accept-Encoding: gzip"
    tag = plane.ask("GET", path, accept).field("etag")
    assert tag == 'W/"1"'
    unchanged = plane.ask("GET", path, accept, f"If-None-Match: {tag}")
    assert (unchanged.status, unchanged.field("etag"), unchanged.body) == (304, tag, b"")
    plain_one = plane.ask("GET", path, 'If-None-Match: "1"')
    assert (plain_one.status, plain_one.field("etag")) == (304, '"1"')
    assert plane.ask("PUT", path, accept, f"If-Match: {tag}", body=b"{}").status == 200
    assert plane.ask("PUT", path, accept, 'If-Match: W/"2"', body=b"{}").status == 412


@pytest.mark.parametrize("coding", ["zstd", "br", "gzip"])
def test_events_arrive_as_they_are_sent(plane: DataPlane, coding: str) -> None:
    may_go_on = threading.Event()

    def script(peer: Peer) -> None:
        if peer.read_request() is None:
            return
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for number in range(3):
            event = b"data: %d\n\n" % number
            peer.send(b"%x\r\n%b\r\n" % (len(event), event))
            assert may_go_on.wait(20)
            may_go_on.clear()
        peer.send(b"0\r\n\r\n")

    upstream = plane.serve(script, **ON)
    decoder: Any = {
        "gzip": lambda: zlib.decompressobj(16 + zlib.MAX_WBITS),
        "br": brotli.Decompressor,
        "zstd": zstd.ZstdDecompressor,
    }[coding]()
    decode = decoder.process if coding == "br" else decoder.decompress
    with plane.connect() as client:
        client.send(plane.request("GET", f"{upstream.path}/x", f"Accept-Encoding: {coding}"))
        answer, body = client.begin_answer("GET")
        assert answer.field("content-encoding") == coding
        for number in range(3):
            event = b""
            while not event:
                event = decode(next(body))
            assert event == b"data: %d\n\n" % number
            may_go_on.set()
        assert decode(b"".join(body)) == b""


def test_a_large_answer_is_compressed_piece_by_piece_for_a_slow_client(plane: DataPlane) -> None:
    """Pseudo-random text compresses little, so that the client's pace holds up the whole way."""
    body = b"".join(b"%x" % zlib.crc32(b"%d" % number) for number in range(2_000_000))
    upstream = plane.serve(replying(reply(body, content_type="text/plain")), **ON)
    before = plane.rss_mib()
    with plane.connect(receive_buffer=8192) as client:
        client.send(plane.request("GET", f"{upstream.path}/x", "Accept-Encoding: gzip"))
        answer, pieces = client.begin_answer("GET")
        decompressor = zlib.decompressobj(16 + zlib.MAX_WBITS)
        got = b""
        for piece in pieces:
            got += decompressor.decompress(piece)
            assert plane.rss_mib() < before + 16
        assert got == body
        assert answer.field("content-length") is None


def test_an_answer_that_breaks_off_breaks_off(plane: DataPlane) -> None:
    def script(peer: Peer) -> None:
        if peer.read_request() is not None:
            peer.send(reply(BODY)[: len(BODY) // 2])

    upstream = plane.serve(script, **ON)
    with plane.connect() as client:
        client.send(plane.request("GET", f"{upstream.path}/x", "Accept-Encoding: gzip"))
        with pytest.raises(CutShort):
            client.answer("GET")


def test_an_http_1_0_client_gets_it_until_the_connection_closes(plane: DataPlane, upstream: Upstream) -> None:
    with plane.connect() as client:
        request = plane.request("GET", f"{upstream.path}/x", "Accept-Encoding: gzip").replace(b"HTTP/1.1", b"HTTP/1.0")
        client.send(request)
        answer = client.answer("GET")
    assert plain(answer) == BODY


def test_pipelined_answers_keep_their_order(plane: DataPlane, upstream: Upstream) -> None:
    codings = ["gzip", "br", "zstd", "gzip"]
    with plane.connect() as client:
        client.send(b"".join(plane.request("GET", f"{upstream.path}/x", f"Accept-Encoding: {c}") for c in codings))
        answers = [client.answer("GET") for _ in codings]
    assert [answer.field("content-encoding") for answer in answers] == codings
    assert all(plain(answer) == BODY for answer in answers)


# --- with others ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("size", [5_000, 1_000_000])
def test_a_stored_answer_is_kept_plain_and_given_to_each_client_as_it_accepts(plane: DataPlane, size: int) -> None:
    body = (BODY * (size // len(BODY) + 1))[:size]
    policies: dict[str, Any] = {"compression": {}, "caching": {}}
    upstream = plane.serve(replying(reply(body, 'ETag: "1"', "Cache-Control: public, max-age=60")), policies=policies)
    path = f"{upstream.path}/x"
    assert plane.ask("GET", path, "Accept-Encoding: gzip").field("content-encoding") == "gzip"
    for coding in ("br", "zstd", "gzip"):
        answer = plane.ask("GET", path, f"Accept-Encoding: {coding}")
        assert (answer.field("content-encoding"), answer.field("etag")) == (coding, 'W/"1"')
        assert plain(answer) == body
    assert plane.ask("GET", path).body == body
    unchanged = plane.ask("GET", path, "Accept-Encoding: gzip", 'If-None-Match: W/"1"')
    assert (unchanged.status, unchanged.field("etag")) == (304, 'W/"1"')
    part = plane.ask("GET", path, "Accept-Encoding: gzip", "Range: bytes=0-9")
    assert (part.status, part.body, part.field("content-encoding")) == (206, body[:10], None)
    assert part.field("vary") == unchanged.field("vary") == "Accept-Encoding"  # as the whole would have said
    assert len(upstream.requests) == 1


def test_a_client_that_leaves_during_a_large_answer_from_memory_leaves_nothing_behind(plane: DataPlane) -> None:
    body = b"".join(b"%x" % zlib.crc32(b"%d" % number) for number in range(1_000_000))
    policies = {"compression": {}, "caching": {"maxObjectBytes": len(body)}}
    sent = reply(body, "Cache-Control: public, max-age=60", content_type="text/plain")
    upstream = plane.serve(replying(sent), policies=policies)
    assert plain(plane.ask("GET", f"{upstream.path}/x", "Accept-Encoding: gzip")) == body
    for _ in range(3):
        with plane.connect(receive_buffer=8192) as client:
            client.send(plane.request("GET", f"{upstream.path}/x", "Accept-Encoding: gzip"))
            answer, pieces = client.begin_answer("GET")
            next(pieces)
            client.reset()
        line = plane.log_line(answer.field("x-request-id"))
        assert line["status_code"] == 499
    assert plain(plane.ask("GET", f"{upstream.path}/x", "Accept-Encoding: br")) == body
    assert len(upstream.requests) == 1


def test_a_transformed_answer_is_compressed_as_it_was_transformed(plane: DataPlane) -> None:
    upstream = plane.serve(replying(reply(b'{"a": "' + b"x" * 5000 + b'", "b": 1}')), name="rewritten")
    transformation = {"response": {"body": {"remove": ["b"]}}}
    policies = {"transformation": transformation, "compression": {}}
    plane.feed.put("route", route_wire("rte_both", "/api/both", service="rewritten", policies=policies))
    answer = plane.ask("GET", "/api/both", "Accept-Encoding: gzip")
    assert answer.field("content-encoding") == "gzip"
    assert json.loads(plain(answer)) == {"a": "x" * 5000}
    assert upstream.requests

"""Which coding an answer gets, and that it is the same answer afterwards, however it arrived."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import brotli
import pytest
from backports import zstd
from hypothesis import given, settings
from hypothesis import strategies as st

from core.context import Exchange
from routing.answers import AnswerHead
from routing.compression import COMPRESSORS, STEP, Compressing, compress_answer, effective_rules, negotiate, rules_of
from routing.policies import Compression

ALL = ("zstd", "br", "gzip")
DECODE: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda data: zlib.decompress(data, 16 + zlib.MAX_WBITS),
    "br": brotli.decompress,
    "zstd": zstd.decompress,
}


# --- negotiation ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("accepted", "coding"),
    [
        (None, None),
        ("", None),
        ("gzip", "gzip"),
        ("gzip, deflate, br, zstd", "zstd"),
        ("gzip, br", "br"),
        ("GZIP", "gzip"),
        ("x-gzip", "gzip"),
        ("gzip;q=1.0, br;q=0.5", "gzip"),
        ("gzip;q=0.5, br ; q=0.6", "br"),
        ("gzip;q=0", None),
        ("gzip;q=0.000", None),
        ("*", "zstd"),
        ("*;q=0", None),
        ("*, zstd;q=0", "br"),
        ("gzip;q=0.5, *;q=0.1", "gzip"),
        ("deflate, compress", None),
        ("identity", None),
        ("identity, gzip", "gzip"),
        ("identity;q=1, gzip;q=0.9", None),
        ("identity;q=0.5, gzip;q=0.9", "gzip"),
        ("identity;q=0", None),
        ("identity;q=0, *;q=0", None),
        ("identity;q=0, gzip;q=0.1", "gzip"),
        ("gzip;q=2", None),
        ("gzip;q=-1, br", "br"),
        ("gzip;q=0.1234", None),
        ("gzip;q=", None),
        ("gzip;level=9", None),
        (",, gzip ,", "gzip"),
        (";q=1", None),
        ("gzip;q=0, gzip", None),
        ("ключ, gzip", "gzip"),
    ],
)
def test_the_clients_weights_decide_and_our_order_among_equals(accepted: str | None, coding: str | None) -> None:
    assert negotiate(accepted.encode() if accepted is not None else None, ALL) == coding


codings = st.sampled_from([*ALL, "identity", "*", "deflate", "x-gzip"])
weights = st.integers(0, 1000)


@given(st.lists(st.tuples(codings, weights), max_size=6, unique_by=lambda member: member[0]), st.permutations(ALL))
def test_what_is_chosen_is_accepted_and_nothing_better_was_there(
    members: list[tuple[str, int]], algorithms: Sequence[str]
) -> None:
    if {"x-gzip", "gzip"} <= {name for name, _ in members}:
        members = [member for member in members if member[0] != "x-gzip"]  # two words for one coding
    said = dict(members)
    field = ", ".join(f"{name};q={weight / 1000:.3f}" for name, weight in members).encode()

    def weight(name: str) -> int:
        for word in (name, "x-gzip" if name == "gzip" else name, "*"):
            if word in said:
                return said[word]
        return 0

    chosen = negotiate(field, tuple(algorithms))

    best = max(weight(name) for name in algorithms)
    plain = said.get("identity", said.get("*", 0))
    if chosen is None:
        assert best == 0 or best < plain
    else:
        assert weight(chosen) == best >= plain
        assert best > 0
        assert all(weight(name) < best for name in algorithms[: algorithms.index(chosen)])


@given(st.binary(max_size=200))
def test_no_field_breaks_the_choice(field: bytes) -> None:
    assert negotiate(field, ALL) in (None, *ALL)


def test_types_are_matched_with_stars_and_without_parameters() -> None:
    rules = rules_of(Compression(types=("text/*", "application/*+json", "application/json")))
    assert rules.is_compressible(b"Text/HTML; charset=utf-8")
    assert rules.is_compressible(b"application/problem+json")
    assert rules.is_compressible(b"application/json;v=1")
    assert not rules.is_compressible(b"application/jsonp")
    assert not rules.is_compressible(b"image/png")
    assert not rules.is_compressible(b"")


def test_a_routes_policy_goes_before_its_services_and_may_switch_it_off() -> None:
    service = Compression()
    assert effective_rules(None, service) is rules_of(service)
    assert effective_rules(Compression(min_bytes=5), service) is rules_of(Compression(min_bytes=5))
    assert effective_rules(Compression(enabled=False), service) is None
    assert effective_rules(None, None) is None


# --- answers -------------------------------------------------------------------------------------------------------
class FakeExchange(Exchange):
    def __init__(self, method: bytes = b"GET", **fields: bytes) -> None:
        self.method = method
        named = {name.replace("_", "-").encode(): value for name, value in fields.items()}
        self.noted = {name: value for name, value in named.items() if name == b"accept-encoding"}
        self.passed = [piece for name, value in named.items() for piece in (name, b": ", value, b"\r\n")]


class Client:
    """The end of the way. ``takes`` says for each piece whether the client is ready for another."""

    def __init__(self, takes: Callable[[], bool] = lambda: True) -> None:
        self.head: AnswerHead | None = None
        self.pieces: list[bytes] = []
        self.is_whole = self.has_ended = self.is_aborted = False
        self._takes = takes

    def whole(self, head: AnswerHead, body: bytes) -> None:
        self.start(head)
        self.pieces.append(body)
        self.is_whole = self.has_ended = True

    def start(self, head: AnswerHead) -> None:
        assert self.head is None
        self.head = head

    def data(self, data: bytes) -> bool:
        assert self.head is not None and not self.has_ended and not self.is_aborted
        self.pieces.append(data)
        return self._takes()

    def end(self) -> None:
        assert not self.has_ended and not self.is_aborted
        self.has_ended = True

    def abort(self) -> None:
        self.is_aborted = True

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)

    def field(self, name: str) -> str | None:
        assert self.head is not None
        value = self.head.value(name.encode())
        return value.decode() if value is not None else None


class Upstream:
    """The sink of the exchange that forwards: it sends a piece when it may."""

    def __init__(self, filter: Compressing, exchange: Exchange, pieces: list[bytes]) -> None:
        self.filter = filter
        self.exchange = exchange
        self.pieces = pieces
        self.is_gone = False
        exchange.sink = self

    def go_on(self) -> None:
        while self.pieces:
            if not self.filter.data(self.pieces.pop(0)):
                return
        self.exchange.sink = None
        self.filter.end()

    def client_ready(self) -> None:
        self.go_on()

    def client_gone(self) -> None:
        self.is_gone = True

    def body_data(self, data: bytes) -> None: ...
    def body_end(self) -> None: ...
    def refuse_body(self, fault: Any) -> None: ...


def head(*lines: bytes, status: int = 200, length: int | None = None) -> AnswerHead:
    told = [line + b"\r\n" for line in lines]
    if length is not None:
        told.append(b"Content-Length: %d\r\n" % length)
    return AnswerHead(status, told, is_sized=length is not None)


JSON = b"Content-Type: application/json"
BODY = b'{"members": "of many members"}' * 100


def answered(
    exchange: Exchange, *lines: bytes, body: bytes = BODY, status: int = 200, policy: Compression | None = None
) -> Client:
    """What becomes of an answer that arrives whole, with a length."""
    client = Client()
    filter = Compressing(client, exchange, rules_of(policy or Compression()))
    filter.whole(head(*lines, status=status, length=len(body)), b"" if exchange.method == b"HEAD" else body)
    return client


@pytest.mark.parametrize("coding", ALL)
def test_an_answer_is_compressed_and_says_so(coding: str) -> None:
    client = answered(FakeExchange(accept_encoding=coding.encode()), JSON, b'ETag: "1"', b"Accept-Ranges: bytes")
    assert DECODE[coding](client.body) == BODY
    assert len(client.body) < len(BODY)
    assert client.field("content-encoding") == coding
    assert client.field("vary") == "Accept-Encoding"
    assert client.field("etag") == 'W/"1"'
    assert client.field("accept-ranges") is None
    assert client.head is not None and not client.head.is_sized and client.field("content-length") is None


def test_who_asks_for_none_gets_none_and_is_told_that_there_are_others() -> None:
    for exchange in (FakeExchange(), FakeExchange(accept_encoding=b"identity")):
        client = answered(exchange, JSON, b'ETag: "1"', b"Vary: Origin")
        assert client.body == BODY
        assert client.field("vary") == "Origin, Accept-Encoding"
        assert client.field("etag") == '"1"'
        assert client.head is not None and client.head.is_sized


@pytest.mark.parametrize(
    ("lines", "options"),
    [
        ([b"Content-Type: image/png"], {}),
        ([], {}),
        ([JSON, b"Content-Encoding: br"], {}),
        ([JSON, b"Content-Encoding: identity"], {}),
        ([JSON, b"Cache-Control: public, No-Transform"], {}),
        ([JSON, b"Content-Range: bytes 0-99/200"], {"status": 206}),
        ([JSON], {"status": 206}),
        ([JSON], {"status": 204}),
        ([JSON, b"Set-Cookie: a=b"], {}),
        ([JSON], {"body": b"x" * 1023}),
        ([JSON], {"body": b"", "policy": Compression(min_bytes=0)}),
    ],
)
def test_what_must_not_be_compressed_passes_untouched(lines: list[bytes], options: dict[str, Any]) -> None:
    client = answered(FakeExchange(accept_encoding=b"gzip"), *lines, **options)
    assert client.body == options.get("body", BODY)
    assert client.head is not None
    assert client.head.lines[:-1] == [line + b"\r\n" for line in lines]
    assert client.head.lines[-1].startswith(b"Content-Length: ")


def test_a_client_may_forbid_transformation_too() -> None:
    client = answered(FakeExchange(accept_encoding=b"gzip", cache_control=b"no-transform"), JSON)
    assert client.body == BODY


def test_answers_with_cookies_are_compressed_where_the_admin_says_so() -> None:
    policy = Compression(with_cookies=True)
    client = answered(FakeExchange(accept_encoding=b"gzip"), JSON, b"Set-Cookie: a=b", policy=policy)
    assert DECODE["gzip"](client.body) == BODY


def test_digests_of_other_bytes_go() -> None:
    lines = (JSON, b"Content-Digest: sha-256=:a:", b"Repr-Digest: sha-256=:a:", b"Digest: a", b"Content-MD5: a")
    client = answered(FakeExchange(accept_encoding=b"gzip"), *lines)
    assert all(client.field(name) is None for name in ("content-digest", "repr-digest", "digest", "content-md5"))


def test_head_is_answered_with_the_fields_of_get() -> None:
    lines = (JSON, b'ETag: "1"', b"Accept-Ranges: bytes")
    get, of_head = (answered(FakeExchange(method, accept_encoding=b"br"), *lines) for method in (b"GET", b"HEAD"))
    assert get.head is not None and of_head.head is not None
    assert of_head.head.lines == get.head.lines
    assert of_head.body == b""


@pytest.mark.parametrize(
    ("present", "merged"),
    [(b"Vary: *", "*"), (b"Vary: accept-ENCODING, Origin", "accept-ENCODING, Origin")],
)
def test_vary_names_it_once(present: bytes, merged: str) -> None:
    assert answered(FakeExchange(accept_encoding=b"gzip"), JSON, present).field("vary") == merged


@pytest.mark.parametrize(
    ("asked", "told"), [(b'W/"1"', 'W/"1"'), (b'"0", W/"1"', 'W/"1"'), (b'"1"', '"1"'), (b"*", '"1"')]
)
def test_a_304_names_the_tag_under_which_the_client_has_the_answer(asked: bytes, told: str) -> None:
    exchange = FakeExchange(accept_encoding=b"gzip", if_none_match=asked)
    assert answered(exchange, b'ETag: "1"', status=304, body=b"").field("etag") == told


@pytest.mark.parametrize(
    ("sent", "passed"),
    [
        (b'W/"1"', b'"1"'),
        (b'W/"1", "2",W/"3"', b'"1", "2","3"'),
        (b"*", b"*"),
        (b'"a, W/"', b'"a, W/"'),
    ],
)
def test_if_match_speaks_to_the_upstream_of_the_tag_that_it_gave(sent: bytes, passed: bytes) -> None:
    exchange = FakeExchange(b"PUT", accept_encoding=b"gzip", if_match=sent, x_other=b'W/"1"')
    compress_answer(exchange, rules_of(Compression()))
    assert exchange.passed[6] == passed
    assert exchange.passed[10] == b'W/"1"'


def test_event_streams_are_flushed_piece_by_piece() -> None:
    policy = Compression()
    for coding in ALL:
        exchange = FakeExchange(accept_encoding=coding.encode())
        client = Client()
        filter = Compressing(client, exchange, rules_of(policy))
        filter.start(head(b"Content-Type: text/event-stream"))
        decoder: Any = {
            "gzip": lambda: zlib.decompressobj(16 + zlib.MAX_WBITS),
            "br": brotli.Decompressor,
            "zstd": zstd.ZstdDecompressor,
        }[coding]()
        decode = decoder.process if coding == "br" else decoder.decompress
        for number in range(5):
            event = b"data: %d\n\n" % number
            before = len(client.pieces)
            filter.data(event)
            assert decode(b"".join(client.pieces[before:])) == event


# --- the same answer, however it arrives -----------------------------------------------------------------------------
def run(coroutine: Any) -> None:
    asyncio.run(coroutine)


pieces = st.lists(st.sampled_from([1, 10, 1000, STEP - 1, STEP, STEP + 1, 3 * STEP + 7]), max_size=6)


@settings(max_examples=60, deadline=None)
@given(coding=st.sampled_from(ALL), sizes=pieces, is_sized=st.booleans(), ready=st.lists(st.booleans(), max_size=20))
def test_any_way_of_cutting_an_answer_gives_the_same_answer(
    coding: str, sizes: list[int], is_sized: bool, ready: list[bool]
) -> None:
    body = b"".join(b"%d," % number for number in range(sum(sizes) // 4 + 1))[: sum(sizes)]
    parts = []
    for size in sizes:
        parts.append(body[:size])
        body = body[size:]
    whole = b"".join(parts)
    policy = Compression(min_bytes=0)

    async def check() -> None:
        answers = list(ready)
        exchange = FakeExchange(accept_encoding=coding.encode())

        def takes() -> bool:
            if not answers or answers.pop():
                return True
            asyncio.get_running_loop().call_soon(tell_ready)
            return False

        def tell_ready() -> None:
            if exchange.sink is not None:
                exchange.sink.client_ready()

        client = Client(takes)
        filter = Compressing(client, exchange, rules_of(policy))
        filter.start(head(JSON, length=len(whole) if is_sized else None))
        Upstream(filter, exchange, parts).go_on()
        async with asyncio.timeout(10):
            while not client.has_ended:
                await asyncio.sleep(0)
        is_compressed = client.field("content-encoding") is not None
        assert is_compressed == bool(whole or not is_sized)
        assert (DECODE[coding](client.body) if is_compressed else client.body) == whole
        assert exchange.sink is None

    run(check())


def test_a_large_answer_from_memory_lets_the_loop_turn_and_waits_for_the_client() -> None:
    body = BODY * 200

    async def check() -> None:
        exchange = FakeExchange(accept_encoding=b"gzip")
        client = Client(lambda: len(client.pieces) % 2 == 0)
        filter = Compressing(client, exchange, rules_of(Compression()))
        filter.whole(head(JSON, length=len(body)), body)
        assert not client.has_ended
        waits = 0
        while not client.has_ended:
            pieces = len(client.pieces)
            for _ in range(10):
                await asyncio.sleep(0)
            if not client.has_ended:
                assert len(client.pieces) <= pieces + 2
                waits += 1
                assert exchange.sink is filter
                filter.client_ready()
        assert waits
        assert DECODE["gzip"](client.body) == body

    run(check())


def test_a_client_that_leaves_ends_it_and_the_upstream_hears_of_it() -> None:
    async def check() -> None:
        exchange = FakeExchange(accept_encoding=b"gzip")
        client = Client()
        filter = Compressing(client, exchange, rules_of(Compression()))
        filter.start(head(JSON))
        upstream = Upstream(filter, exchange, [BODY * 200])
        upstream.go_on()
        assert exchange.sink is filter
        exchange.sink = None
        filter.client_gone()
        written = len(client.pieces)
        for _ in range(20):
            await asyncio.sleep(0)
        assert upstream.is_gone
        assert (len(client.pieces), client.has_ended) == (written, False)

    run(check())


def test_an_answer_that_is_cut_is_cut_for_the_client_too() -> None:
    async def check() -> None:
        exchange = FakeExchange(accept_encoding=b"gzip")
        client = Client()
        filter = Compressing(client, exchange, rules_of(Compression()))
        filter.start(head(JSON))
        Upstream(filter, exchange, [BODY * 200, BODY]).go_on()
        filter.abort()
        for _ in range(20):
            await asyncio.sleep(0)
        assert client.is_aborted and not client.has_ended

    run(check())


@pytest.mark.parametrize("coding", ALL)
@given(parts=st.lists(st.binary(max_size=200), max_size=8), flushes=st.lists(st.booleans(), min_size=8, max_size=8))
def test_compressors_give_back_what_they_got(coding: str, parts: list[bytes], flushes: list[bool]) -> None:
    compressor = COMPRESSORS[coding]()
    out = b""
    for part, does_flush in zip(parts, flushes, strict=False):
        out += compressor.add(part) + (compressor.flush() if does_flush else b"")
    assert DECODE[coding](out + compressor.finish()) == b"".join(parts)

"""How requests are framed, and what is refused because two readers could frame it differently (RFC 9112; rule 29)."""

import pytest

from tests.dataplane import DataPlane
from tests.raw_http import chunked, request
from tests.scripted_upstream import Upstream


@pytest.fixture(scope="module")
def upstream(plane: DataPlane) -> Upstream:
    return plane.serve()


def head(plane: DataPlane, upstream: Upstream, *fields: str | bytes, method: str = "POST") -> bytes:
    return plane.request(method, f"{upstream.path}/x", *fields)


def refused(plane: DataPlane, data: bytes, *statuses: int) -> None:
    """The bytes get one answer with one of the statuses, as a problem document, and then the end."""
    with plane.connect() as client:
        client.send_what_is_taken(data)
        answer = client.answer("POST")
        assert answer.status in (statuses or (400,)), answer
        assert answer.problem["detail"]
        assert answer.field("connection") == "close"
        assert client.half_close().is_at_end()


# --- sizes -----------------------------------------------------------------------------------------------------------
LIMIT = 10 * 1024 * 1024


@pytest.mark.parametrize("is_chunked", [False, True], ids=["with Content-Length", "chunked"])
def test_a_body_of_exactly_the_limit_passes_and_one_byte_more_is_413(
    plane: DataPlane, upstream: Upstream, is_chunked: bool
) -> None:
    for size, status in ((LIMIT, 200), (LIMIT + 1, 413)):
        seen = len(upstream.requests)
        body = b"x" * size
        with plane.connect() as client:
            if is_chunked:
                client.send_what_is_taken(head(plane, upstream, "Transfer-Encoding: chunked") + chunked(body))
            else:
                client.send_what_is_taken(plane.request("POST", f"{upstream.path}/x", body=body))
            answer = client.answer("POST")
            assert answer.status == status
        if status == 413:
            assert (answer.code, answer.field("connection")) == ("payload_too_large", "close")
            assert len(upstream.requests) == seen
        else:
            assert len(upstream.requests[-1].body) == LIMIT


def test_a_body_that_is_declared_too_large_is_refused_before_it_is_sent(plane: DataPlane, upstream: Upstream) -> None:
    refused(plane, head(plane, upstream, f"Content-Length: {LIMIT + 1}"), 413)
    refused(plane, head(plane, upstream, f"Content-Length: {10**18}"), 413)
    refused(plane, head(plane, upstream, f"Content-Length: {10**30}"), 400, 413)


def fields_of(size: int, each: int = 1000) -> list[str]:
    return [f"X-{number}: {'a' * (each - 10)}" for number in range(size // each)]


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        (["X-Long: " + "a" * 8186], 200),
        (["X-Long: " + "a" * 8187], 431),
        (["X-Long: " + "a" * 60_000], 431),
        (["X-" + "N" * 9000 + ": a"], 431),
        (fields_of(60_000), 200),
        (fields_of(66_000), 431),
        (fields_of(100_000), 431),
        (fields_of(1_000_000, 8000), 431),
        ([f"X-{number}: a" for number in range(98)], 200),
        ([f"X-{number}: a" for number in range(99)], 431),
        (["Cookie: " + "a" * 5000, "Cookie: " + "b" * 5000], 200),
    ],
    ids=[
        "8,192 bytes",
        "8,193",
        "60,000",
        "a long name",
        "60 KB in all",
        "66 KB",
        "100 KB",
        "1 MB",
        "100 fields",
        "101 fields",
        "two long cookies",
    ],
)
def test_the_header_section_is_bounded(plane: DataPlane, upstream: Upstream, fields: list[str], status: int) -> None:
    data = head(plane, upstream, *fields, method="GET")
    if status == 431:
        refused(plane, data, 431)
    else:
        with plane.connect() as client:
            assert client.send(data).answer().status == status


@pytest.mark.parametrize("size", [8193, 9000, 60_000, 100_000, 1_000_000])
def test_a_target_over_8_kib_is_414(plane: DataPlane, size: int) -> None:
    refused(plane, plane.request("GET", "/" + "a" * (size - 1)), 414)


def test_a_target_of_exactly_8_kib_is_served(plane: DataPlane, upstream: Upstream) -> None:
    path = f"{upstream.path}/"
    assert plane.ask("GET", path + "a" * (8192 - len(path))).status == 200
    assert plane.ask("GET", path + "?" + "a" * (8191 - len(path))).status == 200


def test_headers_that_never_end_are_refused_when_they_are_too_many(plane: DataPlane) -> None:
    with plane.connect() as client:
        client.send(b"GET / HTTP/1.1\r\n")
        for number in range(200):
            client.send_what_is_taken(b"X-%d: a\r\n" % number)
        assert client.answer().status == 431


def test_one_field_that_never_ends_is_refused(plane: DataPlane) -> None:
    with plane.connect() as client:
        client.send(b"GET / HTTP/1.1\r\nX-Endless: ")
        for _ in range(80):
            client.send_what_is_taken(b"a" * 1000)
        assert client.answer().status == 431


# --- framing that two readers could read differently -----------------------------------------------------------------
CHUNK = b"3\r\nabc\r\n0\r\n\r\n"
AMBIGUOUS: dict[str, tuple[list[str | bytes], bytes]] = {
    "Content-Length with Transfer-Encoding": (["Content-Length: 3", "Transfer-Encoding: chunked"], CHUNK),
    "Transfer-Encoding with Content-Length": (["Transfer-Encoding: chunked", "Content-Length: 13"], CHUNK),
    "two different lengths": (["Content-Length: 3", "Content-Length: 4"], b"abcd"),
    "two equal lengths": (["Content-Length: 3", "Content-Length: 3"], b"abc"),
    "a list of lengths": (["Content-Length: 3, 3"], b"abc"),
    "a signed length": (["Content-Length: +5"], b"abcde"),
    "a negative length": (["Content-Length: -1"], b""),
    "a hexadecimal length": (["Content-Length: 0x5"], b"abcde"),
    "an empty length": (["Content-Length:"], b""),
    "a length with a fraction": (["Content-Length: 3.0"], b"abc"),
    "a length with digits of another script": (["Content-Length: ٣".encode()], b"abc"),
    "gzip, chunked": (["Transfer-Encoding: gzip, chunked"], CHUNK),
    "gzip": (["Transfer-Encoding: gzip"], CHUNK),
    "identity": (["Transfer-Encoding: identity"], b""),
    "chunked twice in one field": (["Transfer-Encoding: chunked, chunked"], CHUNK),
    "chunked twice in two fields": (["Transfer-Encoding: chunked", "Transfer-Encoding: chunked"], CHUNK),
    "chunked, then nothing": (["Transfer-Encoding: chunked,"], CHUNK),
    "chunked with a parameter": (["Transfer-Encoding: chunked;a=b"], CHUNK),
    "a quoted coding": (['Transfer-Encoding: "chunked"'], CHUNK),
    "a coding that only begins like it": (["Transfer-Encoding: chunkedx"], CHUNK),
    "a vertical tab before the coding": ([b"Transfer-Encoding: \x0bchunked"], CHUNK),
    "a space before the colon": (["Transfer-Encoding : chunked"], CHUNK),
    "a tab before the colon": (["Content-Length\t: 3"], b"abc"),
    "obs-fold": (["X-Folded: a\r\n b"], b""),
    "obs-fold of the coding": (["Transfer-Encoding:\r\n chunked"], CHUNK),
    "a first line that is folded": ([" X-Folded: a"], b""),
    "a bare LF after a field": (["X-Bare: a\nX-Next: b"], b""),
    "a bare LF before a coding": (["X-Bare: a\nTransfer-Encoding: chunked"], CHUNK),
    "a bare CR in a value": (["X-Bare: a\rX-Next: b"], b""),
    "NUL in a value": (["X-Nul: a\0b"], b""),
    "a control octet in a value": (["X-Bell: a\x07b"], b""),
    "NUL in a name": (["X-\0Nul: a"], b""),
    "a name that is no token": (["X(Name): a"], b""),
    "no name": ([": a"], b""),
    "no colon": (["X-Nothing"], b""),
    "two hosts": (["Host: other.test"], b""),
    "a second, equal host": (["Host: gateway.test"], b""),
    "two credentials": (["Authorization: Bearer a", "Authorization: Bearer b"], b""),
    "an unknown expectation": (["Expect: 200-ok"], b""),
}


@pytest.mark.parametrize("case", AMBIGUOUS)
def test_what_two_readers_could_read_differently_is_400_and_ends_the_connection(
    plane: DataPlane, upstream: Upstream, case: str
) -> None:
    fields, body = AMBIGUOUS[case]
    seen = len(upstream.requests)
    smuggled = plane.request("GET", f"{upstream.path}/smuggled")
    refused(plane, head(plane, upstream, *fields) + body + smuggled)
    assert len(upstream.requests) == seen


@pytest.mark.parametrize(
    "host", [None, "a b", "a/b", "user@example.com", "a\\b", 'a"b', "<a>", "a?b", "a#b", "exämple.com"]
)
def test_a_request_without_a_usable_host_is_400(plane: DataPlane, upstream: Upstream, host: str | None) -> None:
    field = [] if host is None else [b"Host: " + host.encode()]
    refused(plane, request("GET", f"{upstream.path}/x", f"X-API-Key: {plane.key}", *field, host=None))


BAD_CHUNKS = {
    "a signed size": b"+3\r\nabc\r\n0\r\n\r\n",
    "a negative size": b"-1\r\nabc\r\n0\r\n\r\n",
    "a size with 0x": b"0x3\r\nabc\r\n0\r\n\r\n",
    "no size": b"\r\nabc\r\n0\r\n\r\n",
    "letters": b"xyz\r\nabc\r\n0\r\n\r\n",
    "a space before the size": b" 3\r\nabc\r\n0\r\n\r\n",
    "a space after the size": b"3 \r\nabc\r\n0\r\n\r\n",
    "a huge size": b"ffffffffffffffffff\r\nabc\r\n0\r\n\r\n",
    "a bare LF after the size": b"3\nabc\r\n0\r\n\r\n",
    "a bare LF in an extension": b"3;a=b\nabc\r\n0\r\n\r\n",
    "a bare CR in an extension": b"3;a\rb\r\nabc\r\n0\r\n\r\n",
    "more data than announced": b"3\r\nabcd\r\n0\r\n\r\n",
    "a bare LF after the data": b"3\r\nabc\n0\r\n\r\n",
    "no end of the data": b"3\r\nabc0\r\n\r\n",
}


@pytest.mark.parametrize("case", BAD_CHUNKS)
def test_a_malformed_chunk_is_400_and_the_upstream_gets_no_whole_request(
    plane: DataPlane, upstream: Upstream, case: str
) -> None:
    seen = len(upstream.requests)
    refused(plane, head(plane, upstream, "Transfer-Encoding: chunked") + BAD_CHUNKS[case])
    assert all(b"abc" not in each.body for each in upstream.requests[seen:])


GARBAGE = {
    "noise": bytes(range(256)),
    "text": b"hello\r\n\r\n",
    "TLS ClientHello": bytes.fromhex("16030100a5010000a10303") + b"\x55" * 160,
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00",
    "SSH": b"SSH-2.0-OpenSSH_9.6\r\n",
    "HTTP/0.9": b"GET /\r\n\r\n",
    "HTTP/0.9 with a version": b"GET / HTTP/0.9\r\nHost: a\r\n\r\n",
    "HTTP/2.0 in words": b"GET / HTTP/2.0\r\nHost: a\r\n\r\n",
    "HTTP/1.2": b"GET / HTTP/1.2\r\nHost: a\r\n\r\n",
    "HTTP/11": b"GET / HTTP/11\r\nHost: a\r\n\r\n",
    "http/1.1": b"GET / http/1.1\r\nHost: a\r\n\r\n",
    "an unknown method": b"BREW / HTTP/1.1\r\nHost: a\r\n\r\n",
    "a method in lower case": b"get / HTTP/1.1\r\nHost: a\r\n\r\n",
    "LF alone": b"GET / HTTP/1.1\nHost: a\n\n",
    "a space in the target": b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n",
    "absolute-form without Host": b"GET http://a/ HTTP/1.1\r\nX-A: b\r\n\r\n",
    "no target": b"GET HTTP/1.1\r\nHost: a\r\n\r\n",
    "a SOCKS greeting": b"\x05\x01\x00",
    "a redis command": b"*1\r\n$4\r\nPING\r\n",
    "a proxy preamble": b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
}


@pytest.mark.parametrize("case", GARBAGE)
def test_what_is_no_request_is_400_and_ends_the_connection(plane: DataPlane, case: str) -> None:
    refused(plane, GARBAGE[case])


# --- what is odd and legal -------------------------------------------------------------------------------------------
def test_chunks_are_framed_anew_without_extensions_and_trailers_are_dropped(
    plane: DataPlane, upstream: Upstream
) -> None:
    body = b'3;a=b;c="d"\r\nabc\r\n0004\r\ndefg\r\n0;end\r\nX-API-Key: forged\r\nX-Trailer: x\r\n\r\n'
    with plane.connect() as client:
        client.send(head(plane, upstream, "Transfer-Encoding: chunked", "Trailer: X-Trailer") + body)
        assert client.answer("POST").status == 200
        assert client.send(head(plane, upstream, method="GET")).answer().status == 200
    seen = upstream.requests[-2]
    assert (seen.body, seen.field("transfer-encoding")) == (b"abcdefg", b"chunked")
    assert not seen.names & {"x-trailer", "trailer", "x-api-key"}


@pytest.mark.parametrize("name", ["Content-Length", "Host", "X-API-Key", "Transfer-Encoding", "Authorization"])
def test_a_trailer_never_poses_as_a_header(plane: DataPlane, upstream: Upstream, name: str) -> None:
    """Neither for its own request nor for the next one on the connection."""
    entry = request("POST", f"{upstream.path}/x", "Transfer-Encoding: chunked")
    with plane.connect() as client:
        client.send(entry + b"0\r\n" + f"{name}: {plane.key}\r\n\r\n".encode())
        answer = client.answer("POST")
        assert answer.code == "missing_credentials"
    # A second request, begun after the trailers, has no credential either.
    with plane.connect() as client:
        client.send(plane.request("POST", f"{upstream.path}/x", "Transfer-Encoding: chunked"))
        client.send(b"0\r\nX-API-Key: " + plane.key.encode() + b"\r\n\r\n" + request("GET", f"{upstream.path}/x"))
        assert client.answer("POST").status == 200
        assert client.answer().code == "missing_credentials"


def test_trailers_are_bounded_like_headers(plane: DataPlane, upstream: Upstream) -> None:
    with plane.connect() as client:
        client.send(head(plane, upstream, "Transfer-Encoding: chunked") + b"0\r\n")
        for number in range(200):
            client.send_what_is_taken(b"X-%d: %b\r\n" % (number, b"a" * 1000))
        assert client.answer("POST").status == 431


@pytest.mark.parametrize(
    "fields",
    [
        ["X-Empty:"],
        ["X-Empty: "],
        ["x-lower: a", "X-UPPER: b"],
        ["X-Tabbed:\ta\tb"],
        ["X-Spaces:    a  b"],
        ["X-Latin: é"],
        ["X-Twice: a", "X-Twice: b"],
        ["!#$%&'*+-.^`|~: a"],
        ["X-Colon: a:b: c"],
    ],
    ids=str,
)
def test_odd_fields_that_are_legal_reach_the_upstream(plane: DataPlane, upstream: Upstream, fields: list[str]) -> None:
    assert plane.ask("GET", f"{upstream.path}/x", *fields).status == 200
    for field in fields:
        name, _, value = field.partition(":")
        values = [each.strip(b" \t") for each in upstream.requests[-1].all(name.lower())]
        assert value.strip(" \t").encode("latin-1") in values


def test_empty_lines_before_a_request_are_ignored(plane: DataPlane, upstream: Upstream) -> None:
    with plane.connect() as client:
        assert client.send(b"\r\n\r\n" + head(plane, upstream, method="GET")).answer().status == 200
        assert client.send(b"\r\n" + head(plane, upstream, method="GET")).answer().status == 200


def test_a_request_may_come_byte_by_byte(plane: DataPlane, upstream: Upstream) -> None:
    data = head(plane, upstream, "Transfer-Encoding: chunked") + b"3\r\nabc\r\n0\r\n\r\n"
    with plane.connect() as client:
        for octet in data:
            client.send(bytes([octet]))
        assert client.answer("POST").status == 200
    assert upstream.requests[-1].body == b"abc"


def test_a_chunked_request_in_http_1_0_is_400(plane: DataPlane, upstream: Upstream) -> None:
    data = head(plane, upstream, "Transfer-Encoding: chunked").replace(b"HTTP/1.1", b"HTTP/1.0")
    refused(plane, data + CHUNK)

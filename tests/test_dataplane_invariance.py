"""However bytes are split, they mean the same; and no other reader takes them for something else.

Over `ClientProtocol` and `UpstreamConnection` with transports in memory, so that each split is really seen.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import h11
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from routing.upstream.connection import UpstreamConnection
from tests.memory_transport import (
    MemoryTransport,
    RecordingGateway,
    RecordingHandler,
    RecordingPool,
    Taken,
    connected_client,
)

few = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])

# --- requests --------------------------------------------------------------------------------------------------------
HEAD = b"%b HTTP/1.1\r\nHost: a.test\r\n"
REQUESTS = [
    HEAD % b"GET /a?b=c" + b"\r\n",
    HEAD % b"GET /a" + b"X-Empty:\r\nX-Long: " + b"y" * 300 + b"\r\nCookie: a=1\r\nCookie: b=2\r\n\r\n",
    HEAD % b"POST /sized" + b"Content-Length: 10\r\n\r\n0123456789",
    HEAD % b"POST /empty" + b"Content-Length: 0\r\n\r\n",
    HEAD % b"PUT /chunked" + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nA;x=y\r\n0123456789\r\n0\r\n\r\n",
    HEAD % b"PUT /trailers" + b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nHost: evil\r\nX-API-Key: k\r\n\r\n",
    HEAD % b"GET /upgrade" + b"Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
    HEAD % b"POST /upgrade" + b"Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 3\r\n\r\nabc",
    HEAD % b"POST /upgrade2" + b"Connection: Upgrade\r\nUpgrade: h2c\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"3\r\nabc\r\n0\r\n\r\n",
    HEAD % b"GET http://b.test:80/absolute" + b"\r\n",
    b"\r\n\r\n" + HEAD % b"GET /after/empty/lines" + b"\r\n",
]
LAST = [
    b"",
    HEAD % b"GET /closes" + b"Connection: close\r\n\r\n",
    b"GET /old HTTP/1.0\r\n\r\n",
    b"nonsense\r\n\r\n",
    b"GET /nowhere HTTP/1.1\r\n\r\n",
    HEAD % b"GET /two" + b"Host: b\r\n\r\n",
    HEAD % b"POST /both" + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    HEAD % b"POST /bad" + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nxyz\r\n",
    HEAD % b"POST /bad" + b"Transfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n",
    HEAD % b"GET /folded" + b"X-A: b\r\n c\r\n\r\n",
    HEAD % b"GET /bare" + b"X-A: b\nX-C: d\r\n\r\n",
    HEAD % b"GET /long" + b"X-Long: " + b"y" * 9000 + b"\r\n\r\n",
    HEAD % (b"GET /" + b"y" * 9000) + b"\r\n",
    HEAD % b"GET /cut" + b"X-Cut: of",
]
streams = st.builds(
    lambda requests, last: b"".join(requests) + last,
    st.lists(st.sampled_from(REQUESTS), max_size=4),
    st.sampled_from(LAST),
)


def pieces(data: bytes, cuts: Sequence[int]) -> Iterator[bytes]:
    edges = [0, *sorted({cut % (len(data) + 1) for cut in cuts}), len(data)]
    for start, end in pairwise(edges):
        if start < end:
            yield data[start:end]


def outcome(data: bytes, cuts: Sequence[int], *, is_late: bool) -> tuple[list[Taken], list[str], list[bytes], str]:
    """The requests that came whole, the refusals, the answers' status lines, and how the connection ended."""
    gateway = RecordingGateway(is_late=is_late)
    protocol, transport = connected_client(gateway)
    waiting = list(pieces(data, cuts))
    while waiting and not transport.is_closing():
        protocol.data_received(waiting.pop(0))
        while transport.is_reading_paused and not transport.is_closing():
            gateway.loop.run()
    gateway.loop.run()
    answers = [line for line in transport.written.split(b"\r\n") if line.startswith(b"HTTP/1.1 ")]
    whole = [each for each in gateway.requests if each.is_whole]
    return whole, gateway.refusals, [line for line in answers if b" 100 " not in line], transport.ended


cuts = st.lists(st.integers(0, 20_000), max_size=12)


@few
@given(streams, cuts, st.booleans())
def test_however_requests_are_split_they_are_taken_and_answered_alike(
    data: bytes, cuts: list[int], is_late: bool
) -> None:
    assert outcome(data, cuts, is_late=is_late) == outcome(data, [], is_late=is_late)


@pytest.mark.parametrize("is_late", [False, True], ids=["at once", "late"])
@pytest.mark.parametrize("last", LAST)
def test_byte_by_byte_is_one_of_these_splits(last: bytes, is_late: bool) -> None:
    data = b"".join(REQUESTS) + last
    assert outcome(data, range(len(data)), is_late=is_late) == outcome(data, [], is_late=is_late)


# --- another reader --------------------------------------------------------------------------------------------------
SENTINEL = HEAD % b"GET /sentinel" + b"\r\n"
ODD = [
    b"\r",
    b"\n",
    b"\r\n",
    b" ",
    b"\t",
    b"\0",
    b":",
    b";",
    b",",
    b"0",
    b"\x0b",
    b"\xff",
    b"_",
    b"chunked",
    b"HTTP/1.1",
]
mutations = st.lists(
    st.tuples(st.integers(0, 400), st.sampled_from(["insert", "replace", "delete"]), st.sampled_from(ODD)), max_size=3
)


def mutated(data: bytes, changes: list[tuple[int, str, bytes]]) -> bytes:
    for where, how, odd in changes:
        where %= len(data)
        data = data[:where] + (b"" if how == "delete" else odd) + data[where + (how != "insert") :]
    return data


def reading_of_h11(data: bytes) -> tuple[bytes, bytes, dict[bytes, list[bytes]], bytes, bytes] | None:
    """Method, target, fields, body and what is left of the first request; None where h11 refuses or wants more."""
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(data)
    body = b""
    head: Any = None
    try:
        while True:
            event = connection.next_event()
            if isinstance(event, h11.Request):
                head = event
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                fields: dict[bytes, list[bytes]] = {}
                for name, value in head.headers:
                    fields.setdefault(name, []).append(value)
                return head.method, head.target, fields, body, connection.trailing_data[0]
            else:
                return None
    except h11.RemoteProtocolError:
        return None


@settings(few, max_examples=600)
@given(st.sampled_from([*REQUESTS, *LAST[1:]]), mutations)
@example(REQUESTS[2], [(0, "insert", b"\r\n")])
def test_what_is_taken_h11_reads_in_the_same_way_or_refuses(
    template: bytes, changes: list[tuple[int, str, bytes]]
) -> None:
    """Smuggling is a difference of readings: of the body's end above all, which the sentinel after it shows."""
    data = mutated(template, changes)
    other = reading_of_h11(data + SENTINEL)
    requests, *_ = outcome(data + SENTINEL, [], is_late=False)
    if other is None or not requests:
        return
    method, target, fields, body, rest = other
    ours = requests[0]
    assert (ours.method, ours.body) == (method, body)
    if target.startswith(b"/"):
        assert ours.path + (b"" if ours.query is None else b"?" + ours.query) == target
    for name in (b"host", b"content-length", b"transfer-encoding", b"x-api-key"):
        assert ours.noted.get(name) == (b", ".join(fields[name]) if name in fields else None)
    if rest.lstrip(b"\r\n") == SENTINEL and len(requests) > 1:
        assert requests[1].path == b"/sentinel"


# --- answers ---------------------------------------------------------------------------------------------------------
OK = b"HTTP/1.1 200 OK\r\n"
ANSWERS = [
    OK + b"Content-Length: 3\r\nX-A: b\r\nSet-Cookie: a=1\r\n\r\nabc",
    OK + b"Content-Length: 0\r\n\r\n",
    OK
    + b"Transfer-Encoding: chunked\r\nConnection: X-Hop\r\nX-Hop: 1\r\n\r\n3;e\r\nabc\r\n2\r\nde\r\n0\r\nX: 1\r\n\r\n",
    OK + b"Content-Type: text/plain\r\n\r\nuntil the end",
    b"HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nabc",
    b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n",
    b"HTTP/1.1 103 Early\r\nLink: a\r\n\r\n" + OK + b"Content-Length: 3\r\n\r\nabc",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 Wait\r\nX-Early: 1\r\n\r\n" + OK + b"Content-Length: 3\r\n\r\nabc",
    b"\r\n\r\n" + OK + b"Content-Length: 3\r\n\r\nabc",
    OK + b"Content-Length: 3\r\n\r\nabcHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison",
    OK + b"Content-Length: 3\r\n\r\nabc surplus",
    OK + b"Content-Length: 100\r\n\r\ncut",
    OK + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nxyz\r\n",
    OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    OK + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
    OK + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    OK + b"X-A: b\r\n c\r\nContent-Length: 0\r\n\r\n",
    OK + b"X-A: b\nSet-Cookie: c\r\nContent-Length: 0\r\n\r\n",
    OK + b"X-Long: " + b"a" * 66_000 + b"\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: a\r\nConnection: upgrade\r\n\r\nbytes",
    b"HTTP/1.1 600 High\r\nContent-Length: 0\r\n\r\n",
    b"nonsense",
    b"",
]


def heard(data: bytes, cuts: Sequence[int], *, is_head: bool) -> tuple[Any, ...]:
    """What the handler hears of an answer that ends with its connection, and whether that could be used again."""
    pool, handler, transport = RecordingPool(), RecordingHandler(), MemoryTransport()
    connection = UpstreamConnection(pool)  # type: ignore[arg-type]  # all that it asks of a pool
    connection.connection_made(transport)
    connection.send(handler, b"GET / HTTP/1.1\r\n\r\n", is_head=is_head)
    for piece in pieces(data, cuts):
        if transport.is_closing():
            break
        connection.data_received(piece)
    was_kept = pool.given_back > 0 and not transport.is_closing()
    if not transport.is_closing():
        connection.eof_received()
        connection.connection_lost(None)
    body = handler.body if handler.end == "whole" else b""
    lines = handler.lines if handler.end == "whole" else []
    return handler.status if handler.end == "whole" else 0, lines, body, handler.end, was_kept


@few
@given(st.sampled_from(ANSWERS), cuts, st.booleans())
def test_however_an_answer_is_split_it_is_heard_alike(data: bytes, cuts: list[int], is_head: bool) -> None:
    assert heard(data, cuts, is_head=is_head) == heard(data, [], is_head=is_head)


@pytest.mark.parametrize("is_head", [False, True], ids=["GET", "HEAD"])
@pytest.mark.parametrize("data", [answer for answer in ANSWERS if len(answer) < 1000])
def test_an_answer_may_come_byte_by_byte(data: bytes, is_head: bool) -> None:
    assert heard(data, range(len(data)), is_head=is_head) == heard(data, [], is_head=is_head)

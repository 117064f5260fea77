"""However bytes are split, they mean the same.

Over `ClientProtocol` and `UpstreamConnection` with transports in memory, so that each split is really seen.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway_project.dataplane import protocol
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
    HEAD % b"GET /socket" + b"Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
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
    client, transport = connected_client(gateway)
    waiting = list(pieces(data, cuts))
    while waiting and not transport.is_closing():
        client.data_received(waiting.pop(0))
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


@few
@given(streams, cuts, st.booleans(), st.integers(1, 400))
def test_however_many_turns_a_read_takes_its_requests_are_taken_and_answered_alike(
    data: bytes, cuts: list[int], is_late: bool, turn: int
) -> None:
    with patch.multiple(protocol, TURN_BYTES=turn, TURN_BODY_BYTES=turn):
        seen = outcome(data, cuts, is_late=is_late)
    assert seen == outcome(data, [], is_late=is_late)


def test_thousands_of_requests_in_one_read_leave_others_their_turns() -> None:
    gateway = RecordingGateway()
    (greedy, transport), (other, _) = connected_client(gateway), connected_client(gateway)
    greedy.data_received(REQUESTS[0] * 2000)
    assert 0 < len(gateway.requests) <= protocol.TURN_BYTES // len(REQUESTS[0]) + 1
    assert transport.is_reading_paused
    other.data_received(REQUESTS[1])
    assert gateway.requests[-1].path == b"/a"
    gateway.loop.run()
    assert (len(gateway.requests), gateway.refusals) == (2001, [])
    assert transport.written.count(b"HTTP/1.1 200 ") == 2000
    assert not transport.is_reading_paused


def test_what_is_unread_when_the_client_leaves_is_forgotten() -> None:
    gateway = RecordingGateway()
    client, transport = connected_client(gateway)
    client.data_received(REQUESTS[0] * 2000)
    seen = len(gateway.requests)
    transport.abort()
    client.connection_lost(None)
    gateway.loop.run()
    assert len(gateway.requests) == seen


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


def heard(data: bytes, cuts: Sequence[int], *, is_head: bool, awaits_switch: bool = False) -> tuple[Any, ...]:
    """What the handler hears of an answer that ends with its connection, and whether that could be used again."""
    pool, handler, transport = RecordingPool(), RecordingHandler(awaits_switch=awaits_switch), MemoryTransport()
    connection = UpstreamConnection(pool)  # type: ignore[arg-type]  # all that it asks of a pool
    connection.connection_made(transport)
    connection.send(handler, b"GET / HTTP/1.1\r\n\r\n", is_head=is_head)
    for piece in pieces(data, cuts):
        if transport.is_closing():
            break
        if handler.end == "switched":  # whoever has the transport now gets the rest
            handler.body += piece
            continue
        connection.data_received(piece)
    if handler.end == "switched":
        return handler.status, handler.lines, handler.body, handler.end
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


SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nX-A: b\r\n\r\n"
SWITCHES = [
    SWITCHED + b"\x81\x03abc",
    SWITCHED,
    b"HTTP/1.1 103 Early\r\nLink: a\r\n\r\n" + SWITCHED + b"\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
    b"\r\n" + SWITCHED + b"bytes",
    SWITCHED.replace(b"Upgrade: websocket\r\n", b"") + b"bytes",
    SWITCHED.replace(b"X-A: b", b"Content-Length: 3") + b"bytes",
    SWITCHED.replace(b"X-A: b", b"Transfer-Encoding: chunked") + b"bytes",
]


@few
@given(st.sampled_from([*SWITCHES, *ANSWERS]), cuts)
def test_however_a_switch_of_protocols_is_split_it_is_heard_alike(data: bytes, cuts: list[int]) -> None:
    whole = heard(data, [], is_head=False, awaits_switch=True)
    assert heard(data, cuts, is_head=False, awaits_switch=True) == whole
    if data.startswith(SWITCHED):
        assert whole[2:] == (data[len(SWITCHED) :], "switched")

"""What upstreams answer: what is no answer, what is cut off, and every odd form that is legal (RFC 9112)."""

import threading
import time
from collections.abc import Callable

import pytest

from tests.dataplane import DataPlane, failed
from tests.gateway_process import eventually
from tests.raw_http import CutShort, chunked
from tests.scripted_upstream import OK, TIMEOUT_S, Peer, Script, closing

# --- answers that are none -------------------------------------------------------------------------------------------
GARBAGE = {
    "noise": b"\x00\x01\x02\x03" * 10,
    "text": b"hello\r\n\r\n",
    "HTML alone": b"<html></html>",
    "an SSH banner": b"SSH-2.0-OpenSSH_9.6\r\n",
    "HTTP/2": b"\x00\x00\x12\x04\x00\x00\x00\x00\x00",
    "a request": b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "no version": b"HTTP 200 OK\r\n\r\n",
    "status 0": b"HTTP/1.1 000 Zero\r\nContent-Length: 0\r\n\r\n",
    "status 99": b"HTTP/1.1 099 Low\r\nContent-Length: 0\r\n\r\n",
    "status 600": b"HTTP/1.1 600 High\r\nContent-Length: 0\r\n\r\n",
    "status 1000": b"HTTP/1.1 1000 Higher\r\nContent-Length: 0\r\n\r\n",
    "status abc": b"HTTP/1.1 abc Letters\r\nContent-Length: 0\r\n\r\n",
    "101 that nobody asked for": b"HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nabc",
    "two equal lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok",
    "a signed length": b"HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nok",
    "a length with letters": b"HTTP/1.1 200 OK\r\nContent-Length: 2x\r\n\r\nok",
    "a huge length": b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\nok",
    "a length and a coding": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a coding and a length": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    "gzip, chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "chunked twice": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "identity": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\n\r\nok",
    "a bare LF in the status line": b"HTTP/1.1 200 OK\nContent-Length: 2\r\n\r\nok",
    "a bare LF after a field": b"HTTP/1.1 200 OK\r\nX-A: b\nSet-Cookie: evil=1\r\nContent-Length: 2\r\n\r\nok",
    "a bare CR in a field": b"HTTP/1.1 200 OK\r\nX-A: b\rSet-Cookie: evil=1\r\nContent-Length: 2\r\n\r\nok",
    "NUL in a field": b"HTTP/1.1 200 OK\r\nX-A: b\0c\r\nContent-Length: 2\r\n\r\nok",
    "obs-fold": b"HTTP/1.1 200 OK\r\nX-A: b\r\n Set-Cookie: evil=1\r\nContent-Length: 2\r\n\r\nok",
    "a space before the colon": b"HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\nok",
    "no colon": b"HTTP/1.1 200 OK\r\nNothing\r\nContent-Length: 2\r\n\r\nok",
    "a folded first line": b"HTTP/1.1 200 OK\r\n X-A: b\r\nContent-Length: 2\r\n\r\nok",
    "a huge head": b"HTTP/1.1 200 OK\r\nX-A: " + b"a" * 70_000 + b"\r\nContent-Length: 2\r\n\r\nok",
    "a head of many fields": b"HTTP/1.1 200 OK\r\n" + b"X-A: b\r\n" * 30_000 + b"Content-Length: 2\r\n\r\nok",
    "a head that never ends": b"HTTP/1.1 200 OK\r\n" + b"X-A: b\r\n" * 100_000,
}


def sending(answer: bytes) -> Script:
    """Sends the bytes and stays: what is wrong with them must show without an end of the connection."""

    def script(peer: Peer) -> None:
        if peer.read_request() is not None:
            peer.socket.sendall(answer)
            peer.wait_for_end()

    return script


@pytest.mark.parametrize("case", GARBAGE)
def test_an_answer_that_is_none_is_502_and_nothing_of_it_passes(plane: DataPlane, case: str) -> None:
    upstream = plane.serve(sending(GARBAGE[case]))
    answer = plane.ask("GET", f"{upstream.path}/x")
    failed(answer, 502, "upstream_invalid_response", "http_protocol_error")
    assert answer.all("set-cookie") == []
    assert plane.ask("POST", f"{upstream.path}/x", body=b"abc").code == "upstream_invalid_response"


def test_an_answer_that_ends_within_its_head_is_502(plane: DataPlane) -> None:
    for piece in (b"", b"HTTP/1.1 200", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n"):
        upstream = plane.serve(closing(piece))
        failed(plane.ask("GET", f"{upstream.path}/x"), 502, "upstream_reset", "connection_terminated")
        assert len(upstream.requests) == 1  # a new connection that ends is no sign of a dead one


SIZED = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
CHUNK = b"9\r\nonly this\r\n"
TRUNCATED = {
    "sized": (SIZED + b"only this", b""),
    "chunked": (CHUNKED + CHUNK, b""),
    "within a chunk": (CHUNKED + CHUNK, b"ff\r\nonly this"),
    "before the last CRLF": (CHUNKED + CHUNK, b"0\r\n"),
    "a bad chunk": (CHUNKED + CHUNK, b"xyz\r\n"),
}


def ends_badly(plane: DataPlane, begin: bytes, end: Callable[[Peer], None], version: bytes = b"1.1") -> None:
    """An answer that begins well, and goes wrong when the client has seen its beginning."""
    has_begun = threading.Event()

    def script(peer: Peer) -> None:
        if peer.read_request() is not None:
            peer.send(begin)
            assert has_begun.wait(TIMEOUT_S)
            end(peer)

    upstream = plane.serve(script)
    with plane.connect() as client:
        client.send(plane.request("GET", f"{upstream.path}/x").replace(b"HTTP/1.1", b"HTTP/" + version))
        answer, body = client.begin_answer()
        assert answer.status == 200
        has_begun.set()
        with pytest.raises(CutShort):
            list(body)


@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
@pytest.mark.parametrize("end", [Peer.close, Peer.reset])
@pytest.mark.parametrize("case", TRUNCATED)
def test_an_answer_that_is_cut_off_never_looks_whole(
    plane: DataPlane, case: str, end: Callable[[Peer], None], version: bytes
) -> None:
    begin, rest = TRUNCATED[case]

    def ending(peer: Peer) -> None:
        peer.send(rest)
        end(peer)

    ends_badly(plane, begin, ending, version)


@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
def test_a_reset_in_an_answer_that_ends_with_its_connection_is_seen(plane: DataPlane, version: bytes) -> None:
    ends_badly(plane, b"HTTP/1.1 200 OK\r\n\r\npart", Peer.reset, version)


# --- answers that are odd and legal ----------------------------------------------------------------------------------
LEGAL = {
    "chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(b"ab", b"c"),
    "chunked with extensions and trailers": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n"
    b"3;x=y\r\nabc\r\n0\r\nSet-Cookie: trailer=1\r\n\r\n",
    "until the end": b"HTTP/1.1 200 OK\r\n\r\nabc",
    "HTTP/1.0": b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\nabc",
    "HTTP/1.0 with a length": b"HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nabc",
    "Connection: close": b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc",
    "100 first": b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc",
    "102 and 103 first": b"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\nX-Early: 1\r\n\r\n"
    b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc",
    "empty lines first": b"\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc",
    "no reason": b"HTTP/1.1 200 \r\nContent-Length: 3\r\n\r\nabc",
    "no reason and no space": b"HTTP/1.1 200\r\nContent-Length: 3\r\n\r\nabc",
    "a reason beyond ASCII": "HTTP/1.1 200 Schön\r\nContent-Length: 3\r\n\r\nabc".encode(),
    "a length with zeros": b"HTTP/1.1 200 OK\r\nContent-Length: 0003\r\n\r\nabc",
}


@pytest.mark.parametrize("is_split", [False, True], ids=["at once", "byte by byte"])
@pytest.mark.parametrize("case", LEGAL)
def test_every_legal_form_of_an_answer_is_understood(plane: DataPlane, case: str, is_split: bool) -> None:
    def script(peer: Peer) -> None:
        if peer.read_request() is not None:
            for piece in [LEGAL[case][i : i + 1] for i in range(len(LEGAL[case]))] if is_split else [LEGAL[case]]:
                peer.send(piece)

    upstream = plane.serve(script)
    answer = plane.ask("GET", f"{upstream.path}/x")
    assert (answer.status, answer.body) == (200, b"abc")
    assert not {"link", "x-early", "set-cookie"} & {name for name, _ in answer.fields}
    for _ in range(2):  # whatever became of that connection
        assert plane.ask("GET", f"{upstream.path}/x").body == b"abc"


SURPLUS = OK + b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"


@pytest.mark.parametrize("delay_s", [0.0, 0.05], ids=["at once", "a moment later"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_bytes_after_an_answer_never_reach_anybody(plane: DataPlane, method: str, delay_s: float) -> None:
    def script(peer: Peer) -> None:
        while peer.read_request() is not None:
            if delay_s:
                peer.send(OK if method == "GET" else OK[:-2])
                time.sleep(delay_s)  # the very case
                peer.send(SURPLUS[len(OK) :])
            else:
                peer.send(SURPLUS)

    upstream = plane.serve(script)
    for number in range(1, 6):
        answer = plane.ask(method, f"{upstream.path}/x")
        assert (answer.status, answer.body) == (200, b"ok" if method == "GET" else b"")
        eventually(lambda: upstream.open_connections == 0, what="the end of the tainted connection")
        assert upstream.connections == number

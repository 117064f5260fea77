"""Answers that go on for long: event streams that are silent, and clients that are slow (rule 9, R19)."""

import threading
import time
from collections.abc import Callable

import pytest

from tests.dataplane import DataPlane
from tests.raw_http import CutShort
from tests.scripted_upstream import OK, TIMEOUT_S, Peer, Upstream
from tests.wires import route_wire

STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
IDLE_MS = 1000


def events(*pauses_s: float) -> Callable[[Peer], None]:
    """An event after each pause, and then silence."""

    def script(peer: Peer) -> None:
        if peer.read_request() is None:
            return
        peer.send(STREAM)
        for pause_s in pauses_s:
            time.sleep(pause_s)
            peer.send(b"9\r\ndata: x\n\n\r\n")
        peer.wait_for_end()

    return script


def test_an_event_stream_may_last_as_long_as_it_is_not_silent_for_the_idle_time(plane: DataPlane) -> None:
    upstream = plane.serve(events(*[0.4] * 6), idle_timeout_ms=IDLE_MS)
    with plane.connect() as client:
        _, body = client.send(plane.request("GET", upstream.path)).begin_answer()
        for _ in range(6):
            assert next(body) == b"data: x\n\n"
        before = time.monotonic()
        with pytest.raises(CutShort):
            next(body)
        assert time.monotonic() - before > 0.5


def test_a_route_may_grant_its_streams_a_longer_silence(plane: DataPlane) -> None:
    upstream = plane.serve(events(0.0, 2.0), idle_timeout_ms=IDLE_MS)
    name = upstream.path.rpartition("/")[2]
    plane.feed.put("route", route_wire("rte_patient", "/patient", service=name, idle_timeout_ms=60_000))
    with plane.connect() as client:
        _, body = client.send(plane.request("GET", "/patient")).begin_answer()
        assert [next(body), next(body)] == [b"data: x\n\n"] * 2


def test_an_event_stream_that_ends_whole_ends_whole(plane: DataPlane) -> None:
    def script(peer: Peer) -> None:
        peer.read_request()
        peer.send(STREAM + b"9\r\ndata: x\n\n\r\n")
        time.sleep(0.2)
        peer.send(b"0\r\n\r\n")

    upstream = plane.serve(script)
    with plane.connect() as client:
        _, body = client.send(plane.request("GET", upstream.path)).begin_answer()
        assert list(body) == [b"data: x\n\n"]
        assert client.send(plane.request("GET", "/health")).answer().status == 200


SIZE = 12 * 1024 * 1024


def large(peer: Peer) -> None:
    if peer.read_request() is not None:
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % SIZE)
        peer.send(b"x" * SIZE)
        peer.wait_for_end()


def test_a_client_that_takes_a_little_at_a_time_gets_all_of_it(plane: DataPlane) -> None:
    """However much the kernel holds for it, and however long it needs for that."""
    upstream = plane.serve(large, idle_timeout_ms=IDLE_MS)
    with plane.connect(receive_buffer=16 * 1024) as client:
        _, body = client.send(plane.request("GET", upstream.path)).begin_answer()
        received = 0
        slow_until = time.monotonic() + 5 * IDLE_MS / 1000
        for piece in body:
            received += len(piece)
            if time.monotonic() < slow_until:
                time.sleep(0.2)
                assert received < SIZE / 3
        assert received == SIZE


def test_one_who_is_slow_again_after_a_quick_stretch_is_not_cut_off(plane: DataPlane) -> None:
    """What was seen of it in the first slow stretch says nothing of the second: the kernel holds more by then."""
    upstream = plane.serve(large, idle_timeout_ms=IDLE_MS)
    with plane.connect(receive_buffer=16 * 1024) as client:
        _, body = client.send(plane.request("GET", upstream.path)).begin_answer()
        received = quick_bytes = 0
        began = time.monotonic()
        for piece in body:
            received += len(piece)
            if time.monotonic() < began + 2.5 * IDLE_MS / 1000:
                time.sleep(0.2)
            elif quick_bytes < SIZE / 3:
                quick_bytes += len(piece)
                again_until = time.monotonic() + 3.5 * IDLE_MS / 1000
            elif time.monotonic() < again_until:
                time.sleep(0.2)
                assert received < SIZE * 2 / 3
        assert received == SIZE


def test_a_client_that_takes_nothing_is_cut_off_and_its_upstream_let_go(plane: DataPlane) -> None:
    is_over = threading.Event()

    def script(peer: Peer) -> None:
        try:
            large(peer)
        finally:
            is_over.set()

    upstream = plane.serve(script, idle_timeout_ms=IDLE_MS)
    with plane.connect(receive_buffer=16 * 1024) as client:
        client.send(plane.request("GET", upstream.path))
        assert is_over.wait(TIMEOUT_S)


@pytest.mark.parametrize("is_early", [False, True], ids=["answer after body", "answer before body"])
def test_an_upstream_that_takes_a_little_at_a_time_gets_all_of_it(plane: DataPlane, is_early: bool) -> None:
    received = [0]

    def script(peer: Peer) -> None:
        head = peer.read_head()
        assert head is not None
        if is_early:
            peer.send(OK[:-2])
        slow_until = time.monotonic() + 5 * IDLE_MS / 1000
        while received[0] < SIZE and (piece := peer.read_piece()):
            received[0] += len(piece)
            if time.monotonic() < slow_until:
                time.sleep(0.2)
                assert received[0] < SIZE / 2
        peer.send(OK[-2:] if is_early else OK)

    upstream = plane.serve(upstream=Upstream(script, receive_buffer=16 * 1024), idle_timeout_ms=IDLE_MS)
    name = upstream.path.rpartition("/")[2]
    plane.feed.put("route", route_wire("rte_slow_upload", "/slow-upload", service=name, max_body_bytes=SIZE))
    with plane.connect() as client:
        client.send(plane.request("POST", "/slow-upload", body=b"x" * SIZE))
        assert client.answer("POST").body == b"ok"
    assert received[0] == SIZE


def test_a_body_that_goes_on_after_an_early_answer_is_no_silence(plane: DataPlane) -> None:
    def script(peer: Peer) -> None:
        peer.read_head()
        peer.send(STREAM)
        peer.send(b"5\r\n%05d\r\n0\r\n\r\n" % sum(map(len, peer.chunks())))

    upstream = plane.serve(script, idle_timeout_ms=IDLE_MS)
    with plane.connect() as client:
        client.send(plane.request("POST", upstream.path, "Transfer-Encoding: chunked"))
        _, body = client.begin_answer()
        ends = time.monotonic() + 2.5 * IDLE_MS / 1000
        sent = 0
        while time.monotonic() < ends:
            client.send(b"1\r\nx\r\n")
            sent += 1
            time.sleep(0.2)
        client.send(b"0\r\n\r\n")
        assert list(body) == [b"%05d" % sent]


def test_an_upstream_that_is_silent_after_an_early_answer_is_let_go(plane: DataPlane) -> None:
    """Also when it had held up the body before."""
    is_over = threading.Event()

    def script(peer: Peer) -> None:
        peer.read_head()
        peer.send(STREAM)
        time.sleep(IDLE_MS / 2000)
        peer.read(SIZE // 2)
        peer.wait_for_end()
        is_over.set()

    upstream = plane.serve(upstream=Upstream(script, receive_buffer=16 * 1024), idle_timeout_ms=IDLE_MS)
    with plane.connect() as client:
        _, body = client.send(plane.request("POST", upstream.path, body=b"x" * (SIZE // 2))).begin_answer()
        with pytest.raises(CutShort):
            next(body)
    assert is_over.wait(TIMEOUT_S)


def test_what_outlasts_the_drain_is_cut_off_visibly_and_logged(start_plane: Callable[..., DataPlane]) -> None:
    """Also where nothing but a reset tells a cut answer from a whole one: in HTTP/1.0."""
    plane = start_plane()
    upstream = plane.serve(heartbeat)
    with plane.connect() as modern, plane.connect() as old:
        ask = plane.request("GET", upstream.path)
        bodies = [
            client.send(data).begin_answer()[1]
            for client, data in ((modern, ask), (old, ask.replace(b"HTTP/1.1", b"HTTP/1.0")))
        ]
        plane.terminate()
        for body in bodies:
            with pytest.raises(CutShort):
                for _ in body:
                    pass
        assert plane.process.wait(15) == 0
    lines = [line for line in plane.log_lines() if line["path"] == upstream.path]
    assert [(line["status_code"], line["code"]) for line in lines] == [(200, "aborted")] * 2
    assert all(line["response_time_ms"] > 20_000 for line in lines)


def heartbeat(peer: Peer) -> None:
    if peer.read_request() is None:
        return
    peer.send(STREAM)
    while True:  # until the gateway ends the connection
        peer.send(b"3\r\n:\n\n\r\n")
        time.sleep(0.5)

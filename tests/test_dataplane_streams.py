"""Bodies of any size in bounded memory, back-pressure, and clients that leave (architecture section 5)."""

import hashlib
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Self

import pytest

from tests.dataplane import DataPlane
from tests.gateway_process import eventually
from tests.raw_http import CutShort
from tests.scripted_upstream import OK, TIMEOUT_S, Peer, Upstream, replying
from tests.wires import route_wire

MIB = 1024 * 1024
SIZE = 100 * MIB
PIECE = 64 * 1024
GROWTH_MIB = 15.0


def pieces_of(size: int) -> Iterator[bytes]:
    """Bytes in which a lost, doubled or moved piece shows."""
    for number in range(size // PIECE):
        yield number.to_bytes(8) * (PIECE // 8)


def digest_of(pieces: Iterator[bytes]) -> str:
    digest = hashlib.blake2b()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


class Memory:
    """The most that the worker has held, while its requests ran, above what it held before."""

    def __init__(self, plane: DataPlane) -> None:
        self._plane = plane
        self._before = self._most = plane.rss_mib()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._is_over.wait(0.02):
            self._most = max(self._most, self._plane.rss_mib())

    @property
    def growth_mib(self) -> float:
        return self._most - self._before


def unlimited(plane: DataPlane, upstream: Upstream) -> str:
    """A route without a limit on bodies."""
    name = upstream.path.rpartition("/")[2]
    plane.feed.put("route", route_wire(f"rte_{name}", f"/api/large/{name}", service=name, max_body_bytes=2 * SIZE))
    return f"/api/large/{name}"


def hashing(peer: Peer) -> None:
    """Answers an upload with its digest, read a piece at a time."""
    head = peer.read_head()
    if head is None:
        return
    digest = hashlib.blake2b()
    if head.field("transfer-encoding"):
        for piece in peer.chunks():
            digest.update(piece)
    else:
        left = int(head.field("content-length") or 0)
        while left and (piece := peer.read_piece()):
            digest.update(piece)
            left -= len(piece)
    peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 128\r\n\r\n" + digest.hexdigest().encode())


@pytest.mark.parametrize("is_chunked", [False, True], ids=["sized", "chunked"])
def test_100_mib_go_up_whole_in_flat_memory(plane: DataPlane, is_chunked: bool) -> None:
    path = unlimited(plane, plane.serve(hashing))
    field = "Transfer-Encoding: chunked" if is_chunked else f"Content-Length: {SIZE}"
    with plane.connect() as client, Memory(plane) as memory:
        client.send(plane.request("POST", path, field))
        for piece in pieces_of(SIZE):
            client.send(b"%x\r\n%b\r\n" % (len(piece), piece) if is_chunked else piece)
        if is_chunked:
            client.send(b"0\r\n\r\n")
        assert client.answer("POST").body.decode() == digest_of(pieces_of(SIZE))
    assert memory.growth_mib <= GROWTH_MIB


FRAMINGS = {
    "sized": b"Content-Length: %d\r\n" % SIZE,
    "chunked": b"Transfer-Encoding: chunked\r\n",
    "until the end": b"",
}


@pytest.mark.parametrize("framing", FRAMINGS)
def test_100_mib_come_down_whole_in_flat_memory(plane: DataPlane, framing: str) -> None:
    def script(peer: Peer) -> None:
        if peer.read_request() is None:
            return
        peer.send(b"HTTP/1.1 200 OK\r\n" + FRAMINGS[framing] + b"\r\n")
        for piece in pieces_of(SIZE):
            peer.send(b"%x\r\n%b\r\n" % (len(piece), piece) if framing == "chunked" else piece)
        if framing == "chunked":
            peer.send(b"0\r\n\r\n")

    upstream = plane.serve(script)
    with plane.connect() as client, Memory(plane) as memory:
        _, body = client.send(plane.request("GET", f"{upstream.path}/x")).begin_answer()
        assert digest_of(body) == digest_of(pieces_of(SIZE))
    assert memory.growth_mib <= GROWTH_MIB


# --- back-pressure ---------------------------------------------------------------------------------------------------
def stalls(count: Callable[[], int], timeout_s: float = TIMEOUT_S) -> None:
    """Waits until the count has not moved for half a second."""
    deadline = time.monotonic() + timeout_s
    last = -1
    while last != (now := count()):
        assert time.monotonic() < deadline, "nothing held it up"
        last = now
        time.sleep(0.5)


def test_an_upstream_is_held_up_while_the_client_does_not_read(plane: DataPlane) -> None:
    sent = [0]

    def script(peer: Peer) -> None:
        if peer.read_request() is None:
            return
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % SIZE)
        for piece in pieces_of(SIZE):
            peer.send(piece)
            sent[0] += len(piece)

    upstream = plane.serve(script)
    with plane.connect(receive_buffer=64 * 1024) as client, Memory(plane) as memory:
        _, body = client.send(plane.request("GET", f"{upstream.path}/x")).begin_answer()
        stalls(lambda: sent[0])
        assert sent[0] < SIZE / 2
        assert digest_of(body) == digest_of(pieces_of(SIZE))
    assert memory.growth_mib <= GROWTH_MIB


def test_a_client_is_held_up_while_the_upstream_does_not_read(plane: DataPlane) -> None:
    sent = [0]
    may_read = threading.Event()

    def script(peer: Peer) -> None:
        assert may_read.wait(TIMEOUT_S)
        hashing(peer)

    path = unlimited(plane, plane.serve(script))
    with plane.connect() as client, Memory(plane) as memory:

        def upload() -> None:
            client.send(plane.request("POST", path, f"Content-Length: {SIZE}"))
            for piece in pieces_of(SIZE):
                client.send(piece)
                sent[0] += len(piece)

        thread = threading.Thread(target=upload)
        thread.start()
        stalls(lambda: sent[0])
        assert sent[0] < SIZE / 2
        may_read.set()
        assert client.answer("POST").body.decode() == digest_of(pieces_of(SIZE))
        thread.join()
    assert memory.growth_mib <= GROWTH_MIB


def test_a_client_whose_body_began_to_arrive_before_its_turn_is_held_up_too(plane: DataPlane) -> None:
    """The first of the body alone is more than the upstream takes, as it is where segments are small."""
    may_answer, may_read = threading.Event(), threading.Event()

    def script(peer: Peer) -> None:
        peer.read_request()
        assert may_answer.wait(TIMEOUT_S)
        peer.send(OK)
        assert may_read.wait(TIMEOUT_S)
        hashing(peer)

    upstream = Upstream(script, receive_buffer=8192, segment_size=600)
    policies = {"concurrency": {"maxConnections": 1, "waitMs": 20_000}}
    path = unlimited(plane, plane.serve(upstream=upstream, policies=policies))
    first, sent = 4 * PIECE, [0]
    with plane.connect() as client, plane.connect() as other, Memory(plane) as memory:
        warm_up = plane.request("POST", plane.serve().path, body=b"x" * 4_000_000)  # so that much is read at once
        assert client.send(warm_up).answer("POST").status == 200
        other.send(plane.request("GET", path))
        upstream.wait_for()
        pieces = pieces_of(SIZE)
        head = plane.request("POST", path, f"Content-Length: {SIZE}")
        plane.process.send_signal(signal.SIGSTOP)
        client.send(head + b"".join(next(pieces) for _ in range(first // PIECE)))
        plane.process.send_signal(signal.SIGCONT)

        def upload() -> None:
            for piece in pieces:
                client.send_what_is_taken(piece)
                sent[0] += len(piece)

        thread = threading.Thread(target=upload)
        thread.start()
        stalls(lambda: sent[0])  # before its turn
        may_answer.set()
        assert other.answer().status == 200
        stalls(lambda: sent[0])
        assert sent[0] < SIZE / 2
        client.socket.shutdown(socket.SHUT_RDWR)
        may_read.set()
        thread.join()
    assert memory.growth_mib <= GROWTH_MIB


def test_a_client_that_does_not_read_its_answers_gets_no_further_ones(plane: DataPlane) -> None:
    """Else a pipelining client could fill the worker's memory with answers."""
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 50000\r\n\r\n" + b"x" * 50_000
    upstream = plane.serve(replying(answer))
    count = 2000
    asks = plane.request("GET", f"{upstream.path}/x", "X-Filler: " + "a" * 500) * count
    with plane.connect(receive_buffer=64 * 1024) as client, Memory(plane) as memory:
        sender = threading.Thread(target=client.send_what_is_taken, args=(asks,))
        sender.start()
        stalls(lambda: len(upstream.requests))
        assert len(upstream.requests) < count / 2
        for _ in range(count):
            assert len(client.answer().body) == 50_000
        sender.join()
    assert memory.growth_mib <= GROWTH_MIB


def test_what_an_upstream_sends_reaches_the_client_at_once(plane: DataPlane) -> None:
    """Event streams: nothing waits for more."""
    may_go_on = threading.Semaphore(0)

    def script(peer: Peer) -> None:
        peer.read_request()
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for number in range(3):
            assert may_go_on.acquire(timeout=TIMEOUT_S)
            peer.send(b"9\r\ndata: %d\n\n\r\n" % number)
        peer.send(b"0\r\n\r\n")

    upstream = plane.serve(script)
    with plane.connect() as client:
        answer, body = client.send(plane.request("GET", f"{upstream.path}/x")).begin_answer()
        assert answer.field("content-type") == "text/event-stream"
        for number in range(3):
            may_go_on.release()
            assert next(body) == b"data: %d\n\n" % number
        assert list(body) == []


def test_what_a_client_sends_reaches_the_upstream_at_once(plane: DataPlane) -> None:
    arrived: list[bytes] = []

    def script(peer: Peer) -> None:
        if peer.read_head() is None:
            return
        for piece in peer.chunks():
            arrived.append(piece)
        peer.send(OK)

    upstream = plane.serve(script)
    with plane.connect() as client:
        client.send(plane.request("POST", f"{upstream.path}/x", "Transfer-Encoding: chunked"))
        for number in range(3):
            client.send(b"1\r\n%d\r\n" % number)
            eventually(lambda: len(arrived) == number + 1, what=f"piece {number}")  # noqa: B023  # called at once
        assert client.send(b"0\r\n\r\n").answer("POST").status == 200
    assert arrived == [b"0", b"1", b"2"]


# --- clients that leave ----------------------------------------------------------------------------------------------
LEFT_WITHIN_S = 2.0


class Noticing:
    """A script that says when the gateway has ended its connection."""

    def __init__(self, beginning: bytes = b"") -> None:
        self._beginning = beginning
        self.has_begun = threading.Event()
        self.noticed = threading.Event()

    def __call__(self, peer: Peer) -> None:
        if peer.read_head() is None:
            return
        peer.send(self._beginning)
        self.has_begun.set()
        peer.wait_for_end()
        self.noticed.set()

    def await_the_end(self) -> None:
        assert self.noticed.wait(LEFT_WITHIN_S), "the upstream has not learnt that the client left"


STREAM = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"


@pytest.mark.parametrize("is_reset", [False, True], ids=["close", "reset"])
def test_an_upstream_learns_that_the_client_left_while_it_sent_its_body(plane: DataPlane, is_reset: bool) -> None:
    script = Noticing()
    upstream = plane.serve(script)
    with plane.connect() as client:
        client.send(plane.request("POST", f"{upstream.path}/x", "Content-Length: 1000") + b"half")
        assert script.has_begun.wait(TIMEOUT_S)
        client.reset() if is_reset else client.socket.close()
        script.await_the_end()
    path = f"{upstream.path}/x"
    assert eventually(lambda: [line["status_code"] for line in plane.log_lines() if line["path"] == path]) == [499]


@pytest.mark.parametrize("beginning", [b"", STREAM], ids=["before the answer", "within the answer"])
def test_an_upstream_learns_that_the_client_was_reset(plane: DataPlane, beginning: bytes) -> None:
    script = Noticing(beginning)
    upstream = plane.serve(script)
    with plane.connect() as client:
        client.send(plane.request("GET", f"{upstream.path}/x"))
        assert script.has_begun.wait(TIMEOUT_S)
        client.reset()
        script.await_the_end()


def test_an_upstream_that_sends_learns_that_the_client_closed(plane: DataPlane) -> None:
    """A client that has only shut its side may still listen, so it takes something sent to know that it has gone."""
    noticed = threading.Event()

    def script(peer: Peer) -> None:
        peer.read_request()
        peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        try:
            while True:
                peer.send(b"3\r\nabc\r\n")
                time.sleep(0.01)  # a stream that goes on
        finally:
            noticed.set()

    upstream = plane.serve(script)
    with plane.connect() as client:
        client.send(plane.request("GET", f"{upstream.path}/x")).begin_answer()
    assert noticed.wait(LEFT_WITHIN_S), "the upstream has not learnt that the client left"


def test_a_client_that_shuts_its_side_still_gets_its_answer(plane: DataPlane) -> None:
    may_answer = threading.Event()

    def script(peer: Peer) -> None:
        peer.read_request()
        assert may_answer.wait(TIMEOUT_S)
        peer.send(OK)

    upstream = plane.serve(script)
    with plane.connect() as client:
        client.send(plane.request("GET", f"{upstream.path}/x")).half_close()
        assert client.received_within(0.3) == b""
        may_answer.set()
        assert client.answer().body == b"ok"
        assert client.is_at_end()


def test_a_client_that_ends_within_its_request_gets_nothing_and_neither_does_the_upstream(plane: DataPlane) -> None:
    upstream = plane.serve()
    whole = plane.request("POST", f"{upstream.path}/x", "Content-Length: 10") + b"half"
    for part in (whole[:10], whole[:-20]):
        with plane.connect() as client, pytest.raises(CutShort):
            client.send(part).half_close().answer("POST")
    assert upstream.requests == []


def test_neither_client_nor_upstream_can_leave_connections_behind(plane: DataPlane) -> None:
    """After all of it, the worker holds as many sockets as before."""
    script = Noticing(STREAM)
    upstream = plane.serve(script)
    before = plane.sockets()
    for _ in range(20):
        with plane.connect() as client:
            client.send(plane.request("GET", f"{upstream.path}/x")).begin_answer()
            client.reset()
    eventually(lambda: plane.sockets() <= before, 10.0, "the end of the connections")

"""Time limits that are too long to wait for, by a clock that the test moves."""

from collections.abc import Callable

import pytest

from gateway_project.dataplane.protocol import HEAD_TIMEOUT_S, KEEP_ALIVE_S, LINGER_S, ClientProtocol
from gateway_project.dataplane.socket_exchange import BODY_IDLE_S
from tests.memory_transport import MemoryTransport, RecordingGateway, connected_client

WHOLE = b"GET /a HTTP/1.1\r\nHost: a.test\r\n\r\n"
UPLOAD = b"POST /a HTTP/1.1\r\nHost: a.test\r\nContent-Length: 10\r\n\r\n"
Pass = Callable[[float], None]


@pytest.fixture
def gateway() -> RecordingGateway:
    return RecordingGateway()


@pytest.fixture
def client(gateway: RecordingGateway) -> tuple[ClientProtocol, MemoryTransport]:
    return connected_client(gateway)


@pytest.fixture
def seconds_pass(gateway: RecordingGateway, client: tuple[ClientProtocol, MemoryTransport]) -> Pass:
    """Moves the clock, and does what the worker's sweep does."""

    def move(seconds: float) -> None:
        gateway.time_s += seconds
        if client[0].deadline <= gateway.time_s:
            client[0].sweep(gateway.time_s)

    return move


Connected = tuple[ClientProtocol, MemoryTransport]


def test_an_idle_connection_is_closed_after_the_keep_alive_time(client: Connected, seconds_pass: Pass) -> None:
    protocol, transport = client
    protocol.data_received(WHOLE)
    seconds_pass(KEEP_ALIVE_S - 1)
    assert transport.is_open
    protocol.data_received(WHOLE)
    seconds_pass(KEEP_ALIVE_S - 1)
    assert transport.is_open
    seconds_pass(1)
    assert transport.ended == "closed"


def test_a_body_that_stalls_is_408_and_each_byte_gives_it_more_time(
    gateway: RecordingGateway, client: Connected, seconds_pass: Pass
) -> None:
    protocol, transport = client
    protocol.data_received(UPLOAD)
    for _ in range(5):
        seconds_pass(BODY_IDLE_S - 1)
        protocol.data_received(b"x")
    assert not gateway.refusals
    seconds_pass(BODY_IDLE_S)
    assert gateway.refusals == ["request_timeout"]
    assert b"connection: close" in transport.written
    seconds_pass(LINGER_S)
    assert transport.ended == "aborted"


def test_an_answer_may_take_any_time_after_its_requests_body(
    gateway: RecordingGateway, client: Connected, seconds_pass: Pass
) -> None:
    """Upstreams have limits of their own; a stream that follows an upload lives as long as it likes."""
    protocol, transport = client
    gateway.holds_answers = True
    protocol.data_received(UPLOAD + b"0123456789")
    seconds_pass(10_000)
    assert transport.is_open
    assert protocol.current is not None
    protocol.current.answer(200, b"content-length: 0\r\n", b"")
    assert transport.written.startswith(b"HTTP/1.1 200 OK")
    seconds_pass(KEEP_ALIVE_S)
    assert transport.ended == "closed"


def test_a_head_that_began_while_another_request_was_answered_has_ten_seconds_from_then_on(
    gateway: RecordingGateway, client: Connected, seconds_pass: Pass
) -> None:
    protocol, _ = client
    gateway.holds_answers = True
    protocol.data_received(WHOLE + WHOLE[:20])
    assert protocol.current is not None
    protocol.current.answer(200, b"content-length: 0\r\n", b"")
    seconds_pass(HEAD_TIMEOUT_S - 1)
    assert not gateway.refusals
    seconds_pass(1)
    assert gateway.refusals == ["request_timeout"]


def test_a_refused_request_whose_body_never_comes_ends(
    gateway: RecordingGateway, client: Connected, seconds_pass: Pass
) -> None:
    protocol, transport = client
    gateway.holds_answers = True
    protocol.data_received(UPLOAD)
    assert protocol.current is not None
    protocol.current.answer(401, b"content-length: 0\r\n", b"")
    assert b"connection: close" not in transport.written  # ten bytes are soon read and forgotten
    seconds_pass(BODY_IDLE_S)
    seconds_pass(LINGER_S)
    assert transport.ended == "aborted"


def test_a_client_that_goes_on_sending_after_a_refusal_is_heard_out_for_a_moment_only(
    gateway: RecordingGateway, client: Connected, seconds_pass: Pass
) -> None:
    protocol, transport = client
    protocol.data_received(b"nonsense\r\n\r\n")
    assert transport.ended == "shut"
    for _ in range(100):
        protocol.data_received(b"more nonsense")
    seconds_pass(LINGER_S)
    assert transport.ended == "aborted"
    assert gateway.refusals == ["bad_request"]


@pytest.mark.parametrize(("size", "goes_on"), [(64 * 1024, True), (64 * 1024 + 1, False)])
def test_a_small_body_that_nobody_wants_is_forgotten_and_a_large_one_ends_the_connection(
    gateway: RecordingGateway, client: Connected, size: int, goes_on: bool
) -> None:
    protocol, transport = client
    gateway.holds_answers = True
    protocol.data_received(UPLOAD.replace(b"10\r", b"%d\r" % size))
    assert protocol.current is not None
    protocol.current.answer(401, b"content-length: 0\r\n", b"")
    protocol.data_received(b"x" * size)
    assert (b"connection: close" not in transport.written) == goes_on
    assert transport.is_open == goes_on
    if goes_on:
        protocol.data_received(WHOLE)
        assert len(gateway.requests) == 2


def test_a_client_that_takes_its_answer_slowly_has_time_for_it_when_the_connection_ends(
    gateway: RecordingGateway, client: Connected, seconds_pass: Pass
) -> None:
    protocol, transport = client
    gateway.is_draining = True
    transport.unsent = 100_000
    protocol.data_received(WHOLE)
    assert transport.ended == "shut"
    for _ in range(5):
        seconds_pass(LINGER_S)
    assert transport.ended == "shut"
    transport.unsent = 0
    seconds_pass(LINGER_S)
    assert transport.ended == "aborted"


@pytest.mark.parametrize("connection", [b"close", b"keep-alive"])
def test_a_client_that_never_takes_its_answer_is_cut_off_in_the_end(
    gateway: RecordingGateway, client: Connected, seconds_pass: Pass, connection: bytes
) -> None:
    protocol, transport = client
    protocol.pause_writing()
    transport.unsent = 100_000
    protocol.data_received(WHOLE.replace(b"\r\n\r\n", b"\r\nConnection: " + connection + b"\r\n\r\n"))
    assert transport.written
    for _ in range(20):
        seconds_pass(KEEP_ALIVE_S / 10)
    assert transport.ended == "aborted"


def test_what_was_seen_of_a_slow_client_before_does_not_end_its_connection(
    gateway: RecordingGateway, client: Connected, seconds_pass: Pass
) -> None:
    """More was written since somebody looked."""
    protocol, transport = client
    transport.unsent = 50_000
    assert protocol.is_taking()
    transport.unsent = 100_000
    protocol.data_received(WHOLE.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
    for _ in range(40):
        seconds_pass(LINGER_S)
        transport.unsent -= 1000
    assert transport.ended == "closed"


def test_a_client_that_does_not_take_its_answers_is_not_read_from_until_it_does(
    gateway: RecordingGateway, client: Connected
) -> None:
    protocol, transport = client
    protocol.pause_writing()
    protocol.data_received(WHOLE * 3)
    assert transport.is_reading_paused
    assert len(gateway.requests) == 1
    protocol.resume_writing()
    gateway.loop.run()
    assert len(gateway.requests) == 3
    assert not transport.is_reading_paused


def test_a_request_behind_an_answer_that_was_taken_late_has_all_the_time_that_its_upstream_has(
    gateway: RecordingGateway, client: Connected, seconds_pass: Pass
) -> None:
    protocol, transport = client
    gateway.is_late = True
    protocol.data_received(WHOLE * 2)
    protocol.pause_writing()
    gateway.loop.run()
    gateway.holds_answers = True
    protocol.resume_writing()
    gateway.loop.run()
    assert len(gateway.requests) == 2
    seconds_pass(100)
    assert transport.is_open


# --- draining --------------------------------------------------------------------------------------------------------
def test_a_client_that_connects_as_the_worker_stops_gets_a_moment_for_its_request(
    gateway: RecordingGateway, client: Connected, seconds_pass: Pass
) -> None:
    protocol, transport = client
    gateway.is_draining = True
    protocol.shutdown()
    assert transport.is_open
    protocol.data_received(WHOLE)
    assert transport.written.startswith(b"HTTP/1.1 200 OK")
    assert b"connection: close" in transport.written


def test_a_client_that_connects_as_the_worker_stops_and_says_nothing_is_closed(
    client: Connected, seconds_pass: Pass
) -> None:
    protocol, transport = client
    protocol.shutdown()
    seconds_pass(2)
    assert transport.ended == "closed"


def test_requests_that_have_arrived_are_answered_before_a_stopping_worker_closes(
    gateway: RecordingGateway, client: Connected
) -> None:
    protocol, transport = client
    gateway.is_late = True
    protocol.data_received(WHOLE * 3)
    gateway.is_draining = True
    protocol.shutdown()
    gateway.loop.run()
    assert transport.written.count(b"HTTP/1.1 200 OK") == 3
    assert transport.written.count(b"connection: close") == 1
    assert transport.written.endswith(b"connection: close\r\n\r\n")


def test_a_chunk_extension_that_never_ends_is_no_body(
    gateway: RecordingGateway, client: Connected, seconds_pass: Pass
) -> None:
    """RFC 9112 section 7.1.1: the time for extensions is limited, and nothing keeps them."""
    protocol, _ = client
    protocol.data_received(b"POST /a HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n1;")
    for _ in range(4):
        seconds_pass(BODY_IDLE_S / 4)
        protocol.data_received(b"a" * 10_000)
    assert gateway.refusals == ["request_timeout"]

"""Clients that take their time over a head: each has ten seconds (rule 29). They all wait together."""

import threading
import time
from collections.abc import Callable
from contextlib import suppress

from tests.dataplane import DataPlane
from tests.raw_http import Client, CutShort, request

HEAD = b"GET /health HTTP/1.1\r\nHost: a\r\n"
WHOLE = HEAD + b"\r\n"
LIMIT_S = 10.0
SLACK_S = 5.0  # of a busy machine


def dribbles(client: Client) -> None:
    """One byte per second, for ever."""
    data = HEAD + b"X-Slow: " + b"a" * 100
    while True:
        try:
            client.send(data[:1])
        except OSError:
            return
        data = data[1:]
        time.sleep(1)


def says_nothing(client: Client) -> None:
    pass


def stops_in_the_method(client: Client) -> None:
    client.send(b"GE")


def stops_in_the_target(client: Client) -> None:
    client.send(b"GET /hea")


def stops_in_a_field(client: Client) -> None:
    client.send(HEAD + b"X-Half: a")


def stops_before_the_end(client: Client) -> None:
    client.send(HEAD)


def stops_in_its_second_request(client: Client) -> None:
    assert client.send(WHOLE).answer().status == 200
    client.send(HEAD)


def stops_in_a_pipelined_request(client: Client) -> None:
    assert client.send(WHOLE + HEAD).answer().status == 200


def stops_after_an_empty_line(client: Client) -> None:
    client.send(b"\r\n")


SLOW: dict[Callable[[Client], None], int | None] = {
    dribbles: 408,
    stops_in_the_target: 408,
    stops_in_a_field: 408,
    stops_before_the_end: 408,
    stops_in_its_second_request: 408,
    stops_in_a_pipelined_request: 408,
    stops_in_the_method: None,
    says_nothing: None,
    stops_after_an_empty_line: None,
}


def test_a_head_that_does_not_end_is_408_after_ten_seconds_and_nobody_else_waits(plane: DataPlane) -> None:
    ends: dict[str, tuple[int | None, float]] = {}

    def wait(behave: Callable[[Client], None]) -> None:
        with plane.connect() as client:
            began = time.monotonic()
            speaker = threading.Thread(target=behave, args=(client,))
            speaker.start()
            if behave is not dribbles:
                speaker.join()
            status = None
            with suppress(CutShort):
                answer = client.answer()
                status = answer.status
                assert (answer.code, answer.field("connection")) == ("request_timeout", "close")
                client.reset()
            ends[behave.__name__] = status, time.monotonic() - began
            speaker.join()

    threads = [threading.Thread(target=wait, args=(behave,)) for behave in SLOW]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + LIMIT_S + SLACK_S
    while any(thread.is_alive() for thread in threads) and time.monotonic() < deadline:
        assert plane.ask("GET", "/health", key=None).status == 200
        time.sleep(0.5)
    for thread in threads:
        thread.join(SLACK_S)
    assert {name: status for name, (status, _) in ends.items()} == {
        behave.__name__: status for behave, status in SLOW.items()
    }
    assert all(LIMIT_S - 1 <= duration_s <= LIMIT_S + SLACK_S for _, duration_s in ends.values()), ends


def test_the_pause_between_two_requests_is_not_the_time_of_a_head(plane: DataPlane) -> None:
    with plane.connect() as client:
        assert client.send(request("GET", "/health")).answer().status == 200
        assert client.received_within(0.5) == b""
        assert client.send(request("GET", "/health")).answer().status == 200

"""Circuit breakers, the budget of retries, and shedding, seen from both sides of real sockets."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import pytest

from routing.forwarding import SLOW_BODY_S
from tests.dataplane import DataPlane, nowhere, serve, silent
from tests.gateway_process import eventually
from tests.raw_http import Answer, Client, CutShort
from tests.scripted_upstream import OK, TIMEOUT_S, Peer, Script, Upstream, closing, replying
from tests.wires import application_wire

PERIOD_S = 0.5


def status(code: int, *fields: bytes) -> bytes:
    return b"HTTP/1.1 %d X\r\n%bContent-Length: 2\r\n\r\nno" % (code, b"".join(fields))


LAST = b"Connection: close\r\n"  # the next request comes by another connection, with the script of its time


def breaker(failures: int = 5, open_s: float = 60, **more: Any) -> dict[str, Any]:
    return {"circuit_breaker": {"failures": failures, "openS": open_s, **more}}


def statuses(plane: DataPlane, path: str, times: int) -> list[int]:
    return [plane.ask("GET", path).status for _ in range(times)]


class Switch:
    """An upstream's script that answers what ``answer`` is now; None: nothing, until it is something."""

    def __init__(self, answer: bytes | None) -> None:
        self.answer = answer
        self._changed = threading.Condition()

    def set(self, answer: bytes) -> None:
        with self._changed:
            self.answer = answer
            self._changed.notify_all()

    def __call__(self, peer: Peer) -> None:
        while peer.read_request() is not None:
            with self._changed:
                assert self._changed.wait_for(lambda: self.answer is not None, 20)
                answer = self.answer
            assert answer is not None
            peer.send(answer)


# --- opening ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "script",
    [replying(status(502)), replying(status(503)), replying(status(504)), closing(), closing(b"nonsense\r\n\r\n")],
)
def test_it_opens_after_five_failures_in_a_row(plane: DataPlane, script: Script) -> None:
    upstream = plane.serve(script)
    path = serve(plane, upstream)
    assert all(code in (502, 503, 504) for code in statuses(plane, path, 5))
    for _ in range(3):
        answer = plane.ask("GET", path)
        assert (answer.status, answer.code) == (503, "circuit_open")
        assert 1 <= int(answer.field("retry-after") or "") <= 30
        assert "127.0.0.1" not in answer.body.decode()
    assert len(upstream.requests) == 5


def test_refused_connections_and_timeouts_count(plane: DataPlane) -> None:
    path = serve(plane, nowhere(), policies=breaker(3))
    assert statuses(plane, path, 4) == [502, 502, 502, 503]
    path = serve(plane, plane.serve(silent), policies=breaker(2), request_timeout_ms=200)
    assert statuses(plane, path, 3) == [504, 504, 503]


def test_500_counts_only_where_the_service_says_so(plane: DataPlane) -> None:
    upstream = plane.serve(replying(status(500)))
    assert statuses(plane, serve(plane, upstream, policies=breaker(2)), 6) == [500] * 6
    assert statuses(plane, serve(plane, upstream, policies=breaker(2, count500=True)), 3) == [500, 500, 503]


@pytest.mark.parametrize("code", [200, 301, 400, 404, 429, 501, 505])
def test_other_answers_do_not_count(plane: DataPlane, code: int) -> None:
    path = serve(plane, plane.serve(replying(status(code))), policies=breaker(1))
    assert statuses(plane, path, 3) == [code] * 3


def test_a_success_between_failures_keeps_it_closed(plane: DataPlane) -> None:
    path = serve(plane, plane.serve(Alternating(status(503), status(503), OK)), policies=breaker(3))
    assert statuses(plane, path, 12) == [503, 503, 200] * 4


class Alternating:
    """Answers in turn, over all connections."""

    def __init__(self, *answers: bytes) -> None:
        self._answers = answers
        self._number = 0

    def __call__(self, peer: Peer) -> None:
        while peer.read_request() is not None:
            answer = self._answers[self._number % len(self._answers)]
            self._number += 1
            peer.send(answer)


def test_it_can_be_switched_off(plane: DataPlane) -> None:
    path = serve(plane, plane.serve(replying(status(503))), policies={"circuit_breaker": {"enabled": False}})
    assert statuses(plane, path, 12) == [503] * 12
    assert plane.ask("GET", path).body == b"no"  # the upstream's own


def test_clients_that_leave_do_not_open_it(plane: DataPlane) -> None:
    switch = Switch(None)
    upstream = plane.serve(switch)
    path = serve(plane, upstream, policies=breaker(2))
    for number in range(4):
        with plane.connect() as client:
            client.send(plane.request("GET", path))
            upstream.wait_for(number + 1)
    switch.set(OK)
    assert statuses(plane, path, 2) == [200, 200]


def test_clients_that_stop_reading_do_not_open_it(plane: DataPlane) -> None:
    size = 8_000_000
    upstream = plane.serve(replying(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (size, bytes(size))))
    path = serve(plane, upstream, policies=breaker(1), idle_timeout_ms=300)
    with plane.connect(receive_buffer=4096) as client:
        _, pieces = client.send(plane.request("GET", path)).begin_answer()
        next(pieces)
        eventually(lambda: upstream.open_connections == 0, what="the end of the answer that nobody takes")
    assert len(plane.ask("GET", path).body) == size


def test_servers_that_give_up_on_clients_that_take_nothing_have_not_failed(plane: DataPlane) -> None:
    size = 50_000_000  # more than the kernel takes
    given_up = threading.Event()

    def impatient(peer: Peer) -> None:
        while (seen := peer.read_request()) is not None:
            if seen.target.endswith(b"large"):
                with suppress(OSError):
                    peer.socket.settimeout(SLOW_BODY_S + 1)
                    peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (size, bytes(size)))
                peer.reset()
                given_up.set()
                return
            peer.send(OK)

    path = serve(plane, plane.serve(impatient), policies=breaker(1))
    with plane.connect(receive_buffer=4096) as client:
        client.send(plane.request("GET", f"{path}/large"))
        assert given_up.wait(30)
        with pytest.raises(CutShort):
            client.answer()
    assert plane.ask("GET", path).status == 200


def test_a_server_that_fails_when_its_client_has_long_been_reading_again_has_failed(plane: DataPlane) -> None:
    """Somebody who joins those that wait for an answer is no client that goes on at last."""
    size = 12_000_000  # more than the kernel takes
    may_fail = threading.Event()

    def failing(peer: Peer) -> None:
        while peer.read_request() is not None:
            head = b"HTTP/1.1 200 OK\r\nCache-Control: public, max-age=60\r\nContent-Length: %d\r\n\r\n"
            peer.send(head % (size + 1) + bytes(size))
            assert may_fail.wait(TIMEOUT_S)
            peer.reset()
            return

    upstream = plane.serve(failing)
    path = serve(plane, upstream, policies=breaker(1) | {"caching": {"maxObjectBytes": 2 * size}})
    with plane.connect(receive_buffer=65536) as client, plane.connect() as another:
        client.send(plane.request("GET", f"{path}/a"))
        upstream.wait_for()
        time.sleep(0.5)  # so that it is held up
        _, body = client.begin_answer()
        taken = 0
        while taken < size:
            taken += len(next(body))
        time.sleep(SLOW_BODY_S + 0.2)
        another.send(plane.request("GET", f"{path}/a"))
        assert plane.ask("GET", "/health").status == 200
        may_fail.set()
        with pytest.raises(CutShort):
            next(body)
        assert another.answer().status == 503
    assert len(upstream.requests) == 1


def test_an_answer_that_its_total_time_ends_does_not_count(plane: DataPlane) -> None:
    def dripping(peer: Peer) -> None:
        while peer.read_request() is not None:
            peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            for _ in range(100):
                peer.send(b"1\r\nx\r\n")
                time.sleep(0.05)

    path = serve(plane, plane.serve(dripping), policies=breaker(1), total_timeout_ms=300)
    for _ in range(3):
        with plane.connect() as client:
            answer, pieces = client.send(plane.request("GET", path)).begin_answer()
            assert answer.status == 200
            with pytest.raises(CutShort):
                list(pieces)


def test_a_target_that_falls_silent_in_its_answer_counts(plane: DataPlane) -> None:
    def stalling(peer: Peer) -> None:
        while peer.read_request() is not None:
            peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nx")
            peer.wait_for_end()

    path = serve(plane, plane.serve(stalling), policies=breaker(1), idle_timeout_ms=300)
    with plane.connect() as client, pytest.raises(CutShort):
        client.send(plane.request("GET", path)).answer()
    assert is_open(plane.ask("GET", path))


def test_a_broken_off_answer_counts(plane: DataPlane) -> None:
    cut = closing(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nx", b"y")
    upstream = plane.serve(cut)
    path = serve(plane, upstream, policies=breaker(1))
    with plane.connect() as client, pytest.raises(CutShort):
        client.send(plane.request("GET", path)).answer()
    eventually(lambda: plane.ask("GET", path).status == 503, what="an open circuit")


def test_servers_that_give_up_on_bodies_that_do_not_come_have_not_failed(plane: DataPlane) -> None:
    def impatient(peer: Peer) -> None:
        while (seen := peer.read_head()) is not None:
            if seen.field("content-length") is not None:
                time.sleep(SLOW_BODY_S + 0.5)
                peer.reset()
                return
            peer.send(OK)

    path = serve(plane, plane.serve(impatient), policies=breaker(2))
    with ExitStack() as stack:
        clients = [stack.enter_context(plane.connect()) for _ in range(4)]
        for client in clients:
            client.send(plane.request("POST", path, "Content-Length: 1000") + b"x")
        assert [client.answer().status for client in clients] == [502] * 4
    assert plane.ask("GET", path).status == 200


# --- half open -------------------------------------------------------------------------------------------------------
def opened(plane: DataPlane, **service: Any) -> tuple[str, Switch, Upstream]:
    """A service whose circuit has just opened; its upstream fails until it is switched."""
    switch = Switch(status(503, LAST))
    upstream = plane.serve(switch)
    policies = breaker(2, PERIOD_S) | service.pop("policies", {})
    path = serve(plane, upstream, policies=policies, **service)
    assert statuses(plane, path, 3) == [503] * 3
    assert len(upstream.requests) == 2
    return path, switch, upstream


def is_open(answer: Answer) -> bool:
    return answer.status == 503 and answer.body != b"no" and answer.code == "circuit_open"


@contextmanager
def on_trial(plane: DataPlane, path: str, upstream: Upstream) -> Iterator[Client]:
    """The client whose request is the trial, which the upstream has got and not answered."""
    before = len(upstream.requests)
    with ExitStack() as stack:

        def begin() -> Client | None:
            client = stack.enter_context(plane.connect())
            client.send(plane.request("GET", path))
            client.socket.settimeout(0.2)
            try:
                client.answer()
            except TimeoutError:
                client.socket.settimeout(20)
                return client
            return None

        client = eventually(begin, what="the trial")
        assert len(upstream.requests) == before + 1
        yield client


def test_after_its_period_one_trial_closes_it(plane: DataPlane) -> None:
    path, switch, upstream = opened(plane)
    switch.answer = None
    with on_trial(plane, path, upstream) as client:
        assert all(is_open(plane.ask("GET", path)) for _ in range(5))
        assert len(upstream.requests) == 3  # the trial alone
        switch.set(OK)
        assert client.answer().status == 200
    assert statuses(plane, path, 5) == [200] * 5


def test_a_failed_trial_opens_it_for_another_period(plane: DataPlane) -> None:
    path, switch, upstream = opened(plane)
    eventually(lambda: (plane.ask("GET", path), len(upstream.requests) == 3)[1], what="the trial")
    assert is_open(plane.ask("GET", path))
    assert len(upstream.requests) == 3
    switch.set(OK)
    eventually(lambda: plane.ask("GET", path).status == 200, what="recovery")


def test_a_trial_whose_client_leaves_is_followed_by_another(plane: DataPlane) -> None:
    path, switch, upstream = opened(plane)
    switch.answer = None
    with on_trial(plane, path, upstream) as client:
        client.reset()
        switch.set(OK)
        eventually(lambda: plane.ask("GET", path).status == 200, what="recovery")


def test_a_client_that_sends_its_body_slowly_does_not_keep_the_circuit_half_open(plane: DataPlane) -> None:
    path, switch, _ = opened(plane)
    switch.set(OK)
    with ExitStack() as stack:

        def begin() -> bool:
            client = stack.enter_context(plane.connect())
            client.send(plane.request("POST", path, "Content-Length: 1000") + b"x")
            client.socket.settimeout(0.2)
            try:
                client.answer()
            except TimeoutError:
                return True
            return False

        eventually(begin, what="the trial, whose body never comes")
        assert is_open(plane.ask("GET", path))
        eventually(lambda: plane.ask("GET", path).status == 200, what="another trial")


def test_an_event_stream_is_a_trial_no_longer_than_its_head(plane: DataPlane) -> None:
    path, _, upstream = opened(plane)
    release = threading.Event()

    def streaming(peer: Peer) -> None:
        while peer.read_request() is not None:
            peer.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
            release.wait(20)
            peer.send(b"0\r\n\r\n")

    upstream.script = streaming
    with ExitStack() as stack:

        def begun() -> bool:
            client = stack.enter_context(plane.connect())
            return client.send(plane.request("GET", path)).begin_answer()[0].status == 200

        eventually(begun, what="the first stream")
        assert begun() and begun()
        release.set()


def test_late_failures_of_requests_from_before_do_not_disturb_the_trial(plane: DataPlane) -> None:
    late, switch = threading.Event(), Switch(status(503))
    upstream = plane.serve(switch)
    path = serve(plane, upstream, policies=breaker(2, PERIOD_S))

    def hanging(peer: Peer) -> None:
        peer.read_request()
        late.wait(20)
        peer.close()

    upstream.script = hanging
    with plane.connect() as first, plane.connect() as second:
        for number, client in enumerate((first, second)):
            client.send(plane.request("POST", path, body=b""))
            upstream.wait_for(number + 1)
        upstream.script = switch
        assert statuses(plane, path, 3) == [503] * 3
        switch.answer = None
        with on_trial(plane, path, upstream) as trial:
            late.set()
            assert [first.answer("POST").status, second.answer("POST").status] == [502, 502]
            switch.set(OK)
            assert trial.answer().status == 200
    assert statuses(plane, path, 3) == [200] * 3


def test_a_trial_does_not_wait_behind_requests_that_hang(plane: DataPlane) -> None:
    switch = Switch(None)
    upstream = plane.serve(switch)

    def configure(places: int) -> str:
        concurrency = {"maxConnections": places, "waitMs": 100}
        return serve(plane, upstream, name="few", policies=breaker(1, PERIOD_S) | {"concurrency": concurrency})

    path = configure(2)
    with plane.connect() as hanging:
        hanging.send(plane.request("GET", path))
        upstream.wait_for(1)
        upstream.script = replying(status(503, LAST))
        assert plane.ask("GET", path).status == 503
        configure(1)
        upstream.script = replying(OK)
        eventually(lambda: plane.ask("GET", path).status == 200, what="a trial beside the request that hangs")
        switch.set(OK)
        assert hanging.answer().status == 200
    assert statuses(plane, path, 3) == [200] * 3


def test_who_waits_for_a_place_at_a_target_that_fails_is_told_so(plane: DataPlane) -> None:
    switch = Switch(None)
    upstream = plane.serve(switch)
    policies = breaker(1, 60) | {"concurrency": {"maxConnections": 1, "waitMs": 20_000}}
    path = serve(plane, upstream, policies=policies)
    with plane.connect() as first, plane.connect() as second, plane.connect() as third:
        first.send(plane.request("GET", path))
        upstream.wait_for(1)
        for client in (second, third):
            client.send(plane.request("GET", path))
        time.sleep(0.1)  # they are most likely in line; if not, the circuit refuses them as well
        switch.set(status(503))
        assert first.answer().status == 503
        assert [is_open(client.answer()) for client in (second, third)] == [True, True]
    assert len(upstream.requests) == 1


def test_a_reset_closes_it_at_once(plane: DataPlane) -> None:
    switch = Switch(status(503))
    upstream = plane.serve(switch)
    path = serve(plane, upstream, name="resettable", policies=breaker(2))
    assert statuses(plane, path, 3) == [503] * 3
    switch.set(OK)
    assert is_open(plane.ask("GET", path))
    serve(plane, upstream, name="resettable", policies=breaker(2), circuit_resets=1)
    assert statuses(plane, path, 3) == [200] * 3


# --- together with others --------------------------------------------------------------------------------------------
def test_an_open_circuit_is_one_target_s_own_matter(plane: DataPlane) -> None:
    bad, good = plane.serve(replying(status(503))), plane.serve()
    path = serve(plane, bad, good, policies=breaker(3))
    assert statuses(plane, path, 40) == [200] * 40  # the failures were tried at the other one
    assert (len(bad.requests), len(good.requests)) == (3, 40)


def test_retries_keep_to_their_budget(plane: DataPlane) -> None:
    upstreams = [plane.serve(replying(status(503))) for _ in range(3)]
    policies = {"circuit_breaker": {"enabled": False}, "retries": {"attempts": 2, "baseMs": 0}}
    path = serve(plane, *upstreams, policies=policies)
    began = time.monotonic()
    with plane.connect() as client:
        for _ in range(300):
            assert client.send(plane.request("GET", path)).answer().status == 503
    passed_s = time.monotonic() - began
    retries = sum(len(upstream.requests) for upstream in upstreams) - 300
    assert 60 <= retries <= 10 + 0.2 * 300 + passed_s


def test_requests_that_are_refused_pay_for_no_retries(plane: DataPlane) -> None:
    switch = Switch(None)
    upstreams = [plane.serve(switch) for _ in range(2)]
    policies = {
        "circuit_breaker": {"enabled": False},
        "retries": {"attempts": 1, "baseMs": 0, "budgetPercent": 50},
        "concurrency": {"adaptive": True, "minLimit": 1, "maxLimit": 1},
    }
    path = serve(plane, *upstreams, policies=policies)

    def sent() -> int:
        return sum(len(upstream.requests) for upstream in upstreams)

    began = time.monotonic()
    with plane.connect() as holding, plane.connect() as client:
        holding.send(plane.request("GET", path))
        eventually(lambda: sent() == 1, what="the one that has the place")
        for _ in range(200):
            assert client.send(plane.request("GET", path)).answer().code == "overloaded"
        switch.set(status(503))
        assert holding.answer().status == 503
        before = sent()
        for _ in range(60):
            assert client.send(plane.request("GET", path)).answer().status == 503
    assert sent() - before - 60 <= 10 + 0.5 * 61 + time.monotonic() - began


def test_without_a_budget_there_is_no_retry(plane: DataPlane) -> None:
    upstreams = [plane.serve(replying(status(503))) for _ in range(2)]
    path = serve(plane, *upstreams, policies={"retries": {"budgetPercent": 0}})
    assert statuses(plane, path, 6) == [503] * 6
    assert sum(len(upstream.requests) for upstream in upstreams) == 6


def test_waits_between_tries_grow_to_their_bound_and_no_further(plane: DataPlane) -> None:
    upstreams = [plane.serve(replying(status(503))) for _ in range(2)]
    policies = {"circuit_breaker": {"enabled": False}, "retries": {"attempts": 5, "baseMs": 20, "maxMs": 50}}
    path = serve(plane, *upstreams, policies=policies)
    began = time.monotonic()
    assert plane.ask("GET", path).status == 503
    assert time.monotonic() - began < 5
    assert sum(len(upstream.requests) for upstream in upstreams) == 6
    assert [len(upstream.requests) for upstream in upstreams] == [3, 3]  # never twice in a row to the same one


def test_a_target_is_not_blamed_for_a_try_that_never_began(plane: DataPlane) -> None:
    bad, good = plane.serve(replying(status(503))), plane.serve()
    policies = breaker(1) | {"retries": {"baseMs": 60_000, "maxMs": 60_000}}  # a wait of half a minute, on average
    path = serve(plane, bad, good, policies=policies, total_timeout_ms=150)
    assert set(statuses(plane, path, 2)) <= {200, 504}
    assert statuses(plane, path, 3) == [200] * 3
    assert len(bad.requests) == 1


def reported(plane: DataPlane, kind: str, name: str, service: str) -> dict[str, float]:
    """A metric of a service as the worker last told the agent, by the value of its other label."""
    reports = [message for message in plane.feed.heard if message["type"] == "metrics"]
    return {
        "".join(value for key, value in labels.items() if key != "service"): number
        for each, labels, number in (reports[-1][kind] if reports else ())
        if each == name and labels["service"] == service
    }


def test_retries_are_counted(plane: DataPlane) -> None:
    upstreams = [plane.serve(replying(status(503))) for _ in range(2)]
    policies = {"circuit_breaker": {"enabled": False}, "retries": {"baseMs": 0}}
    path = serve(plane, *upstreams, name="counted", policies=policies)
    statuses(plane, path, 30)
    sent = sum(len(upstream.requests) for upstream in upstreams) - 30
    told = {"sent": sent, "over_budget": 30 - sent}
    eventually(lambda: reported(plane, "counters", "api_gateway_retries_total", "counted") == told, what="its counters")


# --- shedding --------------------------------------------------------------------------------------------------------
@pytest.fixture
def of_priority(plane: DataPlane) -> Callable[[int], str]:
    """Keys of applications with a priority."""

    def key(priority: int) -> str:
        number = f"prio{priority}_{time.monotonic_ns()}"
        plane.feed.put("application", application_wire(id=f"app_{number}", name=number, priority=priority))
        return plane.new_key(application=f"app_{number}")

    return key


def limited(plane: DataPlane, upstream: Upstream, limit: int = 10) -> str:
    concurrency = {"adaptive": True, "minLimit": limit, "maxLimit": limit}
    return serve(plane, upstream, policies={"concurrency": concurrency})


def test_under_overload_low_priorities_are_refused_first(plane: DataPlane, of_priority: Callable[[int], str]) -> None:
    low, middle, high = of_priority(0), of_priority(4), of_priority(9)
    switch = Switch(None)
    upstream = plane.serve(switch)
    path = limited(plane, upstream)
    with ExitStack() as stack:
        admitted: list[Client] = []

        def fill(key: str, count: int) -> None:
            for _ in range(count):
                client = stack.enter_context(plane.connect())
                admitted.append(client.send(plane.request("GET", path, key=key)))
                upstream.wait_for(len(admitted))

        def is_refused(key: str) -> bool:
            client = stack.enter_context(plane.connect())
            client.socket.settimeout(1.0)
            try:
                answer = client.send(plane.request("GET", path, key=key)).answer()
            except TimeoutError:
                client.socket.settimeout(20)
                admitted.append(client)
                return False
            assert (answer.status, answer.code) == (503, "overloaded")
            assert answer.field("retry-after") == "1"
            return True

        fill(low, 5)  # 55 % of ten
        assert is_refused(low)
        fill(middle, 2)  # 75 %
        assert is_refused(low) and is_refused(middle)
        fill(high, 3)
        assert is_refused(low) and is_refused(middle) and is_refused(high)
        assert len(upstream.requests) == 10
        switch.set(OK)
        assert [client.answer().status for client in admitted] == [200] * 10
    assert plane.ask("GET", path, key=low).status == 200
    name = path.rpartition("/")[2]
    shed = {"0": 3, "4": 2, "9": 1}
    eventually(lambda: reported(plane, "counters", "api_gateway_shed_requests_total", name) == shed, what="counters")
    assert reported(plane, "gauges", "api_gateway_concurrency_limit", name) == {"": 10}


def test_whatever_becomes_of_requests_their_places_come_back(plane: DataPlane) -> None:
    switch = Switch(OK)
    upstream = plane.serve(switch)
    concurrency = {"adaptive": True, "minLimit": 4, "maxLimit": 4}
    path = serve(plane, upstream, policies={"concurrency": concurrency} | breaker(2, PERIOD_S))
    assert statuses(plane, path, 10) == [200] * 10
    switch.set(status(503))
    assert statuses(plane, path, 30) == [503] * 30  # refused by the circuit, most of them
    switch.set(OK)
    eventually(lambda: plane.ask("GET", path).status == 200, what="recovery")
    switch.answer = None
    for _ in range(8):  # clients that leave
        with plane.connect() as client:
            client.send(plane.request("GET", path))
            client.socket.settimeout(0.05)
            with suppress(TimeoutError):
                client.answer()
    switch.set(OK)
    eventually(lambda: plane.ask("GET", path).status == 200, what="free places")
    assert statuses(plane, path, 10) == [200] * 10


def test_streams_hold_no_place_of_the_limit(plane: DataPlane) -> None:
    release = threading.Event()

    def streaming(peer: Peer) -> None:
        while peer.read_request() is not None:
            peer.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
            release.wait(20)
            peer.send(b"0\r\n\r\n")

    path = limited(plane, plane.serve(streaming), limit=2)
    with ExitStack() as stack:
        for _ in range(8):
            client = stack.enter_context(plane.connect())
            assert client.send(plane.request("GET", path)).begin_answer()[0].status == 200
        release.set()


def test_bodies_that_are_still_to_come_hold_no_place_of_the_limit(plane: DataPlane) -> None:
    switch = Switch(None)
    upstream = plane.serve(switch)
    path = limited(plane, upstream, limit=4)  # an application of middle priority has three of them
    with ExitStack() as stack:
        slow = [stack.enter_context(plane.connect()) for _ in range(8)]
        for client in slow:
            client.send(plane.request("POST", path, "Expect: 100-continue", "Content-Length: 2"))
            assert client.answer().status == 100  # it is on its way, and comes as the client likes
            client.send(b"x")
        for client in slow[:3]:
            client.send(b"y")
        upstream.wait_for(3)
        assert plane.ask("GET", path).code == "overloaded"  # these wait for their answers
        switch.set(OK)
        for client in slow[3:]:
            client.send(b"y")
        assert [client.answer().status for client in slow] == [200] * 8
    assert statuses(plane, path, 5) == [200] * 5


# --- all of it at once -----------------------------------------------------------------------------------------------
def test_after_a_storm_of_failures_nothing_is_left_behind(plane: DataPlane) -> None:
    """Targets that fail in every way, clients that leave, lines, retries, circuits and a limit: each count of what is
    under way goes back to nothing, and the service to work."""
    storm = threading.Event()
    storm.set()
    draw = random.Random(5)
    ways = ("ok", "ok", "ok", "503", "500", "slow", "hang", "cut", "silent", "garbage")

    def failing(peer: Peer) -> None:
        while peer.read_request() is not None:
            how = draw.choice(ways) if storm.is_set() else "ok"
            if how == "slow":
                time.sleep(0.05)
            if how in ("ok", "slow"):
                peer.send(OK)
            elif how in ("503", "500"):
                peer.send(status(int(how)))
            elif how == "hang":
                peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nx")
                peer.wait_for_end()
            elif how == "silent":
                peer.wait_for_end()
            else:
                peer.send(b"nonsense\r\n\r\n" if how == "garbage" else b"HTTP/1.1 200 OK\r\n")
                return

    upstreams = [plane.serve(failing) for _ in range(3)]
    policies = breaker(3, 0.2) | {
        "load_balancing": {"strategy": "least_connections"},
        "health_checks": {"passive": {"minRequests": 5, "ejectS": 1}},
        "retries": {"attempts": 2, "on": ["connect", "reset", "timeout", "503"], "baseMs": 5},
        "concurrency": {"maxConnections": 2, "maxWaiting": 3, "waitMs": 200, "adaptive": True},
    }
    path = serve(plane, *upstreams, name="storm", policies=policies, request_timeout_ms=200, idle_timeout_ms=200)
    wrong: list[Answer] = []

    def client(number: int) -> None:
        own = random.Random(number)
        for _ in range(40):
            with plane.connect() as connection:
                connection.send(plane.request(own.choice(("GET", "PUT", "POST")), path, body=b"body"))
                if own.random() < 0.2:
                    connection.reset()
                    continue
                with suppress(CutShort):
                    answer = connection.answer()
                    if answer.status not in (200, 500, 502, 503, 504):
                        wrong.append(answer)

    clients = [threading.Thread(target=client, args=(number,)) for number in range(8)]
    for each in clients:
        each.start()
    for each in clients:
        each.join()
    assert not wrong
    storm.clear()

    def in_flight() -> list[int] | None:
        reports = [message for message in plane.feed.heard if message["type"] == "metrics"]
        return [target[6] for target in reports[-1]["targets"] if target[1] == "storm"]

    eventually(lambda: in_flight() == [0, 0, 0], what="three targets without a request")

    def works() -> bool:
        return statuses(plane, path, 20) == [200] * 20

    eventually(works, 20, "a service that works")
    before = [len(upstream.requests) for upstream in upstreams]

    def all_serve() -> bool:
        return works() and all(len(each.requests) > then for each, then in zip(upstreams, before, strict=True))

    eventually(all_serve, 20, "a service all of whose targets are back")

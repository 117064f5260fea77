"""What a service's policies make of trouble: other tries, time limits, places at targets, fallback, maintenance."""

import os
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from routing.terms import CONNECT_TIMEOUT_S
from tests.dataplane import DataPlane, failed, nowhere, serve, silent
from tests.gateway_process import eventually
from tests.raw_http import Answer, CutShort
from tests.scripted_upstream import OK, Peer, closing, replying
from tests.wires import route_wire, service_wire

DOWN = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\n\r\ndown"


# --- other tries -----------------------------------------------------------------------------------------------------
def test_a_request_that_reached_nobody_is_sent_to_another_target_whatever_its_method(plane: DataPlane) -> None:
    good = plane.serve()
    path = serve(plane, nowhere(), good)
    for method in ("GET", "POST", "PATCH"):
        assert plane.ask(method, path, body=None if method == "GET" else b"once").status == 200
    assert [seen.body for seen in good.requests] == [b"", b"once", b"once"]


def test_an_idempotent_request_is_tried_elsewhere_when_its_target_fails(plane: DataPlane) -> None:
    for script in (closing(DOWN), closing()):
        bad, good = plane.serve(script), plane.serve()
        path = serve(plane, bad, good)
        assert [plane.ask("PUT", path, body=b"x" * 1000).status for _ in range(4)] == [200] * 4
        assert bad.requests and {seen.body for seen in good.requests} == {b"x" * 1000}


def test_a_request_that_is_not_idempotent_is_never_sent_twice(plane: DataPlane) -> None:
    bad, good = plane.serve(closing()), plane.serve()
    path = serve(plane, bad, good)
    answers = [plane.ask("POST", path, body=b"x") for _ in range(4)]
    assert sorted(answer.status for answer in answers) == [200, 200, 502, 502]
    assert len(bad.requests) + len(good.requests) == 4


def test_a_route_may_declare_that_it_is_safe_to_send_again(plane: DataPlane) -> None:
    bad, good = plane.serve(closing()), plane.serve()
    path = serve(plane, bad, good)
    name = path.rpartition("/")[2]
    plane.feed.put("route", route_wire("rte_again", f"{path}/*", service=name, retry_unsafe_methods=True))
    assert [plane.ask("POST", f"{path}/x", body=b"x").status for _ in range(4)] == [200] * 4


def test_an_answer_that_says_that_the_target_fails_is_passed_on_when_there_is_no_other(plane: DataPlane) -> None:
    path = serve(plane, plane.serve(replying(DOWN)))
    answer = plane.ask("GET", path)
    assert (answer.status, answer.body) == (503, b"down")


def test_retries_can_be_switched_off_and_limited_to_reasons(plane: DataPlane) -> None:
    bad, good = plane.serve(replying(DOWN)), plane.serve()
    off = serve(plane, bad, good, policies={"retries": {"attempts": 0}})
    assert {plane.ask("GET", off).status for _ in range(2)} == {200, 503}
    connect_only = serve(plane, bad, good, policies={"retries": {"on": ["connect"]}})
    assert {plane.ask("GET", connect_only).status for _ in range(2)} == {200, 503}


def test_a_target_that_stays_silent_is_left_for_another_only_where_the_policy_says_so(plane: DataPlane) -> None:
    path = serve(
        plane, plane.serve(silent), plane.serve(), policies={"retries": {"on": ["timeout"]}}, request_timeout_ms=300
    )
    assert [plane.ask("GET", path).status for _ in range(2)] == [200, 200]
    path = serve(plane, plane.serve(silent), plane.serve(), request_timeout_ms=300)
    assert {plane.ask("GET", path).status for _ in range(2)} == {200, 504}


# --- time ------------------------------------------------------------------------------------------------------------
def test_connecting_has_a_time_of_its_own(plane: DataPlane) -> None:
    path = serve(plane, "http://127.0.0.1:1", connect_timeout_ms=200)
    assert plane.settings.request_timeout_s > CONNECT_TIMEOUT_S
    failed(plane.ask("GET", path), 502, "upstream_connect_failed", "connection_refused")


def test_a_total_time_of_a_service_ends_an_answer_that_never_ends(plane: DataPlane) -> None:
    def dripping(peer: Peer) -> None:
        while peer.read_request() is not None:
            peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            for _ in range(100):
                peer.send(b"1\r\nx\r\n")
                time.sleep(0.1)

    path = serve(plane, plane.serve(dripping), total_timeout_ms=700)
    began = time.monotonic()
    with plane.connect() as client:
        answer, pieces = client.send(plane.request("GET", path)).begin_answer()
        assert answer.status == 200
        with pytest.raises(CutShort):
            list(pieces)
    assert time.monotonic() - began < 5


def test_an_answer_that_stalls_is_cut_after_the_service_s_idle_time(plane: DataPlane) -> None:
    def stalling(peer: Peer) -> None:
        while peer.read_request() is not None:
            peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nx")
            peer.wait_for_end()

    path = serve(plane, plane.serve(stalling), idle_timeout_ms=400)
    with plane.connect() as client:
        _, pieces = client.send(plane.request("GET", path)).begin_answer()
        with pytest.raises(CutShort):
            list(pieces)


def test_waiting_for_its_turn_on_a_connection_is_not_the_target_s_time(plane: DataPlane) -> None:
    def slow(peer: Peer) -> None:
        while (seen := peer.read_request()) is not None:
            time.sleep(1.2 if seen.target.endswith(b"first") else 0.8)
            peer.send(OK)

    path = serve(plane, plane.serve(slow), request_timeout_ms=1500)
    with plane.connect() as client:
        client.send(plane.request("GET", f"{path}/first") + plane.request("GET", f"{path}/second"))
        assert [client.answer().status for _ in range(2)] == [200, 200]


def test_the_copy_of_a_body_that_may_be_sent_again_costs_the_same_in_whatever_pieces_it_comes(plane: DataPlane) -> None:
    path = serve(plane, plane.serve(), plane.serve())
    body = b"1\r\nx\r\n" * 10_000 + b"0\r\n\r\n"

    def cost(method: str) -> float:
        before = cpu_s(plane)
        with plane.connect() as client:
            client.send(plane.request(method, path, "Transfer-Encoding: chunked") + body)
            assert client.answer().status == 200
        return cpu_s(plane) - before

    cost("POST")
    assert cost("PUT") < 5 * cost("POST") + 0.1


def cpu_s(plane: DataPlane) -> float:
    """What the worker has used."""
    fields = Path(f"/proc/{plane.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# --- places at targets -----------------------------------------------------------------------------------------------
def test_requests_beyond_a_target_s_places_wait_for_one(plane: DataPlane) -> None:
    def slow(peer: Peer) -> None:
        while peer.read_request() is not None:
            time.sleep(0.1)
            peer.send(OK)

    upstream = plane.serve(slow)
    path = serve(plane, upstream, policies={"concurrency": {"maxConnections": 2, "waitMs": 20_000}})
    answers: list[Answer] = []
    threads = [threading.Thread(target=lambda: answers.append(plane.ask("GET", path))) for _ in range(10)]
    for thread in threads:
        thread.start()
    most = 0
    while any(thread.is_alive() for thread in threads):
        most = max(most, upstream.open_connections)
        time.sleep(0.01)
    assert [answer.status for answer in answers] == [200] * 10
    assert most <= 2


def test_nobody_waits_for_a_target_that_is_full_while_another_has_places(plane: DataPlane) -> None:
    full, free = plane.serve(silent), plane.serve()
    path = serve(plane, full, free, policies={"concurrency": {"maxConnections": 2, "waitMs": 100}})
    with ExitStack() as stack:

        def hold() -> bool:
            stack.enter_context(plane.connect()).send(plane.request("GET", path))
            return len(full.requests) == 2

        eventually(hold, what="a target without a place")
        assert [plane.ask("GET", path).status for _ in range(6)] == [200] * 6


def test_who_waits_too_long_or_in_too_long_a_line_is_told_to_come_back(plane: DataPlane) -> None:
    upstream = plane.serve(silent)
    path = serve(plane, upstream, policies={"concurrency": {"maxConnections": 1, "maxWaiting": 1, "waitMs": 300}})
    with plane.connect() as first, plane.connect() as second:
        first.send(plane.request("GET", path))
        upstream.wait_for(1)
        second.send(plane.request("GET", path))
        eventually(lambda: plane.ask("GET", path).status == 503, what="a full line")
        answer = second.answer()
    assert (answer.status, answer.code) == (503, "overloaded")
    assert answer.field("retry-after")


def test_a_client_that_leaves_the_line_leaves_its_place_to_the_next(plane: DataPlane) -> None:
    release = threading.Event()

    def held(peer: Peer) -> None:
        while peer.read_request() is not None:
            release.wait(10)
            peer.send(OK)

    upstream = plane.serve(held)
    path = serve(plane, upstream, policies={"concurrency": {"maxConnections": 1, "waitMs": 20_000}})
    with plane.connect() as first, plane.connect() as third:
        first.send(plane.request("GET", path))
        upstream.wait_for(1)
        with plane.connect() as second:
            second.send(plane.request("GET", path))
            time.sleep(0.1)
            second.reset()
        third.send(plane.request("GET", path))
        time.sleep(0.1)
        release.set()
        assert [client.answer().status for client in (first, third)] == [200, 200]
    assert len(upstream.requests) == 2


def test_who_gets_a_place_as_its_wait_ends_has_the_whole_of_its_time(plane: DataPlane) -> None:
    def hanging(peer: Peer) -> None:
        while peer.read_request() is not None:
            if len(peer.upstream.requests) == 1:
                peer.wait_for_end()
            peer.send(OK)

    upstream = plane.serve(hanging)
    policies = {"concurrency": {"maxConnections": 1, "waitMs": 800}, "retries": {"attempts": 0}}
    path = serve(plane, upstream, policies=policies, request_timeout_ms=800)
    with ExitStack() as stack:
        clients = [stack.enter_context(plane.connect()) for _ in range(10)]
        clients[0].send(plane.request("GET", path))
        upstream.wait_for(1)
        for client in clients[1:]:
            client.send(plane.request("GET", path))
        statuses = [client.answer().status for client in clients]
    assert statuses[0] == 504
    assert set(statuses[1:]) <= {200, 503}


# --- degradation -----------------------------------------------------------------------------------------------------
def test_the_fallback_answers_while_all_circuits_are_open(plane: DataPlane) -> None:
    fallback = plane.serve()
    path = serve(
        plane, nowhere(), policies={"circuit_breaker": {"failures": 2, "openS": 60}}, fallback_url=fallback.url
    )
    answers = [plane.ask("GET", path) for _ in range(4)]
    assert [(answer.status, answer.field("x-gateway-fallback")) for answer in answers] == [(200, "true")] * 4


@pytest.mark.parametrize("policies", [{}, {"caching": {}}])
def test_nobody_on_the_way_may_keep_what_the_fallback_says(plane: DataPlane, policies: dict[str, Any]) -> None:
    """Rule 7: it is not what the service says."""
    said = b"Cache-Control: public\r\nExpires: Fri, 01 Jan 2100 00:00:00 GMT\r\nCDN-Cache-Control: max-age=9\r\n"
    fallback = plane.serve(replying(b"HTTP/1.1 200 OK\r\n" + said + b"Content-Length: 2\r\n\r\nok"))
    path = serve(plane, nowhere(), policies=policies, fallback_url=fallback.url)
    for _ in range(2):
        answer = plane.ask("GET", path)
        assert (answer.body, answer.field("x-gateway-fallback")) == (b"ok", "true")
        assert (answer.field("cache-control"), answer.field("expires")) == ("no-store", None)
        assert answer.field("cdn-cache-control") is None
    assert len(fallback.requests) == 2


def test_a_service_under_maintenance_says_so_to_everybody(plane: DataPlane) -> None:
    upstream = plane.serve()
    path = serve(plane, upstream, policies={"maintenance": {"message": "Back at nine.", "retryAfterS": 120}})
    for key in ("", None):
        answer = plane.ask("GET", path, key=key)
        assert (answer.status, answer.code, answer.field("retry-after")) == (503, "maintenance", "120")
        assert answer.problem["detail"] == "Back at nine."
    assert not upstream.requests


def test_maintenance_begins_and_ends_with_the_next_request(plane: DataPlane) -> None:
    upstream = plane.serve()
    name = upstream.path.rpartition("/")[2]
    wire = service_wire(id=f"svc_{name}", name=name, default_url=upstream.url)
    for _ in range(3):
        assert plane.ask("GET", upstream.path).status == 200
    plane.feed.put("service", wire | {"policies": {"maintenance": {}}})
    assert plane.ask("GET", upstream.path).status == 503
    plane.feed.put("service", wire)
    assert plane.ask("GET", upstream.path).status == 200


# --- routes without a key --------------------------------------------------------------------------------------------
def test_a_route_that_requires_no_key_serves_everybody_but_wrong_keys(plane: DataPlane) -> None:
    upstream = plane.serve()
    name = upstream.path.rpartition("/")[2]
    plane.feed.put("route", route_wire("rte_open", f"{upstream.path}/open", service=name, requires_key=False))
    path = f"{upstream.path}/open"
    assert plane.ask("GET", path, key=None).status == 200
    assert plane.ask("GET", path).status == 200
    assert plane.ask("GET", path, key="km_wrong").status == 401
    answer = plane.ask("GET", path, key=None)
    assert answer.field("ratelimit") is not None
    assert upstream.requests[0].field("x-gateway-application") is None

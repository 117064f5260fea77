"""Which target answers, seen from the client's and the targets' sides of real sockets."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.dataplane import DataPlane, nowhere, serve
from tests.gateway_process import eventually
from tests.raw_http import Answer, Client
from tests.scripted_upstream import OK, Peer, Script, Upstream, replying
from tests.websocket_peers import agreeing, open_socket

DOWN = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\n\r\ndown"


def counts(*upstreams: Upstream) -> list[int]:
    return [len(upstream.requests) for upstream in upstreams]


def balanced(strategy: str, **more: Any) -> dict[str, Any]:
    return {"load_balancing": {"strategy": strategy, **more}}


def asked(plane: DataPlane, path: str, times: int, *fields: str, source: str = "127.0.0.1") -> list[Answer]:
    """Requests one after the other on one connection, all answered 200."""
    with plane.connect(source) as client:
        answers = [client.send(plane.request("GET", path, *fields)).answer() for _ in range(times)]
    assert [answer.status for answer in answers] == [200] * times
    return answers


def answering_after(seconds: float) -> Script:
    def script(peer: Peer) -> None:
        while peer.read_request() is not None:
            time.sleep(seconds)
            peer.send(OK)

    return script


@pytest.fixture
def held() -> Any:
    """Scripts that answer when ``held.release`` is set."""

    class Held:
        release = threading.Event()

        @staticmethod
        def script(peer: Peer) -> None:
            while peer.read_request() is not None:
                Held.release.wait(20)
                peer.send(OK)

    yield Held
    Held.release.set()


# --- strategies ------------------------------------------------------------------------------------------------------
def test_targets_get_requests_by_their_weights(plane: DataPlane) -> None:
    light, heavy, none = plane.serve(), plane.serve(), plane.serve()
    path = serve(plane, light, heavy, none, weights=[1, 3, 0], policies=balanced("weighted"))
    asked(plane, path, 40)
    few, many, nothing = counts(light, heavy, none)
    assert abs(few - 10) <= 1 and few + many == 40 and nothing == 0


def test_a_small_share_is_exact_too(plane: DataPlane) -> None:
    canary, stable = plane.serve(), plane.serve()
    path = serve(plane, canary, stable, weights=[1, 199], policies=balanced("weighted"))
    asked(plane, path, 400)
    assert 1 <= len(canary.requests) <= 3


def test_round_robin_goes_round(plane: DataPlane) -> None:
    upstreams = [plane.serve() for _ in range(3)]
    path = serve(plane, *upstreams, weights=[1, 5, 1], policies=balanced("round_robin"))
    asked(plane, path, 30)
    assert counts(*upstreams) == [10, 10, 10]


def test_an_address_stays_with_its_target_and_addresses_spread(plane: DataPlane) -> None:
    upstreams = [plane.serve() for _ in range(3)]
    path = serve(plane, *upstreams, policies=balanced("ip_hash"))
    homes = {}
    for number in range(1, 31):
        before = counts(*upstreams)
        asked(plane, path, 3, source=f"127.0.0.{number}")
        (homes[number],) = [place for place in range(3) if counts(*upstreams)[place] > before[place]]
    assert set(homes.values()) == {0, 1, 2}


def test_losing_a_target_moves_only_the_addresses_that_were_there(plane: DataPlane) -> None:
    upstreams = [plane.serve() for _ in range(3)]
    policies = balanced("ip_hash") | {"circuit_breaker": {"failures": 1, "openS": 60}}
    path = serve(plane, *upstreams, policies=policies)

    def home(number: int) -> int:
        before = counts(*upstreams)
        asked(plane, path, 1, source=f"127.0.0.{number}")
        return next(place for place in range(3) if counts(*upstreams)[place] > before[place])

    before = {number: home(number) for number in range(1, 25)}
    upstreams[0].close()
    after = {number: home(number) for number in before}
    assert {number: place for number, place in after.items() if before[number] != 0} == {
        number: place for number, place in before.items() if place != 0
    }
    assert 0 not in after.values()


def test_least_connections_goes_where_least_is_under_way(plane: DataPlane, held: Any) -> None:
    busy, free = plane.serve(held.script), plane.serve()
    path = serve(plane, busy, free, policies=balanced("least_connections"))
    waiting: list[Client] = []
    while not busy.requests:  # until a request has met the one that keeps it
        waiting.append(plane.connect().send(plane.request("GET", path)))
        eventually(lambda: len(busy.requests) + len(free.requests) == len(waiting), what="the request at a target")
    asked(plane, path, 20)
    assert len(busy.requests) == 1
    held.release.set()
    assert [client.answer().status for client in waiting] == [200] * len(waiting)
    for client in waiting:
        client.socket.close()


def test_peak_ewma_prefers_the_fast_target(plane: DataPlane) -> None:
    slow, fast = plane.serve(answering_after(0.2)), plane.serve()
    path = serve(plane, slow, fast, policies=balanced("peak_ewma"))
    asked(plane, path, 60)
    assert len(slow.requests) <= 3 < len(fast.requests)


@pytest.mark.parametrize("strategy", ["weighted", "round_robin", "ip_hash", "least_connections", "peak_ewma"])
def test_every_strategy_passes_over_a_target_that_is_gone(plane: DataPlane, strategy: str) -> None:
    good, other = plane.serve(), plane.serve()
    path = serve(plane, nowhere(), good, other, policies=balanced(strategy))
    asked(plane, path, 40)
    assert sum(counts(good, other)) == 40


def test_what_is_known_of_targets_outlives_a_change_of_the_configuration(plane: DataPlane) -> None:
    good = plane.serve()
    bad = plane.serve(replying(DOWN))
    policies = balanced("round_robin") | {"circuit_breaker": {"failures": 2, "openS": 60}, "retries": {"attempts": 0}}
    path = serve(plane, bad, good, name="kept", policies=policies)
    for _ in range(4):
        plane.ask("GET", path)
    assert len(bad.requests) == 2
    serve(plane, good, bad, name="kept", policies=policies, request_timeout_ms=9000)
    asked(plane, path, 10)
    assert len(bad.requests) == 2


# --- passive health --------------------------------------------------------------------------------------------------
def test_a_target_whose_requests_fail_too_often_is_ejected_for_a_while(plane: DataPlane) -> None:
    flapping = plane.serve(replying(*[OK, DOWN] * 5, OK))
    good = [plane.serve(), plane.serve()]
    passive = {"errorPercent": 50, "minRequests": 10, "windowS": 60, "ejectS": 1}
    policies = {"health_checks": {"passive": passive}, "circuit_breaker": {"enabled": False}}
    path = serve(plane, flapping, *good, policies=policies)
    asked(plane, path, 30)  # failures are tried elsewhere
    assert len(flapping.requests) == 10
    asked(plane, path, 10)
    assert len(flapping.requests) == 10

    def is_back() -> bool:
        asked(plane, path, 3)
        return len(flapping.requests) > 10

    eventually(is_back, what="the target's return")


def test_when_most_are_ejected_all_are_used(plane: DataPlane) -> None:
    upstreams = [plane.serve(replying(DOWN)), plane.serve(replying(DOWN)), plane.serve()]
    policies = {
        "health_checks": {"passive": {"minRequests": 3, "ejectS": 60}},
        "circuit_breaker": {"enabled": False},
        "retries": {"attempts": 0},
    }
    path = serve(plane, *upstreams, policies=policies)
    for _ in range(9):
        plane.ask("GET", path)
    before = counts(*upstreams)
    for _ in range(12):
        plane.ask("GET", path)
    assert all(now > then for now, then in zip(counts(*upstreams), before, strict=True))


# --- sticky sessions -------------------------------------------------------------------------------------------------
def cookie_of(answer: Answer, name: str = "gateway_affinity") -> str:
    line = answer.field("set-cookie") or ""
    matched = re.match(rf"{name}=([^;]+); Path=/; HttpOnly; SameSite=Lax", line)
    assert matched, f"no cookie in {line!r}"
    return matched[1]


def sticky(**more: Any) -> dict[str, Any]:
    return balanced("round_robin", sticky={"cookie": "gateway_affinity"} | more)


def test_a_websocket_brings_the_cookie_too(plane: DataPlane) -> None:
    upstreams = [plane.serve(agreeing()) for _ in range(2)]
    path = serve(plane, *upstreams, policies=sticky())
    with open_socket(plane, path) as socket:
        cookie = cookie_of(socket.answer)
    for _ in range(4):
        with open_socket(plane, path, f"Cookie: gateway_affinity={cookie}") as socket:
            assert socket.answer.field("set-cookie") is None
    assert sorted(counts(*upstreams)) == [0, 5]


def test_a_client_of_two_services_stays_where_it_is_in_both(plane: DataPlane) -> None:
    paths = [serve(plane, plane.serve(), plane.serve(), policies=balanced("round_robin", sticky={})) for _ in range(2)]
    jar: dict[str, str] = {}
    for path in paths:
        line = asked(plane, path, 1)[0].field("set-cookie") or ""
        name, _, value = line.partition(";")[0].partition("=")
        jar[name] = value
    assert list(jar) == [f"gateway_affinity_{path.rpartition('/')[2]}" for path in paths]
    cookies = "; ".join(f"{name}={value}" for name, value in jar.items())
    for path in paths * 2:
        assert asked(plane, path, 1, f"Cookie: {cookies}")[0].field("set-cookie") is None


def test_a_client_with_the_cookie_stays_with_its_target(plane: DataPlane) -> None:
    upstreams = [plane.serve() for _ in range(3)]
    path = serve(plane, *upstreams, policies=sticky())
    cookies = [cookie_of(answer) for answer in asked(plane, path, 3)]
    assert len(set(cookies)) == 3
    for cookie in cookies:
        before = counts(*upstreams)
        answers = asked(plane, path, 5, f"Cookie: a=b; gateway_affinity={cookie}")
        assert sorted(now - then for now, then in zip(counts(*upstreams), before, strict=True)) == [0, 0, 5]
        assert all(answer.field("set-cookie") is None for answer in answers)


def test_the_cookie_tells_nothing_of_the_address_and_keeps_the_upstream_s_own_cookies(plane: DataPlane) -> None:
    own = b"HTTP/1.1 200 OK\r\nSet-Cookie: theirs=1\r\nContent-Length: 2\r\n\r\nok"
    upstream, other = plane.serve(replying(own)), plane.serve(replying(own))
    path = serve(plane, upstream, other, policies=sticky(cookie="where", ttlS=60))
    theirs, ours = asked(plane, path, 1)[0].all("set-cookie")
    assert theirs == "theirs=1"
    assert ours.endswith("; Path=/; HttpOnly; SameSite=Lax; Max-Age=60")
    for told in (str(upstream.port), str(other.port), "127.0.0.1"):
        assert told not in ours


@pytest.mark.parametrize("change", [lambda cookie: cookie[:-1] + ("A" if cookie[-1] != "A" else "B"), lambda _: "x"])
def test_a_forged_cookie_is_ignored_and_replaced(plane: DataPlane, change: Callable[[str], str]) -> None:
    upstreams = [plane.serve(), plane.serve()]
    path = serve(plane, *upstreams, policies=sticky())
    forged = change(cookie_of(asked(plane, path, 1)[0]))
    answers = asked(plane, path, 4, f"Cookie: gateway_affinity={forged}")
    assert all(cookie_of(answer) != forged for answer in answers)
    assert min(counts(*upstreams)) >= 2


def test_a_cookie_of_one_service_means_nothing_to_another(plane: DataPlane) -> None:
    upstreams = [plane.serve(), plane.serve()]
    paths = [serve(plane, *upstreams, name=f"same{number}", policies=sticky()) for number in range(2)]
    cookie = cookie_of(asked(plane, paths[0], 1)[0])
    assert cookie_of(asked(plane, paths[1], 1, f"Cookie: gateway_affinity={cookie}")[0]) != cookie


def test_a_client_whose_target_is_gone_gets_another_and_its_cookie(plane: DataPlane) -> None:
    upstreams = [plane.serve(), plane.serve()]
    path = serve(plane, *upstreams, policies=sticky())
    cookie = cookie_of(asked(plane, path, 1)[0])
    mine = next(upstream for upstream in upstreams if upstream.requests)
    (other,) = [upstream for upstream in upstreams if upstream is not mine]
    mine.close()
    answer = asked(plane, path, 1, f"Cookie: gateway_affinity={cookie}")[0]
    renewed = cookie_of(answer)
    assert renewed != cookie and len(other.requests) == 1
    assert asked(plane, path, 1, f"Cookie: gateway_affinity={renewed}")[0].field("set-cookie") is None


def test_two_workers_with_the_same_secret_read_each_other_s_cookies(
    plane: DataPlane, start_plane: Callable[..., DataPlane]
) -> None:
    second = start_plane()
    upstreams = [plane.serve(), plane.serve()]
    path = serve(plane, *upstreams, name="shared", policies=sticky())
    serve(second, *upstreams, name="shared", policies=sticky())
    cookie = cookie_of(asked(plane, path, 1)[0])
    before = counts(*upstreams)
    answers = asked(second, path, 4, f"Cookie: gateway_affinity={cookie}")
    assert all(answer.field("set-cookie") is None for answer in answers)
    assert sorted(now - then for now, then in zip(counts(*upstreams), before, strict=True)) == [0, 4]

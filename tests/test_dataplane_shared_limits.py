"""Limits that several workers count together, through running workers and a real Redis, which is also killed."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.dataplane import DataPlane, digest_of
from tests.gateway_process import eventually
from tests.private_servers import PrivateRedis
from tests.raw_http import Answer
from tests.scripted_upstream import OK, Peer, Upstream
from tests.wires import application_wire, key_wire, limit_wire, service_wire

Planes = tuple[DataPlane, DataPlane]


@pytest.fixture(params=["strict", "leased"])
def planes(
    request: pytest.FixtureRequest, start_plane: Callable[..., DataPlane], private_redis: PrivateRedis
) -> Planes:
    return two(start_plane, private_redis, request.param)


def two(start_plane: Callable[..., DataPlane], server: PrivateRedis, mode: str) -> Planes:
    """Two workers of two hosts with the same keys, which share nothing but Redis."""
    first, second = (
        start_plane(redis_url=server.url, rate_limit_mode=mode, rate_limit_wait_s=5.0, workers=2) for _ in range(2)
    )
    second.feed.put("api_key", key_wire("key_1", digest_of(first.key)))
    second.key = first.key
    return first, second


def put(planes: Planes, kind: str, *wires: dict[str, Any]) -> None:
    for plane in planes:
        plane.feed.put(kind, *wires)


def serve(planes: Planes, script: Callable[[Peer], None] | None = None) -> Upstream:
    upstream = planes[0].serve(script)
    name = upstream.path.rpartition("/")[2]
    planes[1].feed.put("service", service_wire(id=f"svc_{name}", name=name, default_url=upstream.url))
    return upstream


def ask_all(planes: Planes, path: str, count: int) -> list[Answer]:
    """That many requests of four clients of each worker."""

    def ask(plane: DataPlane) -> list[Answer]:
        with plane.connect() as client:
            answers = []
            for _ in range(count):
                answers.append(client.send(plane.request("GET", path)).answer())
            return answers

    with ThreadPoolExecutor(8) as pool:
        return [answer for answers in pool.map(ask, planes * 4) for answer in answers]


def admitted(answers: list[Answer]) -> int:
    assert {answer.status for answer in answers} <= {200, 429}
    return sum(answer.status == 200 for answer in answers)


def test_all_workers_together_admit_the_limit(planes: Planes) -> None:
    put(planes, "application", application_wire(rate_limit=40))
    path = f"{serve(planes).path}/x"
    allowed = admitted(ask_all(planes, path, 12))
    slack = 0 if planes[0].settings.rate_limit_mode == "strict" else 2 * 40 // 20
    assert 40 - slack <= allowed <= 40 + slack + 1  # one may flow back meanwhile
    answer = ask_all(planes, path, 1)[-1]
    assert answer.field("ratelimit-policy") == '"application";q=40;w=60'


def test_several_shared_limits_are_all_charged_or_none(
    start_plane: Callable[..., DataPlane], private_redis: PrivateRedis
) -> None:
    planes = two(start_plane, private_redis, "strict")
    path = serve(planes).path
    put(planes, "limit", limit_wire("lim_wide", name="wide", limit=20, windowS=86_400))
    put(planes, "limit", limit_wire("lim_narrow", name="narrow", limit=3, windowS=86_400, paths=[f"{path}/narrow"]))
    assert admitted(ask_all(planes, f"{path}/narrow", 4)) == 3
    assert admitted(ask_all(planes, f"{path}/wide", 4)) == 17
    refused = planes[1].ask("GET", f"{path}/wide")
    assert refused.problem["violated-policies"] == ["wide"]


def test_a_quota_in_redis_is_everybody_s(start_plane: Callable[..., DataPlane], private_redis: PrivateRedis) -> None:
    planes = two(start_plane, private_redis, "strict")
    path = serve(planes).path
    put(planes, "limit", limit_wire("lim_month", name="month", limit=9, algorithm="quota", period="month"))
    answers = ask_all(planes, f"{path}/x", 3)
    assert admitted(answers) == 9
    assert {answer.code for answer in answers if answer.status == 429} == {"quota_exceeded"}


def test_one_limit_alone_may_be_counted_together(
    start_plane: Callable[..., DataPlane], private_redis: PrivateRedis
) -> None:
    planes = two(start_plane, private_redis, "local")
    path = serve(planes).path
    put(planes, "limit", limit_wire("lim_strict", name="strict", limit=9, windowS=86_400, mode="strict"))

    def gauges(plane: DataPlane) -> set[str]:
        messages = [message for message in plane.feed.heard if message["type"] == "metrics"]
        return {name for message in messages[-1:] for name, _, value in message["gauges"] if value}

    for plane in planes:
        eventually(lambda plane=plane: "portcullis_limits_redis_up" in gauges(plane), what="the connection to Redis")  # type: ignore[misc]
    answers = ask_all(planes, f"{path}/x", 3)
    assert admitted(answers) == 9
    assert '"default";q=1000000;w=60,"strict";q=9;w=86400' in (answers[0].field("ratelimit-policy") or "")


def test_requests_under_way_are_counted_together(
    start_plane: Callable[..., DataPlane], private_redis: PrivateRedis
) -> None:
    planes = two(start_plane, private_redis, "strict")
    gate: list[bool] = []

    def script(peer: Peer) -> None:
        while peer.read_request() is not None:
            eventually(lambda: gate, what="the gate")
            peer.send(OK)

    slow = serve(planes, script)
    put(planes, "limit", limit_wire("lim_open", name="open", limit=1, algorithm="concurrency"))
    with planes[0].connect() as client:
        client.send(planes[0].request("GET", f"{slow.path}/x"))
        eventually(lambda: slow.requests, what="the request")
        assert planes[1].ask("GET", f"{slow.path}/x").status == 429
        client.reset()
    eventually(lambda: planes[1].ask("GET", f"{slow.path}/x", "X-API-Version: none").status == 404)
    gate.append(True)
    assert planes[1].ask("GET", f"{slow.path}/x").status == 200


@pytest.mark.parametrize("planes", ["strict"], indirect=True)
def test_while_redis_is_away_each_limit_says_what_holds_and_it_comes_back(
    planes: Planes, private_redis: PrivateRedis
) -> None:
    path = serve(planes).path
    put(planes, "application", application_wire(rate_limit=1_000_000))
    for outage in ("share", "open", "closed"):
        limit = limit_wire(
            f"lim_{outage}", name=outage, limit=6, windowS=86_400, paths=[f"{path}/{outage}"], outage=outage
        )
        put(planes, "limit", limit)
    private_redis.kill()
    statuses = {
        outage: sorted(planes[0].ask("GET", f"{path}/{outage}").status for _ in range(8))
        for outage in ("share", "open", "closed")
    }
    assert statuses == {"share": [200] * 3 + [429] * 5, "open": [200] * 8, "closed": [503] * 8}
    closed = planes[0].ask("GET", f"{path}/closed")
    assert closed.code == "dependency_unavailable" and int(closed.field("retry-after") or 0) > 0

    def gauges() -> dict[str, float]:
        messages = [message for message in planes[0].feed.heard if message["type"] == "metrics"]
        return {name: value for message in messages[-1:] for name, _, value in message["gauges"]}

    def problems() -> list[str]:
        acks = [message for message in planes[0].feed.heard if message["type"] == "ack"]
        return [problem["kind"] for problem in acks[-1]["problems"]]

    eventually(lambda: gauges().get("api_gateway_limits_degraded") == 1.0, what="the gauge")
    eventually(lambda: problems() == ["limits"], what="the problem, for the panel")
    private_redis.start()
    eventually(lambda: planes[0].ask("GET", f"{path}/closed").status == 200, what="counting together")
    eventually(lambda: problems() == [], what="no problem any more")


def test_a_redis_that_hangs_holds_up_no_more_than_the_requests_that_have_asked_it(
    start_plane: Callable[..., DataPlane], private_redis: PrivateRedis
) -> None:
    plane = start_plane(redis_url=private_redis.url, rate_limit_mode="strict", rate_limit_wait_s=1.0)
    path = f"{plane.serve().path}/x"
    plane.feed.put("application", application_wire(rate_limit=10_000))
    assert plane.ask("GET", path).status == 200
    private_redis.freeze()
    clients = [plane.connect() for _ in range(20)]
    for client in clients:
        client.send(plane.request("GET", path))
    assert {client.answer().status for client in clients} == {200}  # their share of the limit
    began = time.monotonic()
    assert {clients[0].send(plane.request("GET", path)).answer().status for _ in range(40)} == {200}
    assert time.monotonic() - began < 20  # if all had waited it would be 40 s
    for client in clients:
        client.socket.close()
    assert "cannot be counted in Redis" in plane.output()
    private_redis.thaw()
    eventually(lambda: "counted in Redis again" in plane.output(), what="Redis to be used again")
    assert plane.ask("GET", path).status == 200
    assert plane.output().count("cannot be counted in Redis") == 1

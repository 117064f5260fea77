"""One strict limit, four workers and 64 clients that never stop, while the Redis that counts is killed and comes back.

What holds, exactly: a Redis admits as many as the limit says in its life, however many workers ask it. One that has
forgotten begins anew; one that keeps everything counts on, but for the requests whose answers were lost with it. In
between each limit does what its ``outage`` says.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import pytest

from tests.gateway_process import GatewayFactory, eventually
from tests.gateway_traffic import NO_LIMIT, Result, Shop, Traffic, create, echo, open_shop, panel_api, traffic
from tests.private_servers import PrivateRedis
from tests.scripted_upstream import Upstream

pytestmark = pytest.mark.private_redis

WORKERS, CLIENTS, LIMIT = 4, 64, 1000
SHARE = LIMIT // WORKERS
PACE_S = 0.01
PATIENCE_S = 60.0
FORGETFUL, DURABLE = ("--appendonly", "no"), ("--appendonly", "yes", "--appendfsync", "always")


@pytest.fixture(scope="module")
def redis() -> Iterator[PrivateRedis]:
    server = PrivateRedis()
    server.persistence = FORGETFUL
    try:
        server.start()
        yield server
    finally:
        server.destroy()


@pytest.fixture(scope="module")
def shop(start_module_gateway: GatewayFactory, redis: PrivateRedis) -> Iterator[Shop]:
    upstream = Upstream(echo)
    gateway = start_module_gateway(
        WORKERS=str(WORKERS), REDIS_URL=redis.url, RATE_LIMIT_MODE="strict", RATE_LIMIT_REDIS_WAIT_MS="20000"
    )
    yield open_shop(gateway, upstream.url)
    upstream.close()


@dataclass
class Lives:
    """Answers as each client saw them in turn: those that Redis decided before it was killed, those that were decided
    without it, and those that it decided after it had come back."""

    first: list[Result] = field(default_factory=list)
    without: list[Result] = field(default_factory=list)
    second: list[Result] = field(default_factory=list)

    @classmethod
    def of(cls, results: list[Result], name: str) -> Lives:
        lives, have_been_without = cls(), set()
        for result in results:
            if not is_counted(result, name):
                have_been_without.add(result.client)
                lives.without.append(result)
            else:
                (lives.second if result.client in have_been_without else lives.first).append(result)
        return lives


def is_counted(result: Result, name: str, limit: int = LIMIT) -> bool:
    """By Redis: only then is the limit told as it is. A share of it is smaller."""
    return result.answer is not None and f'"{name}";q={limit};' in (result.answer.field("ratelimit-policy") or "")


def admitted(results: list[Result]) -> int:
    return sum(result.status == 200 for result in results)


def each_client(flow: Traffic, has_seen: Callable[[Result], bool], what: str, times: int = 1) -> None:
    """Wait until each client has got such an answer as its last one, so often in a row."""

    def have() -> bool:
        of_client: dict[int, list[Result]] = defaultdict(list)
        for result in list(flow.results):
            of_client[result.client].append(result)
        return len(of_client) == CLIENTS and all(all(map(has_seen, each[-times:])) for each in of_client.values())

    eventually(have, PATIENCE_S, what)


def lives_through(shop: Shop, redis: PrivateRedis, outage: str, name: str) -> Lives:
    """What 64 clients saw of a limit of this name while Redis was killed in the middle of their load, stayed away until
    every one of them had met its absence, and came back until it had refused every one of them."""
    rule = {"limit": LIMIT, "windowS": 2_678_400, "paths": [f"/api/v1/orders/{name}"], "outage": outage}
    with panel_api(shop.gateway) as admin:
        create(admin, "/admin/access/limits", name=name, rule=rule)
    asked = shop.get.replace(shop.path.encode(), f"/api/v1/orders/{name}".encode())
    ends_as = {"closed": 503, "open": 200, "share": 429}[outage]
    with traffic(shop.gateway, lambda client, count: asked, clients=CLIENTS, pace_s=PACE_S) as flow:
        eventually(lambda: admitted(list(flow.results)) >= LIMIT // 4, PATIENCE_S, "the first requests")
        redis.kill()
        each_client(
            flow, lambda seen: seen.status == ends_as and not is_counted(seen, name), f"{outage} for all clients", 3
        )
        redis.start()
        each_client(flow, lambda seen: seen.status == 429 and is_counted(seen, name), "counting by Redis for all")
    return Lives.of(flow.results, name)


def is_kept_by(redis: PrivateRedis, persistence: Sequence[str], shop: Shop) -> None:
    """Make Redis such a one, and wait until all workers count in it again."""
    if redis.persistence == persistence:
        return
    redis.persistence = persistence
    redis.restart()
    with traffic(shop.gateway, lambda client, count: shop.get, clients=CLIENTS, pace_s=PACE_S) as flow:
        each_client(flow, lambda seen: is_counted(seen, "application", NO_LIMIT), "counting by Redis for all")


@pytest.mark.parametrize("outage", ["closed", "open", "share"])
def test_a_redis_that_forgets_admits_the_limit_in_each_of_its_lives(
    shop: Shop, redis: PrivateRedis, outage: str
) -> None:
    is_kept_by(redis, FORGETFUL, shop)
    lives = lives_through(shop, redis, outage, f"{outage}-meanwhile")
    assert LIMIT // 4 <= admitted(lives.first) <= LIMIT
    assert admitted(lives.second) == LIMIT
    assert {result.status for result in lives.first + lives.second} == {200, 429}
    if outage == "closed":
        assert {(result.status, result.code) for result in lives.without} == {(503, "dependency_unavailable")}
    elif outage == "open":
        assert {result.status for result in lives.without} == {200}
    else:
        assert {result.status for result in lives.without} == {200, 429}
        assert admitted(lives.without) == WORKERS * SHARE


def test_a_redis_that_keeps_everything_admits_the_limit_in_both_of_its_lives(shop: Shop, redis: PrivateRedis) -> None:
    is_kept_by(redis, DURABLE, shop)
    lives = lives_through(shop, redis, "closed", "kept")
    assert admitted(lives.first) >= LIMIT // 4
    # It may have charged requests, one of each client at most, whose answers ended with it.
    assert LIMIT - CLIENTS <= admitted(lives.first) + admitted(lives.second) <= LIMIT
    assert {result.status for result in lives.first + lives.second} == {200, 429}
    assert {result.status for result in lives.without} == {503}

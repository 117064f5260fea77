"""One limit of a whole gateway with four workers and many clients, counted in a real Redis that is killed meanwhile."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.gateway_process import GatewayFactory, eventually
from tests.gateway_traffic import Shop, connect, create, echo, open_shop, panel_api
from tests.private_servers import PrivateRedis
from tests.scripted_upstream import Upstream

CLIENTS = 64
LIMIT = 400


@pytest.fixture
def shop(start_gateway: GatewayFactory, private_redis: PrivateRedis) -> Iterator[Shop]:
    upstream = Upstream(echo)
    gateway = start_gateway(
        WORKERS="4", REDIS_URL=private_redis.url, RATE_LIMIT_MODE="strict", RATE_LIMIT_REDIS_WAIT_MS="20000"
    )
    yield open_shop(gateway, upstream.url)
    upstream.close()


def limit(shop: Shop, name: str, **rule: object) -> None:
    """Of one path, in a window that does not end."""
    rule |= {"limit": LIMIT, "windowS": 2_678_400, "paths": [f"/api/v1/orders/{name}"]}
    with panel_api(shop.gateway) as admin:
        create(admin, "/admin/access/limits", name=name, rule=rule)


class Crowd:
    """Clients with a connection each, which ask for ``path`` until ``has_enough`` says so to the number of their
    requests. ``answers`` are their statuses."""

    def __init__(self, shop: Shop, path: str, has_enough: Callable[[int], bool]) -> None:
        self._shop = shop
        self._asked = shop.get.replace(shop.path.encode(), path.encode())
        self._has_enough = has_enough
        self.answers: list[int] = []

    @property
    def statuses(self) -> Counter[int]:
        return Counter(self.answers)

    def run(self) -> None:
        with ThreadPoolExecutor(CLIENTS) as pool:
            list(pool.map(self._ask, range(CLIENTS)))

    def _ask(self, _: int) -> None:
        with connect(self._shop.gateway) as client:
            number = 0
            while not self._has_enough(number):
                self.answers.append(client.send(self._asked).answer().status)
                number += 1


def test_a_strict_limit_is_admitted_exactly_and_outlives_redis(shop: Shop, private_redis: PrivateRedis) -> None:
    limit(shop, "exact")
    crowd = Crowd(shop, "/api/v1/orders/exact", lambda number: number == 8)
    crowd.run()
    assert crowd.statuses == {200: LIMIT, 429: CLIENTS * 8 - LIMIT}

    limit(shop, "outage", outage="closed")
    private_redis.kill()
    away = Crowd(shop, "/api/v1/orders/outage", lambda number: number == 2)
    away.run()
    assert away.statuses == {503: CLIENTS * 2}
    private_redis.start()
    eventually(lambda: status(shop, "exact") == 429, what="what had been counted")
    back = Crowd(shop, "/api/v1/orders/outage", lambda number: back.answers.count(429) > CLIENTS)
    back.run()
    assert back.statuses[200] == LIMIT


def status(shop: Shop, path: str) -> int:
    with connect(shop.gateway) as client:
        return client.send(shop.get.replace(shop.path.encode(), f"/api/v1/orders/{path}".encode())).answer().status

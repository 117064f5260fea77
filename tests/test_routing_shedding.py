"""The adaptive limit against simulated servers, and who is refused when it is reached."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routing.policies import Concurrency
from routing.shedding import PRIORITIES, AdaptiveLimit

ADAPTIVE = Concurrency(adaptive=True)


@dataclass
class Outcome:
    admitted: int
    refused: int
    median_s: float
    limits: list[float]


def simulate(
    limit: AdaptiveLimit,
    *,
    servers: int,
    service_s: Callable[[float], float],
    rate: float,
    seconds: float,
    failing: float = 0.0,
) -> Outcome:
    """Requests that come at random, and an upstream that works on so many at once, the others in line. Looks at the
    second half only."""
    draw = random.Random(7)
    now = 0.0
    free = [0.0] * servers
    under_way: list[tuple[float, float, bool]] = []
    admitted = refused = 0
    waits, limits = [], []
    while now < seconds:
        now += draw.expovariate(rate)
        while under_way and under_way[0][0] <= now:
            at, took_s, ok = heapq.heappop(under_way)
            limit.done(at, took_s, ok)
        is_settled = now > seconds / 2
        if limit.admit(5):
            ends = max(now, heapq.heappop(free)) + service_s(now) * draw.uniform(0.7, 1.3)
            heapq.heappush(free, ends)
            heapq.heappush(under_way, (ends, ends - now, draw.random() >= failing))
            admitted += is_settled
            if is_settled:
                waits.append(ends - now)
        else:
            refused += is_settled
        limits.append(limit.limit)
    return Outcome(admitted, refused, sorted(waits)[len(waits) // 2], limits[len(limits) // 2 :])


@pytest.mark.parametrize("load", [0.3, 0.8])
@pytest.mark.parametrize(("servers", "service_s"), [(20, 0.02), (100, 0.1)])
def test_what_the_upstream_can_take_is_not_refused(servers: int, service_s: float, load: float) -> None:
    limit = AdaptiveLimit(ADAPTIVE)
    rate = load * servers / service_s
    outcome = simulate(limit, servers=servers, service_s=lambda _: service_s, rate=rate, seconds=20)
    assert outcome.refused < 0.01 * outcome.admitted


@pytest.mark.parametrize("load", [1.5, 4.0])
@pytest.mark.parametrize(("servers", "service_s"), [(5, 0.05), (20, 0.02), (100, 0.1)])
def test_under_overload_the_upstream_stays_busy_and_fast(servers: int, service_s: float, load: float) -> None:
    limit = AdaptiveLimit(ADAPTIVE)
    capacity = servers / service_s
    outcome = simulate(limit, servers=servers, service_s=lambda _: service_s, rate=load * capacity, seconds=40)
    assert outcome.admitted > 0.9 * capacity * 20  # nothing is wasted
    assert outcome.median_s < (5 if servers < 10 else 2.5) * service_s  # without a limit it would be many seconds
    assert max(outcome.limits) < (10 if servers < 10 else 4) * servers  # it holds, though half is given up at times


@pytest.mark.parametrize("slower", [1.7, 3.0, 6.0])
@pytest.mark.parametrize("rate", [400, 3000], ids=["in calm", "under overload"])
def test_a_service_that_is_slower_for_good_soon_gets_its_traffic_back(slower: float, rate: float) -> None:
    limit = AdaptiveLimit(ADAPTIVE)
    outcome = simulate(
        limit, servers=50, service_s=lambda now: 0.02 if now < 12 else 0.02 * slower, rate=rate, seconds=34
    )
    capacity = 50 / (0.02 * slower)
    assert outcome.admitted > 0.85 * min(rate, capacity) * 17  # from five seconds after the change


def test_failures_shrink_the_limit_to_its_minimum() -> None:
    limit = AdaptiveLimit(Concurrency(adaptive=True, min_limit=5, max_limit=100))
    outcome = simulate(limit, servers=20, service_s=lambda _: 0.02, rate=500, seconds=20, failing=0.5)
    assert outcome.limits[-1] == 5


def test_departed_clients_say_nothing() -> None:
    limit = AdaptiveLimit(ADAPTIVE)
    before = limit.limit
    for number in range(1000):
        assert limit.admit(9)
        limit.done(number / 10, None, False)
    assert limit.limit == before and limit.in_flight == 0


def test_a_limit_that_nobody_reaches_does_not_grow() -> None:
    limit = AdaptiveLimit(ADAPTIVE)
    before = limit.limit
    for number in range(5000):
        limit.admit(5)
        limit.done(number / 100, 0.01, True)
    assert limit.limit == before


# --- priorities ----------------------------------------------------------------------------------------------------
def occupied(limit: AdaptiveLimit, in_flight: int) -> list[bool]:
    """Who would be admitted with so many under way, by priority."""
    answers = []
    for priority in range(PRIORITIES):
        limit.in_flight = in_flight
        answers.append(limit.admit(priority))
    return answers


@given(st.integers(1, 1000), st.integers(1, 1000), st.integers(0, 1000))
def test_nobody_is_admitted_where_a_higher_priority_is_refused(one: int, other: int, in_flight: int) -> None:
    limit = AdaptiveLimit(Concurrency(adaptive=True, min_limit=min(one, other), max_limit=max(one, other)))
    answers = occupied(limit, in_flight)
    assert answers == sorted(answers)
    assert all(occupied(limit, 0))
    assert not any(occupied(limit, max(one, other, 20)))


def test_the_lowest_are_refused_first_and_the_highest_have_all_of_it() -> None:
    limit = AdaptiveLimit(Concurrency(adaptive=True, min_limit=100, max_limit=100))
    first_refusal = [next(n for n in range(200) if not occupied(limit, n)[priority]) for priority in range(PRIORITIES)]
    assert first_refusal == [55, 60, 65, 70, 75, 80, 85, 90, 95, 100]


@given(st.lists(st.tuples(st.integers(0, 9), st.floats(0.001, 0.5), st.booleans()), max_size=300))
def test_the_limit_keeps_within_its_bounds_and_the_count_is_right(steps: list[tuple[int, float, bool]]) -> None:
    limit = AdaptiveLimit(Concurrency(adaptive=True, min_limit=4, max_limit=30))
    now, under_way = 0.0, 0
    for priority, latency_s, ends in steps:
        now += latency_s
        if ends and under_way:
            limit.done(now, latency_s, priority < 7)
            under_way -= 1
        under_way += limit.admit(priority)
        assert 4 <= limit.limit <= 30
        assert limit.in_flight == under_way <= 30

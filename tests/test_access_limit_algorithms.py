"""Each algorithm against a model that remembers every request (A8)."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from fractions import Fraction
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from access.limits.charges import Charge, compiled
from access.limits.local import LocalLimiter, Look
from access.limits.periods import period_of
from access.policies import LimitRule

S, MS = 1_000_000_000, 1_000_000

ARRIVALS = st.lists(
    st.tuples(st.one_of(st.integers(0, 3 * MS), st.integers(0, 4 * S)), st.integers(1, 3)), min_size=1, max_size=60
)  # nanoseconds since the one before, and what it costs
JUMPS = st.lists(st.tuples(st.integers(-20 * S, 20 * S), st.integers(1, 3)), min_size=1, max_size=60)
LIMITS = st.integers(3, 12)
WINDOWS = st.integers(1, 5)
RATES = ("token_bucket", "spike_arrest", "sliding_window", "sliding_log", "fixed_window")
START = 1_700_000_000 * S


def charge(algorithm: Any, limit: int, window_s: int, cost: int = 1, **more: Any) -> Charge:
    policy = compiled("lim_1", "a", LimitRule(limit=limit, window_s=window_s, algorithm=algorithm, **more))
    return Charge(policy, "key_1", min(cost, policy.most))


def ask(limiter: LocalLimiter, one: Charge, now: int) -> Look:
    admitted, (look,) = limiter.charge_all([one], now)
    assert admitted is look.allowed
    return look


# --- what a naive model admits, which remembers when everything came, and what it cost ---
def by_log(past: list[tuple[int, int]], now: int, window: int, limit: int, cost: int) -> bool:
    return sum(each for at, each in past if now - window < at) + cost <= limit


def by_window(past: list[tuple[int, int]], now: int, window: int, limit: int, cost: int) -> bool:
    return sum(each for at, each in past if at // window == now // window) + cost <= limit


def by_two_windows(past: list[tuple[int, int]], now: int, window: int, limit: int, cost: int) -> bool:
    current = sum(each for at, each in past if at // window == now // window)
    before = sum(each for at, each in past if at // window == now // window - 1)
    return current + before * Fraction(window - now % window, window) + cost <= limit


def by_tokens(past: list[tuple[int, int]], now: int, window: int, limit: int, cost: int) -> bool:
    """A bucket that fills drop by drop, and spills what it cannot hold."""
    interval = -(-window // limit)
    level, last = limit * interval, START
    for at, each in past:
        level = min(level + at - last, limit * interval) - each * interval
        last = at
    return min(level + now - last, limit * interval) >= cost * interval


MODELS: dict[str, Callable[[list[tuple[int, int]], int, int, int, int], bool]] = {
    "token_bucket": by_tokens,
    "sliding_window": by_two_windows,
    "sliding_log": by_log,
    "fixed_window": by_window,
}


@pytest.mark.parametrize("algorithm", MODELS)
@given(limit=LIMITS, window_s=WINDOWS, arrivals=ARRIVALS)
def test_it_admits_what_the_naive_model_admits(
    algorithm: str, limit: int, window_s: int, arrivals: list[tuple[int, int]]
) -> None:
    limiter, past, now = LocalLimiter(), list[tuple[int, int]](), START
    for gap, cost in arrivals:
        now += gap
        expected = MODELS[algorithm](past, now, window_s * S, limit, cost)
        assert ask(limiter, charge(algorithm, limit, window_s, cost), now).allowed == expected
        if expected:
            past.append((now, cost))


@given(limit=LIMITS, window_s=WINDOWS, arrivals=ARRIVALS)
def test_a_spike_arrest_lets_nothing_come_in_a_bunch(
    limit: int, window_s: int, arrivals: list[tuple[int, int]]
) -> None:
    limiter, now, last = LocalLimiter(), START, 0
    for gap, _ in arrivals:
        now += gap
        if ask(limiter, charge("spike_arrest", limit, window_s), now).allowed:
            assert now - last >= window_s * S // limit
            last = now


@pytest.mark.parametrize("algorithm", RATES)
@given(limit=LIMITS, window_s=WINDOWS, arrivals=ARRIVALS)
def test_a_blocked_client_recovers_exactly_when_it_was_told(
    algorithm: str, limit: int, window_s: int, arrivals: list[tuple[int, int]]
) -> None:
    limiter, now = LocalLimiter(), START
    for gap, cost in arrivals:
        now += gap
        one = charge(algorithm, limit, window_s, cost)
        look = ask(limiter, one, now)
        if look.allowed:
            continue
        assert not limiter.look(one, now + look.wait_ns - 1).allowed, "not before"
        now += look.wait_ns
        assert ask(limiter, one, now).allowed


@pytest.mark.parametrize("algorithm", RATES)
@given(limit=LIMITS, window_s=WINDOWS, arrivals=ARRIVALS)
def test_what_is_said_to_remain_is_what_is_admitted(
    algorithm: str, limit: int, window_s: int, arrivals: list[tuple[int, int]]
) -> None:
    limiter, now, one = LocalLimiter(), START, charge(algorithm, limit, window_s)
    for gap, _ in arrivals:
        now += gap
        remaining = ask(limiter, one, now).remaining
    for left in range(remaining, 0, -1):
        look = ask(limiter, one, now)
        assert look.allowed and look.remaining == left - 1
    assert not ask(limiter, one, now).allowed


@pytest.mark.parametrize("algorithm", RATES)
@given(limit=LIMITS, window_s=WINDOWS, arrivals=JUMPS)
def test_a_clock_that_jumps_blocks_nobody_for_longer_than_the_policy_could(
    algorithm: str, limit: int, window_s: int, arrivals: list[tuple[int, int]]
) -> None:
    limiter, now = LocalLimiter(), START
    for jump, cost in arrivals:
        now += jump
        look = ask(limiter, charge(algorithm, limit, window_s, cost), now)
        assert look.wait_ns <= 2 * window_s * S
        assert 0 <= look.remaining <= limit
    assert ask(limiter, charge(algorithm, limit, window_s), now + 2 * window_s * S).allowed


@pytest.mark.parametrize("algorithm", ["token_bucket", "sliding_log", "fixed_window"])
@given(limit=LIMITS, window_s=WINDOWS, backs=st.lists(st.integers(0, 30 * S), max_size=30))
def test_a_clock_that_only_goes_back_gives_no_second_budget(
    algorithm: str, limit: int, window_s: int, backs: list[int]
) -> None:
    limiter, now, admitted, one = LocalLimiter(), START, 0, charge(algorithm, limit, window_s)
    for back in backs:
        now -= back
        admitted += ask(limiter, one, now).allowed
    assert admitted <= limit


@pytest.mark.parametrize("algorithm", RATES)
@given(st.lists(st.tuples(LIMITS, WINDOWS, st.integers(0, 2 * S)), min_size=1, max_size=30))
def test_a_policy_that_changes_blocks_nobody_for_longer_than_its_windows(
    algorithm: str, steps: list[tuple[int, int, int]]
) -> None:
    limiter, now = LocalLimiter(), START
    for limit, window_s, gap in steps:
        now += gap
        one = charge(algorithm, limit, window_s)
        admitted = sum(ask(limiter, one, now).allowed for _ in range(limit + 2))
        assert admitted <= limit
        assert ask(limiter, one, now).wait_ns <= 2 * window_s * S


@given(
    st.lists(
        st.tuples(st.sampled_from((*RATES, "leaky_bucket", "concurrency")), LIMITS, WINDOWS), min_size=1, max_size=4
    ),
    st.lists(st.tuples(st.integers(0, S), st.integers(1, 3)), max_size=40),
)
def test_of_several_limits_all_are_charged_or_none(
    policies: list[tuple[Any, int, int]], arrivals: list[tuple[int, int]]
) -> None:
    limiter, now = LocalLimiter(), START
    for gap, cost in arrivals:
        now += gap
        charges = [
            Charge(compiled(f"lim_{place}", "a", LimitRule(limit=limit, window_s=w, algorithm=kind)), "key_1", cost)
            for place, (kind, limit, w) in enumerate(policies)
        ]
        before = [limiter.look(each, now).remaining for each in charges]
        admitted, looks = limiter.charge_all(charges, now)
        assert admitted == all(look.allowed for look in looks)
        if not admitted:
            assert [limiter.look(each, now).remaining for each in charges] == before


@pytest.mark.parametrize("algorithm", [*RATES, "concurrency"])
@given(limit=LIMITS, window_s=WINDOWS, costs=st.lists(st.integers(1, 3), max_size=10))
def test_what_is_given_back_was_never_taken(algorithm: str, limit: int, window_s: int, costs: list[int]) -> None:
    limiter = LocalLimiter()
    for cost in costs:
        one = charge(algorithm, limit, window_s, cost)
        before = limiter.look(one, START)
        if before.allowed:
            limiter.make(one, before, START)
            limiter.give_back(one)
        assert limiter.look(one, START)[:4] == before[:4]


# --- leaky bucket ---
@given(limit=LIMITS, window_s=WINDOWS, queue=st.integers(0, 5), gaps=st.lists(st.integers(0, S), max_size=60))
def test_a_leaky_bucket_lets_them_out_one_by_one_and_keeps_no_more_than_its_queue(
    limit: int, window_s: int, queue: int, gaps: list[int]
) -> None:
    limiter, now, leaves = LocalLimiter(), START, list[int]()
    one = charge("leaky_bucket", limit, window_s, queue=queue, max_wait_ms=30_000)
    for gap in gaps:
        now += gap
        look = ask(limiter, one, now)
        if look.allowed:
            leaves.append(now + look.wait_ns)
            assert sum(at > now for at in leaves) <= queue
        else:
            assert limiter.look(one, now + look.wait_ns).allowed, "let in when it was told"
            assert not limiter.look(one, now + look.wait_ns - 1).allowed
    for first, second in pairwise(leaves):
        assert second - first >= window_s * S // limit


def test_a_leaky_bucket_makes_nobody_wait_for_longer_than_it_says() -> None:
    limiter, one = LocalLimiter(), charge("leaky_bucket", 10, 1, queue=100, max_wait_ms=250)
    assert [ask(limiter, one, START).wait_ns // MS for _ in range(3)] == [0, 100, 200]
    refused = ask(limiter, one, START)
    assert not refused.allowed and refused.wait_ns == 50 * MS


# --- concurrency ---
def test_concurrency_counts_what_is_under_way() -> None:
    limiter, one = LocalLimiter(), charge("concurrency", 3, 60)
    assert [ask(limiter, one, START).allowed for _ in range(4)] == [True, True, True, False]
    limiter.give_back(one)
    assert ask(limiter, one, START).remaining == 0
    for _ in range(5):
        limiter.give_back(one)
    assert ask(limiter, one, START).remaining == 2, "what ends twice is counted once"


def test_a_burst_is_what_may_come_at_once() -> None:
    limiter, one = LocalLimiter(), charge("token_bucket", 1000, 3600, burst=50)
    assert sum(ask(limiter, one, START).allowed for _ in range(60)) == 50
    assert ask(limiter, one, START + 3_600_000_000).allowed, "one each 3.6 s"


@pytest.mark.parametrize("algorithm", RATES)
def test_a_sweep_changes_no_decision(algorithm: str) -> None:
    swept, unswept, now = LocalLimiter(), LocalLimiter(), START
    one = charge(algorithm, 4, 3)
    for step in range(200):
        now += (step * 7919 % 13) * 100 * MS
        swept.sweep(now / 1e9, step % 3)
        assert ask(swept, one, now)[:4] == ask(unswept, one, now)[:4]


# --- periods ---
@pytest.mark.parametrize(
    ("kind", "at", "name", "start", "end"),
    [
        ("day", "2026-11-20T14:50:27", "2026-11-20", "2026-11-20T00:00:00", "2026-11-21T00:00:00"),
        ("day", "2028-02-29T23:59:59", "2028-02-29", "2028-02-29T00:00:00", "2028-03-01T00:00:00"),
        ("month", "2026-11-20T14:50:27", "2026-11", "2026-11-01T00:00:00", "2026-12-01T00:00:00"),
        ("month", "2026-12-31T23:59:59", "2026-12", "2026-12-01T00:00:00", "2027-01-01T00:00:00"),
        ("month", "2026-01-01T00:00:00", "2026-01", "2026-01-01T00:00:00", "2026-02-01T00:00:00"),
    ],
    ids=["a day", "a leap day", "a month", "the last second of a year", "the first second of a year"],
)
def test_quotas_go_by_the_utc_calendar(kind: Any, at: str, name: str, start: str, end: str) -> None:
    period = period_of(kind, epoch(at) + 0.5)
    assert period == (name, epoch(start), epoch(end))


def epoch(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp())

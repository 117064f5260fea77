"""When a request is tried again, how long that waits, and how many retries there may be."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from routing.policies import Retries, RetryReason
from routing.retrying import FLOOR_PER_S, MAX_SAVED, RESERVE, RetryBudget, delay_s, may_retry

REASONS: tuple[RetryReason, ...] = ("connect", "reset", "timeout", "502", "503", "504")


@pytest.mark.parametrize(
    ("sent", "repeatable", "may"),
    [
        (False, True, True),
        (True, True, True),
        (False, False, True),  # a POST of which nothing has left us
        (True, False, False),  # a POST that may have arrived is never sent twice (rule 8)
    ],
)
@pytest.mark.parametrize("reason", REASONS)
def test_the_state_table(reason: RetryReason, sent: bool, repeatable: bool, may: bool) -> None:
    policy = Retries(attempts=2, on=REASONS)
    answers = [may_retry(policy, reason, retries, sent=sent, repeatable=repeatable) for retries in range(4)]
    assert answers == [may, may, False, False]


def test_only_for_reasons_that_the_policy_names() -> None:
    for reason, named in itertools.product((*REASONS, "500", "501"), REASONS):
        policy = Retries(on=(named,))
        assert may_retry(policy, reason, 0, sent=True, repeatable=True) is (reason == named)
    assert not may_retry(Retries(attempts=0), "connect", 0, sent=False, repeatable=True)


@given(st.integers(0, 10), st.integers(0, 60_000), st.integers(0, 60_000), st.floats(0, 1, exclude_max=True))
def test_waits_are_random_below_a_bound_that_doubles(retries: int, base_ms: int, max_ms: int, drawn: float) -> None:
    policy = Retries(base_ms=base_ms, max_ms=max_ms)
    bound_s = min(max_ms, base_ms * 2**retries) / 1000
    assert delay_s(policy, retries, lambda: drawn) == pytest.approx(drawn * bound_s)


def test_waits_spread_over_the_whole_range() -> None:
    draws = random.Random(1).random
    waits = [delay_s(Retries(base_ms=100, max_ms=1000), 2, draws) for _ in range(2000)]
    assert min(waits) < 0.01 and max(waits) > 0.39 and sum(waits) / 2000 == pytest.approx(0.2, rel=0.1)


# --- budget --------------------------------------------------------------------------------------------------------
STEPS = st.lists(
    st.tuples(st.sampled_from([0.0, 0.001, 0.1, 2.0, 60.0]), st.integers(0, 40), st.integers(0, 40)), max_size=60
)


@given(STEPS, st.sampled_from([0.0, 1.0, 20.0, 50.0, 100.0]))
@settings(deadline=None)
def test_over_any_stretch_of_time_retries_keep_to_their_share(
    steps: list[tuple[float, int, int]], percent: float
) -> None:
    budget = RetryBudget(0.0)
    now = 0.0
    history: list[tuple[float, int, int]] = [(0.0, 0, 0)]  # time, requests and retries so far
    for passed_s, requests, wanted in steps:
        now += passed_s
        history.append((now, budget.requests, budget.taken))
        budget.requests += requests
        for _ in range(wanted):
            budget.take(now, percent)
        history.append((now, budget.requests, budget.taken))
    for (began, requests_before, taken_before), (ended, requests_after, taken_after) in itertools.combinations(
        history, 2
    ):
        paid = (requests_after - requests_before) * percent / 100
        bound = MAX_SAVED + paid + (ended - began) * FLOOR_PER_S
        assert taken_after - taken_before <= bound + 1e-6
    assert budget.taken <= RESERVE + budget.requests * percent / 100 + now * FLOOR_PER_S + 1e-6
    if percent == 0:
        assert budget.taken == 0


def test_under_load_retries_are_a_fifth_of_the_requests() -> None:
    budget = RetryBudget(0.0)
    for request in range(10_000):  # at 1,000 a second, all of which fail
        budget.requests += 1
        budget.take(request / 1000, 20.0)
    assert budget.taken == pytest.approx(2000 + RESERVE, abs=2)
    assert budget.refused == 10_000 - budget.taken


def test_a_quiet_service_may_retry_too() -> None:
    budget = RetryBudget(0.0)
    taken = 0
    for minute in range(60):
        budget.requests += 1
        taken += budget.take(minute * 60.0, 20.0)
    assert taken == 60


def test_a_long_calm_pays_for_a_short_storm_only() -> None:
    budget = RetryBudget(0.0)
    budget.requests = 1_000_000
    assert sum(budget.take(1000.0, 20.0) for _ in range(1000)) == MAX_SAVED

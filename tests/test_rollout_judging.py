"""A rollout's judge and its arithmetic: what no numbers may ever make of it."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.policies import PolicyError, read
from routing.judging import LATENCY_S, Numbers, Verdict, judge, latency_bucket, total, weights_at
from routing.policies import RolloutPlan

BUCKETS = len(LATENCY_S) + 1
calm = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # whatever else the machine does


def plan(**changes: Any) -> RolloutPlan:
    document: dict[str, Any] = {
        "version": "v2",
        "steps": [{"percent": 5, "holdS": 60}, {"percent": 25, "holdS": 60}, {"percent": 100, "holdS": 60}],
        "minSamples": 100,
        "maxErrorIncrease": 1.0,
        "maxLatencyRatio": 1.5,
        "maxWaitS": 600,
    }
    return read(RolloutPlan, document | changes)


def numbers(requests: int, errors: int = 0, seconds: float = 0.04) -> Numbers:
    latency = [0] * BUCKETS
    latency[latency_bucket(seconds)] = requests
    return Numbers(requests, errors, tuple(latency))


# --- sentences --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("canary", "stable", "step", "elapsed_s", "verdict", "words"),
    [
        (numbers(1204, 2), numbers(9000, 27), 0, 61, Verdict.PROMOTE, "5 % → 25 %: 0.2 % errors (stable 0.3 %), p95"),
        (numbers(1204, 2), numbers(9000, 27), 0, 59, Verdict.CONTINUE, "good at 5 %"),
        (numbers(1204), numbers(50), 2, 61, Verdict.PROMOTE, "100 %, done: 0.0 % errors, p95"),
        (numbers(1204, 13), numbers(50), 2, 61, Verdict.ROLL_BACK, "1.1 % errors against 0.0 %"),
        (numbers(312, 13), numbers(900, 2), 0, 5, Verdict.ROLL_BACK, "rolled back: 4.2 % errors against 0.2 %, 312"),
        (numbers(312, 0, 0.2), numbers(900), 1, 5, Verdict.ROLL_BACK, "rolled back: p95 "),
        (numbers(99, 99), numbers(900), 0, 61, Verdict.WAIT, "99 of 100 requests to v2"),
        (numbers(900, 900), numbers(99), 0, 61, Verdict.WAIT, "99 of 100 requests to the others"),
        (numbers(99), numbers(900), 0, 661, Verdict.PAUSE, "paused: 99 of 100 requests to v2 after 11 min"),
        (Numbers(), Numbers(), 2, 661, Verdict.PAUSE, "paused: 0 of 100"),
    ],
    ids=lambda value: value.value if isinstance(value, Verdict) else None,
)
def test_the_verdict_and_its_reason(
    canary: Numbers, stable: Numbers, step: int, elapsed_s: float, verdict: Verdict, words: str
) -> None:
    judgement = judge(plan(), step, canary, stable, elapsed_s)
    assert judgement.verdict is verdict, judgement
    assert words in judgement.reason


@pytest.mark.parametrize(
    ("elapsed_s", "words"),
    [(0.4, "0 s"), (59.9, "59 s"), (60, "1 min"), (3167, "52 min"), (3600, "1 h"), (11_130, "3 h 5 min")],
)
def test_a_reason_says_how_long_the_step_has_lasted_as_people_do(elapsed_s: float, words: str) -> None:
    assert judge(plan(), 0, numbers(99), numbers(900), elapsed_s).reason.endswith(f" after {words}")


def test_latency_is_not_judged_where_the_plan_has_no_ratio() -> None:
    slow = judge(plan(maxLatencyRatio=None), 0, numbers(500, 0, 5.0), numbers(500, 0, 0.01), 61)
    assert slow.verdict is Verdict.PROMOTE


# --- what always holds ------------------------------------------------------------------------------------------------
@st.composite
def some_numbers(draw: st.DrawFn, least: int = 0) -> Numbers:
    seconds = draw(st.lists(st.floats(0.0001, 100), max_size=6))
    counts = [draw(st.integers(1, 400)) for _ in seconds]
    latency = [0] * BUCKETS
    for each, count in zip(seconds, counts, strict=True):
        latency[latency_bucket(each)] += count
    requests = sum(latency)
    if requests < least:
        latency[3] += least - requests
        requests = least
    return Numbers(requests, draw(st.integers(0, requests)), tuple(latency))


PLANS = st.builds(
    plan,
    minSamples=st.integers(1, 500),
    maxErrorIncrease=st.floats(0, 20),
    maxLatencyRatio=st.none() | st.floats(1, 5),
    maxWaitS=st.floats(0, 1000),
)
STEPS = st.integers(0, 2)
TIMES = st.floats(0, 2000)


@calm
@given(PLANS, STEPS, some_numbers(), some_numbers(), TIMES)
def test_nothing_is_judged_below_the_smallest_sample(
    plan: RolloutPlan, step: int, canary: Numbers, stable: Numbers, elapsed_s: float
) -> None:
    verdict = judge(plan, step, canary, stable, elapsed_s).verdict
    if canary.requests < plan.min_samples or (step < 2 and stable.requests < plan.min_samples):
        assert verdict in (Verdict.WAIT, Verdict.PAUSE)
    else:
        assert verdict not in (Verdict.WAIT, Verdict.PAUSE)


@calm
@given(PLANS, STEPS, some_numbers(), some_numbers(), TIMES)
def test_numbers_beyond_the_plan_are_never_promoted_and_those_within_never_rolled_back(
    plan: RolloutPlan, step: int, canary: Numbers, stable: Numbers, elapsed_s: float
) -> None:
    is_compared = stable.requests >= plan.min_samples
    usual = stable.error_percent if is_compared else 0.0
    is_worse = canary.error_percent > usual + plan.max_error_increase
    if is_compared and plan.max_latency_ratio is not None:
        is_worse |= canary.p95_s > stable.p95_s * plan.max_latency_ratio
    verdict = judge(plan, step, canary, stable, elapsed_s).verdict
    assert not (is_worse and verdict in (Verdict.PROMOTE, Verdict.CONTINUE))
    assert not (not is_worse and verdict is Verdict.ROLL_BACK)


_ORDER = [Verdict.ROLL_BACK, Verdict.CONTINUE, Verdict.PROMOTE]


@calm
@given(PLANS, STEPS, some_numbers(500), some_numbers(500), TIMES, st.data())
def test_more_errors_or_more_latency_never_help(
    plan: RolloutPlan, step: int, canary: Numbers, stable: Numbers, elapsed_s: float, data: st.DataObject
) -> None:
    more_errors = replace(canary, errors=data.draw(st.integers(canary.errors, canary.requests)))
    latency = list(canary.latency)
    start = data.draw(st.sampled_from([number for number, count in enumerate(latency) if count]))
    moved = data.draw(st.integers(1, latency[start]))
    latency[start] -= moved
    latency[data.draw(st.integers(start, BUCKETS - 1))] += moved
    slower = replace(canary, latency=tuple(latency))
    assert slower.p95_s >= canary.p95_s - 1e-12
    verdict = judge(plan, step, canary, stable, elapsed_s).verdict
    for worse in (more_errors, slower):
        assert _ORDER.index(judge(plan, step, worse, stable, elapsed_s).verdict) <= _ORDER.index(verdict)


@calm
@given(PLANS, STEPS, some_numbers(500), some_numbers(500), TIMES, TIMES)
def test_time_alone_turns_no_failure_into_a_success(
    plan: RolloutPlan, step: int, canary: Numbers, stable: Numbers, one_s: float, other_s: float
) -> None:
    verdicts = {judge(plan, step, canary, stable, elapsed_s).verdict for elapsed_s in (one_s, other_s)}
    assert verdicts == {Verdict.ROLL_BACK} or Verdict.ROLL_BACK not in verdicts


@calm
@given(some_numbers(1), some_numbers(1))
def test_hosts_add_up(one: Numbers, other: Numbers) -> None:
    both = total([one, other])
    assert (both.requests, both.errors) == (one.requests + other.requests, one.errors + other.errors)
    assert min(one.p95_s, other.p95_s) - 1e-9 <= both.p95_s <= max(one.p95_s, other.p95_s) * 1.2 + 0.001


@calm
@given(st.lists(st.floats(0.001, 50), min_size=1, max_size=300))
def test_the_p95_is_that_of_the_observations_within_a_bucket(seconds: list[float]) -> None:
    latency = [0] * BUCKETS
    for each in seconds:
        latency[latency_bucket(each)] += 1
    p95 = Numbers(len(seconds), 0, tuple(latency)).p95_s
    exact = sorted(seconds)[-(-len(seconds) * 95 // 100) - 1]
    assert exact / 1.2001 <= p95 <= exact * 1.2001


# --- weights ----------------------------------------------------------------------------------------------------------
PERCENTS = st.integers(1, 10_000).map(lambda hundredths: hundredths / 100)
STABLE = st.dictionaries(st.sampled_from(["v1", "v3", "v4", "v5"]), st.integers(1, 10_000), min_size=1)


@calm
@given(PERCENTS, STABLE)
def test_the_canary_gets_its_percent_and_the_others_keep_their_proportions(
    percent: float, stable: dict[str, int]
) -> None:
    weights = weights_at(percent, "v2", stable)
    assert set(weights) == {"v2", *stable}
    assert all(isinstance(weight, int) and 0 <= weight <= 10_000 for weight in weights.values())
    whole = sum(weights.values())
    assert Fraction(weights["v2"], whole) == Fraction(round(percent * 100), 10_000)
    for name, weight in stable.items():
        due = Fraction(weight, sum(stable.values())) * (whole - weights["v2"])
        assert abs(weights[name] - due) < 1


@pytest.mark.parametrize(
    ("percent", "stable", "weights"),
    [
        (5, {"v1": 100}, {"v2": 5, "v1": 95}),
        (5, {"v1": 1}, {"v2": 5, "v1": 95}),
        (25, {"v1": 10_000}, {"v2": 25, "v1": 75}),
        (0.5, {"v1": 7}, {"v2": 5, "v1": 995}),
        (10, {"v1": 2, "v3": 1}, {"v2": 10, "v1": 60, "v3": 30}),
        (5, {"v1": 2, "v3": 1}, {"v2": 3, "v1": 38, "v3": 19}),
        (100, {"v1": 60, "v3": 40}, {"v2": 100, "v1": 0, "v3": 0}),
    ],
)
def test_weights_that_people_can_read(percent: float, stable: dict[str, int], weights: dict[str, int]) -> None:
    assert weights_at(percent, "v2", stable) == weights


# --- plans ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"steps": []}, "steps"),
        ({"steps": [{"percent": 10}, {"percent": 10}]}, ""),
        ({"steps": [{"percent": 20}, {"percent": 10}]}, ""),
        ({"steps": [{"percent": 0}]}, "steps[0].percent"),
        ({"steps": [{"percent": 101}]}, "steps[0].percent"),
        ({"steps": [{"percent": 0.005}]}, "steps[0].percent"),
        ({"steps": [{"percent": 33.333}]}, "steps[0]"),
        ({"minSamples": 0}, "minSamples"),
        ({"maxLatencyRatio": 0.5}, "maxLatencyRatio"),
        ({"intervalS": 0}, "intervalS"),
        ({"colour": "green"}, ""),
    ],
)
def test_a_plan_that_is_none_is_refused_at_its_member(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(PolicyError) as error:
        plan(**changes)
    assert error.value.field.startswith(field)

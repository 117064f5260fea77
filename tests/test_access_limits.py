"""Rate limits (rule 10)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from access.limits.algorithms import gcra
from access.limits.charges import LimitPolicy
from access.limits.headers import fields, refusal
from access.limits.local import FailureBuckets, LocalLimiter

POLICY = LimitPolicy.of("app_1", "default", 1000, 3600)


def policy(limit: int, window_s: int, key: str = "app_1") -> LimitPolicy:
    return LimitPolicy.of(key, "default", limit, window_s)


def admitted(limiter: LocalLimiter, limit: LimitPolicy, now: float, tries: int, subject: str = "key_1") -> int:
    return sum(limiter.charge(limit, subject, now)[0] for _ in range(tries))


@pytest.mark.parametrize(("limit", "window_s"), [(1, 1), (7, 60), (1000, 3600), (3, 10), (10**9, 1), (1, 31 * 86400)])
def test_a_full_bucket_admits_exactly_its_limit_at_once(limit: int, window_s: int) -> None:
    limiter, tries = LocalLimiter(), min(limit, 2000)
    assert admitted(limiter, policy(limit, window_s), 1_700_000_000.123, tries + 5) == (
        tries + 5 if limit > tries else limit
    )


@given(
    st.integers(1, 50),
    st.integers(1, 100),
    st.lists(st.tuples(st.integers(0, 5_000_000_000), st.integers(1, 20)), max_size=40),
)
def test_never_more_than_the_limit_and_its_refill_is_admitted(
    limit: int, window_s: int, arrivals: list[tuple[int, int]]
) -> None:
    rule = policy(limit, window_s)
    now = tat = count = 0
    for elapsed, requests in arrivals:
        now += elapsed
        for _ in range(requests):
            allowed, tat, _, _ = gcra(tat, now, rule.interval_ns, rule.span_ns)
            count += allowed
        assert count * window_s * 10**9 <= limit * window_s * 10**9 + limit * now


@given(st.integers(1, 50), st.integers(1, 100), st.lists(st.integers(0, 10**10), min_size=1, max_size=40))
def test_what_is_promised_holds(limit: int, window_s: int, gaps: list[int]) -> None:
    rule = policy(limit, window_s)
    now = tat = 0
    for gap in gaps:
        now += gap
        allowed, tat, remaining, wait = gcra(tat, now, rule.interval_ns, rule.span_ns)
        if allowed:
            assert 0 <= remaining < limit
            left, state = 0, tat
            while (step := gcra(state, now, rule.interval_ns, rule.span_ns))[0]:
                left, state = left + 1, step[1]
            assert left == remaining
            assert gcra(tat, now + wait, rule.interval_ns, rule.span_ns)[2] == limit - 1, "full again"
        else:
            assert remaining == 0
            assert gcra(tat, now + wait, rule.interval_ns, rule.span_ns)[0], "admitted after the wait"
            assert not gcra(tat, now + wait - 1, rule.interval_ns, rule.span_ns)[0], "and not before"


def test_a_charge_tells_what_remains_and_when_the_bucket_is_full() -> None:
    limiter = LocalLimiter()
    assert limiter.charge(POLICY, "key_1", 100.0) == (True, 999, 4)  # one request refills in 3.6 s
    assert limiter.charge(POLICY, "key_1", 100.0) == (True, 998, 8)
    assert limiter.charge(POLICY, "key_1", 103.6) == (True, 998, 8)


def test_a_refusal_costs_nothing_and_says_when_to_come_again() -> None:
    limiter, rule = LocalLimiter(), policy(2, 10)
    assert admitted(limiter, rule, 100.0, 2) == 2
    for _ in range(50):
        assert limiter.charge(rule, "key_1", 101.0) == (False, 0, 4)
    assert not limiter.charge(rule, "key_1", 104.9)[0]
    assert limiter.charge(rule, "key_1", 105.0)[0]


def test_subjects_and_policies_have_buckets_of_their_own() -> None:
    limiter, rule, other = LocalLimiter(), policy(1, 60), policy(1, 60, key="wle_1")
    assert admitted(limiter, rule, 5.0, 3, "key_1") == 1
    assert admitted(limiter, rule, 5.0, 3, "key_2") == 1
    assert admitted(limiter, other, 5.0, 3, "key_1") == 1


def test_a_clock_that_jumps_back_blocks_nobody() -> None:
    limiter, rule = LocalLimiter(), policy(60, 60)
    admitted(limiter, rule, 1_000_000.0, 100)
    allowed, _, seconds = limiter.charge(rule, "key_1", 5.0)
    assert not allowed and seconds == 1
    assert limiter.charge(rule, "key_1", 6.0)[0]


@pytest.mark.parametrize(("before", "after"), [((1000, 3600), (5, 60)), ((5, 60), (1000, 3600)), ((10, 60), (10, 1))])
def test_a_changed_policy_goes_on_with_a_sane_bucket(before: tuple[int, int], after: tuple[int, int]) -> None:
    limiter, old, new = LocalLimiter(), policy(*before), policy(*after)
    admitted(limiter, old, 50.0, before[0])
    assert admitted(limiter, new, 50.0, after[0] + 10) <= after[0]
    assert admitted(limiter, new, 50.0 + after[1] + 1, after[0] + 10) == after[0], "full after one of its own windows"


def test_a_sweep_forgets_full_buckets_and_no_others() -> None:
    limiter, rule = LocalLimiter(), policy(2, 10)
    for number in range(100):
        limiter.charge(rule, f"key_{number}", 0.0)
    admitted(limiter, rule, 6.0, 2, "key_7")
    for _ in range(30):
        limiter.sweep(7.0, 10)
    assert len(limiter) == 1
    assert not limiter.charge(rule, "key_7", 7.0)[0]


def test_a_sweep_looks_at_no_more_than_its_budget() -> None:
    limiter, rule = LocalLimiter(), policy(2, 10)
    for number in range(100):
        limiter.charge(rule, f"key_{number}", 0.0)
    limiter.sweep(1000.0, 10)
    assert len(limiter) == 90


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3), st.integers(0, 4)), max_size=60))
def test_sweeping_changes_no_decision(steps: list[tuple[int, int, int]]) -> None:
    swept, unswept, rule, now = LocalLimiter(), LocalLimiter(), policy(3, 6), 0
    for subject, elapsed, budget in steps:
        now += elapsed
        swept.sweep(float(now), budget)
        assert swept.charge(rule, f"key_{subject}", float(now)) == unswept.charge(rule, f"key_{subject}", float(now))


def test_memory_is_bounded_whatever_clients_do() -> None:
    limiter = LocalLimiter(max_buckets=100)
    for number in range(10_000):
        limiter.charge(POLICY, f"198.51.{number >> 8}.{number & 255}", 0.0)
    assert len(limiter) <= 200


def test_an_active_bucket_survives_a_flood_that_fits() -> None:
    limiter, rule = LocalLimiter(max_buckets=100), policy(1, 60)
    assert limiter.charge(rule, "victim", 0.0)[0]
    for number in range(150):
        limiter.charge(rule, f"key_{number}", 0.0)
    assert not limiter.charge(rule, "victim", 0.0)[0]


# --- failed authentications ---


def test_an_address_that_fails_too_often_waits() -> None:
    failures = FailureBuckets(per_minute=3)
    for _ in range(3):
        assert failures.is_blocked("198.51.100.1", 10.0) == 0
        failures.charge("198.51.100.1", 10.0)
    assert failures.is_blocked("198.51.100.1", 10.0) == 20
    assert failures.is_blocked("198.51.100.2", 10.0) == 0
    assert failures.is_blocked("198.51.100.1", 30.0) == 0


def test_looking_charges_nothing() -> None:
    failures = FailureBuckets(per_minute=2)
    failures.charge("198.51.100.1", 0.0)
    assert {failures.is_blocked("198.51.100.1", 0.0) for _ in range(50)} == {0}


def test_an_ipv6_network_shares_one_bucket() -> None:
    failures = FailureBuckets(per_minute=1)
    failures.charge("2001:db8:1:2::1", 0.0)
    assert failures.is_blocked("2001:db8:1:2:ffff::9", 0.0) == 60
    assert failures.is_blocked("2001:db8:1:3::1", 0.0) == 0


def test_failures_are_forgotten_in_time() -> None:
    failures = FailureBuckets(per_minute=1)
    failures.charge("198.51.100.1", 0.0)
    for _ in range(3):
        failures.sweep(30.0, 100)
    assert failures.is_blocked("198.51.100.1", 30.0) == 30
    for _ in range(3):
        failures.sweep(61.0, 100)
    assert failures.is_blocked("198.51.100.1", 61.0) == 0


# --- fields ---


def test_clients_read_policy_and_rest_in_two_fields() -> None:
    assert fields(POLICY, 999, 4) == b'RateLimit-Policy: "default";q=1000;w=3600\r\nRateLimit: "default";r=999;t=4\r\n'


def test_a_refusal_names_the_policy_and_never_retries_early() -> None:
    fault = refusal(POLICY, 4)
    assert (fault.code, fault.status, fault.retry_after_s) == ("rate_limited", 429, 4)
    assert fault.kind.type == "https://iana.org/assignments/http-problem-types#quota-exceeded"
    assert fault.members == {"violated-policies": ["default"]}
    assert dict(fault.headers) == {
        b"ratelimit-policy": b'"default";q=1000;w=3600',
        b"ratelimit": b'"default";r=0;t=4',
    }

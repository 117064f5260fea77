"""The script by which Redis decides, beside the algorithms of one worker: the same clock, the same decisions."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from access.limits.algorithms import Log, Windows, fixed_window, gcra, leaky_bucket, sliding_log, sliding_window
from access.limits.charges import LimitPolicy, compiled
from access.limits.periods import period_of
from access.limits.shared import commands
from access.limits.shared.commands import EncodedPolicy, Worker
from access.policies import LimitRule

KEY = f"lim_{os.getpid()}"
EPOCH_US = 1_790_000_000_000_000
ALGORITHMS = ["token_bucket", "spike_arrest", "leaky_bucket", "sliding_window", "sliding_log", "fixed_window", "quota"]
# The clock as an argument, in the place of Redis's own.
OWN_CLOCK = b"local time = redis.call('TIME')"
GIVEN_CLOCK = b"local time = {ARGV[#ARGV - 1], ARGV[#ARGV]}"
WORKER = Worker("worker1", 15.0, b"digests")
_numbers = itertools.count()


Call = tuple[str, int, Sequence[tuple[EncodedPolicy, str, int]]]  # what to do, the time in µs, and the charges


class Redis:
    """Runs the script at a given time, in µs."""

    def __init__(self, url: str) -> None:
        assert commands.SCRIPT.text.count(OWN_CLOCK) == 1
        self.client = redis.Redis.from_url(url)
        self._script = self.client.script_load(commands.SCRIPT.text.replace(OWN_CLOCK, GIVEN_CLOCK).decode())

    def run(self, word: str, now: int, *charges: tuple[EncodedPolicy, str, int], extra: int = 0) -> Any:
        return self.run_all([(word, now, charges)], extra=extra)[0]

    def run_all(self, calls: Sequence[Call], extra: int = 0) -> list[Any]:
        pipeline = self.client.pipeline(transaction=False)
        for word, now, charges in calls:
            keys: list[bytes] = []
            arguments: list[bytes] = [word.encode()]
            for encoded, bucket, cost in charges:
                keys += words(encoded.key(bucket))
                arguments += words(encoded.arguments(cost, extra))
            arguments += [b"%d" % part for part in divmod(now, 1_000_000)]
            pipeline.evalsha(self._script, len(keys), *keys, *arguments)
        answers: list[Any] = pipeline.execute()
        return answers

    def keys(self, policy_key: str) -> list[Any]:
        return list(self.client.keys(f"{commands.NAMES.decode()}?:{policy_key}:*"))


def words(encoded: bytes) -> list[bytes]:
    """Bulk strings, taken apart."""
    found = []
    while encoded:
        size, _, rest = encoded[1:].partition(b"\r\n")
        found.append(rest[: int(size)])
        encoded = rest[int(size) + 2 :]
    return found


@pytest.fixture(scope="module")
def server(redis_server: str) -> Iterator[Redis]:
    running = Redis(redis_server)
    yield running
    for key in (KEY, KEY + "_own"):
        if left := running.keys(key):  # some have expired already
            running.client.delete(*left)
    running.client.close()


class Model:
    """A bucket as one worker would count it. Times are µs outside."""

    def __init__(self, policy: LimitPolicy) -> None:
        self.policy = policy
        self.state: Any = Log() if policy.algorithm == "sliding_log" else None
        self._pending: Any = None

    def look(self, now: int, cost: int) -> list[int]:
        """As the script answers."""
        policy, ns = self.policy, now * 1000
        length = policy.window_s * 10**9
        match policy.algorithm:
            case "token_bucket" | "spike_arrest":
                allowed, tat, remaining, time = gcra(self.state or 0, ns, policy.interval_ns, policy.span_ns, cost)
                self._pending = tat
                return [allowed, remaining, 0 if allowed else us(time), us(time), 0]
            case "leaky_bucket":
                turn = leaky_bucket(self.state or 0, ns, policy.interval_ns, policy.longest_wait_ns, cost)
                self._pending = turn.next_at
                return [turn.allowed, turn.remaining, us(turn.wait), us(turn.reset), 0]
            case "sliding_log":
                logged = sliding_log(self.state, ns, length, policy.limit, cost)
                self._pending = ns, length, cost
                return [logged.allowed, logged.remaining, us(logged.wait), us(logged.reset), 0]
            case "quota":
                return self._quota(now, cost)
            case _:
                count = sliding_window if policy.algorithm == "sliding_window" else fixed_window
                counted = count(self.state, ns, length, policy.limit, cost)
                self._pending = counted.windows
                return [counted.allowed, counted.remaining, us(counted.wait), us(counted.reset), 0]

    def _quota(self, now: int, cost: int) -> list[int]:
        period = period_of(self.policy.period, now // 1_000_000)
        used = self.state[1] if self.state and self.state[0] >= period.start else 0
        end = period.end * 1_000_000 - now
        self._pending = period.start, used + cost
        if used + cost > self.policy.limit:
            self._pending = period.start, used
            return [False, max(self.policy.limit - used, 0), end, end, 0]
        return [True, self.policy.limit - used - cost, 0, end, 0]

    def end(self, *, is_made: bool, is_allowed: bool) -> None:
        """Of what was looked at last. A refusal keeps what it saw of the clock."""
        if is_made or (not is_allowed and not isinstance(self.state, Log)):
            self.make()

    def make(self) -> None:
        if isinstance(self.state, Log):
            self.state.add(*self._pending)
        else:
            self.state = self._pending

    def take_back(self, cost: int) -> None:
        match self.state:
            case Log():
                self.state.take_back(cost)
            case Windows():
                self.state = self.state._replace(current=max(self.state.current - cost, 0))
            case int() if self.policy.algorithm != "leaky_bucket":
                self.state -= cost * self.policy.interval_ns
            case (start, used):
                self.state = start, max(used - cost, 0)


def us(ns: int) -> int:
    return -(-ns // 1000)


def policy_of(algorithm: str, limit: int, window_s: int, key: str = KEY, **more: Any) -> LimitPolicy:
    rule = LimitRule(limit=limit, algorithm=algorithm, window_s=window_s, **more)  # type: ignore[arg-type]
    return compiled(key, "test", rule)


@st.composite
def policies(draw: st.DrawFn, algorithm: str) -> LimitPolicy:
    more: dict[str, Any] = {}
    limit = draw(st.integers(1, 12) | st.integers(1, 100_000))
    if algorithm in ("token_bucket", "spike_arrest"):
        more["burst"] = draw(st.none() | st.integers(1, 2 * limit))
    if algorithm == "leaky_bucket":
        more |= {"queue": draw(st.integers(0, 20)), "max_wait_ms": draw(st.integers(0, 30_000))}
    if algorithm == "quota":
        more["period"] = draw(st.sampled_from(["day", "month"]))
    return policy_of(algorithm, limit, draw(st.integers(1, 7) | st.integers(1, 2_678_400)), **more)


def goes(policy: LimitPolicy) -> st.SearchStrategy[int]:
    """How far the clock goes; it may jump back."""
    length = policy.window_s * 1_000_000
    near = st.integers(0, length // 2) | st.sampled_from([0, 1, us(policy.interval_ns), length, length - 1, 2 * length])
    return near | near | st.integers(-2 * length, 3 * length)


def steps(policy: LimitPolicy) -> st.SearchStrategy[list[tuple[int, int, bool]]]:
    """How far the clock goes, what is asked for, and whether that is given back."""
    step = st.tuples(goes(policy), st.integers(1, min(policy.most, 20)), st.sampled_from([False] * 5 + [True]))
    return st.lists(step, min_size=1, max_size=25)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@given(data=st.data())
@settings(max_examples=50, deadline=None)
def test_redis_decides_as_one_worker_would(server: Redis, algorithm: str, data: st.DataObject) -> None:
    policy = data.draw(policies(algorithm))
    encoded, model, bucket = EncodedPolicy(policy, WORKER), Model(policy), str(next(_numbers))
    calls: list[Call] = []
    expected: list[Any] = []
    now = EPOCH_US
    for step, cost, is_given_back in data.draw(steps(policy)):
        now += step
        calls.append(("charge", now, [(encoded, bucket, cost)]))
        expected.append(model.look(now, cost))
        model.end(is_made=expected[-1][0], is_allowed=expected[-1][0])
        if expected[-1][0] and is_given_back and algorithm != "leaky_bucket":
            calls.append(("back", now, [(encoded, bucket, cost)]))
            expected.append(1)
            model.take_back(cost)
    assert server.run_all(calls) == expected


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_all_are_charged_or_none(server: Redis, data: st.DataObject) -> None:
    chosen = data.draw(st.lists(st.sampled_from(ALGORITHMS), min_size=2, max_size=4))
    made = [data.draw(policies(algorithm)) for algorithm in chosen]
    bucket = str(next(_numbers))
    parts = [(EncodedPolicy(policy, WORKER), f"{bucket}.{place}") for place, policy in enumerate(made)]
    models = [Model(policy) for policy in made]
    calls: list[Call] = []
    expected: list[Any] = []
    now = EPOCH_US
    for step, cost in data.draw(st.lists(st.tuples(goes(made[0]), st.integers(1, 3)), min_size=1, max_size=15)):
        now += step
        costs = [min(cost, policy.most) for policy in made]
        calls.append(("charge", now, [(*part, each) for part, each in zip(parts, costs, strict=True)]))
        looks = [model.look(now, each) for model, each in zip(models, costs, strict=True)]
        is_made = all(look[0] for look in looks)
        for model, look in zip(models, looks, strict=True):
            model.end(is_made=is_made, is_allowed=bool(look[0]))
        expected.append([number for look in looks for number in look])
    assert server.run_all(calls) == expected


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_who_is_refused_is_admitted_when_it_was_told_however_the_clock_jumped_before(
    server: Redis, algorithm: str, data: st.DataObject
) -> None:
    policy = data.draw(policies(algorithm))
    encoded, bucket, now = EncodedPolicy(policy, WORKER), str(next(_numbers)), EPOCH_US
    calls: list[Call] = []
    for step, cost, _ in data.draw(steps(policy)):
        now += step
        calls.append(("charge", now, [(encoded, bucket, cost)]))
    allowed, _, wait, _, _ = server.run_all(calls)[-1]
    if not allowed:
        assert wait > 0
        assert server.run("charge", now + wait, (encoded, bucket, cost))[0] == 1


@given(st.lists(st.integers(0, 4_102_444_800), min_size=1, max_size=20))
@settings(max_examples=30, deadline=None)
def test_days_and_months_are_those_of_the_calendar(server: Redis, epochs: list[int]) -> None:
    for period in ("day", "month"):
        encoded = EncodedPolicy(policy_of("quota", 100, 1, period=period), WORKER)
        charged = server.run_all(
            [("charge", 1_000_000 * epoch, [(encoded, str(next(_numbers)), 1)]) for epoch in epochs]
        )
        left = [1_000_000 * (period_of(encoded.policy.period, epoch).end - epoch) for epoch in epochs]
        assert charged == [[1, 99, 0, us_left, 0] for us_left in left]


@given(
    st.sampled_from(["token_bucket", "sliding_window", "sliding_log", "fixed_window", "quota"]),
    st.integers(1, 200),
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 300)), min_size=1, max_size=30),
)
@settings(max_examples=60, deadline=None)
def test_a_slice_takes_part_of_what_is_left_and_never_more(
    server: Redis, algorithm: str, limit: int, asked: list[tuple[int, int]]
) -> None:
    encoded, bucket = EncodedPolicy(policy_of(algorithm, limit, 60), WORKER), str(next(_numbers))
    used = 0
    for cost, extra in asked:
        cost = min(cost, limit)
        allowed, remaining, _, _, taken = server.run("charge", EPOCH_US, (encoded, bucket, cost), extra=extra)
        assert bool(allowed) == (used + cost <= limit)
        if allowed:
            assert taken == min(extra, (limit - used - cost) // 4)
            used += cost + taken
        else:
            assert taken == 0
        assert remaining == limit - used


# --- places ---
def test_places_come_back_by_release_and_by_the_end_of_a_workers_lease(server: Redis) -> None:
    policy = policy_of("concurrency", 3, 60)
    first, second = (EncodedPolicy(policy, Worker(name, 15.0, b"k")) for name in ("first", "second"))
    bucket, now = str(next(_numbers)), EPOCH_US
    assert server.run("charge", now, (first, bucket, 2)) == [1, 1, 0, 0, 0]
    assert server.run("charge", now, (second, bucket, 2)) == [0, 1, 0, 0, 0]
    assert server.run("charge", now + 1, (second, bucket, 1)) == [1, 0, 0, 0, 0]
    server.run("back", now + 2, (first, bucket, 1))
    assert server.run("charge", now + 3, (second, bucket, 1)) == [1, 0, 0, 0, 0]
    later = now + 14_000_000
    server.run("hold", later, (first, bucket, 1))  # it lives; the second one does not say so
    assert server.run("charge", later + 2_000_000, (first, bucket, 1)) == [1, 1, 0, 0, 0]


def test_a_worker_says_again_what_redis_has_forgotten(server: Redis) -> None:
    encoded = EncodedPolicy(policy_of("concurrency", 5, 60), WORKER)
    bucket = str(next(_numbers))
    server.run("hold", EPOCH_US, (encoded, bucket, 3))
    assert server.run("charge", EPOCH_US, (encoded, bucket, 1)) == [1, 1, 0, 0, 0]
    server.run("hold", EPOCH_US, (encoded, bucket, 3))  # said before the fourth: it stays
    assert server.run("charge", EPOCH_US, (encoded, bucket, 1)) == [1, 0, 0, 0, 0]
    server.run("set", EPOCH_US, (encoded, bucket, 0))
    assert server.client.exists(*words(encoded.key(bucket))) == 0


def test_a_clock_that_jumps_back_keeps_no_dead_workers_places(server: Redis) -> None:
    policy = policy_of("concurrency", 1, 60)
    dead, alive = (EncodedPolicy(policy, Worker(name, 15.0, b"k")) for name in ("dead", "alive"))
    bucket, now = str(next(_numbers)), EPOCH_US
    server.run("charge", now, (dead, bucket, 1))
    back = now - 3_600_000_000
    assert server.run("charge", back, (alive, bucket, 1))[0] == 0
    assert server.run("charge", back + 15_000_000, (alive, bucket, 1))[0] == 1


# --- keys ---
def test_keys_end_by_themselves_and_name_nobody(server: Redis) -> None:
    secret = "accounts:alice@example.com"
    for algorithm in [*ALGORITHMS, "concurrency"]:
        encoded = EncodedPolicy(policy_of(algorithm, 5, 60, KEY + "_own"), WORKER)
        for _ in range(20):
            server.run("charge", EPOCH_US, (encoded, secret, 1))
        server.run("back", EPOCH_US, (encoded, secret, 1))
    keys = server.keys(KEY + "_own")
    assert len(keys) == 7  # spike arrest and token buckets are one algorithm
    for key in keys:
        assert 0 < server.client.ttl(key) <= 31 * 86_400 + 1
        assert b"alice" not in key and b"example" not in key
        assert (server.client.memory_usage(key) or 0) < 600


def test_a_log_keeps_no_more_than_its_limit(server: Redis) -> None:
    encoded, bucket = EncodedPolicy(policy_of("sliding_log", 10, 60), WORKER), str(next(_numbers))
    for number in range(100):
        server.run("charge", EPOCH_US + number * 3_000_000, (encoded, bucket, 1))
    assert server.client.zcard(words(encoded.key(bucket))[0]) <= 10


@pytest.mark.parametrize("limit", [999_999_937, 1_000_000_000])
@pytest.mark.parametrize("algorithm", ["token_bucket", "sliding_window", "fixed_window", "quota"])
def test_large_limits_lose_no_digit(server: Redis, algorithm: str, limit: int) -> None:
    policy = policy_of(algorithm, limit, 2_678_400)
    encoded, model, bucket = EncodedPolicy(policy, WORKER), Model(policy), str(next(_numbers))
    for cost in (1, 10_000, policy.limit // 2, 1, policy.limit // 2, 1):
        expected = model.look(EPOCH_US, cost)
        assert server.run("charge", EPOCH_US, (encoded, bucket, cost)) == expected
        if expected[0]:
            model.make()

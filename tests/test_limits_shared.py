"""Limits that workers count together, on a real Redis: what is admitted, and what is given back."""

from __future__ import annotations

import asyncio
import json
import secrets
import subprocess
import sys
import time
from functools import partial
from typing import Any

import pytest
import redis

from access.limits.charges import Charge, Verdict
from access.limits.shared import limits as shared_limits
from access.limits.shared import slices
from access.limits.shared.limits import SharedLimits
from gateway_project.processes import ROOT
from tests.shared_limits import admitted, ask, asynchronous, figures, rule, until, workers

LONG_S = 2_678_400  # in which no window ends and no bucket fills
STRICT = ["token_bucket", "sliding_window", "sliding_log", "fixed_window", "quota", "concurrency"]
SLICED = STRICT[:-1]


# --- strict ---
@pytest.mark.parametrize("algorithm", STRICT)
@asynchronous
async def test_workers_together_admit_the_limit(redis_server: str, algorithm: str) -> None:
    charge = Charge(rule(30, algorithm, window_s=LONG_S), "key_1", 1)
    async with workers(redis_server, 4) as (first, *others):
        counts = await asyncio.gather(*(admitted(each, charge, 20) for each in (first, *others)))
        assert sum(counts) == 30
        assert (await admitted(first, charge._replace(bucket="key_2"), 31)) == 30


@pytest.mark.parametrize("mode", ["strict", "leased"])
@pytest.mark.parametrize("algorithm", ["token_bucket", "fixed_window"])
def test_processes_together_admit_the_limit(redis_server: str, algorithm: str, mode: str) -> None:
    """Four processes with sixteen clients each. In slices, the limit is not passed either: they come out of it."""
    told = {"url": redis_server, "key": f"lim_{secrets.token_hex(6)}", "algorithm": algorithm, "limit": 2000}
    told |= {"mode": mode, "clients": 16, "asks": 160, "dies": False}
    counts = run_processes(4, told)
    assert sum(count > 0 for count in counts) > 1
    if mode == "strict":
        assert sum(counts) == 2000
    else:
        assert 2000 - 4 * 100 <= sum(counts) <= 2000


def run_processes(number: int, told: dict[str, Any]) -> list[int]:
    """How many each has admitted."""
    command = [sys.executable, "-m", "tests.limit_worker"]
    started = [
        subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(number)
    ]
    for each in started:
        assert each.stdin is not None and each.stdout is not None
        each.stdin.write(json.dumps(told) + "\n")
        each.stdin.flush()
        assert each.stdout.readline() == "connected\n"
    for each in started:
        assert each.stdin is not None
        each.stdin.close()
    counts = []
    for each in started:
        assert each.stdout is not None
        counts.append(int(each.stdout.read()))
        each.stdout.close()
        each.wait(20)
    return counts


@asynchronous
async def test_all_charges_of_a_request_are_made_or_none(redis_server: str) -> None:
    wide, narrow = Charge(rule(10), "a", 2), Charge(rule(2, "fixed_window", window_s=LONG_S), "b", 1)
    async with workers(redis_server) as (limits,):
        for left in (8, 6):
            verdicts = await ask(limits, wide, narrow)
            assert verdicts is not None
            assert [(each.allowed, each.remaining) for each in verdicts] == [(True, left), (True, (left - 6) // 2)]
        refused = await ask(limits, wide, narrow)
        assert refused is not None
        assert [(each.allowed, each.violated) for each in refused] == [(True, None), (False, narrow.policy)]
        assert 0 < refused[1].wait_s <= LONG_S
        alone = await ask(limits, wide)
        assert alone is not None and alone[0].remaining == 4


@asynchronous
async def test_who_was_refused_is_admitted_when_it_was_told(redis_server: str) -> None:
    charge = Charge(rule(5, window_s=1), "a", 1)
    async with workers(redis_server) as (limits,):
        assert await admitted(limits, charge, 6) == 5
        refused = await ask(limits, charge)
        assert refused is not None and not refused[0].allowed
        await asyncio.sleep(refused[0].wait_s)
        assert await admitted(limits, charge, 1) == 1


@asynchronous
async def test_a_leaky_bucket_tells_each_request_its_turn(redis_server: str) -> None:
    charge = Charge(rule(10, "leaky_bucket", window_s=10, queue=3, max_wait_ms=30_000), "a", 1)
    async with workers(redis_server, 2) as (first, second):
        verdicts = [await ask(each, charge) for each in (first, second, first, second, first)]
        turns = [(each[0].allowed, round(each[0].wait_s)) for each in verdicts if each is not None]
        assert turns == [(True, 0), (True, 1), (True, 2), (True, 3), (False, 1)]


@asynchronous
async def test_what_is_given_back_can_be_had_again(redis_server: str) -> None:
    async with workers(redis_server, 2) as (first, second):
        for algorithm in STRICT:
            charge = Charge(rule(3, algorithm, window_s=LONG_S), "a", 1)
            assert await admitted(first, charge, 4) == 3
            first.give_back(charge)
            first.give_back(charge)
            await ask(first, charge._replace(bucket="b"))  # leaves after them
            assert await admitted(second, charge, 4) == 2


@asynchronous
async def test_calls_of_one_turn_of_the_loop_leave_in_one_write(redis_server: str) -> None:
    charge = Charge(rule(1000), "a", 1)
    async with workers(redis_server) as (limits,):
        before = figures(limits)
        assert await admitted(limits, charge, 100) == 100
        after = figures(limits)
        assert after["calls"] - before["calls"] == 100
        assert after["writes"] - before["writes"] == 1


# --- places ---
@asynchronous
async def test_a_worker_that_ends_gives_its_places_back(redis_server: str) -> None:
    charge = Charge(rule(3, "concurrency"), "a", 1)
    async with workers(redis_server) as (stays,):
        async with workers(redis_server) as (goes,):
            assert await admitted(goes, charge, 4) == 3
            assert await admitted(stays, charge, 1) == 0
        assert await admitted(stays, charge, 4) == 3


def test_the_places_of_a_killed_worker_come_back(redis_server: str) -> None:
    policy = rule(3, "concurrency")
    told = {"url": redis_server, "key": policy.key, "algorithm": "concurrency", "limit": 3, "mode": "strict"}
    assert run_processes(1, told | {"clients": 3, "asks": 1, "dies": True}) == [3]

    async def others() -> None:
        async with workers(redis_server) as (limits,):
            assert await admitted(limits, Charge(policy, "bucket", 1), 3) == 0
            with redis.Redis.from_url(redis_server) as client:
                (key,) = client.keys(f"*:{policy.key}:*")
                ((worker, held),) = client.hgetall(key).items()
                count, until_us = map(int, held.split())
                assert (count, 0 < until_us - time.time_ns() // 1000 <= 15_000_000) == (3, True)
                client.hset(key, worker, f"3 {until_us - 15_000_000}")  # 15 s later
            assert await admitted(limits, Charge(policy, "bucket", 1), 4) == 3

    asyncio.run(others())


@asynchronous
async def test_places_last_as_long_as_their_worker_lives(redis_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_limits, "_TICK_S", 0.05)
    charge = Charge(rule(3, "concurrency"), "a", 1)
    async with workers(redis_server, lease_s=0.5) as (holder,):
        assert await admitted(holder, charge, 3) == 3
        await asyncio.sleep(1.2)
        async with workers(redis_server) as (other,):
            assert await admitted(other, charge, 1) == 0


# --- slices ---
def from_slice(limits: SharedLimits, charge: Charge) -> Verdict | None:
    return limits.leased(charge, time.monotonic())


async def use(limits: SharedLimits, charge: Charge, times: int) -> int:
    """How many of so many are admitted, as a worker asks for them: from its slice, else from Redis."""
    count = 0
    for _ in range(times):
        verdict = from_slice(limits, charge)
        if verdict is None:
            verdicts = await ask(limits, charge)
            assert verdicts is not None
            verdict = verdicts[0]
        count += verdict.allowed
    return count


@asynchronous
async def test_a_slice_answers_at_once_and_is_renewed(redis_server: str) -> None:
    charge = Charge(rule(100_000, mode="leased"), "a", 1)
    async with workers(redis_server) as (limits,):
        assert from_slice(limits, charge) is None
        before = figures(limits)["calls"]
        for number in range(4000):
            assert await use(limits, charge, 1) == 1
            if number % 10 == 0:
                await asyncio.sleep(0)
        assert figures(limits)["calls"] - before < 100
        verdict = from_slice(limits, charge)
        assert verdict is not None and verdict.violated is None
        assert verdict.remaining == pytest.approx(96_000, abs=200)


@pytest.mark.parametrize("algorithm", SLICED)
@asynchronous
async def test_slices_come_out_of_the_limit(redis_server: str, algorithm: str) -> None:
    charge = Charge(rule(400, algorithm, window_s=LONG_S, mode="leased"), "a", 1)
    async with workers(redis_server, 3) as made:
        counts = await asyncio.gather(*(use(each, charge, 300) for each in made))
        assert 400 - 3 * (400 // slices.SHARE) <= sum(counts) <= 400
        rest = [await use(each, charge, 60) for each in made]  # what is in their slices
        assert sum(counts) + sum(rest) == 400


@asynchronous
async def test_no_slice_is_larger_than_a_twentieth(redis_server: str) -> None:
    charge = Charge(rule(200, window_s=LONG_S, mode="leased"), "a", 1)
    async with workers(redis_server, 2) as (first, second):
        await asyncio.gather(*(use(first, charge, 1) for _ in range(50)))  # all before there is a slice
        left = await ask(second, charge)
        assert left is not None
        assert 200 - 51 - 2 * 10 <= left[0].remaining <= 200 - 51


@asynchronous
async def test_who_is_refused_asks_redis_no_more_until_it_was_told(redis_server: str) -> None:
    charge = Charge(rule(20, window_s=10, mode="leased"), "a", 1)
    async with workers(redis_server) as (limits,):
        assert await use(limits, charge, 40) >= 20
        calls = figures(limits)["calls"]
        refused = from_slice(limits, charge)
        assert refused is not None and not refused.allowed and refused.violated is charge.policy
        assert figures(limits)["calls"] == calls
        await asyncio.sleep(refused.wait_s)
        assert await use(limits, charge, 1) == 1


def has_no_slice(limits: SharedLimits) -> bool:
    return {name: value for name, _, value in limits.gauges()}["portcullis_limits_slices"] == 0


@asynchronous
async def test_slices_go_back_when_a_worker_ends_or_does_not_use_them(
    redis_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_limits, "_TICK_S", 0.02)
    monkeypatch.setattr(slices, "IDLE_S", 0.1)
    for algorithm in SLICED[:-2]:
        charge = Charge(rule(1000, algorithm, window_s=LONG_S, mode="leased"), "a", 1)
        async with workers(redis_server, 2) as (idle, other):
            await use(idle, charge, 3)
            await until(partial(has_no_slice, idle), "the slice is gone")
            await ask(idle, charge._replace(bucket="b"))
            verdicts = await ask(other, charge)
            assert verdicts is not None
            assert verdicts[0].remaining >= 1000 - 4 - 50
        async with workers(redis_server) as (last,):
            assert await use(last, charge, 1000) == 1000 - 4


@pytest.mark.parametrize("algorithm", ["fixed_window", "quota"])
def test_a_slice_of_a_window_ends_with_it(algorithm: str) -> None:
    slice_ = slices.Slice(rule(400, algorithm, window_s=86_400), "a", 100.0)
    assert not slice_.put_back(1)  # it is not known of which window
    slice_.asking(100.0)
    slice_.filled(10, 380, 5.0)
    assert slice_.put_back(1)
    taken = slice_.take(1, 104.9)
    assert taken is not None and taken.remaining == 390
    assert slice_.take(1, 105.0) is None
    slice_.asking(105.1)
    slice_.filled(5, 390, 86_399.9)
    slice_.asking(110.0)
    slice_.filled(4, 386, 86_395.0)  # of the same window
    assert slice_.tokens == 9


def test_a_renewal_of_a_new_window_leaves_nothing_of_the_old_one() -> None:
    slice_ = slices.Slice(rule(400, "fixed_window"), "a", 100.0)
    slice_.asking(100.0)
    slice_.filled(10, 380, 5.0)
    slice_.asking(104.99)
    slice_.filled(3, 397, 60.0)
    assert (slice_.tokens, slice_.until) == (3, 164.99)


def test_a_slice_grows_with_its_use_and_shrinks_without() -> None:
    slice_ = slices.Slice(rule(1000), "a", 100.0)
    wanted = []
    for now in (100.0, 100.1, 100.2, 100.3, 100.4, 101.4, 110.0):
        wanted.append(slice_.wants(now))
        slice_.asking(now)
        slice_.failed()
    assert wanted == [4, 8, 16, 32, 50, 50, 25]  # a twentieth at most


@asynchronous
async def test_a_slice_takes_back_what_another_limit_refused(redis_server: str) -> None:
    charge = Charge(rule(100, window_s=LONG_S, mode="leased"), "a", 1)
    async with workers(redis_server) as (limits,):
        await use(limits, charge, 2)
        for _ in range(500):
            if (verdict := from_slice(limits, charge)) is not None and verdict.allowed:
                limits.give_back(charge)
        assert await use(limits, charge, 200) == 98

"""Guessers are held back, and nobody else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from access.lockout import Allowance, Attempt, Lockout, MemoryStorage, Rules, charged, device_cookie, device_of

SECRET = "s" * 40
DAY_S = 86400.0


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def lockout(clock: Clock) -> Lockout:
    return Lockout(clock=clock)


def tries(lockout: Lockout, attempt: Attempt, count: int) -> int:
    """How many of so many attempts at once get their password looked at."""
    return sum(lockout.begin(attempt) == 0 for _ in range(count))


def test_one_address_gets_ten_guesses_at_an_account_and_then_one_each_ninety_seconds(
    lockout: Lockout, clock: Clock
) -> None:
    guesser = Attempt("ann", "203.0.113.7")
    assert tries(lockout, guesser, 100) == 10
    assert lockout.begin(guesser) == 90
    clock.now += 89
    assert lockout.begin(guesser) == 1
    clock.now += 1
    assert tries(lockout, guesser, 5) == 1


def test_whoever_waits_as_long_as_told_is_let_through(lockout: Lockout, clock: Clock) -> None:
    guesser = Attempt("ann", "203.0.113.7")
    tries(lockout, guesser, 100)
    clock.now += lockout.begin(guesser)
    assert lockout.begin(guesser) == 0


def test_guessing_from_one_address_leaves_the_owner_elsewhere_alone(lockout: Lockout) -> None:
    tries(lockout, Attempt("ann", "203.0.113.7"), 1000)
    assert lockout.begin(Attempt("ann", "198.51.100.2")) == 0


def test_an_address_is_held_back_whatever_accounts_it_tries(lockout: Lockout) -> None:
    assert sum(lockout.begin(Attempt(f"user{number}", "203.0.113.7")) == 0 for number in range(100)) == 30


def test_addresses_of_one_ipv6_network_count_as_one(lockout: Lockout) -> None:
    assert sum(lockout.begin(Attempt("ann", f"2001:db8::{number:x}")) == 0 for number in range(100)) == 10


def test_a_distributed_guesser_gets_few_guesses_a_day_and_shuts_no_device_out(lockout: Lockout, clock: Clock) -> None:
    device = device_of(device_cookie("ann", SECRET, clock.now), "ann", SECRET, clock.now)
    at_home = Attempt("ann", "198.51.100.2")
    assert lockout.begin(at_home) == 0
    lockout.succeeded(at_home)
    guesses, begin = 0, clock.now
    for number in range(20_000):
        guesses += lockout.begin(Attempt("ann", f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")) == 0
        clock.now += DAY_S / 20_000
    assert 30 <= guesses <= 30 + DAY_S / 300 + 1
    assert lockout.begin(Attempt("ann", "192.0.2.99", device)) == 0, "a device that has signed in before"
    assert lockout.begin(at_home) == 0, "an address that has signed in before"
    assert lockout.begin(Attempt("bob", "192.0.2.99")) == 0, "another account"
    assert 0 < lockout.begin(Attempt("ann", "192.0.2.99")) <= 300, "a stranger waits, and is told for how long"
    assert clock.now - begin == pytest.approx(DAY_S)


def test_a_device_has_a_bucket_of_its_own_and_no_endless_one(lockout: Lockout, clock: Clock) -> None:
    device = device_of(device_cookie("ann", SECRET, clock.now), "ann", SECRET, clock.now)
    tries(lockout, Attempt("ann", "203.0.113.7"), 1000)
    for number in range(30):
        lockout.begin(Attempt(f"user{number}", "203.0.113.7"))
    assert tries(lockout, Attempt("ann", "203.0.113.7", device), 100) == 10


def test_a_success_forgives_the_account_at_its_address_but_not_what_the_address_did_elsewhere(lockout: Lockout) -> None:
    mine = Attempt("ann", "203.0.113.7")
    tries(lockout, mine, 9)
    assert lockout.begin(mine) == 0
    lockout.succeeded(mine)
    assert tries(lockout, mine, 100) == 10
    assert sum(lockout.begin(Attempt(f"user{number}", "203.0.113.7")) == 0 for number in range(100)) == 30 - 19


def test_somebody_with_an_account_cannot_buy_guesses_at_others_with_successes(lockout: Lockout) -> None:
    guesses = 0
    for number in range(200):
        guesses += lockout.begin(Attempt(f"user{number}", "203.0.113.7")) == 0
        mine = Attempt("mallory", "203.0.113.7")
        if lockout.begin(mine) == 0:
            lockout.succeeded(mine)
    assert guesses == 30


def test_the_cookie_of_one_account_a_forged_and_an_old_one_prove_nothing(clock: Clock) -> None:
    cookie = device_cookie("ann", SECRET, clock.now)
    assert device_of(cookie, " ANN", SECRET, clock.now)
    assert device_of(cookie, "bob", SECRET, clock.now) == ""
    assert device_of(cookie, "ann", "x" * 40, clock.now) == ""
    assert device_of(cookie, "ann", SECRET, clock.now + 401 * DAY_S) == ""
    nonce, expiry, signature = cookie.split(".")
    for forged in ("", ".", "..", f"{nonce}.{int(expiry) + 1}.{signature}", f"0{nonce}.{expiry}.{signature}", "é.é.é"):
        assert device_of(forged, "ann", SECRET, clock.now) == ""


def test_memory_is_bounded_and_what_is_oldest_goes(clock: Clock) -> None:
    storage = MemoryStorage(most=10)
    lockout = Lockout(storage, clock=clock)
    guesser = Attempt("ann", "203.0.113.7")
    tries(lockout, guesser, 20)
    for number in range(3):
        lockout.begin(Attempt(f"user{number}", f"198.51.100.{number}"))
    assert lockout.begin(guesser) == 0


@given(gaps=st.lists(st.floats(0, 400), max_size=60), burst=st.integers(1, 12), every_s=st.floats(1, 300))
def test_never_more_than_the_burst_and_what_has_come_since(gaps: list[float], burst: int, every_s: float) -> None:
    allowance, marks, now, passed = Allowance(burst, every_s), {"a": 0.0}, 1000.0, 0
    for gap in gaps:
        now += gap
        wait_s, changed = charged(marks, {"a": allowance}, now)
        assert 0 <= wait_s <= every_s + 1
        marks |= changed
        passed += wait_s == 0
    assert passed <= burst + (now - 1000.0) / every_s + 1e-6


@given(jump=st.floats(-1e9, 1e9))
def test_clocks_that_jump_make_nobody_wait_longer_than_one_turn(jump: float) -> None:
    allowance, marks = Allowance(3, 60), {"a": 0.0}
    for _ in range(3):
        marks |= charged(marks, {"a": allowance}, 2e9)[1]
    assert charged(marks, {"a": allowance}, 2e9 + jump)[0] <= 60


def test_the_rules_can_be_of_ones_own(clock: Clock) -> None:
    lockout = Lockout(rules=Rules(account_and_address=Allowance(2, 10)), clock=clock)
    assert tries(lockout, Attempt("ann", "203.0.113.7"), 10) == 2

"""Brakes on guessing passwords that nobody can use to lock somebody else out.

Every attempt is charged to buckets before its password is looked at, and what succeeds is given back; so a thousand
attempts at once count like a thousand in a row. A bucket lets so many through at once and then one each so often: it
slows, it never closes. Which buckets count depends on who tries (OWASP, "device cookies"):

* A device that has signed in to the account before, as its signed cookie proves, has a bucket of its own and no other:
  whatever strangers do, its owner gets in.
* Everybody else is charged by account and address, by address, and, unless the account was signed in to from this
  address lately, by account. The last is what holds back guessers with thousands of addresses.

Accounts are counted by whatever name the caller gives them, whether they exist or not.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Protocol

from access.addresses import failure_bucket

KNOWN_ADDRESS_S = 30 * 86400
DEVICE_COOKIE_S = 400 * 86400  # browsers keep no cookie for longer (RFC 6265bis section 5.5)
_MOST_MARKS = 100_000
_LONGEST_COOKIE = 200

Marks = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Allowance:
    """So many attempts at once, then one each ``every_s`` seconds."""

    burst: int
    every_s: float


@dataclass(frozen=True, slots=True)
class Rules:
    """What each bucket allows. The default for an account is 30 guesses and 12 an hour, from all strangers together."""

    device: Allowance = field(default=Allowance(10, 90))
    account_and_address: Allowance = field(default=Allowance(10, 90))
    address: Allowance = field(default=Allowance(30, 30))
    account: Allowance = field(default=Allowance(30, 300))


@dataclass(frozen=True, slots=True)
class Attempt:
    """``account`` is any name that stands for the account; ``device`` what `device_of` says, "" for a stranger's."""

    account: str
    address: str
    device: str = ""

    @property
    def known_address(self) -> str:
        """The key under which it is remembered until when the address counts as the account's."""
        return f"known:{_digest(self.account)}:{failure_bucket(self.address)}"


class Storage(Protocol):
    """Where marks live: epoch seconds by key, 0 for what is not there."""

    def change(self, keys: Sequence[str], decide: Callable[[Marks], Marks]) -> None:
        """Give the marks of ``keys`` to ``decide`` and keep those it returns, with nobody in between."""


class MemoryStorage:
    """Within one process, which every control process is. What was touched longest ago is forgotten first."""

    def __init__(self, most: int = _MOST_MARKS) -> None:
        self._most = most
        self._marks: OrderedDict[str, float] = OrderedDict()
        self._lock = threading.Lock()

    def change(self, keys: Sequence[str], decide: Callable[[Marks], Marks]) -> None:
        with self._lock:
            for key, mark in decide({key: self._marks.get(key, 0.0) for key in keys}).items():
                self._marks[key] = mark
                self._marks.move_to_end(key)
            while len(self._marks) > self._most:
                self._marks.popitem(last=False)

    def clear(self) -> None:
        with self._lock:
            self._marks.clear()


class Lockout:
    """``begin`` before a password is checked; then ``succeeded``, or nothing when it was wrong."""

    def __init__(
        self, storage: Storage | None = None, rules: Rules | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        self.storage = storage or MemoryStorage()
        self._rules = rules or Rules()
        self._clock = clock

    def begin(self, attempt: Attempt) -> int:
        """0: charged, look at the password. Else the whole seconds to wait; then nothing was charged, and the password
        must not be looked at."""
        now, wait_s = self._clock(), 0

        def decide(marks: Marks) -> Marks:
            nonlocal wait_s
            buckets = buckets_of(attempt, self._rules, is_known_address=marks[attempt.known_address] > now)
            wait_s, changed = charged(marks, buckets, now)
            return changed

        self.storage.change(self._keys(attempt), decide)
        return wait_s

    def succeeded(self, attempt: Attempt) -> None:
        """Give back what `begin` took, forgive the account at this address or device, and remember the address."""
        now = self._clock()

        def decide(marks: Marks) -> Marks:
            buckets = buckets_of(attempt, self._rules, is_known_address=marks[attempt.known_address] > now)
            return given_back(marks, buckets, now) | {attempt.known_address: now + KNOWN_ADDRESS_S}

        self.storage.change(self._keys(attempt), decide)

    def not_looked_at(self, attempt: Attempt) -> None:
        """Give back what `begin` took: nobody has looked at the password."""
        now = self._clock()

        def decide(marks: Marks) -> Marks:
            buckets = buckets_of(attempt, self._rules, is_known_address=marks[attempt.known_address] > now)
            return {
                key: now + max(_level(marks.get(key, 0.0), allowance, now) - allowance.every_s, 0.0)
                for key, allowance in buckets.items()
            }

        self.storage.change(self._keys(attempt), decide)

    def _keys(self, attempt: Attempt) -> list[str]:
        return [attempt.known_address, *buckets_of(attempt, self._rules, is_known_address=False)]


# --- decisions -----------------------------------------------------------------------------------------------------
def buckets_of(attempt: Attempt, rules: Rules, *, is_known_address: bool) -> dict[str, Allowance]:
    """What an attempt is charged to."""
    account, address = _digest(attempt.account), failure_bucket(attempt.address)
    if attempt.device:
        return {f"device:{attempt.device}": rules.device}
    buckets = {f"pair:{account}:{address}": rules.account_and_address, f"address:{address}": rules.address}
    if not is_known_address:
        buckets[f"account:{account}"] = rules.account
    return buckets


def charged(marks: Marks, buckets: Mapping[str, Allowance], now: float) -> tuple[int, dict[str, float]]:
    """The seconds to wait, and the new marks: all buckets are charged, or none.

    A mark is when its bucket will be empty again. A clock that went back does not make anybody wait for longer than a
    full bucket takes.
    """
    levels = {key: _level(marks.get(key, 0.0), allowance, now) for key, allowance in buckets.items()}
    late = [levels[key] + allowance.every_s - allowance.burst * allowance.every_s for key, allowance in buckets.items()]
    wait = max(late, default=0.0)
    if wait > 0:
        return ceil(wait), {}
    return 0, {key: now + levels[key] + allowance.every_s for key, allowance in buckets.items()}


def given_back(marks: Marks, buckets: Mapping[str, Allowance], now: float) -> dict[str, float]:
    """After a success: one attempt for buckets that others share, all of those that are one account's at one place."""
    return {
        key: now + max(_level(marks.get(key, 0.0), allowance, now) - allowance.every_s, 0.0)
        if key.startswith(("address:", "account:"))
        else 0.0
        for key, allowance in buckets.items()
    }


def _level(mark: float, allowance: Allowance, now: float) -> float:
    return min(max(mark - now, 0.0), allowance.burst * allowance.every_s)


def _digest(account: str) -> str:
    """Short and of one form, whatever somebody types for a name."""
    return hashlib.sha256(account.strip().casefold().encode("utf-8", "surrogatepass")).hexdigest()[:32]


# --- device cookies ------------------------------------------------------------------------------------------------
def device_cookie(account: str, secret: str, now: float) -> str:
    """What a device keeps after it has signed in to the account: ``nonce.expiry.signature``. It opens nothing."""
    body = f"{secrets.token_hex(8)}.{int(now) + DEVICE_COOKIE_S}"
    return f"{body}.{_signature(body, account, secret)}"


def device_of(cookie: str, account: str, secret: str, now: float) -> str:
    """The device's name, or "" when the cookie proves nothing for this account."""
    nonce, _, rest = cookie[:_LONGEST_COOKIE].partition(".")
    expiry, _, signature = rest.partition(".")
    expected = _signature(f"{nonce}.{expiry}", account, secret)
    if not hmac.compare_digest(signature.encode("utf-8", "replace"), expected.encode()):
        return ""
    return nonce if int(expiry) > now else ""


def _signature(body: str, account: str, secret: str) -> str:
    key = hashlib.sha256(b"portcullis.device-cookie:" + secret.encode()).digest()
    return hmac.new(key, f"{body}.{_digest(account)}".encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()

"""Charges as Redis reads them. What a policy always says is encoded once."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path

from access.limits.charges import LimitPolicy
from access.limits.shared.link import Script, bulk

SCRIPT = Script(Path(__file__).with_name("charging.lua").read_bytes())
# The braces make one slot of a Redis Cluster of all keys, so that one script can decide about any of them together.
NAMES = b"portcullis:{limits}:"
MAX_REMEMBERED = 20_000  # commands, of 350 bytes
_LETTERS = {
    "token_bucket": b"g",
    "spike_arrest": b"g",
    "leaky_bucket": b"q",
    "sliding_window": b"s",
    "fixed_window": b"f",
    "sliding_log": b"l",
    "concurrency": b"c",
}
_ARGUMENTS = 6  # for each bucket
_CHARGE, _BACK, _HOLD, _SET = (bulk(word) for word in (b"charge", b"back", b"hold", b"set"))
_NOTHING = bulk(b"0")


class Worker:
    """Whose commands they are: ``id`` is unique among all that live, ``lease_s`` is how long its places outlive it."""

    __slots__ = ("commands", "digest_key", "id", "lease_s")

    def __init__(self, id: str, lease_s: float, digest_key: bytes) -> None:
        self.id = id
        self.lease_s = lease_s
        self.commands: dict[tuple[EncodedPolicy, str], bytes] = {}  # of buckets that come often
        self.digest_key = digest_key[:64]  # of which buckets are named by digests that nobody else can make


class EncodedPolicy:
    """What there is to say about a policy."""

    __slots__ = ("_end", "_key_prefix", "_letter", "_worker", "is_leased", "is_plain", "policy")

    def __init__(self, policy: LimitPolicy, worker: Worker, *, is_leased: bool = False) -> None:
        self.policy = policy
        self.is_leased = is_leased
        self.is_plain = not is_leased and policy.algorithm != "concurrency"  # nothing is remembered of its charges
        letter = _LETTERS.get(policy.algorithm) or (b"m" if policy.period == "month" else b"d")
        one, two, three = _numbers(policy, worker)
        self._worker = worker
        self._letter = bulk(letter)
        self._end = bulk(b"%d" % one) + bulk(b"%d" % two) + bulk(three)
        self._key_prefix = NAMES + letter + b":" + policy.key.encode() + b":"

    def key(self, bucket: str) -> bytes:
        """Its name in Redis, as a bulk string: no user, address or token can be read in it."""
        digest = blake2b(bucket.encode(), key=self._worker.digest_key, digest_size=16).hexdigest().encode()
        return bulk(self._key_prefix + digest)

    def arguments(self, cost: int, extra: int = 0) -> bytes:
        told = bulk(b"%d" % extra) if extra else _NOTHING
        return self._letter + bulk(b"%d" % cost) + told + self._end

    def charge_one(self, bucket: str) -> bytes:
        """The command that takes one."""
        known = self._worker.commands
        command = known.get((self, bucket))
        if command is None:
            if len(known) >= MAX_REMEMBERED:
                known.clear()
            command = known[self, bucket] = charge([(self.key(bucket), self.arguments(1))])
        return command


def _numbers(policy: LimitPolicy, worker: Worker) -> tuple[int, int, bytes]:
    """As charging.lua takes them, by algorithm."""
    match policy.algorithm:
        case "token_bucket" | "spike_arrest":
            return policy.interval_ns, policy.span_ns, b""
        case "leaky_bucket":
            return policy.interval_ns, policy.longest_wait_ns, b""
        case "concurrency":
            return int(worker.lease_s * 1e6), policy.limit, worker.id.encode()
        case "quota":
            return 0, policy.limit, b""
        case _:
            return policy.window_s * 1_000_000, policy.limit, b""


Encoded = Iterable[tuple[bytes, bytes]]  # keys and arguments of buckets


def charge(buckets: Encoded) -> bytes:
    return _command(_CHARGE, buckets)


def give_back(buckets: Encoded) -> bytes:
    return _command(_BACK, buckets)


def hold(buckets: Encoded, *, is_certain: bool) -> bytes:
    """How many places are held (as costs). ``is_certain``: whatever Redis believes."""
    return _command(_SET if is_certain else _HOLD, buckets)


def _command(word: bytes, buckets: Encoded) -> bytes:
    keys, arguments = zip(*buckets, strict=True)
    encoded = b"".join((*keys, word, *arguments))
    return SCRIPT.call(len(keys), 1 + _ARGUMENTS * len(keys), encoded)

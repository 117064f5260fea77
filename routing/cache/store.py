"""Stored answers of one worker: least recently used ones leave when the bytes are used up.

An answer is found by its primary key (whose it is, service, version, origin, path, query), then by the request fields
that it varies by (RFC 9111 section 4.1). All times are the worker's monotonic clock.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field

from routing.cache.dropping import Dropped, Place, Rule

# What an answer costs beside its own bytes: objects, index, and the lists of its lines. Measured with tracemalloc.
OVERHEAD = 1800
LINE_OVERHEAD = 48
MAX_VARIANTS = 32  # of one key
MAX_VARY_NAMES = 20
SLICE = 500  # keys looked at in one go of the event loop
EVERYBODY = ""

Resource = tuple[str, str, bytes, bytes, bytes | None]  # service and route, version, origin, path as sent, query
Key = tuple[str, Resource]  # the application that may have it (EVERYBODY: all), and what it is an answer for
Vary = tuple[tuple[bytes, bytes | None], ...]  # names with the values that the request had


@dataclass(slots=True, eq=False)
class StoredAnswer:
    """One answer, as the upstream sent it. ``head`` is its field lines, with Content-Length and without Age."""

    key: Key
    status: int
    lines: list[bytes]
    body: bytes
    vary: Vary
    service: str
    host: bytes
    place: Place
    tags: frozenset[bytes]
    at: float  # when it was received
    date: float  # epoch seconds, its Date
    initial_age_s: float
    lifetime_s: float
    forbids_stale: bool
    while_revalidate_s: float
    if_error_s: float
    etag: bytes | None
    last_modified: bytes | None
    head: bytes = b""
    fresh_until: float = 0.0
    size: int = 0
    is_revalidating: bool = field(default=False)

    def __post_init__(self) -> None:
        self.head = b"".join(self.lines)
        self.fresh_until = self.at + self.lifetime_s - self.initial_age_s
        self.size = OVERHEAD + 2 * len(self.head) + len(self.body) + LINE_OVERHEAD * len(self.lines)
        self.size += 2 * (len(self.key[1][3]) + len(self.key[1][4] or b""))
        self.size += sum(100 + len(name) + len(value or b"") for name, value in self.vary)
        self.size += sum(64 + len(tag) for tag in self.tags)

    def age_s(self, now: float) -> float:
        """RFC 9111 section 4.2.3."""
        return self.initial_age_s + max(0.0, now - self.at)

    def staleness_s(self, now: float) -> float:
        """Below 0: it is still fresh for that long."""
        return now - self.fresh_until

    @property
    def has_validator(self) -> bool:
        return self.etag is not None or self.last_modified is not None


class _Bucket:
    """All answers of one key, the latest first."""

    __slots__ = ("answers", "place")

    def __init__(self, place: Place) -> None:
        self.place = place
        self.answers: list[StoredAnswer] = []


class Store:
    """At most ``limit`` bytes, as `StoredAnswer.size` counts them."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.size = 0
        self.count = 0
        self.dropped = Dropped()
        self._buckets: OrderedDict[Key, _Bucket] = OrderedDict()
        self._keys_by_place: dict[Place, set[Key]] = {}
        self._in_force: list[Rule] = []  # rules that have not been through all keys yet

    # --- what requests ask ---
    def variants(self, key: Key) -> list[StoredAnswer] | None:
        """Answers for ``key``, the latest first; they count as used."""
        bucket = self._buckets.get(key)
        if bucket is None:
            return None
        found = bucket.answers
        if self._in_force:
            found = [each for each in found if not any(rule.covers(each) for rule in self._in_force)]
        self._buckets.move_to_end(key)
        return found

    def put(self, answer: StoredAnswer, since: int) -> bool:
        """Keep an answer in place of what was kept for the same request. ``since`` is `Dropped.number` from before its
        request was sent. False: it was dropped meanwhile, or it is too large."""
        if answer.size > self.limit or self.dropped.has_since(since, answer):
            return False
        key = answer.key
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = _Bucket(answer.place)
            self._keys_by_place.setdefault(answer.place, set()).add(key)
        else:
            self._buckets.move_to_end(key)
            for each in [each for each in bucket.answers if each.vary == answer.vary]:
                self._take_out(bucket, each)
            if len(bucket.answers) >= MAX_VARIANTS:
                self._take_out(bucket, bucket.answers[-1])
        bucket.answers.insert(0, answer)
        self.size += answer.size
        self.count += 1
        while self.size > self.limit:
            self._drop_key(next(iter(self._buckets)))
        return True

    def _take_out(self, bucket: _Bucket, answer: StoredAnswer) -> None:
        bucket.answers.remove(answer)
        self.size -= answer.size
        self.count -= 1

    # --- dropping ---
    def drop(self, answer: StoredAnswer) -> None:
        """This one alone, if it is still there."""
        bucket = self._buckets.get(answer.key)
        if bucket is not None and answer in bucket.answers:
            self._take_out(bucket, answer)
            if not bucket.answers:
                self._drop_key(answer.key)

    def drop_place(self, place: Place, service: str) -> None:
        """Everything that is kept for a URL of a service, whatever host and variant (RFC 9111 section 4.4)."""
        self.dropped.add_place(place)
        for key in list(self._keys_by_place.get(place, ())):
            if self._buckets[key].answers[0].service == service:
                self._drop_key(key)

    def drop_covered(self, rule: Rule) -> Iterator[None]:
        """What a rule covers. It is in force from the first step on; each step looks at `SLICE` keys."""
        self.dropped.add_rule(rule)
        if rule.kind == "all":
            self._buckets.clear()
            self._keys_by_place.clear()
            self.size = self.count = 0
            return
        if rule.kind == "url":
            keys = list(self._keys_by_place.get((rule.path, rule.query), ()))
        else:
            keys = list(self._buckets)
        self._in_force.append(rule)
        for start in range(0, len(keys), SLICE):
            for key in keys[start : start + SLICE]:
                self._drop_covered(key, rule)
            yield
        self._in_force.remove(rule)

    def _drop_covered(self, key: Key, rule: Rule) -> None:
        bucket = self._buckets.get(key)
        if bucket is None:
            return
        for answer in [each for each in bucket.answers if rule.covers(each)]:
            self._take_out(bucket, answer)
        if not bucket.answers:
            self._drop_key(key)

    def _drop_key(self, key: Key) -> None:
        bucket = self._buckets.pop(key)
        keys = self._keys_by_place[bucket.place]
        keys.discard(key)
        if not keys:
            del self._keys_by_place[bucket.place]
        for answer in bucket.answers:
            self.size -= answer.size
            self.count -= 1

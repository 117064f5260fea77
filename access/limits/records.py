"""Limits as workers hold them, and which of them hold for a request.

What holds where is decided once for an application and a place, and remembered (`gateway_project.dataplane.matching`).
The index finds it at a cost that does not grow with the number of limits.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, NamedTuple

from access.addresses import failure_bucket
from access.limits.charges import Charge, LimitPolicy, compiled
from access.policies import LimitRule
from core.path_trie import PathTrie, compile_pattern
from core.policies import read

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._:-]{0,62}")
NAME_RULE = "a name has 1 to 63 letters, digits, spaces and . _ : -, and begins with a letter or digit"
_LONGEST_NAME = 150
_LONGEST_BUCKET = 300  # what the columns of the database hold
MOST_REMEMBERED = 64  # callers at one place
_KEY = ("key",)
_IN_PASSING = frozenset(("ip", "role"))
_HELD_BACK = frozenset(("quota", "leaky_bucket"))
_FIXED = frozenset(("gateway", "tenant", "application", "endpoint", "service"))


class Place(NamedTuple):
    """What a request asks for, and on whose behalf, as far as it is the same for all of an application's requests
    there. ``application_id`` and ``application`` (its name) are empty where nobody is known; ``route`` is empty for an
    implicit one, ``endpoint`` is the template that metrics use; ``bundles`` are the application's, service's and
    route's."""

    tenant_id: str
    application_id: str
    application: str
    services: tuple[str, ...]
    route: str
    endpoint: str
    method: bytes
    path: bytes  # canonical
    bundles: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class LimitRecord:
    """A limit. Empty selectors select everything; ``paths`` are patterns as `compile_pattern` returns them."""

    id: str
    tenant_id: str
    policy: LimitPolicy
    services: frozenset[str]
    routes: frozenset[str]
    applications: frozenset[str]
    roles: tuple[str, ...]
    methods: frozenset[bytes]
    paths: tuple[bytes, ...]
    bundles: frozenset[str]  # that name it: then it holds for what has one of them

    @classmethod
    def from_wire(cls, wire: Mapping[str, Any]) -> LimitRecord:
        """Raises ValueError, with a sentence."""
        if not NAME.fullmatch(wire["name"]):
            raise ValueError(NAME_RULE)
        rule = read(LimitRule, wire["rule"])
        return cls(
            id=wire["id"],
            tenant_id=wire["tenant"],
            policy=compiled(wire["id"], wire["name"], rule, limit_id=wire["id"]),
            services=frozenset(rule.services),
            routes=frozenset(rule.routes),
            applications=frozenset(rule.applications),
            roles=rule.roles,
            methods=frozenset(method.encode("ascii") for method in rule.methods),
            paths=tuple(compile_pattern(path) for path in rule.paths),
            bundles=frozenset(wire.get("bundles", ())),
        )

    def holds(self, place: Place) -> bool:
        """Whether all selectors but ``paths`` (the index has looked at them) and ``roles`` select the place."""
        return (
            (not place.tenant_id or self.tenant_id == place.tenant_id)
            and (not self.applications or not self.applications.isdisjoint((place.application_id, place.application)))
            and (not self.services or not self.services.isdisjoint(place.services))
            and (not self.routes or place.route in self.routes)
            and (not self.methods or place.method in self.methods)
            and (not self.bundles or not self.bundles.isdisjoint(place.bundles))
        )


def storable(name: str) -> str:
    """A name that others gave, as one that any table can hold: itself, or a digest."""
    if len(name) <= _LONGEST_NAME and name.isprintable():
        return name
    return "#" + blake2b(name.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


class Held(NamedTuple):
    """A limit at a place. A bucket's name begins with ``prefix``; ``parts`` are what differs from request to request.
    ``roles`` empty: it holds for everybody."""

    policy: LimitPolicy
    cost: int
    prefix: str
    parts: tuple[str, ...]
    roles: tuple[str, ...]

    def bucket(self, key: str, user: str, roles: Sequence[str], client: str) -> str:
        """Whose bucket a request is charged to. ``key`` and ``user`` are empty where there is none: a user's place is
        then taken by the key, a key's by the user, and that of both by the ``client``'s address."""
        if not self.parts:
            return self.prefix
        if key and self.parts == _KEY:
            return f"{self.prefix} key:{key}" if self.prefix else "key:" + key
        named = [self.prefix] if self.prefix else []
        for part in self.parts:
            if part == "role":
                named.append("role:" + storable(self._role(roles)))
            elif part == "user" and user:
                named.append("user:" + storable(user))
            elif part != "ip" and key:
                named.append("key:" + key)
            elif part == "key" and user:
                named.append("user:" + storable(user))
            else:
                named.append("ip:" + failure_bucket(client))
        name = " ".join(named)
        return name if len(name) <= _LONGEST_BUCKET else storable(name)

    def _role(self, roles: Sequence[str]) -> str:
        """The first that the limit names, else the first that the caller has."""
        for role in self.roles or roles:
            if role in roles:
                return role
        return ""


@dataclass(frozen=True, slots=True)
class LimitPlan:
    """What a request at a place is charged beside its base limit: ``base_cost`` of that, and the limits that hold.
    ``by_role`` are those that hold only for some callers. ``is_plain``: nobody but this worker needs to be asked, and
    nobody waits. ``fields``: the RateLimit-Policy line of those that hold for everybody, and ``RateLimit:``."""

    base_cost: int
    everybody: tuple[Held, ...] = ()
    by_role: tuple[Held, ...] = ()
    is_plain: bool = True
    fields: bytes = b""
    # By key and user: what most requests there are charged, where their address and roles do not matter.
    remembered: dict[tuple[str, str], list[Charge]] | None = field(default=None, compare=False)

    @property
    def is_for_users(self) -> bool:
        """Nothing differs for callers without roles."""
        return not self.everybody and self.base_cost == 1

    def of(self, roles: Sequence[str]) -> tuple[Held, ...]:
        """The limits that hold for a caller with these roles."""
        if not self.by_role or not roles:
            return self.everybody
        return (*self.everybody, *(held for held in self.by_role if not set(held.roles).isdisjoint(roles)))


_Found = tuple[bytes, LimitRecord]  # and the pattern under which it was found, or b""


@dataclass(frozen=True, slots=True)
class _Shelf:
    """The limits of one application, or of all, by what selects the place most narrowly."""

    anywhere: Mapping[str, LimitRecord]
    routes: Mapping[str, tuple[LimitRecord, ...]]
    services: Mapping[str, tuple[LimitRecord, ...]]
    paths: PathTrie[_Found] | None

    def find(self, place: Place) -> Iterable[_Found]:
        for record in self.anywhere.values():
            yield b"", record
        for record in self.routes.get(place.route, ()):
            yield b"", record
        for service in place.services:
            for record in self.services.get(service, ()):
                yield b"", record
        if self.paths is not None:
            yield from self.paths.find(place.path)

    def changed(self, put: Sequence[LimitRecord], drop: Sequence[LimitRecord]) -> _Shelf:
        anywhere, routes, services = dict(self.anywhere), dict(self.routes), dict(self.services)
        laid_in: list[tuple[bytes, _Found]] = []
        taken: list[tuple[bytes, _Found]] = []
        for records, is_put in ((drop, False), (put, True)):
            for record in records:
                if record.paths:
                    (laid_in if is_put else taken).extend((path, (path, record)) for path in record.paths)
                elif record.routes:
                    _sort(routes, record.routes, record, is_put)
                elif record.services:
                    _sort(services, record.services, record, is_put)
                elif is_put:
                    anywhere[record.id] = record
                else:
                    anywhere.pop(record.id, None)
        paths = self.paths
        if laid_in or taken:
            paths = (paths or PathTrie()).changed(laid_in, taken) or None
        return _Shelf(anywhere, routes, services, paths)

    @property
    def is_empty(self) -> bool:
        return not (self.anywhere or self.routes or self.services or self.paths)


def _sort(shelf: dict[str, tuple[LimitRecord, ...]], names: Iterable[str], record: LimitRecord, is_put: bool) -> None:
    for name in names:
        others = tuple(each for each in shelf.get(name, ()) if each.id != record.id)
        if is_put:
            others = (*others, record)
        if others:
            shelf[name] = others
        else:
            shelf.pop(name, None)


_EMPTY = _Shelf({}, {}, {}, None)
_EVERYBODY = ""


class LimitIndex:
    """The active limits. Immutable: a change costs what changed, and the copy of the shelves that it stands on."""

    __slots__ = ("_shelves", "records")

    def __init__(
        self, records: Mapping[str, LimitRecord] | None = None, shelves: Mapping[str, _Shelf] | None = None
    ) -> None:
        self.records = records or {}  # by id
        self._shelves = shelves or {}  # by id or name of an application

    def __bool__(self) -> bool:
        return bool(self.records)

    def changed(self, put: Sequence[LimitRecord], drop: Sequence[str]) -> LimitIndex:
        """An index with ``drop`` (ids) taken out and ``put`` laid in; this one stays as it is."""
        if not put and not drop:
            return self
        records, shelves = dict(self.records), dict(self._shelves)
        former = [records.pop(each, None) for each in dict.fromkeys((*drop, *(record.id for record in put)))]
        gone = [record for record in former if record is not None]
        records.update((record.id, record) for record in put)
        for name in {name for record in (*gone, *put) for name in _owners(record)}:
            shelf = shelves.get(name, _EMPTY).changed(
                [record for record in put if name in _owners(record)],
                [record for record in gone if name in _owners(record)],
            )
            if shelf.is_empty:
                shelves.pop(name, None)
            else:
                shelves[name] = shelf
        return LimitIndex(records, shelves)

    def selected_by_path(self, path: bytes, owner: tuple[str, str]) -> tuple[tuple[bytes, str], ...]:
        """All that a path means to `plan`: patterns that match it, and ids of their limits. ``owner``: id and name of
        the application, empty for nobody."""
        selected: list[tuple[bytes, str]] = []
        for name in (_EVERYBODY, *owner):
            shelf = self._shelves.get(name)
            if shelf is not None and shelf.paths is not None:
                selected += [(pattern, record.id) for pattern, record in shelf.paths.find(path)]
        return tuple(selected)

    def plan(self, place: Place, base: LimitPolicy, cost: int) -> LimitPlan | None:
        """What holds at a place where a request costs ``cost``. None: nothing that would differ from one request of the
        ``base`` limit."""
        base_cost = min(cost, base.most)
        found: dict[str, _Found] = {}
        if self.records and cost:
            for name in dict.fromkeys((_EVERYBODY, place.application_id, place.application)):
                for pattern, record in self._shelves.get(name, _EMPTY).find(place):
                    if record.holds(place):
                        found.setdefault(record.id, (pattern, record))
        if not found and base_cost == 1:
            return None
        held = [_held(pattern, record, place, cost) for _, (pattern, record) in sorted(found.items())]
        everybody = tuple(each for each in held if not each.roles)
        items = [base.item] if base_cost else []
        items += [each.policy.item for each in everybody]
        return LimitPlan(
            base_cost,
            everybody,
            tuple(each for each in held if each.roles),
            all(each.policy.mode in (None, "local") and each.policy.algorithm not in _HELD_BACK for each in held),
            f"RateLimit-Policy: {','.join(items)}\r\nRateLimit: ".encode() if items else b"",
            None if any(_IN_PASSING & set(each.parts) for each in held) else {},
        )


def _owners(record: LimitRecord) -> Iterable[str]:
    return record.applications or (_EVERYBODY,)


def _held(pattern: bytes, record: LimitRecord, place: Place, cost: int) -> Held:
    policy = record.policy
    values = {
        "tenant": place.tenant_id,
        "application": place.application_id,
        "endpoint": pattern.decode() or place.endpoint,
        "service": ",".join(place.services),
    }
    named = [f"{part}:{values[part]}" for part in policy.per if values.get(part)]
    parts = [part for part in policy.per if part not in _FIXED]
    if "application" in policy.per and not place.application_id and "ip" not in parts:
        parts.append("ip")  # nobody is known: each address for itself
    return Held(policy, min(cost, policy.most), storable(" ".join(named)), tuple(parts), record.roles)

"""Which route takes a request: by host, then path, then conditions and method (rule 2)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from operator import attrgetter

from core.faults import ClientFault
from core.path_trie import PathTrie, pattern_shape
from routing.records import RouteRecord
from routing.request_fields import RequestFields

# Names that no service may have: the gateway's own paths under /api/v1/ (and v1, v2, …, see `implicit`).
RESERVED_NAMES = frozenset((b"tasks", b"management", b"auth"))


@dataclass(frozen=True, slots=True)
class _Rule:
    """A route with its place among those that match the same host and path, computed once."""

    route: RouteRecord
    literal_segments: int  # before the first wildcard; equal counts on one path mean equal literal prefixes
    order: tuple[int, int, bool, bytes, str]  # among those of equal literal prefix; ids sort by age

    @classmethod
    def of(cls, route: RouteRecord) -> _Rule:
        shape = pattern_shape(route.path)
        literals = len(shape) - len(shape.lstrip(b"\0"))
        conditions = route.when.count if route.when is not None else 0
        return cls(route, literals, (-route.priority, -conditions, shape[-1] == 2, shape, route.id))


_by_order = attrgetter("order")
_Trie = PathTrie[_Rule]


class RouteTable:
    """The explicit routes. Immutable for readers; a change costs what changed.

    Exact hosts are looked at first, then ``*.suffix`` (the longest suffix first), then routes for any host.
    """

    __slots__ = ("_any", "_exact", "_is_empty", "_suffixes", "caching")

    def __init__(
        self,
        exact: Mapping[bytes, _Trie] | None = None,
        suffixes: Mapping[bytes, _Trie] | None = None,
        any_host: _Trie | None = None,
        caching: int = 0,
    ) -> None:
        self._exact = dict(exact or {})
        self._suffixes = dict(suffixes or {})  # by b".example.com"
        self._any: _Trie = any_host if any_host is not None else PathTrie()
        self._is_empty = not (self._exact or self._suffixes or self._any)
        self.caching = caching  # how many routes have a policy of their own for that

    def match(self, host: bytes, path: bytes, method: bytes, fields: RequestFields | None = None) -> RouteRecord | None:
        """The route for a request; ``host`` in lower case without port, ``path`` canonical. None: no explicit route.

        Routes whose conditions do not hold are passed over. Of the others the most specific group (same host rule, same
        literal prefix) decides alone. Raises `ClientFault` ``method_not_allowed`` when none of it takes the method,
        ``no_route`` when the one that does is inactive. ``fields`` None: no conditions but those on the path hold.
        """
        if self._is_empty:
            return None
        if self._exact:
            trie = self._exact.get(host)
            if (
                trie is not None
                and (rules := trie.find(path))
                and (route := _decide(rules, path, method, fields)) is not None
            ):
                return route
        if self._suffixes:
            dot = host.find(b".")
            while dot >= 0:
                trie = self._suffixes.get(host[dot:])
                if (
                    trie is not None
                    and (rules := trie.find(path))
                    and (route := _decide(rules, path, method, fields)) is not None
                ):
                    return route
                dot = host.find(b".", dot + 1)
        rules = self._any.find(path)
        return _decide(rules, path, method, fields) if rules else None

    def changed(self, put: Iterable[RouteRecord], drop: Iterable[RouteRecord]) -> RouteTable:
        """A table with ``drop`` taken out and ``put`` laid in; this one stays as it is."""
        put, drop = list(put), list(drop)
        puts, drops = _by_host(put), _by_host(drop)
        caching = self.caching + sum(map(_caches, put)) - sum(map(_caches, drop))
        exact, suffixes, any_host = dict(self._exact), dict(self._suffixes), self._any
        for host in puts.keys() | drops.keys():
            tries, name = (suffixes, host[1:]) if host.startswith(b"*.") else (exact, host)
            trie = any_host if host == b"" else tries.get(name, PathTrie())
            trie = trie.changed(puts.get(host, ()), drops.get(host, ()))
            if host == b"":
                any_host = trie
            elif trie:
                tries[name] = trie
            else:
                tries.pop(name, None)
        return RouteTable(exact, suffixes, any_host, caching)

    def load(self, route: RouteRecord) -> None:
        """Lay in a route in place: only while nobody else sees this table yet."""
        rule = _Rule.of(route)
        self.caching += _caches(route)
        for host in route.hosts or (b"",):
            if host == b"":
                trie = self._any
            elif host.startswith(b"*."):
                trie = self._suffixes.setdefault(host[1:], PathTrie())
            else:
                trie = self._exact.setdefault(host, PathTrie())
            trie.load(route.path, rule)
        self._is_empty = False


def _caches(route: RouteRecord) -> bool:
    return route.caching is not None and route.caching.enabled


def _by_host(routes: Iterable[RouteRecord]) -> dict[bytes, list[tuple[bytes, _Rule]]]:
    """Patterns and rules by host; any host is the empty one."""
    rules: dict[bytes, list[tuple[bytes, _Rule]]] = {}
    for route in routes:
        rule = _Rule.of(route)
        for host in route.hosts or (b"",):
            rules.setdefault(host, []).append((route.path, rule))
    return rules


def _decide(rules: list[_Rule], path: bytes, method: bytes, fields: RequestFields | None) -> RouteRecord | None:
    """``rules`` match host and path, the most specific first. None: the conditions of none of them hold."""
    if len(rules) == 1:
        return _decide_group(rules, path, method, fields)
    while rules:
        prefix = rules[0].literal_segments
        group = [rule for rule in rules if rule.literal_segments == prefix]
        if len(group) > 1:
            group.sort(key=_by_order)
        route = _decide_group(group, path, method, fields)
        if route is not None:
            return route
        rules = [rule for rule in rules if rule.literal_segments != prefix]
    return None


def _decide_group(group: list[_Rule], path: bytes, method: bytes, fields: RequestFields | None) -> RouteRecord | None:
    for rule in group:
        route = rule.route
        if (not route.methods or method in route.methods) and (route.when is None or _holds(route, path, fields)):
            if not route.is_active:
                raise ClientFault("no_route", "The route at this path is not active.")
            return route
    matching = [rule.route for rule in group if rule.route.when is None or _holds(rule.route, path, fields)]
    if not matching:
        return None
    allowed = sorted({method for route in matching if route.is_active for method in route.methods})
    if not allowed:
        raise ClientFault("no_route", "The route at this path is not active.")
    detail = f"The route at this path takes {b', '.join(allowed).decode()} only."
    raise ClientFault("method_not_allowed", detail, headers=((b"allow", b", ".join(allowed)),))


def _holds(route: RouteRecord, path: bytes, fields: RequestFields | None) -> bool:
    if route.when is None:
        return True
    return route.when.hold(fields if fields is not None else RequestFields.of_path(path))


def implicit(path: bytes) -> tuple[bytes, bytes] | None:
    """API version and service name in ``/api/v1/orders/…``; None where no implicit route can be meant (rule 3)."""
    if not path.startswith(b"/api/v"):
        return None
    segments = path.split(b"/", 4)
    if len(segments) < 4:
        return None
    version, service = segments[2], segments[3]
    if not version[1:].isdigit() or not service or service in RESERVED_NAMES:
        return None
    if service[0] == 0x76 and service[1:].isdigit():  # v1, v2, …
        return None
    return version, service

"""What is to be dropped from the cache, and a memory of it for answers that are on their way meanwhile."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlsplit

from core.uri_path import canonical_path

KINDS = ("url", "prefix", "service", "tag", "all")
_MAX_RULES = 1000
_MAX_PLACES = 4096

Place = tuple[bytes, bytes | None]  # canonical path and query


class Kept(Protocol):
    """What a rule looks at."""

    @property
    def service(self) -> str: ...
    @property
    def host(self) -> bytes: ...
    @property
    def place(self) -> Place: ...
    @property
    def tags(self) -> frozenset[bytes]: ...


@dataclass(frozen=True, slots=True)
class Rule:
    """``kind`` is one of `KINDS`. ``host`` None: of any host."""

    kind: str
    value: str = ""
    host: bytes | None = None
    path: bytes = b""
    query: bytes | None = None

    def covers(self, kept: Kept) -> bool:
        kind = self.kind
        if kind == "all":
            return True
        if kind == "service":
            return kept.service == self.value
        if kind == "tag":
            return self.value.encode() in kept.tags
        if self.host is not None and kept.host != self.host:
            return False
        path, query = kept.place
        if kind == "url":
            return path == self.path and query == self.query
        if self.query is None:
            return path.startswith(self.path)
        return path == self.path and query is not None and query.startswith(self.query)


def read_rule(kind: str, value: str) -> Rule:
    """Raises ValueError, with a sentence, for what names nothing that could be stored.

    URLs and prefixes are absolute (``https://host/path?query``: of that host) or begin with a slash (of any host).
    """
    if kind not in KINDS:
        raise ValueError(f"the kind is one of {', '.join(KINDS)}")
    if kind in ("service", "tag"):
        if not value or len(value) > 200 or not value.isascii() or not value.isprintable() or " " in value:
            raise ValueError(f"a {kind} is a name of at most 200 printable ASCII characters without spaces")
        return Rule(kind, value)
    if kind == "all":
        return Rule(kind)
    host, rest = _split(value)
    path, mark, query = rest.partition("?")
    return Rule(kind, value, host, canonical_path(path.encode("ascii")), query.encode("ascii") if mark else None)


def _split(value: str) -> tuple[bytes | None, str]:
    if not value or len(value) > 8192 or not value.isascii() or not value.isprintable() or {" ", "#"} & set(value):
        raise ValueError("a URL is at most 8192 printable ASCII characters, without spaces and fragments")
    if value.startswith("/") and not value.startswith("//"):
        return None, value
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("a URL begins with a slash, or with http:// or https:// and a host")
    _, _, rest = value.partition("//")
    _, slash, rest = rest.partition("/")
    return parts.hostname.rstrip(".").encode("ascii"), slash + rest if slash else "/"


class Dropped:
    """The latest rules and places, by a number that grows with each. An answer whose request was sent before it must
    not be stored after it: it may be what was dropped."""

    def __init__(self) -> None:
        self.number = 0
        self._rules: deque[tuple[int, Rule]] = deque()
        self._places: dict[Place, int] = {}
        self._floor = 0  # nothing is known of what was dropped up to here

    def add_rule(self, rule: Rule) -> None:
        self.number += 1
        self._rules.append((self.number, rule))
        if len(self._rules) > _MAX_RULES:
            self._floor = max(self._floor, self._rules.popleft()[0])

    def add_place(self, place: Place) -> None:
        self.number += 1
        self._places.pop(place, None)  # so that the dict is ordered by number
        self._places[place] = self.number
        if len(self._places) > _MAX_PLACES:
            oldest = next(iter(self._places))
            self._floor = max(self._floor, self._places.pop(oldest))

    def has_since(self, number: int, kept: Kept) -> bool:
        if number == self.number:
            return False
        if number < self._floor or self._places.get(kept.place, 0) > number:
            return True
        for at, rule in reversed(self._rules):
            if at <= number:
                return False
            if rule.covers(kept):
                return True
        return False


def rule_from_wire(wire: Mapping[str, Any]) -> Rule:
    return read_rule(wire["kind"], wire["value"])

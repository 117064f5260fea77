"""Applications, whitelist entries and rate limits as workers hold them: every decision's answer is built beforehand."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from core.path_trie import PathTrie, compile_pattern

_SECOND_NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class LimitPolicy:
    """``limit`` requests per ``window_s`` seconds for each subject (a key, or an address on a public entry)."""

    key: str  # unique per application or entry: the bucket survives a change of the policy
    name: str  # what clients read: "default", "application" or "endpoint"
    limit: int
    window_s: int
    interval_ns: int  # from one request to the next at a steady pace
    span_ns: int  # what a full bucket is worth
    fields: bytes  # the RateLimit-Policy line, and the RateLimit line up to the number that remains

    @classmethod
    def of(cls, key: str, name: str, limit: int, window_s: int) -> LimitPolicy:
        if limit < 1:
            raise ValueError("The rate limit must be at least one request.")
        interval_ns = -(-window_s * _SECOND_NS // limit)  # rounded up: never more than the limit
        fields = f'RateLimit-Policy: "{name}";q={limit};w={window_s}\r\nRateLimit: "{name}";r='.encode()
        return cls(key, name, limit, window_s, interval_ns, interval_ns * limit, fields)


@dataclass(frozen=True, slots=True)
class Grant:
    """What a request that may pass is held to. ``versions`` None means all."""

    limit: LimitPolicy
    versions: frozenset[str] | None


@dataclass(frozen=True, slots=True)
class EntryRecord:
    """A whitelist entry. ``methods`` None means any; ``grant`` joins the application's terms with the entry's own."""

    id: str
    path: bytes  # the pattern, as `compile_pattern` returns it
    methods: frozenset[bytes] | None
    is_public: bool
    grant: Grant

    def accepts(self, method: bytes) -> bool:
        return self.methods is None or method in self.methods


@dataclass(frozen=True, slots=True)
class ApplicationRecord:
    """An active application. ``services`` None means all; ``whitelist`` None means that it has no entries."""

    id: str
    tenant_id: str
    name: str
    services: frozenset[str] | None
    is_listed: bool  # only whitelisted endpoints
    grant: Grant  # where no entry says otherwise
    entries: tuple[EntryRecord, ...]
    whitelist: PathTrie[EntryRecord] | None = field(compare=False)  # the entries by path
    upstream_line: bytes  # the field that tells upstreams which application it is

    @classmethod
    def from_wire(cls, wire: Mapping[str, Any], default_limit: tuple[int, int]) -> ApplicationRecord:
        """``default_limit`` is requests and seconds. Raises ValueError, with a sentence, for what does not compile."""
        grant = Grant(_application_limit(wire, default_limit), _versions(wire["versions"]))
        entries = tuple(_entry(entry, grant) for entry in wire["entries"])
        return cls(
            id=wire["id"],
            tenant_id=wire["tenant"],
            name=wire["name"],
            services=_names(wire["services"]),
            is_listed=wire["endpoint_mode"] == "listed",
            grant=grant,
            entries=entries,
            whitelist=_whitelist(entries) if entries else None,
            upstream_line=f"x-gateway-application: {wire['id']}\r\n".encode("ascii"),
        )


def _application_limit(wire: Mapping[str, Any], default_limit: tuple[int, int]) -> LimitPolicy:
    if wire["rate_limit"] is None:
        return LimitPolicy.of(wire["id"], "default", *default_limit)
    return LimitPolicy.of(wire["id"], "application", wire["rate_limit"], 60)


def _entry(wire: Mapping[str, Any], grant: Grant) -> EntryRecord:
    limit, versions = grant.limit, _versions(wire["versions"])
    if wire["rate_limit"] is not None:
        limit = LimitPolicy.of(wire["id"], "endpoint", wire["rate_limit"], 60)
    if grant.versions is not None:
        versions = grant.versions if versions is None else versions & grant.versions
    own_terms = limit is not grant.limit or versions != grant.versions
    return EntryRecord(
        id=wire["id"],
        path=compile_pattern(wire["path"]),
        methods=_methods(tuple(wire["methods"])),
        is_public=wire["is_public"],
        grant=Grant(limit, versions) if own_terms else grant,
    )


@lru_cache(maxsize=1024)  # thousands of entries share few sets of methods
def _methods(methods: tuple[str, ...]) -> frozenset[bytes] | None:
    return None if "*" in methods else frozenset(method.encode("ascii") for method in methods)


def _whitelist(entries: Iterable[EntryRecord]) -> PathTrie[EntryRecord]:
    whitelist: PathTrie[EntryRecord] = PathTrie()
    for entry in entries:
        whitelist.load(entry.path, entry)
    return whitelist


def _names(names: Collection[str]) -> frozenset[str] | None:
    """None for ``["*"]``: everything."""
    return None if "*" in names else frozenset(names)


def _versions(names: Collection[str]) -> frozenset[str] | None:
    """Both spellings of each version: ``2`` and ``v2`` are the same name (rule 4)."""
    found = _names(names)
    if found is None:
        return None
    bare = {name.removeprefix("v") for name in found}
    numbers = {name for name in bare if name.isdigit()}
    return found | numbers | {f"v{number}" for number in numbers}

"""Applications, whitelist entries and rate limits as workers hold them: every decision's answer is built beforehand."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from access.limits.charges import LimitPolicy
from access.limits.records import LimitPlan
from access.networks import AddressRules, compile_addresses
from access.policies import APPLICATION_POLICIES, ClientCertificates, IpAccess
from core.path_trie import PathTrie, compile_pattern
from core.policies import read_all

DEFAULT = "default"  # the name of the limit of applications that set none


@dataclass(frozen=True, slots=True)
class Grant:
    """What a request that may pass is held to. ``versions`` None means all; ``plan`` None: no limit but ``limit``,
    which one request costs 1."""

    limit: LimitPolicy
    versions: frozenset[str] | None
    plan: LimitPlan | None = None


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
    priority: int  # 0 to 9: under overload the lowest is refused first (R22)
    upstream_line: bytes  # the field that tells upstreams which application it is
    ip_access: IpAccess | None
    client_certificates: ClientCertificates | None
    bundles: frozenset[str]
    addresses: AddressRules | None = field(compare=False)  # `ip_access`, compiled

    @classmethod
    def from_wire(cls, wire: Mapping[str, Any], default_limit: tuple[int, int]) -> ApplicationRecord:
        """``default_limit`` is requests and seconds. Raises ValueError, with a sentence, for what does not compile."""
        grant = Grant(_application_limit(wire, default_limit), _versions(wire["versions"]))
        entries = tuple(_entry(entry, grant) for entry in wire["entries"])
        if not 0 <= wire["priority"] <= 9:
            raise ValueError(f"the priority must be from 0 to 9, not {wire['priority']}")
        policies = read_all(wire["policies"], APPLICATION_POLICIES)
        return cls(
            id=wire["id"],
            tenant_id=wire["tenant"],
            name=wire["name"],
            services=_names(wire["services"]),
            is_listed=wire["endpoint_mode"] == "listed",
            grant=grant,
            entries=entries,
            whitelist=_whitelist(entries) if entries else None,
            priority=wire["priority"],
            upstream_line=f"x-gateway-application: {wire['id']}\r\n".encode("ascii"),
            **policies,
            bundles=frozenset(wire.get("bundles", ())),
            addresses=compile_addresses(policies["ip_access"]),
        )


def _application_limit(wire: Mapping[str, Any], default_limit: tuple[int, int]) -> LimitPolicy:
    if wire["rate_limit"] is None:
        return LimitPolicy.of(wire["id"], DEFAULT, *default_limit)
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

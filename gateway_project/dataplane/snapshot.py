"""The frozen configuration that requests run on, built whole by a full load or from the one before by a delta.

A request captures one `Snapshot` and keeps it. Both ways of building take wire records (`core.wire`) and skip, and
report, what does not compile: it never replaces what runs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from sys import intern
from typing import Any

from access.certificates import CertificateIndex
from access.limits.records import LimitIndex, LimitRecord
from access.policy import PublicIndex
from access.records import ApplicationRecord
from access.tokens.records import IssuerRecord
from core.shards import ShardMap
from core.wire import KINDS
from keys.records import KeyRecord
from queues.records import QueueRouteRecord
from routing.records import GatewayRecord, RouteRecord, ServiceRecord
from routing.table import RouteTable

NO_CERTIFICATES = CertificateIndex()
Problem = dict[str, str]  # "kind", "id", "name", "error"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The configuration at one revision. ``token`` tells its history from another one with the same numbers."""

    revision: int
    token: str
    keys: ShardMap[KeyRecord]  # by digest
    applications: Mapping[str, ApplicationRecord]  # by id
    services: Mapping[str, ServiceRecord]  # by name
    routes: RouteTable
    queue_routes: Mapping[str, QueueRouteRecord]  # by id
    public: PublicIndex
    gateway: GatewayRecord | None = None  # what holds for everything
    issuers: Mapping[str, IssuerRecord] = field(default_factory=dict)  # of tokens, by the claim iss
    limits: LimitIndex = field(default_factory=LimitIndex)
    certificates: CertificateIndex = NO_CERTIFICATES  # of clients, whose they are

    @classmethod
    def empty(cls) -> Snapshot:
        return cls(0, "", ShardMap(), {}, {}, RouteTable(), {}, PublicIndex(), certificates=CertificateIndex())


class DigestIndex:
    """Digests by key id, in many small dicts: one of 100,000 entries takes 3 ms whenever it grows or goes."""

    __slots__ = ("_shards",)

    def __init__(self) -> None:
        self._shards: tuple[dict[str, bytes], ...] = tuple({} for _ in range(256))

    def put(self, key_id: str, digest: bytes) -> None:
        self._shards[hash(key_id) & 255][key_id] = digest

    def take(self, key_id: str) -> bytes | None:
        return self._shards[hash(key_id) & 255].pop(key_id, None)


@dataclass(slots=True)
class RecordIndex:
    """Under what the records that are not found by id stand in the snapshot.

    Mutable and beside the snapshot, because copying 100,000 entries for every change would stop the event loop.
    """

    digests: DigestIndex = field(default_factory=DigestIndex)
    names: dict[str, str] = field(default_factory=dict)  # service id → name
    routes: dict[str, RouteRecord] = field(default_factory=dict)  # by id
    issuers: dict[str, str] = field(default_factory=dict)  # issuer id → the claim iss


@dataclass(slots=True)
class RecordDelta:
    """What changes: compiled records to put and ids to drop, by kind."""

    put: dict[str, list[Any]] = field(default_factory=lambda: {kind: [] for kind in KINDS})
    drop: dict[str, list[str]] = field(default_factory=lambda: {kind: [] for kind in KINDS})


class RecordCompiler:
    """Wire records in, frozen records out. ``default_limit``, requests and seconds, is for applications without one."""

    def __init__(self, default_limit: tuple[int, int]) -> None:
        self._compile: Mapping[str, Callable[[Mapping[str, Any]], Any]] = {
            "service": ServiceRecord.from_wire,
            "route": RouteRecord.from_wire,
            "queue_route": QueueRouteRecord.from_wire,
            "gateway": GatewayRecord.from_wire,
            "application": lambda wire: ApplicationRecord.from_wire(wire, default_limit),
            "api_key": self._compile_key,
            "issuer": IssuerRecord.from_wire,
            "limit": LimitRecord.from_wire,
        }
        self._scopes: dict[tuple[str, ...], tuple[str, ...]] = {}
        self.problems: list[Problem] = []

    def compile(self, kind: str, wires: Collection[dict[str, Any]]) -> list[Any]:
        """The records of those that compile; the others are noted in ``problems``."""
        compile_one = self._compile.get(kind)
        if compile_one is None:  # an agent of a newer version
            self.problems.append({"kind": kind, "id": "", "name": "", "error": f"{kind} is unknown to this version"})
            return []
        records = []
        for wire in wires:
            try:
                records.append(compile_one(wire))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                self.problems.append(problem(kind, wire, error))
        return records

    def _compile_key(self, wire: Mapping[str, Any]) -> KeyRecord:
        """100,000 keys share few applications and scopes: one string of each instead of one per key."""
        scopes = tuple(wire["scopes"])
        application = wire["application"]
        return KeyRecord.from_wire(
            {
                **wire,
                "tenant": intern(wire["tenant"]),
                "application": application and intern(application),
                "scopes": self._scopes.setdefault(scopes, scopes),
            }
        )


def problem(kind: str, wire: Mapping[str, Any], error: Exception) -> Problem:
    return {
        "kind": kind,
        "id": str(wire.get("id", "")),
        "name": str(wire.get("name", "")),
        "error": f"{error}" if isinstance(error, ValueError) else f"{type(error).__name__}: {error}",
    }


class SnapshotBuilder:
    """A full load. Records come in slices; nobody sees the snapshot before `finish`."""

    def __init__(self, default_limit: tuple[int, int]) -> None:
        self._compiler = RecordCompiler(default_limit)
        self._snapshot = Snapshot.empty()
        self._services: dict[str, ServiceRecord] = {}
        self._applications: dict[str, ApplicationRecord] = {}
        self._queue_routes: dict[str, QueueRouteRecord] = {}
        self._gateway: GatewayRecord | None = None
        self._issuers: dict[str, IssuerRecord] = {}
        self._limits = LimitIndex()
        self.index = RecordIndex()

    @property
    def problems(self) -> list[Problem]:
        return self._compiler.problems

    def add(self, kind: str, wires: Collection[dict[str, Any]]) -> None:
        """Take some records. Costs up to 30 µs for each of them."""
        records = self._compiler.compile(kind, wires)
        if kind == "api_key":
            for key in records:
                self._snapshot.keys.load(key.digest, key)
                self.index.digests.put(key.id, key.digest)
        elif kind == "service":
            for service in records:
                self._services[service.name] = service
                self.index.names[service.id] = service.name
        elif kind == "route":
            for route in records:
                self._snapshot.routes.load(route)
                self.index.routes[route.id] = route
        elif kind == "application":
            for application in records:
                self._applications[application.id] = application
                self._snapshot.public.load(application)
                self._snapshot.certificates.load(application)
        elif kind == "queue_route":
            self._queue_routes.update((record.id, record) for record in records)
        elif kind == "issuer":
            for issuer in records:
                self._issuers[issuer.issuer] = issuer
                self.index.issuers[issuer.id] = issuer.issuer
        elif kind == "limit":
            self._limits = self._limits.changed(records, [])
        elif kind == "gateway":
            self._gateway = _changed_gateway(None, records, [])

    def finish(self, revision: int, token: str) -> Snapshot:
        parts = self._snapshot
        return Snapshot(
            revision,
            token,
            parts.keys,
            self._applications,
            self._services,
            parts.routes,
            self._queue_routes,
            parts.public,
            self._gateway,
            self._issuers,
            limits=self._limits,
            certificates=parts.certificates,
        )


def apply_delta(snapshot: Snapshot, index: RecordIndex, delta: RecordDelta, revision: int, token: str) -> Snapshot:
    """The snapshot after a change; ``index`` moves along with it. Costs as much as the change does, but for the copy
    of the dictionaries of services and applications if some of those change."""
    put, drop = delta.put, delta.drop
    touched = _touched(put["application"], drop["application"])
    former = [found for each in touched if (found := snapshot.applications.get(each)) is not None]
    return Snapshot(
        revision,
        token,
        _changed_keys(snapshot.keys, index.digests, put["api_key"], drop["api_key"]),
        _changed_by_id(snapshot.applications, put["application"], drop["application"]),
        _changed_by_name(snapshot.services, index.names, put["service"], drop["service"], attrgetter("name")),
        _changed_routes(snapshot.routes, index.routes, put["route"], drop["route"]),
        _changed_by_id(snapshot.queue_routes, put["queue_route"], drop["queue_route"]),
        snapshot.public.changed(put["application"], former),
        _changed_gateway(snapshot.gateway, put["gateway"], drop["gateway"]),
        _changed_by_name(snapshot.issuers, index.issuers, put["issuer"], drop["issuer"], attrgetter("issuer")),
        limits=snapshot.limits.changed(put["limit"], drop["limit"]),
        certificates=snapshot.certificates.changed(put["application"], former),
    )


def _changed_gateway(present: GatewayRecord | None, put: list[GatewayRecord], drop: list[str]) -> GatewayRecord | None:
    """There is one such record, or none."""
    if put:
        return put[-1]
    return None if drop else present


def _touched(put: list[Any], drop: list[str]) -> list[str]:
    """Ids whose former record goes, whether another takes its place or not; each once."""
    return list(dict.fromkeys((*drop, *(record.id for record in put))))


def _changed_by_id(records: Mapping[str, Any], put: list[Any], drop: list[str]) -> Mapping[str, Any]:
    if not put and not drop:
        return records
    changed = dict(records)
    for record_id in drop:
        changed.pop(record_id, None)
    changed.update((record.id, record) for record in put)
    return changed


def _changed_by_name(
    records: Mapping[str, Any], names: dict[str, str], put: list[Any], drop: list[str], name_of: Callable[[Any], str]
) -> Mapping[str, Any]:
    """``names``: present ones, by id. Former names go first, so that records can trade names within one revision."""
    if not put and not drop:
        return records
    changed = dict(records)
    for record_id in _touched(put, drop):
        name = names.pop(record_id, None)
        if name is not None:
            changed.pop(name, None)
    for record in put:
        name = name_of(record)
        changed[name] = record
        names[record.id] = name
    return changed


def _changed_routes(
    table: RouteTable, routes: dict[str, RouteRecord], put: list[RouteRecord], drop: list[str]
) -> RouteTable:
    if not put and not drop:
        return table
    former = [routes.pop(route_id, None) for route_id in _touched(put, drop)]
    routes.update((route.id, route) for route in put)
    return table.changed(put, [route for route in former if route is not None])


def _changed_keys(
    keys: ShardMap[KeyRecord], digests: DigestIndex, put: list[KeyRecord], drop: list[str]
) -> ShardMap[KeyRecord]:
    """A key whose digest was rebuilt no longer answers to the former one."""
    if not put and not drop:
        return keys
    gone = [digests.take(key_id) for key_id in _touched(put, drop)]
    for key in put:
        digests.put(key.id, key.digest)
    return keys.changed({key.digest: key for key in put}, [digest for digest in gone if digest is not None])

"""What a snapshot answers, as values that can be compared."""

from collections.abc import Iterable, Mapping
from itertools import product
from typing import Any

from access.limits.charges import LimitPolicy
from access.limits.records import Place
from core.faults import ClientFault
from gateway_project.dataplane.snapshot import Snapshot, SnapshotBuilder

DEFAULT_LIMIT = (1000, 3600)
_PATHS = [b"/api/a", b"/api/a/", b"/api/a/x", b"/api/a/x/y", b"/api/b/x", b"/api/v1/orders/7", b"/api/v1/mail/7"]
_BASE = LimitPolicy.of("base", "default", 10, 60)
_APPLICATIONS = ["app_1", "app_2", "app_3", ""]
_HOSTS = [b"api.example.com", b"other.example.com", b"localhost"]


def answers(snapshot: Snapshot) -> dict[str, Any]:
    """Equal for two snapshots that decide every request alike."""
    return {
        "keys": {key.digest: key for key in snapshot.keys.values()},
        "services": dict(snapshot.services),
        "queue_routes": dict(snapshot.queue_routes),
        "gateway": snapshot.gateway,
        "issuers": dict(snapshot.issuers),
        "limits": {each: snapshot.limits.plan(_place(*each), _BASE, 1) for each in product(_APPLICATIONS, _PATHS)},
        "certificates": {place: set(entries) for place, entries in snapshot.certificates._entries.items()},
        "applications": {
            id: (each.tenant_id, each.name, each.services, each.is_listed, each.grant, each.entries)
            for id, each in snapshot.applications.items()
        },
        "routes": {each: _route(snapshot, *each) for each in product(_HOSTS, _PATHS, (b"GET", b"POST"))},
        "public": {each: _public(snapshot, *each) for each in product(_PATHS, (b"GET", b"POST"), ("orders", "mail"))},
    }


def _place(application: str, path: bytes) -> Place:
    return Place("default", application, "web", ("orders",), "rte_1", "/api", b"GET", path)


def _route(snapshot: Snapshot, host: bytes, path: bytes, method: bytes) -> Any:
    try:
        return snapshot.routes.match(host, path, method)
    except ClientFault as fault:
        return fault.code, fault.detail


def _public(snapshot: Snapshot, path: bytes, method: bytes, destination: str) -> Any:
    found = snapshot.public.find(path, method, destination, tenant_id="default")
    return found and (found[0].id, found[1])


def built(records: Mapping[str, Iterable[dict[str, Any]]], revision: int = 1, token: str = "t") -> Snapshot:
    """The snapshot of a full load."""
    builder = SnapshotBuilder(DEFAULT_LIMIT)
    for kind, wires in records.items():
        builder.add(kind, list(wires))
    return builder.finish(revision, token)

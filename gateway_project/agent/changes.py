"""What the database says has changed: revisions, and the wire records that each of them concerns."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from django.db import connection, transaction

from access.end_users.compile import is_end_user_application
from access.models import RateLimit
from access.tokens.records import OWN_ISSUER_ID
from core.models import ConfigChange, ConfigRevision
from core.wire import KINDS
from gateway_project.agent.compiler import Compiled, compile_everything, compile_refs
from gateway_project.agent.store import Position, Ref
from routing.bundles import users_of
from routing.models import Route, ServiceVersion

_MANY_REVISIONS = 1_000  # above that reading everything is no more work
_MANY_REFS = 5_000


@dataclass(frozen=True, slots=True)
class Changes:
    """The revisions after a position, each with the records that it concerns, and these records as they are now."""

    steps: list[tuple[Position, frozenset[Ref]]]
    compiled: Compiled


class HistoryUnknown(Exception):
    """The database does not know the position: this is another history, and only reading everything helps."""


class TooManyChanges(Exception):
    """Reading everything is less work."""


def latest_position() -> Position:
    latest = ConfigRevision.objects.order_by("-number").values_list("number", "token").first()
    return Position(*latest) if latest else Position()


def changes_since(position: Position) -> Changes | None:
    """None: nothing has changed. Raises HistoryUnknown or TooManyChanges. Needs a reading thread (`agent.database`)."""
    if latest_position() == position:
        return None
    with transaction.atomic():
        if position.number and not _is_known(position):
            raise HistoryUnknown
        numbers = ConfigRevision.objects.filter(number__gt=position.number).order_by("number")
        revisions = [Position(*each) for each in numbers.values_list("number", "token")[: _MANY_REVISIONS + 1]]
        refs = _refs_by_revision(position.number)
        concerned = frozenset[Ref]().union(*refs.values())
        if not revisions or len(revisions) > _MANY_REVISIONS or len(concerned) > _MANY_REFS:
            raise TooManyChanges
        steps = [(revision, frozenset(refs.get(revision.number, ()))) for revision in revisions]
        return Changes(steps, compile_refs(concerned))


def everything() -> tuple[Position, Compiled]:
    """The whole configuration in one state. Needs a reading thread."""
    with transaction.atomic():
        return latest_position(), compile_everything()


def _is_known(position: Position) -> bool:
    return ConfigRevision.objects.filter(number=position.number, token=position.token).exists()


def _refs_by_revision(number: int) -> dict[int, set[Ref]]:
    changes = list(
        ConfigChange.objects.filter(revision_id__gt=number).values_list(
            "revision_id", "kind", "object_id", "before", "after"
        )
    )
    service_by_version = _services_of_versions(changes)
    refs: dict[int, set[Ref]] = defaultdict(set)
    for revision, kind, object_id, *states in changes:
        known = [state for state in states if state is not None]
        refs[revision].update(_refs_of(kind, object_id, known, service_by_version))
    return refs


def _services_of_versions(changes: Iterable[tuple[Any, ...]]) -> dict[str, str]:
    """For changed targets: the service of their version. That of a version that is gone has a change of its own."""
    versions = {
        state["version_id"]
        for _, kind, _, *states in changes
        if kind == "target"
        for state in states
        if state is not None
    }
    if not versions:
        return {}
    return dict(ServiceVersion.objects.filter(pk__in=versions).values_list("pk", "service_id"))


def _refs_of(kind: str, object_id: str, states: list[dict[str, Any]], service_by_version: dict[str, str]) -> set[Ref]:
    """The records that a change of a row reaches; ``states`` are the row before and after, as far as it existed."""
    refs: set[Ref] = set()
    if kind in KINDS:
        refs.add((kind, object_id))
    if kind == "end_user_role":
        refs.add(("limit", object_id))
    elif kind == "signing_key" or (
        kind == "application" and is_end_user_application(object_id, *(state["name"] for state in states))
    ):
        refs.add(("issuer", OWN_ISSUER_ID))
    if kind == "bundle":
        refs |= _refs_of_bundle(states)
    if kind in ("version", "route", "rollout"):  # a route takes the place of its service's implicit route
        refs.update(("service", state["service_id"]) for state in states if state["service_id"])
    elif kind == "target":
        services = (service_by_version.get(state["version_id"]) for state in states)
        refs.update(("service", service) for service in services if service is not None)
    elif kind == "whitelist_entry":
        refs.update(("application", state["application_id"]) for state in states)
    elif kind == "service" and len({state["name"] for state in states}) > 1:  # routes name it
        routes = Route.objects.filter(service_id=object_id).values_list("pk", flat=True)
        refs.update(("route", route) for route in routes)
    return refs


def _refs_of_bundle(states: list[dict[str, Any]]) -> set[Ref]:
    """What has the bundle, under its former name or the present one, and the limits that it names or named."""
    refs: set[Ref] = set()
    for state in states:
        refs.update((row.kind, row.pk) for row in users_of(state["tenant_id"], state["name"]))
    limits = {name for state in states for name in state["limits"]}
    tenants = {state["tenant_id"] for state in states}
    found = RateLimit.objects.filter(tenant_id__in=tenants, name__in=limits).values_list("pk", flat=True)
    refs.update(("limit", limit) for limit in found)
    return refs


def data_version() -> int:
    """SQLite's counter, which tells this connection whether another one has written since (sqlite.org/pragma.html)."""
    with connection.cursor() as cursor:
        cursor.execute("PRAGMA data_version")
        return int(cursor.fetchone()[0])

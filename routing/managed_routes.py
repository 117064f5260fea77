"""Use-cases: routes as one object with conditions and targets (R27), kept as a service, a version, targets and routes.

The object's service, version and targets are its own; it has one route for each of its conditions, and ``group`` on
these says to which object they belong. Everything goes through `routing.services`, all of it in one revision.
Documents are plain dicts in the shape of `routing.management`.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db.models import Exists, OuterRef, Q, QuerySet
from django.utils.text import slugify

from core.faults import ClientFault
from core.revisions import Actor, locked, revision, stale
from core.validation import NAME, invalid, service_name, taken
from queues.models import QueueRoute
from routing import services as use_cases
from routing.models import Route, ServiceConfig, ServiceTarget, ServiceVersion

VERSION = "v1"
Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ManagedRoute:
    """An object as it is kept. ``routes`` in the order of its conditions, never empty; ``targets`` of the version that
    answers. ``is_own`` False: the route was made elsewhere, and is only shown here."""

    id: str
    routes: list[Route]
    service: ServiceConfig | None
    version: ServiceVersion | None
    targets: list[ServiceTarget]
    is_own: bool

    @property
    def revision(self) -> int:
        """That last changed any of it."""
        rows = [*self.routes, self.service, self.version, *self.targets]
        return max(row.revision for row in rows if row is not None)

    @property
    def created_at(self) -> datetime:
        return min(route.created_at for route in self.routes)

    @property
    def updated_at(self) -> datetime:
        rows = [*self.routes, self.service, self.version, *self.targets]
        return max(row.updated_at for row in rows if row is not None)

    def __str__(self) -> str:
        return self.id


# --- reading -------------------------------------------------------------------------------------------------------
def leaders() -> QuerySet[Route]:
    """The first route of each object, and routes that belong to none."""
    earlier = Route.objects.filter(group=OuterRef("group"), group_position__lt=OuterRef("group_position"))
    return _with_all(Route.objects.filter(Q(group="") | ~Exists(earlier)))


def _with_all(routes: QuerySet[Route]) -> QuerySet[Route]:
    return routes.select_related("service").prefetch_related("service__versions__targets")


def managed_routes(firsts: Iterable[Route]) -> list[ManagedRoute]:
    """The objects of these leaders, in two queries more however many there are."""
    firsts = list(firsts)
    members: dict[str, list[Route]] = {}
    groups = [route.group for route in firsts if route.group]
    for route in Route.objects.filter(group__in=groups).order_by("group_position", "pk"):
        members.setdefault(route.group, []).append(route)
    return [_managed(first, members[first.group] if first.group else [first]) for first in firsts]


def _managed(first: Route, routes: list[Route]) -> ManagedRoute:
    service = first.service
    version = _answering(service, first.version) if service is not None else None
    targets = sorted(version.targets.all(), key=lambda target: target.pk) if version is not None else []
    return ManagedRoute(first.group or first.pk, routes, service, version, targets, bool(first.group))


def _answering(service: ServiceConfig, pinned: str) -> ServiceVersion | None:
    versions = {version.version: version for version in service.versions.all()}
    for name in (pinned, service.current_version, VERSION):
        if name in versions:
            return versions[name]
    return versions[min(versions)] if versions else None


def find_managed_route(id: str) -> ManagedRoute | None:
    """By the object's id, or that of a route that belongs to none."""
    first = leaders().filter(Q(group=id) | Q(group="", pk=id)).first()
    return None if first is None else managed_routes([first])[0]


# --- writing -------------------------------------------------------------------------------------------------------
def create_managed_route(*, id: str, document: Document, actor: Actor, source: str, reason: str = "") -> ManagedRoute:
    """``id`` empty: made of the name. Raises ClientFault; ``errors`` name the document's members."""
    author: Any = {"actor": actor, "source": source, "reason": reason}
    with revision(**author):
        group = id or slugify(document["name"])[:100]
        if not group:
            raise invalid("id", "The name holds no letter or digit to make an id of: give one.")
        if Route.objects.filter(Q(group=group) | Q(pk=group)).exists():
            raise taken("id", f"There is a route with the id {group!r} already.")
        with as_members({"load_balancing": "load_balance", "name": "id"}):
            service = use_cases.create_service(
                name=_free_name(group), current_version=VERSION, **_of_service(document, None), **author
            )
        with as_members({"url": "targets.0.host"}):
            url = _url(document["targets"][0])
            version = use_cases.create_version(service=service, version=VERSION, url=url, weight=100, **author)
        _write_targets(version, document["targets"], author)
        _write_routes(group, [], service, document, author)
    return _found(group)


def replace_managed_route(
    *,
    managed: ManagedRoute,
    document: Document,
    if_revision: int | None = None,
    actor: Actor,
    source: str,
    reason: str = "",
) -> ManagedRoute:
    """What the document cannot say (rewrites, sticky sessions, …) stays as it is."""
    author: Any = {"actor": actor, "source": source, "reason": reason}
    with revision(**author) as change:
        managed = _locked(managed, if_revision)
        service, version = managed.service, managed.version
        assert service is not None  # it is the object's own
        with as_members({"load_balancing": "load_balance"}):
            changes = _of_service(document, service.load_balancing)
            service = use_cases.update_service(service=service, changes=changes, **author)
        url = _url(document["targets"][0])
        with as_members({"url": "targets.0.host"}):
            if version is None:
                version = use_cases.create_version(service=service, version=VERSION, url=url, weight=100, **author)
            else:
                version = use_cases.update_version(version=version, changes={"url": url}, **author)
        _write_targets(version, document["targets"], author)
        routes = _write_routes(managed.id, managed.routes, service, document, author)
        if change.changes and all(route.revision != change.number for route in routes):
            change.touch(locked(routes[0]))  # so that the object's ETag is another one, even if only a target went
    return _found(managed.id)


def delete_managed_route(
    *, managed: ManagedRoute, if_revision: int | None = None, actor: Actor, source: str, reason: str = ""
) -> None:
    """With its service. Refused (``conflict``) while other routes lead there too."""
    author: Any = {"actor": actor, "source": source, "reason": reason}
    with revision(**author):
        managed = _locked(managed, if_revision)
        for route in managed.routes:
            use_cases.delete_route(route=route, **author)
        if managed.service is not None:
            use_cases.delete_service(service=managed.service, **author)


def _found(group: str) -> ManagedRoute:
    found = find_managed_route(group)
    assert found is not None
    return found


def _locked(managed: ManagedRoute, if_revision: int | None) -> ManagedRoute:
    """As it is now. Raises ClientFault ``conflict`` for one that was made elsewhere."""
    if not managed.is_own:
        where = f"/admin/routing/routes/{managed.id}"
        detail = f"This route shares its service with others and was made elsewhere: change it at {where}."
        raise ClientFault("conflict", detail)
    locked(managed.routes[0])
    current = find_managed_route(managed.id)
    if current is None:
        raise ClientFault("not_found", f"{managed.id!r} does not exist any more.")
    if if_revision is not None and current.revision != if_revision:
        raise stale(current.routes[0], if_revision, current.revision)
    return current


def _free_name(group: str) -> str:
    """Of the object's service: the id, as a service's name, which nobody else has."""
    base = slugify(group.replace("_", "-").replace(".", "-"))[:55].strip("-") or "route"
    names = [base, f"{base}-route", *(f"{base}-{number}" for number in range(2, 1000))]
    used = {*ServiceConfig._base_manager.filter(name__startswith=base).values_list("name", flat=True)}
    used |= {*QueueRoute._base_manager.filter(name__startswith=base).values_list("name", flat=True)}
    return next(name for name in names if name not in used and _is_service_name(name))


def _is_service_name(name: str) -> bool:
    if not NAME.fullmatch(name):
        return False
    try:
        service_name(name)
    except ValueError:
        return False  # a word of the gateway's own paths
    return True


def _of_service(document: Document, load_balancing: Mapping[str, Any] | None) -> dict[str, Any]:
    return {
        "description": document["description"],
        "load_balancing": {**(load_balancing or {}), "strategy": document["load_balance"]},
    }


def _url(target: Mapping[str, Any]) -> str:
    host = target["host"]
    literal = f"[{host}]" if ":" in host and not host.startswith("[") else host
    return f"{target['protocol']}://{literal}:{target['port']}"


def _write_targets(version: ServiceVersion, documents: list[Document], author: Any) -> None:
    """Targets are the same by their address."""
    present = {target.url: target for target in version.targets.all()}
    if not any(document["healthy"] for document in documents):
        raise invalid("targets", "At least one target must be healthy.")
    for place, document in enumerate(documents):
        fields = {"weight": document["weight"], "is_active": document["healthy"]}
        with as_members({"url": f"targets.{place}.host", "weight": f"targets.{place}.weight"}):
            target = present.pop(_url(document), None)
            if target is None:
                use_cases.create_target(version=version, url=_url(document), **fields, **author)
            else:
                use_cases.update_target(target=target, changes=fields, **author)
    for target in present.values():
        use_cases.delete_target(target=target, **author)


def _write_routes(
    group: str, present: list[Route], service: ServiceConfig, document: Document, author: Any
) -> list[Route]:
    """One for each condition, in order; those there are take over, what is too many goes."""
    conditions = document["conditions"]
    for route in present[len(conditions) :]:
        use_cases.delete_route(route=route, **author)
    routes = []
    for place, condition in enumerate(conditions):
        fields = _of_route(place, condition, document) | {"group": group, "group_position": place}
        with as_members(_ROUTE_MEMBERS, f"conditions.{place}."):
            if place < len(present):
                route = present[place]
                retries = fields.pop("retries")
                if retries is None or (route.retries or {}).get("attempts") != retries["attempts"]:
                    fields["retries"] = retries and {**(route.retries or {}), **retries}
                routes.append(use_cases.update_route(route=route, changes=fields, **author))
            else:
                routes.append(use_cases.create_route(service=service, **fields, **author))
    return routes


def _of_route(place: int, condition: Document, document: Document) -> dict[str, Any]:
    attempts = document["retries"]
    return {
        "name": document["name"] if place == 0 else f"{document['name']} ({place + 1})",
        "description": document["description"],
        "path": condition["path_pattern"],
        "methods": condition["methods"],
        "hosts": condition["hosts"],
        "conditions": _conditions(condition),
        "request_timeout_ms": document["timeout"],
        "retries": None if attempts is None else {"attempts": attempts},
        "requires_key": document["require_auth"],
        "priority": document["priority"],
        "is_active": document["enabled"],
    }


def _conditions(condition: Document) -> dict[str, Any] | None:
    """``*`` as a value: the field must be there."""
    policy = {
        kind: [
            {"name": name, "present": True} if value == "*" else {"name": name, "equals": value}
            for name, value in condition[member].items()
        ]
        for kind, member in (("headers", "headers"), ("query", "query_params"))
        if condition[member]
    }
    return policy or None


# Which member of the document a route's attribute comes from; what begins with a dot is one of a condition.
_ROUTE_MEMBERS = {
    "path": ".path_pattern",
    "methods": ".methods",
    "hosts": ".hosts",
    "conditions": ".headers",
    "conditions.query": ".query_params",
    "request_timeout_ms": "timeout",
    "requires_key": "require_auth",
    "is_active": "enabled",
}


@contextmanager
def as_members(members: Mapping[str, str], within: str = "") -> Iterator[None]:
    """Errors name members of the document instead of attributes."""
    try:
        yield
    except ClientFault as fault:
        errors = fault.members.get("errors")
        if not errors:
            raise
        renamed: dict[str, list[str]] = {}
        for field, sentences in errors.items():
            attribute = field.partition(".")[0].partition("[")[0]
            member = members.get(field.partition("[")[0]) or members.get(attribute, attribute)
            renamed.setdefault(within + member[1:] if member[:1] == "." else member, []).extend(sentences)
        detail = f"Not valid: {', '.join(sorted(renamed))}." if fault.code == "invalid_field" else fault.detail
        raise ClientFault(fault.code, detail, members={**fault.members, "errors": renamed}) from None

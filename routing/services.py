"""Use-cases: what admins do with services, versions, targets and routes, by panel, API or command.

Each is one revision (`core.revisions`): keyword-only, ``actor`` who, ``source`` panel, api or command, ``reason`` why.
``changes`` and ``fields`` go by the models' attribute names. They raise ClientFault: ``invalid_field`` with ``errors``
{field: [sentence, …]}, ``conflict``, ``not_found``, and ``stale_revision`` when ``if_revision`` is not the row's.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from django.db.models import Max
from django.utils import timezone

from access.services import forget_destination
from core.faults import ClientFault
from core.models import DEFAULT_TENANT, ConfigChange
from core.revisions import Actor, RevisionWriter, locked, revision, stale
from core.validation import FieldErrors, as_sentence, assign, check_policies, invalid, taken
from queues.models import QueueRoute
from routing.checks import (
    check_route,
    check_service,
    check_target,
    check_version,
    check_weight,
    known_versions,
    mirrored_version,
)
from routing.compile import compile_route, compile_service
from routing.models import GatewayPolicies, Route, ServiceConfig, ServiceTarget, ServiceVersion
from routing.policies import GATEWAY_POLICIES, ROUTE_POLICIES, SERVICE_POLICIES
from routing.records import RouteRecord, ServiceRecord

SERVICE_FIELDS = (
    "name", "description", "default_url", "current_version", "fallback_url", "path_prefix", "health_endpoint",
    "implicit_route", "request_timeout_ms", "connect_timeout_ms", "idle_timeout_ms", "total_timeout_ms",
    *SERVICE_POLICIES, "bundles", "upstream_credentials", "is_active",
)  # fmt: skip
VERSION_FIELDS = (
    "version", "url", "weight", "lifecycle", "deprecated_at", "sunset_at", "deprecation_link", "is_active",
)  # fmt: skip
TARGET_FIELDS = ("url", "weight", "is_active")
ROUTE_FIELDS = (
    "name", "description", "hosts", "path", "methods", "priority", "service", "queue_route", "version", "strip_prefix",
    "replace_prefix", "request_timeout_ms", "total_timeout_ms", "connect_timeout_ms", "idle_timeout_ms",
    *ROUTE_POLICIES, "bundles", "requires_key", "max_body_bytes", "allow_empty_segments",
    "retry_unsafe_methods", "pass_credentials", "is_active",
)  # fmt: skip
_ROUTE_COLUMNS = (*ROUTE_FIELDS, "group", "group_position")


# --- the gateway ---------------------------------------------------------------------------------------------------
def gateway_policies() -> GatewayPolicies:
    """The row, or one that is not stored yet (its ``revision`` is 0)."""
    return GatewayPolicies.objects.filter(pk=GatewayPolicies.ONLY_ID).first() or GatewayPolicies()


def update_gateway(
    *, changes: Mapping[str, Any], if_revision: int | None = None, actor: Actor, source: str, reason: str = ""
) -> GatewayPolicies:
    """``changes``: GATEWAY_POLICIES."""
    with revision(actor=actor, source=source, reason=reason) as change:
        row = gateway_policies()
        is_new = row.revision == 0
        if not is_new:
            row = locked(row)
        if if_revision is not None and if_revision != row.revision:
            raise stale(row, if_revision)
        before = row.recorded()
        assign(row, changes, GATEWAY_POLICIES)
        errors = FieldErrors()
        check_policies(row, GATEWAY_POLICIES, errors)
        errors.raise_any()
        if not is_new:
            change.save(row, before)
        elif row.recorded() != before:
            change.save_new(row)
    return row


# --- services ------------------------------------------------------------------------------------------------------
def create_service(*, actor: Actor, source: str, reason: str = "", **fields: Any) -> ServiceConfig:
    """``fields``: SERVICE_FIELDS; ``name`` is required."""
    with revision(actor=actor, source=source, reason=reason) as change:
        service = ServiceConfig()
        assign(service, fields, SERVICE_FIELDS)
        _validate_service(service)
        refuse_taken_name(service.name)
        change.save_new(service)
        _refuse_what_does_not_compile(service)
    return service


def update_service(
    *,
    service: ServiceConfig,
    changes: Mapping[str, Any],
    if_revision: int | None = None,
    actor: Actor,
    source: str,
    reason: str = "",
) -> ServiceConfig:
    """``changes``: SERVICE_FIELDS. The name stays: clients' URLs and applications' permissions are made of it. Refused
    (``conflict``, ``routes``: names) while a route pins a version that would go with the default URL."""
    with revision(actor=actor, source=source, reason=reason) as change:
        current = locked(service, if_revision)
        before = current.recorded()
        assign(current, changes, SERVICE_FIELDS)
        if current.name != before["name"]:
            raise invalid(
                "name", "The name cannot change: clients and applications use it. Make another service instead."
            )
        _validate_service(current)
        _refuse_to_unpin(current)
        change.save(current, before)
        _refuse_what_does_not_compile(current)
    return current


def _refuse_to_unpin(service: ServiceConfig) -> None:
    """Another default URL or current version may take away the version that a route pins."""
    unpinned = service.routes.exclude(version="").exclude(version__in=known_versions(service)).order_by("name")
    names = list(unpinned.values_list("name", flat=True))
    refuse_while_routed(names, f"a version of {service.name} that this would take away")


def delete_service(
    *, service: ServiceConfig, if_revision: int | None = None, actor: Actor, source: str, reason: str = ""
) -> None:
    """With its versions, targets and rollouts, and its name in applications' permissions. Refused (``conflict``,
    ``routes``: names) while routes lead to it."""
    with revision(actor=actor, source=source, reason=reason) as change:
        current = locked(service, if_revision)
        refuse_while_routed(_routes_to(current), current.name)
        for rollout in current.rollouts.all():
            change.delete(rollout)
        for version in current.versions.all():
            _delete_version(change, version)
        change.delete(current)
        forget_destination(change, current.name)


def _routes_to(service: ServiceConfig) -> list[str]:
    """The names of routes that lead to the service, or make their answer of it."""
    aggregating = Route.objects.filter(tenant_id=service.tenant_id, aggregation__isnull=False)
    made_of_it = [
        name
        for name, aggregation in aggregating.values_list("name", "aggregation")
        if aggregation and any(part["service"] == service.name for part in aggregation["parts"])
    ]
    return sorted([*service.routes.values_list("name", flat=True), *made_of_it])


def set_weights(
    *,
    service: ServiceConfig,
    weights: Mapping[str, int],
    if_revision: int | None = None,
    actor: Actor,
    source: str,
    reason: str = "",
) -> list[ServiceVersion]:
    """Weights by version name, 0 to 10000, in one revision; versions not named keep theirs. Returns all versions.

    ``if_revision`` is `weights_revision`: the split is one thing that two admins may change at once.
    """
    with revision(actor=actor, source=source, reason=reason) as change:
        current = locked(service)
        present = weights_revision(current)
        if if_revision is not None and if_revision != present:
            raise stale(current, if_revision, present)
        versions = {version.version: version for version in current.versions.select_for_update().order_by("version")}
        errors = FieldErrors()
        for name, weight in weights.items():
            if name not in versions:
                errors.add(f"weights.{name}", f"{current.name} has no version {name[:80]!r}.")
            check_weight(weight, f"weights.{name}", errors)
        errors.raise_any()
        for name, weight in weights.items():
            before = versions[name].recorded()
            versions[name].weight = weight
            change.save(versions[name], before)
    return list(versions.values())


def weights_revision(service: ServiceConfig) -> int:
    """The revision that last changed any of the service's versions, or took one away."""
    gone = ConfigChange.objects.filter(
        kind=ServiceVersion.kind, operation=ConfigChange.Operation.DELETE, before__service_id=service.pk
    )
    return max(
        service.versions.aggregate(latest=Max("revision"))["latest"] or 0,
        gone.aggregate(latest=Max("revision_id"))["latest"] or 0,
    )


def reset_circuits(*, service: ServiceConfig, actor: Actor, source: str, reason: str = "") -> ServiceConfig:
    """Close the circuits of all its targets, on all hosts: it travels by the feed, so it is acknowledged (rule 27)."""
    with revision(actor=actor, source=source, reason=reason or "circuits reset") as change:
        current = locked(service)
        before = current.recorded()
        current.circuit_resets += 1
        change.save(current, before)
    return current


def _validate_service(service: ServiceConfig) -> None:
    errors = FieldErrors()
    check_service(service, errors)
    errors.raise_any()


def _refuse_what_does_not_compile(service: ServiceConfig) -> None:
    """The gateways' own judgement, so that nothing is stored that they would have to skip."""
    try:
        ServiceRecord.from_wire(compile_service(service))
    except ValueError as error:
        raise invalid("body", as_sentence(error)) from None


def refuse_taken_name(name: str) -> None:
    """Services and queue routes share one namespace: applications name both in ``allowedServices``. It is that of the
    gateway's URLs, so no tenant has a name that another one has."""
    if ServiceConfig._base_manager.filter(name=name).exists():
        raise taken("name", f"A service named {name!r} exists already.")
    if QueueRoute._base_manager.filter(name=name).exists():
        raise taken("name", f"A queue route is named {name!r}: services and queue routes share one set of names.")


def refuse_while_routed(routes: list[str], name: str) -> None:
    if routes:
        shown = ", ".join(routes[:5]) + (f" and {len(routes) - 5} more" if len(routes) > 5 else "")
        raise ClientFault("conflict", f"Routes lead to {name}: {shown}. Delete them first.", members={"routes": routes})


# --- versions ------------------------------------------------------------------------------------------------------
def create_version(
    *, service: ServiceConfig, actor: Actor, source: str, reason: str = "", **fields: Any
) -> ServiceVersion:
    """``fields``: VERSION_FIELDS; ``version`` and ``url`` are required. The weight is 0 unless given (rule 4)."""
    with revision(actor=actor, source=source, reason=reason) as change:
        version = ServiceVersion(service=locked(service))
        assign(version, fields, VERSION_FIELDS)
        _note_deprecation(version, None)
        _validate_version(version)
        twin = version.service.versions.filter(version__in=_spellings(version.version)).first()
        if twin is not None:
            raise taken("version", f"{version.service.name} has a version {twin.version!r} already.")
        change.save_new(version)
        _refuse_what_does_not_compile(version.service)
    return version


def update_version(
    *,
    version: ServiceVersion,
    changes: Mapping[str, Any],
    if_revision: int | None = None,
    actor: Actor,
    source: str,
    reason: str = "",
) -> ServiceVersion:
    """``changes``: VERSION_FIELDS. The name of a version stays. One that routes pin is not retired (``conflict``,
    ``routes``: names)."""
    with revision(actor=actor, source=source, reason=reason) as change:
        current = locked(version, if_revision)
        before = current.recorded()
        deprecated_at = current.deprecated_at
        assign(current, changes, VERSION_FIELDS)
        _note_deprecation(current, deprecated_at)
        if current.version != before["version"]:
            raise invalid(
                "version", "A version's name cannot change: clients ask for it. Make another version instead."
            )
        _validate_version(current)
        if current.lifecycle == ServiceVersion.Lifecycle.RETIRED:
            refuse_while_routed(_routes_pinning(current), str(current))
        change.save(current, before)
        _refuse_what_does_not_compile(current.service)
    return current


def _note_deprecation(version: ServiceVersion, former: datetime | None) -> None:
    """Callers are told since when (RFC 9745 section 2.1): since now, where nobody says otherwise."""
    if version.lifecycle == ServiceVersion.Lifecycle.DEPRECATED and version.deprecated_at is None:
        version.deprecated_at = former or timezone.now().replace(microsecond=0)  # HTTP tells seconds


def _routes_pinning(version: ServiceVersion) -> list[str]:
    pinned = version.service.routes.filter(version=version.version).order_by("name")
    return list(pinned.values_list("name", flat=True))


def delete_version(
    *, version: ServiceVersion, if_revision: int | None = None, actor: Actor, source: str, reason: str = ""
) -> None:
    """With its targets. Refused (``conflict``, ``routes``: names) while routes pin it."""
    with revision(actor=actor, source=source, reason=reason) as change:
        current = locked(version, if_revision)
        refuse_while_routed(_routes_pinning(current), str(current))
        if current.version == mirrored_version(current.service):
            detail = f"{current.service.name} mirrors requests to {current.version}: choose another version first."
            raise ClientFault("conflict", detail)
        _delete_version(change, current)


def _delete_version(change: RevisionWriter, version: ServiceVersion) -> None:
    for target in version.targets.all():
        change.delete(target)
    change.delete(version)


def _spellings(version: str) -> list[str]:
    """``2`` and ``v2`` are the same name (rule 4)."""
    number = version.removeprefix("v")
    return [number, f"v{number}"] if number.isdigit() else [version]


def _validate_version(version: ServiceVersion) -> None:
    errors = FieldErrors()
    check_version(version, errors)
    errors.raise_any()


# --- targets -------------------------------------------------------------------------------------------------------
def create_target(
    *, version: ServiceVersion, actor: Actor, source: str, reason: str = "", **fields: Any
) -> ServiceTarget:
    """``fields``: TARGET_FIELDS; ``url`` (scheme, host, port) is required."""
    with revision(actor=actor, source=source, reason=reason) as change:
        target = ServiceTarget(version=locked(version))
        assign(target, fields, TARGET_FIELDS)
        _validate_target(target)
        change.save_new(target)
        _refuse_what_does_not_compile(target.version.service)
    return target


def update_target(
    *,
    target: ServiceTarget,
    changes: Mapping[str, Any],
    if_revision: int | None = None,
    actor: Actor,
    source: str,
    reason: str = "",
) -> ServiceTarget:
    """``changes``: TARGET_FIELDS."""
    with revision(actor=actor, source=source, reason=reason) as change:
        current = locked(target, if_revision)
        before = current.recorded()
        assign(current, changes, TARGET_FIELDS)
        _validate_target(current)
        change.save(current, before)
        _refuse_what_does_not_compile(current.version.service)
    return current


def delete_target(
    *, target: ServiceTarget, if_revision: int | None = None, actor: Actor, source: str, reason: str = ""
) -> None:
    with revision(actor=actor, source=source, reason=reason) as change:
        change.delete(locked(target, if_revision))


def _validate_target(target: ServiceTarget) -> None:
    errors = FieldErrors()
    check_target(target, errors)
    errors.raise_any()
    if target.version.targets.filter(url=target.url).exclude(pk=target.pk).exists():
        raise taken("url", f"{target.version} has the target {target.url} already.")


# --- routes --------------------------------------------------------------------------------------------------------
def create_route(*, actor: Actor, source: str, reason: str = "", **fields: Any) -> Route:
    """``fields``: ROUTE_FIELDS, ``group`` and ``group_position``; ``name``, ``path`` and one of ``service``,
    ``queue_route``, ``aggregation`` are required."""
    with revision(actor=actor, source=source, reason=reason) as change:
        route = Route()
        assign(route, fields, _ROUTE_COLUMNS)
        _validate_route(route)
        change.save_new(route)
    return route


def update_route(
    *,
    route: Route,
    changes: Mapping[str, Any],
    if_revision: int | None = None,
    actor: Actor,
    source: str,
    reason: str = "",
) -> Route:
    """``changes``: ROUTE_FIELDS, ``group`` and ``group_position``."""
    with revision(actor=actor, source=source, reason=reason) as change:
        current = locked(route, if_revision)
        before = current.recorded()
        assign(current, changes, _ROUTE_COLUMNS)
        _validate_route(current)
        change.save(current, before)
    return current


def delete_route(*, route: Route, if_revision: int | None = None, actor: Actor, source: str, reason: str = "") -> None:
    with revision(actor=actor, source=source, reason=reason) as change:
        change.delete(locked(route, if_revision))


def _validate_route(route: Route) -> None:
    errors = FieldErrors()
    check_route(route, errors)
    errors.raise_any()
    try:
        RouteRecord.from_wire(compile_route(route))
    except ValueError as error:
        raise invalid("path", as_sentence(error)) from None
    if Route.objects.filter(tenant_id=route.tenant_id, name=route.name).exclude(pk=route.pk).exists():
        raise taken("name", f"A route named {route.name!r} exists already.")
    _refuse_anothers_path(route)


def _refuse_anothers_path(route: Route) -> None:
    """Rule 26. Explicit routes go before the implicit ones of everybody's services: below ``/api/v1/{first}`` is
    whoever has a service, a queue route or a route there."""
    parts = [*route.path.split("/"), ""][2:4]
    if any("{" in part or "*" in part for part in parts):
        if route.tenant_id != DEFAULT_TENANT:
            raise invalid("path", "The two segments after /api are literal, so that no other tenant's paths are below.")
        return
    first, own = parts[1], {"tenant_id": route.tenant_id}
    paths = Route._base_manager.exclude(**own).values_list("path", flat=True)
    if not first:
        is_held = paths.filter(path=route.path).exists()
    else:
        named = (rows._base_manager.exclude(**own).filter(name=first) for rows in (ServiceConfig, QueueRoute))
        is_held = any(rows.exists() for rows in named) or any(path.split("/")[3:4] == [first] for path in paths)
    if is_held:
        raise taken("path", f"Paths below /api/…/{first} are taken already." if first else "The path is taken already.")

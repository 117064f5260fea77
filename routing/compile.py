"""Rows of services and routes → the wire records that agent and workers run on (`routing.records`)."""

from collections.abc import Iterable
from typing import Any

from django.db.models import Model, Prefetch, QuerySet

from access.bundles import with_bundles
from routing.models import GatewayPolicies, Rollout, Route, ServiceConfig, ServiceTarget, ServiceVersion
from routing.policies import GATEWAY_POLICIES, ROUTE_POLICIES, SERVICE_POLICIES


def gateway_to_compile() -> QuerySet[GatewayPolicies]:
    return GatewayPolicies.objects.order_by("pk")


def compile_gateway(row: GatewayPolicies) -> dict[str, Any]:
    """What `GatewayRecord.from_wire` reads."""
    policies = _own(row, GATEWAY_POLICIES)
    return {"id": row.pk, "tenant": row.tenant_id, "name": str(row), "policies": policies}


def _own(row: Model, names: Iterable[str]) -> dict[str, Any]:
    """What the row says itself, by name of the policy."""
    return {name: document for name in names if (document := getattr(row, name)) is not None}


def services_to_compile() -> QuerySet[ServiceConfig]:
    """Services with all that `compile_service` looks at, in five queries however many there are."""
    targets = Prefetch("targets", ServiceTarget.objects.order_by("id"))
    return ServiceConfig.objects.order_by("pk").prefetch_related(
        Prefetch("versions", ServiceVersion.objects.order_by("version").prefetch_related(targets)),
        Prefetch("routes", Route.objects.order_by().only("pk", "service_id")),
        Prefetch("rollouts", Rollout.objects.order_by().filter(status__in=Rollout.OPEN)),
    )


def compile_service(service: ServiceConfig) -> dict[str, Any]:
    """What `ServiceRecord.from_wire` reads. A route, even a disabled one, takes the implicit route's place (rule 2)."""
    return {
        "id": service.pk,
        "tenant": service.tenant_id,
        "name": service.name,
        "versions": [_version(version) for version in service.versions.all() if version.is_active],
        "current_version": service.current_version,
        "default_url": service.default_url,
        "fallback_url": service.fallback_url,
        "path_prefix": service.path_prefix,
        "implicit": service.is_active and (service.implicit_route or not service.routes.all()),
        "is_active": service.is_active,
        "phase": next((phase(rollout) for rollout in service.rollouts.all() if rollout.is_open), ""),
        "request_timeout_ms": service.request_timeout_ms,
        "connect_timeout_ms": service.connect_timeout_ms,
        "idle_timeout_ms": service.idle_timeout_ms,
        "total_timeout_ms": service.total_timeout_ms,
        "health_endpoint": service.health_endpoint,
        "upstream_credentials": service.upstream_credentials,
        "circuit_resets": service.circuit_resets,
        "policies": with_bundles(service, _own(service, SERVICE_POLICIES), SERVICE_POLICIES),
        "bundles": service.bundles,
    }


def phase(rollout: Rollout) -> str:
    """What tells the requests of one step from all others."""
    return f"{rollout.pk}/{rollout.step}"


def _version(version: ServiceVersion) -> dict[str, Any]:
    return {
        "name": version.version,
        "weight": version.weight,
        "url": version.url,
        "targets": [[target.url, target.weight] for target in version.targets.all() if target.is_active],
        "lifecycle": version.lifecycle,
        "deprecated_at": version.deprecated_at and version.deprecated_at.timestamp(),
        "sunset_at": version.sunset_at and version.sunset_at.timestamp(),
        "deprecation_link": version.deprecation_link,
    }


def routes_to_compile() -> QuerySet[Route]:
    return Route.objects.order_by("pk").select_related("service")


def compile_route(route: Route) -> dict[str, Any]:
    """What `RouteRecord.from_wire` reads. Disabled routes too: they answer 404 and nothing else does in their place."""
    return {
        "id": route.pk,
        "tenant": route.tenant_id,
        "name": route.name,
        "hosts": route.hosts,
        "path": route.path,
        "methods": route.methods,
        "priority": route.priority,
        "is_active": route.is_active,
        "service": None if route.service is None else route.service.name,
        "queue_route": route.queue_route_id,
        "version": route.version,
        "strip_prefix": route.strip_prefix,
        "replace_prefix": route.replace_prefix,
        "request_timeout_ms": route.request_timeout_ms,
        "total_timeout_ms": route.total_timeout_ms,
        "max_body_bytes": route.max_body_bytes,
        "allow_empty_segments": route.allow_empty_segments,
        "retry_unsafe_methods": route.retry_unsafe_methods,
        "pass_credentials": route.pass_credentials,
        "connect_timeout_ms": route.connect_timeout_ms,
        "idle_timeout_ms": route.idle_timeout_ms,
        "requires_key": route.requires_key,
        "policies": with_bundles(route, _own(route, ROUTE_POLICIES), ROUTE_POLICIES),
        "bundles": route.bundles,
    }

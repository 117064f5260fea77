"""Rows of services and routes → the wire records that agent and workers run on (`routing.records`)."""

from collections.abc import Mapping
from math import gcd
from typing import Any

from django.db.models import Prefetch, QuerySet

from routing.models import Route, ServiceConfig, ServiceTarget, ServiceVersion

MAX_TURNS = 100


def services_to_compile() -> QuerySet[ServiceConfig]:
    """Services with all that `compile_service` looks at, in four queries however many there are."""
    targets = Prefetch("targets", ServiceTarget.objects.order_by("id"))
    return ServiceConfig.objects.order_by("pk").prefetch_related(
        Prefetch("versions", ServiceVersion.objects.order_by("version").prefetch_related(targets)),
        Prefetch("routes", Route.objects.order_by().only("pk", "service_id")),
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
        "request_timeout_ms": service.request_timeout_ms,
    }


def _version(version: ServiceVersion) -> dict[str, Any]:
    return {
        "name": version.version,
        "weight": version.weight,
        "url": version.url,
        "targets": turns({target.url: target.weight for target in version.targets.all() if target.is_active}),
    }


def turns(weights: Mapping[str, int]) -> list[str]:
    """The order in which targets take turns: each as often as its weight says, spread evenly (smooth weighted round
    robin). A target with weight 0 takes none, unless all have it. Weights that need more than 100 turns are rounded."""
    total = sum(weights.values())
    if total == 0:  # nobody is preferred
        return list(weights)
    scale = min(1.0, MAX_TURNS / total)
    shares = {url: max(1, round(weight * scale)) for url, weight in weights.items() if weight}
    divisor = gcd(*shares.values())
    shares = {url: share // divisor for url, share in shares.items()}
    credit = dict.fromkeys(shares, 0)
    order = []
    for _ in range(sum(shares.values())):
        for url, share in shares.items():
            credit[url] += share
        turn = max(credit, key=credit.__getitem__)
        credit[turn] -= sum(shares.values())
        order.append(turn)
    return order


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
    }

"""Commands to copy: how a client would call what a page shows."""

from collections.abc import Iterable
from dataclasses import dataclass
from shlex import quote

from django.conf import settings
from django.http import HttpRequest
from django.http.request import split_domain_port

from routing.models import ServiceConfig

PLACEHOLDER = "YOUR_API_KEY"
_MOST_SERVICES = 50  # looked at for one that can be called as it is


@dataclass(frozen=True, slots=True)
class Call:
    path: str
    method: str = "GET"


def first_call(allowed: Iterable[str]) -> Call | None:
    """A call that an application with these ``allowedServices`` can make: by an implicit route, else by an explicit
    one that asks for no certain host (rule 2)."""
    names = list(allowed)
    services = ServiceConfig.objects.filter(is_active=True).order_by("pk").prefetch_related("routes")
    if "*" not in names:
        services = services.filter(name__in=names)
    return next(filter(None, map(call_of, services[:_MOST_SERVICES])), None)


def call_of(service: ServiceConfig) -> Call | None:
    """How a service is reached; None when only by a host name."""
    routes = sorted(service.routes.all(), key=lambda route: route.name)
    if service.implicit_route or not routes:
        return Call(f"/api/v1/{service.name}/")
    plain = next((route for route in routes if route.is_active and not route.hosts), None)
    return Call(example_path(plain.path), example_method(plain.methods)) if plain else None


def gateway_url(request: HttpRequest) -> str:
    """Where clients reach the gateway, seen from whoever looks at the panel."""
    host, _ = split_domain_port(request.get_host())
    return f"http://{host}:{settings.PORT}"


def curl(request: HttpRequest, path: str, method: str = "GET", *, key: str = PLACEHOLDER, body: str = "") -> str:
    """One command on a few short lines; an empty ``key`` leaves the header out."""
    lines = ["curl -i" if method == "GET" else f"curl -i -X {quote(method)}"]
    if key:
        lines.append(f"-H {quote(f'{settings.API_KEY_HEADER}: {key}')}")
    if body:
        lines += ["-H 'Content-Type: application/json'", f"-d {quote(body)}"]
    return " \\\n  ".join([*lines, quote(gateway_url(request) + path)])


def example_path(pattern: str) -> str:
    """A path that a pattern covers: ``/api/v1/orders/{id}/*`` → ``/api/v1/orders/id/…``."""
    return "/".join(segment.strip("{}").replace("*", "x") for segment in pattern.split("/"))


def example_method(methods: Iterable[str]) -> str:
    listed = list(methods)
    return "GET" if not listed or "GET" in listed or listed == ["*"] else listed[0]

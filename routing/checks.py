"""What must hold of services, versions, targets and routes before they are stored. Sentences go into `FieldErrors`."""

import re
from ipaddress import IPv6Address, ip_address
from urllib.parse import urlsplit

from access.addresses import EgressPolicy
from core.path_trie import compile_pattern
from core.uri_path import canonical_path
from core.validation import METHOD, FieldErrors, service_name, version_name
from routing.models import Route, ServiceConfig, ServiceTarget, ServiceVersion
from routing.records import TargetRecord

_OWN_PATHS = (b"/api/v1/tasks", b"/api/v1/management")
# Names as DNS has them (RFC 1123 section 2.1), and underscores, which container networks use.
_NAME = r"(?=[^:]{1,253}(?::|\Z))(?!-)[a-z0-9_-]{1,63}(?<!-)(?:\.(?!-)[a-z0-9_-]{1,63}(?<!-))*"
_ADDRESS = r"\[[0-9a-f:.]+\]"
_HOST = re.compile(rf"(\*\.)?{_NAME}|{_ADDRESS}")
_AUTHORITY = re.compile(rf"(?:{_NAME}\.?|{_ADDRESS})(?::[0-9]*)?")
_TO_BE_ENCODED = re.compile(r'["<>^`{|}]')  # clients send them as they are, and an upstream may refuse that
# Private networks are the operator's to open (EGRESS_ALLOW) and judged when a connection is made, like names.
_ANYWHERE = EgressPolicy(("0.0.0.0/0", "::/0"))


def upstream_url(url: str) -> None:
    """An http(s) URL that a request may be sent to (rule 25). Raises ValueError."""
    target, path = TargetRecord.from_url(url)
    if not _AUTHORITY.fullmatch(urlsplit(url).netloc.lower()):
        raise ValueError("the URL's host is neither a name nor an address")
    if path:
        plain_path(path.decode("ascii"))
    host = target.origin[1]
    if _is_address(host) and not _ANYWHERE.permits(host):
        raise ValueError(f"the gateway never calls {host}: link-local, metadata, multicast and reserved addresses")


def _is_address(host: str) -> bool:
    try:
        ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


def target_url(url: str) -> None:
    """Scheme, host and port only. Raises ValueError."""
    upstream_url(url)
    if TargetRecord.from_url(url)[1]:
        raise ValueError("a target is a scheme, a host and a port: the path belongs to its version's URL")


def plain_path(path: str) -> None:
    """A literal path or prefix of one, as it is sent to upstreams. Raises ValueError."""
    if _TO_BE_ENCODED.search(path):
        raise ValueError('the path holds one of " < > ^ ` { | }, which must be percent-encoded')
    canonical = canonical_path(path.encode("utf-8", "surrogatepass"))
    if b"//" in canonical:
        raise ValueError("the path holds an empty segment (//)")


def check_service(service: ServiceConfig, errors: FieldErrors) -> None:
    errors.check_columns(service)
    errors.check("name", lambda: service_name(service.name))
    for field in ("default_url", "fallback_url"):
        if getattr(service, field):
            errors.check(field, lambda field=field: upstream_url(getattr(service, field)))  # type: ignore[misc]
    for field in ("path_prefix", "health_endpoint"):
        if getattr(service, field):
            errors.check(field, lambda field=field: plain_path(getattr(service, field)))  # type: ignore[misc]
    if service.current_version:
        errors.check("current_version", lambda: version_name(service.current_version))
    _check_timeout(service, "request_timeout_ms", errors)


def check_version(version: ServiceVersion, errors: FieldErrors) -> None:
    errors.check_columns(version)
    errors.check("version", lambda: version_name(version.version))
    errors.check("url", lambda: upstream_url(version.url))
    check_weight(version.weight, "weight", errors)


def check_target(target: ServiceTarget, errors: FieldErrors) -> None:
    errors.check_columns(target)
    errors.check("url", lambda: target_url(target.url))
    check_weight(target.weight, "weight", errors)


def check_weight(weight: object, field: str, errors: FieldErrors) -> None:
    if not isinstance(weight, int) or isinstance(weight, bool) or not 0 <= weight <= 10_000:
        errors.add(field, "A weight is a whole number from 0 to 10000.")


def check_route(route: Route, errors: FieldErrors) -> None:
    errors.check_columns(route)
    errors.check("path", lambda: _route_path(route.path))
    errors.check_list("methods", route.methods, METHOD, "GET", star=False)
    errors.check_list("hosts", route.hosts, _HOST, "api.example.com or *.example.com, in lower case", star=False)
    errors.check("hosts", lambda: _addresses_are_short(route.hosts))
    if route.replace_prefix:
        errors.check("replace_prefix", lambda: plain_path(route.replace_prefix))
    if route.strip_prefix and not _begins_with(route.path, route.strip_prefix):
        errors.add(
            "strip_prefix", "This must be the beginning of the route's path, by whole segments, as it is written."
        )
    for field in ("request_timeout_ms", "total_timeout_ms"):
        _check_timeout(route, field, errors)
    _check_destination(route, errors)


def _addresses_are_short(hosts: list[str]) -> None:
    """An address has one short form, which is the one that clients send (RFC 5952)."""
    for host in hosts:
        if host.startswith("[") and host != f"[{IPv6Address(host[1:-1])}]":
            raise ValueError(f"the short form of {host} is [{IPv6Address(host[1:-1])}]")


def _route_path(path: str) -> None:
    canonical = compile_pattern(path)
    if not path.startswith("/api/"):
        raise ValueError("a route's path begins with /api/")
    if any(canonical == own or canonical.startswith(own + b"/") for own in _OWN_PATHS):
        raise ValueError("the gateway itself answers below /api/v1/tasks and /api/v1/management")


def _begins_with(path: str, prefix: str) -> bool:
    """By whole segments. A final ``*`` stands for the rest, which is what remains and cannot be stripped."""
    segments, stripped = path.split("/"), prefix.rstrip("/").split("/")
    return segments[: len(stripped)] == stripped and not (segments == stripped and stripped[-1] == "*")


def _check_destination(route: Route, errors: FieldErrors) -> None:
    if (route.service is None) == (route.queue_route is None):
        errors.add("service", "A route leads to either a service or a queue route.")
        return
    if not route.version:
        return
    if route.service is None:
        errors.add("version", "Only a route that leads to a service can pin a version.")
        return
    if route.version not in known_versions(route.service):
        errors.add("version", f"{route.service.name} has no version {route.version[:80]!r}.")


def known_versions(service: ServiceConfig) -> set[str]:
    """The names that a route may pin: the versions, and what the default URL is called."""
    known = set(service.versions.values_list("version", flat=True))
    if service.default_url:
        known.add(service.current_version or "default")
    return known


def _check_timeout(row: ServiceConfig | Route, field: str, errors: FieldErrors) -> None:
    value = getattr(row, field)
    if value is not None and not errors.has(field) and not 1 <= value <= 24 * 3600 * 1000:
        errors.add(field, "A timeout is from 1 millisecond to a day (86400000).")

"""What must hold of services, versions, targets and routes before they are stored. Sentences go into `FieldErrors`."""

import re
from collections.abc import Iterable, Mapping
from ipaddress import IPv6Address, ip_address
from urllib.parse import urlsplit

from django.conf import settings

from access.addresses import EgressPolicy
from access.bundles import check_bundles
from core.path_trie import compile_pattern
from core.policies import P, PolicyError, read
from core.uri_path import canonical_path
from core.validation import METHOD, FieldErrors, as_sentence, check_document, check_policies, service_name, version_name
from routing.aggregation import compile_aggregation
from routing.conditions import faulty_conditions
from routing.models import Route, ServiceConfig, ServiceTarget, ServiceVersion
from routing.policies import (
    ROUTE_POLICIES,
    SERVICE_POLICIES,
    Aggregation,
    Conditions,
    Discovery,
    Rewrite,
    Transformation,
    UpstreamCredential,
)
from routing.records import TargetRecord
from routing.request_fields import parameter_places
from routing.rewriting import faulty_rewrite
from routing.transforming import faulty_transformation
from routing.upstream_credentials import CredentialField

LONGEST_TIMEOUT_MS = 24 * 3600 * 1000
MAX_WEIGHT = 10_000
TIMEOUTS = ("request_timeout_ms", "connect_timeout_ms", "idle_timeout_ms", "total_timeout_ms")
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
        if service.current_version in retired_versions(service):
            errors.add("current_version", f"{service.current_version} is retired: choose a version that answers.")
    for field in TIMEOUTS:
        _check_timeout(service, field, errors)
    check_policies(service, SERVICE_POLICIES, errors)
    check_bundles(service, errors)
    _check_discovery(service, errors)
    _check_mirroring(service, errors)
    check_credentials(service, errors)


def _check_discovery(service: ServiceConfig, errors: FieldErrors) -> None:
    try:
        policy = None if service.discovery is None else read(Discovery, service.discovery)
    except PolicyError:
        return  # told already
    if policy and policy.registration and policy.registration.redis and not settings.REDIS_URL:
        errors.add("discovery.registration.redis", "The gateway has no Redis: REDIS_URL is not set.")


def _check_mirroring(service: ServiceConfig, errors: FieldErrors) -> None:
    name = mirrored_version(service)
    if name is None or errors.has("mirroring"):
        return
    if name not in known_versions(service):
        errors.add("mirroring.version", f"{service.name} has no version {name[:80]!r}.")
    elif name in retired_versions(service):
        errors.add("mirroring.version", f"{name} is retired: it gets no requests.")


def mirrored_version(service: ServiceConfig) -> str | None:
    """The version that the service's mirroring names, whether or not it exists."""
    document = service.mirroring
    name = document.get("version") if isinstance(document, dict) else None
    return name if isinstance(name, str) else None


def retired_versions(service: ServiceConfig) -> set[str]:
    retired = service.versions.filter(lifecycle=ServiceVersion.Lifecycle.RETIRED)
    return set(retired.values_list("version", flat=True))


def check_credentials(service: ServiceConfig, errors: FieldErrors) -> None:
    credentials = service.upstream_credentials
    if not isinstance(credentials, list) or len(credentials) > 20:
        errors.add("upstream_credentials", "This is a list of at most 20 credentials.")
        return
    names = set()
    for place, document in enumerate(credentials):
        field = f"upstream_credentials[{place}]"
        policy = check_document(field, UpstreamCredential, document, errors)
        if policy is None:
            continue
        try:
            name = CredentialField.of(policy).name
        except PolicyError as error:
            errors.add(f"{field}.{error.field}", as_sentence(error.sentence))
            continue
        if name in names:
            errors.add(f"{field}.header", "There is one of this name before it.")
        names.add(name)


def check_version(version: ServiceVersion, errors: FieldErrors) -> None:
    errors.check_columns(version)
    errors.check("version", lambda: version_name(version.version))
    errors.check("url", lambda: upstream_url(version.url))
    check_weight(version.weight, "weight", errors)
    if version.deprecation_link:
        errors.check("deprecation_link", lambda: _link(version.deprecation_link))
    if version.sunset_at and version.deprecated_at and version.sunset_at < version.deprecated_at:
        errors.add("sunset_at", "A version ends after it was deprecated, not before (RFC 9745 section 4).")
    if version.lifecycle == ServiceVersion.Lifecycle.RETIRED:
        _check_retired(version, errors)


def _check_retired(version: ServiceVersion, errors: FieldErrors) -> None:
    service = version.service
    if version.version == service.current_version:
        errors.add("lifecycle", f"{version.version} is the current version of {service.name}: choose another first.")
    if version.version == mirrored_version(service):
        errors.add("lifecycle", f"{service.name} mirrors requests to {version.version}: choose another first.")


def _link(url: str) -> None:
    """For a Link field. Raises ValueError."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("a link begins with http:// or https:// and names a host")
    if not url.isascii() or any(ord(character) <= 32 or character in '<>"' for character in url):
        raise ValueError("the link holds a character that must be percent-encoded")


def check_target(target: ServiceTarget, errors: FieldErrors) -> None:
    errors.check_columns(target)
    errors.check("url", lambda: target_url(target.url))
    check_weight(target.weight, "weight", errors)


def check_weight(weight: object, field: str, errors: FieldErrors) -> None:
    if not isinstance(weight, int) or isinstance(weight, bool) or not 0 <= weight <= MAX_WEIGHT:
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
    for field in TIMEOUTS:
        _check_timeout(route, field, errors)
    check_policies(route, ROUTE_POLICIES, errors)
    check_bundles(route, errors)
    _check_language(route, errors)
    _check_destination(route, errors)


def _check_language(route: Route, errors: FieldErrors) -> None:
    """Expressions, templates and names within policies, and what they say about the route's other fields."""
    if errors.has("path"):
        return
    parameters = parameter_places(compile_pattern(route.path))
    conditions, rewrite = _read("conditions", Conditions, route), _read("rewrite", Rewrite, route)
    transformation = _read("transformation", Transformation, route)
    if conditions is not None:
        _add_faults("conditions", faulty_conditions(conditions, parameters), errors)
        for place, each in enumerate(conditions.headers):
            if each.name.lower() == settings.API_KEY_HEADER.lower():
                errors.add(f"conditions.headers[{place}].name", "No condition reads the field of the gateway's keys.")
    if transformation is not None:
        _add_faults("transformation", faulty_transformation(transformation, parameters), errors)
        _check_key_header(transformation, errors)
    for field, policy in (("rewrite", rewrite), ("transformation", transformation)):
        if policy is not None and route.service is None:
            errors.add(field, "Only requests that go to a service are changed on their way.")
    if rewrite is not None:
        _add_faults("rewrite", faulty_rewrite(rewrite), errors)
        if route.strip_prefix or route.replace_prefix:
            errors.add("rewrite", "Rewrite by an expression, or strip and replace a prefix: not both.")
    _check_aggregation(route, parameters, errors)


NOT_OF_AGGREGATES = ("rewrite", "transformation", "caching", "retries", "websockets")  # services have these


def _check_aggregation(route: Route, parameters: Mapping[str, int], errors: FieldErrors) -> None:
    policy = _read("aggregation", Aggregation, route)
    if policy is None:
        return
    try:
        compile_aggregation(policy, parameters)
    except PolicyError as error:
        errors.add(f"aggregation.{error.field}", as_sentence(error.sentence))
    for field in NOT_OF_AGGREGATES:
        if getattr(route, field) is not None:
            errors.add(field, "This has no meaning on a route whose answer is made of several calls.")
    names = {part.service for part in policy.parts}
    known = set(ServiceConfig.objects.filter(tenant_id=route.tenant_id, name__in=names).values_list("name", flat=True))
    for place, part in enumerate(policy.parts):
        if part.service not in known:
            errors.add(f"aggregation.parts[{place}].service", f"There is no service named {part.service[:80]!r}.")


def _check_key_header(transformation: Transformation, errors: FieldErrors) -> None:
    request = transformation.request
    if request is None or request.headers is None:
        return
    key_header, headers = settings.API_KEY_HEADER.lower(), request.headers
    names = [each.name for each in (*headers.set, *headers.add)] + list(headers.remove)
    if any(name.lower() == key_header for name in names):
        errors.add("transformation.request.headers", "No transformation touches the field of the gateway's keys.")


def _read(field: str, kind: type[P], route: Route) -> P | None:
    """A policy that is there and reads; what does not read has its sentence already."""
    try:
        return None if getattr(route, field) is None else read(kind, getattr(route, field))
    except PolicyError:
        return None


def _add_faults(field: str, faults: Iterable[PolicyError], errors: FieldErrors) -> None:
    for fault in faults:
        errors.add(f"{field}.{fault.field}" if fault.field else field, as_sentence(fault.sentence))


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
    if sum(each is not None for each in (route.service, route.queue_route, route.aggregation)) != 1:
        errors.add("service", "A route leads to a service, a queue route or an aggregation: to exactly one of them.")
        return
    if not route.version:
        return
    if route.service is None:
        errors.add("version", "Only a route that leads to a service can pin a version.")
        return
    if route.version not in known_versions(route.service):
        errors.add("version", f"{route.service.name} has no version {route.version[:80]!r}.")
    elif route.version in retired_versions(route.service):
        errors.add("version", f"{route.version} is retired: the route would answer 410.")


def known_versions(service: ServiceConfig) -> set[str]:
    """The names that a route may pin: the versions, and what the default URL is called."""
    known = set(service.versions.values_list("version", flat=True))
    if service.default_url:
        known.add(service.current_version or "default")
    return known


def _check_timeout(row: ServiceConfig | Route, field: str, errors: FieldErrors) -> None:
    value = getattr(row, field)
    if value is not None and not errors.has(field) and not 1 <= value <= LONGEST_TIMEOUT_MS:
        errors.add(field, "A timeout is from 1 millisecond to a day (86400000).")

"""Services and routes as workers hold them: frozen, and compiled as far as they can be before any request comes.

`from_wire` takes the JSON object that `routing.compile` makes of the rows and raises ValueError, with a sentence for
an admin, for what does not compile. Agent and worker call the same function, so what one accepts the other runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Any, TypeVar
from urllib.parse import urlsplit
from zlib import crc32

from msgspec import structs

from access.cors import CorsPolicy
from access.networks import AddressRules, compile_addresses
from access.policies import Access, Charging, Cors, IpAccess
from access.tokens.requirements import Requirement, requirement_of
from core.path_trie import compile_pattern
from core.policies import PolicyError, read_all, read_named
from core.secret_references import check_owner
from routing.aggregation import Aggregate, compile_aggregation
from routing.conditions import RouteConditions, compile_conditions
from routing.policies import (
    GATEWAY_POLICIES,
    ROUTE_POLICIES,
    SERVICE_POLICIES,
    Aggregation,
    Caching,
    CircuitBreaker,
    Compression,
    Concurrency,
    Conditions,
    Discovery,
    HealthChecks,
    LoadBalancing,
    Maintenance,
    Mirroring,
    Retries,
    Rewrite,
    Transformation,
    UpstreamCredential,
    UpstreamTls,
    WebSockets,
)
from routing.request_fields import parameter_places
from routing.rewriting import Rewriter, compile_rewrite
from routing.transforming import Transformer, compile_transformation
from routing.upstream_credentials import CredentialField, compile_credentials, references_of

P = TypeVar("P")


@dataclass(frozen=True, slots=True)
class TargetRecord:
    """One address. Equal records share a pool of connections; ``origin`` is scheme, host, port.

    The scheme is "http", "https", or "unix" for the gateway's own control process (the host is the socket's path).
    """

    origin: tuple[str, str, int]
    host_header: bytes
    tls: UpstreamTls | None = None  # of https; None: verified by the system's authorities

    @classmethod
    def from_url(cls, url: str, tls: UpstreamTls | None = None) -> tuple[TargetRecord, bytes]:
        """The target of an http(s) URL, and the URL's own path without a closing slash."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https"):
            raise ValueError("the URL must begin with http:// or https://")
        if parts.username is not None or parts.password is not None:
            raise ValueError("the URL holds credentials; give them to the gateway as a secret reference instead")
        if parts.query or parts.fragment:
            raise ValueError("the URL may have neither a query nor a fragment")
        if not parts.hostname:
            raise ValueError("the URL names no host")
        if not url.isascii() or any(ord(character) <= 32 or ord(character) == 127 for character in url):
            raise ValueError("the URL holds a space or a character that must be percent-encoded")
        default = 443 if parts.scheme == "https" else 80
        port = parts.port if parts.port is not None else default
        if not 1 <= port <= 65535:
            raise ValueError("the port must be from 1 to 65535")
        host = parts.hostname
        literal = f"[{host}]" if ":" in host else host
        header = literal if port == default else f"{literal}:{port}"
        tls = tls if parts.scheme == "https" else None
        return cls((parts.scheme, host, port), header.encode("ascii"), tls), parts.path.rstrip("/").encode("ascii")


@dataclass(frozen=True, slots=True)
class VersionRecord:
    """One version. ``base_path`` is what stands before the rest of the path at the upstream (rule 3). ``notice`` are
    the fields that tell callers of its end (RFC 9745, RFC 8594); ``link`` is what they should read."""

    name: str
    weight: int
    base_path: bytes
    targets: tuple[TargetRecord, ...]  # each once; none only where discovery says that nothing else counts
    weights: tuple[int, ...] = (1,)  # of the targets
    lifecycle: str = "supported"
    notice: bytes = b""
    link: str = ""
    measured: tuple[str, str, str] | None = None  # under what its traffic is counted: service, version, phase
    is_plain: bool = True  # nothing to say and nothing to count: most versions

    @property
    def is_retired(self) -> bool:
        return self.lifecycle == "retired"


@dataclass(frozen=True, slots=True)
class ServiceRecord:
    """A service. ``default`` answers where no weight decides (currentVersion, else defaultUrl)."""

    id: str
    tenant_id: str
    name: str
    versions: Mapping[str, VersionRecord]  # the active ones, and the default URL under its name
    weighted: tuple[VersionRecord, ...]  # those with a weight above 0 that are not retired
    default: VersionRecord | None
    fallback: tuple[TargetRecord, bytes] | None
    implicit: bool  # reachable as /api/v1/{name}/…
    is_active: bool
    request_timeout_s: float | None
    connect_timeout_s: float | None
    idle_timeout_s: float | None
    total_timeout_s: float | None
    health_endpoint: str
    circuit_resets: int  # one more asks for all circuits to close
    credentials: tuple[CredentialField, ...]
    access: Access | None
    ip_access: IpAccess | None
    cors: Cors | None
    load_balancing: LoadBalancing | None
    health_checks: HealthChecks | None
    discovery: Discovery | None
    circuit_breaker: CircuitBreaker | None
    retries: Retries | None
    concurrency: Concurrency | None
    mirroring: Mirroring | None
    maintenance: Maintenance | None
    caching: Caching | None
    compression: Compression | None
    upstream_tls: UpstreamTls | None
    websockets: WebSockets | None
    required: Requirement | None = field(compare=False)  # `access`, compiled
    addresses: AddressRules | None = field(compare=False)  # `ip_access`, compiled
    origins: CorsPolicy | None = field(compare=False)  # `cors`, compiled
    bundles: frozenset[str]  # which it has: limits may be theirs
    salt: int  # so that the split of one service tells nothing of another's
    template: str  # the path label of metrics

    @classmethod
    def from_wire(cls, wire: Mapping[str, Any]) -> ServiceRecord:
        prefix = wire["path_prefix"].rstrip("/").encode("ascii")
        policies = read_all(wire["policies"], SERVICE_POLICIES)
        tls = policies["upstream_tls"]
        is_measured = bool(wire["phase"]) or sum(map(_takes_a_share, wire["versions"])) > 1
        measured = (wire["id"], wire["phase"]) if is_measured else None
        targets = _Targets(tls, policies["discovery"], wire.get("discovered", {}))
        versions = {version["name"]: _version(version, prefix, targets, measured) for version in wire["versions"]}
        default = versions.get(wire["current_version"])
        if default is None and wire["default_url"]:
            name = wire["current_version"] or "default"
            weights, path = targets.of(name, wire["default_url"], ())
            default = VersionRecord(name, 0, path + prefix, tuple(weights), tuple(weights.values()))
            versions.setdefault(name, default)
        fallback = TargetRecord.from_url(wire["fallback_url"]) if wire["fallback_url"] else None
        record = cls(
            id=wire["id"],
            tenant_id=wire["tenant"],
            name=wire["name"],
            versions=versions,
            weighted=tuple(version for version in versions.values() if version.weight > 0 and not version.is_retired),
            default=None if default is not None and default.is_retired else default,
            fallback=(fallback[0], fallback[1] + prefix) if fallback else None,
            implicit=wire["implicit"],
            is_active=wire["is_active"],
            request_timeout_s=_seconds(wire["request_timeout_ms"]),
            connect_timeout_s=_seconds(wire["connect_timeout_ms"]),
            idle_timeout_s=_seconds(wire["idle_timeout_ms"]),
            total_timeout_s=_seconds(wire["total_timeout_ms"]),
            health_endpoint=wire["health_endpoint"],
            circuit_resets=wire["circuit_resets"],
            credentials=compile_credentials(
                read_named("upstream_credentials", UpstreamCredential, each) for each in wire["upstream_credentials"]
            ),
            **policies,
            required=requirement_of(policies["access"]),
            addresses=compile_addresses(policies["ip_access"]),
            origins=_origins(policies["cors"]),
            bundles=frozenset(wire.get("bundles", ())),
            salt=crc32(wire["id"].encode()),
            template=f"/api/v1/{wire['name']}/*",
        )
        for reference in references_of(record):
            check_owner(reference, record.tenant_id)
        return record


def _takes_a_share(version: Mapping[str, Any]) -> bool:
    return bool(version["weight"] > 0 and version["lifecycle"] != "retired")


def _version(
    wire: Mapping[str, Any], prefix: bytes, all_targets: _Targets, measured: tuple[str, str] | None
) -> VersionRecord:
    """``measured``: the service's id, and the phase of its rollout."""
    targets, path = all_targets.of(wire["name"], wire["url"], wire["targets"])
    return VersionRecord(
        wire["name"],
        wire["weight"],
        path + prefix,
        tuple(targets),
        tuple(targets.values()),
        wire["lifecycle"],
        _notice(wire) if wire["lifecycle"] != "supported" else b"",
        wire["deprecation_link"],
        None if measured is None else (measured[0], wire["name"], measured[1]),
        is_plain=measured is None and wire["lifecycle"] == "supported",
    )


class _Targets:
    """The targets of a service's versions: those that are configured, and those that were found (R14), which stand in
    the wire record as ``discovered``: {version: [[URL, weight, host], …]}."""

    def __init__(self, tls: UpstreamTls | None, policy: Discovery | None, found: Mapping[str, Any]) -> None:
        self._tls = tls
        self._static = policy.static if policy is not None else "beside"
        self._found = found if policy is not None else {}

    def of(self, version: str, url: str, configured: Iterable[Any]) -> tuple[dict[TargetRecord, int], bytes]:
        """With their weights, and the path of the version's URL. The URL names the only target where there is no
        other."""
        own, path = TargetRecord.from_url(url, self._tls)
        found = dict(self._discovered(each) for each in self._found.get(version, ()))
        if self._static == "never" or (found and self._static == "fallback"):
            return found, path
        targets = {TargetRecord.from_url(each, self._tls)[0]: weight for each, weight in configured}
        return {**found, **targets} or {own: 1}, path

    def _discovered(self, entry: Any) -> tuple[TargetRecord, int]:
        """``host`` is the name behind which an address was found: it stays what the target is called."""
        url, weight, host = entry
        target, _ = TargetRecord.from_url(url, self._tls)
        if not host:
            return target, weight
        scheme, _, port = target.origin
        named, _ = TargetRecord.from_url(f"{scheme}://{host}:{port}")
        tls = None
        if scheme == "https":
            tls = self._tls or UpstreamTls()
            tls = structs.replace(tls, server_name=tls.server_name or host)
        return TargetRecord(target.origin, named.host_header, tls), weight


def _notice(wire: Mapping[str, Any]) -> bytes:
    """RFC 9745 wants the time since when a version is deprecated; 1 where nobody has said (any time in the past)."""
    notice = f"deprecation: @{int(wire['deprecated_at'] or 1)}\r\n"
    if wire["sunset_at"]:
        notice += f"sunset: {formatdate(wire['sunset_at'], usegmt=True)}\r\n"
    if wire["deprecation_link"]:
        notice += f'link: <{wire["deprecation_link"]}>; rel="deprecation"\r\n'
    return notice.encode("ascii")


def _seconds(milliseconds: int | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000


@dataclass(frozen=True, slots=True)
class GatewayRecord:
    """What holds for everything that is routed."""

    id: str
    maintenance: Maintenance | None
    ip_access: IpAccess | None
    addresses: AddressRules | None = field(compare=False)  # `ip_access`, compiled

    @classmethod
    def from_wire(cls, wire: Mapping[str, Any]) -> GatewayRecord:
        policies = read_all(wire["policies"], GATEWAY_POLICIES)
        return cls(wire["id"], **policies, addresses=compile_addresses(policies["ip_access"]))


def _origins(policy: Cors | None) -> CorsPolicy | None:
    return policy.compiled() if policy is not None else None


@dataclass(frozen=True, slots=True)
class RouteRecord:
    """A route as matched and applied. One of ``service`` (a name), ``queue_route`` (an id) and ``aggregation``.

    ``path`` is the pattern as `compile_pattern` returns it: ``{name}`` or ``*`` stand for one segment, a final ``/*``
    for the rest.
    """

    id: str
    tenant_id: str
    name: str
    template: str  # the path label of metrics
    hosts: tuple[bytes, ...]  # lower case, without port; b"*.example.com" covers any label or labels before it
    path: bytes
    methods: frozenset[bytes]  # empty: any
    priority: int
    is_active: bool
    service: str | None
    queue_route: str | None
    version: str
    strip_prefix: bytes
    replace_prefix: bytes
    request_timeout_s: float | None
    total_timeout_s: float | None
    max_body_bytes: int | None
    allow_empty_segments: bool
    retry_unsafe_methods: bool
    pass_credentials: bool
    connect_timeout_s: float | None
    idle_timeout_s: float | None
    requires_key: bool
    access: Access | None
    ip_access: IpAccess | None
    cors: Cors | None
    charging: Charging | None
    conditions: Conditions | None
    rewrite: Rewrite | None
    transformation: Transformation | None
    aggregation: Aggregation | None
    retries: Retries | None
    caching: Caching | None
    compression: Compression | None
    websockets: WebSockets | None
    bundles: frozenset[str]
    # The policies of the same subject, compiled.
    required: Requirement | None = field(compare=False)
    addresses: AddressRules | None = field(compare=False)
    origins: CorsPolicy | None = field(compare=False)
    when: RouteConditions | None = field(compare=False)
    rewriter: Rewriter | None = field(compare=False)
    transformer: Transformer | None = field(compare=False)
    aggregate: Aggregate | None = field(compare=False)

    @classmethod
    def from_wire(cls, wire: Mapping[str, Any]) -> RouteRecord:
        path = compile_pattern(wire["path"])
        policies = read_all(wire["policies"], ROUTE_POLICIES)
        return cls(
            id=wire["id"],
            tenant_id=wire["tenant"],
            name=wire["name"],
            template=wire["path"],
            hosts=tuple(host.lower().encode("ascii") for host in wire["hosts"]),
            path=path,
            methods=frozenset(method.encode("ascii") for method in wire["methods"]),
            priority=wire["priority"],
            is_active=wire["is_active"],
            service=wire["service"],
            queue_route=wire["queue_route"],
            version=wire["version"],
            strip_prefix=wire["strip_prefix"].rstrip("/").encode(),
            replace_prefix=wire["replace_prefix"].rstrip("/").encode("ascii"),
            request_timeout_s=_seconds(wire["request_timeout_ms"]),
            total_timeout_s=_seconds(wire["total_timeout_ms"]),
            max_body_bytes=wire["max_body_bytes"],
            allow_empty_segments=wire["allow_empty_segments"],
            retry_unsafe_methods=wire["retry_unsafe_methods"],
            pass_credentials=wire["pass_credentials"],
            connect_timeout_s=_seconds(wire["connect_timeout_ms"]),
            idle_timeout_s=_seconds(wire["idle_timeout_ms"]),
            requires_key=wire["requires_key"],
            **policies,
            required=requirement_of(policies["access"]),
            addresses=compile_addresses(policies["ip_access"]),
            origins=_origins(policies["cors"]),
            bundles=frozenset(wire.get("bundles", ())),
            **_compiled(policies, parameter_places(path)),
        )


def _compiled(policies: Mapping[str, Any], parameters: Mapping[str, int]) -> dict[str, Any]:
    """What the data plane runs of a route's policies, None where there is none."""

    def compiled(name: str, compile_policy: Callable[..., Any], *arguments: Any) -> Any:
        if policies[name] is None:
            return None
        try:
            return compile_policy(policies[name], *arguments)
        except PolicyError as error:
            raise PolicyError(error.sentence, f"{name}.{error.field}") from None

    return {
        "when": compiled("conditions", compile_conditions, parameters),
        "rewriter": compiled("rewrite", compile_rewrite),
        "transformer": compiled("transformation", compile_transformation, parameters),
        "aggregate": compiled("aggregation", compile_aggregation, parameters),
    }

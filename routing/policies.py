"""What an admin may say about how a service or a route treats its traffic, as typed documents (`core.policies`)."""

from __future__ import annotations

import re
import ssl
from ipaddress import ip_address
from itertools import pairwise
from typing import Annotated, Any, Literal

from msgspec import Meta

from access.cors import CorsPolicy
from access.policies import Access, Charging, Cors, IpAccess
from core.policies import Bytes, Count, Policy, SecretReference, Share, Text, Token
from core.secret_references import check_reference


# --- choosing ------------------------------------------------------------------------------------------------------
class Sticky(Policy, frozen=True):
    """R13: a client stays with the target that it got first, by a signed cookie. ``cookie`` is its name; None:
    ``gateway_affinity_`` and the service's name, since a client of two services needs two."""

    cookie: Token | None = None
    ttl_s: Annotated[int, Meta(ge=1, le=31_536_000)] | None = None  # None: until the browser ends


class LoadBalancing(Policy, frozen=True):
    """R7: which target of a version answers."""

    strategy: Literal["weighted", "round_robin", "ip_hash", "least_connections", "peak_ewma"] = "weighted"
    sticky: Sticky | None = None


class Mirroring(Policy, frozen=True):
    """R21: a share of requests is copied to another version, whose answers are thrown away."""

    version: Annotated[str, Meta(min_length=1, max_length=32)]
    percent: Share = 100.0
    max_body_bytes: Annotated[int, Meta(ge=0, le=1_048_576)] = 65_536  # requests with a larger body are not copied


class RolloutStep(Policy, frozen=True):
    """``percent`` of the traffic for at least ``hold_s``."""

    percent: Annotated[float, Meta(ge=0.01, le=100)]
    hold_s: Annotated[float, Meta(ge=0, le=604_800)] = 300.0

    def __post_init__(self) -> None:
        if abs(self.percent * 100 - round(self.percent * 100)) > 1e-6:
            raise ValueError("a share has at most two digits after the point")


class RolloutPlan(Policy, frozen=True):
    """R20: how a service's traffic goes over to ``version``. Every ``interval_s`` its share of 5xx answers and its p95
    since the step began are compared with those of the other versions, once both have ``min_samples`` requests."""

    version: Annotated[str, Meta(min_length=1, max_length=32)]
    steps: Annotated[tuple[RolloutStep, ...], Meta(min_length=1, max_length=50)]
    interval_s: Annotated[float, Meta(ge=1, le=3600)] = 10.0
    min_samples: Count = 100
    max_error_increase: Share = 1.0  # percentage points above the others
    max_latency_ratio: Annotated[float, Meta(ge=1, le=1000)] | None = 1.5  # of the two p95; None: not judged
    max_wait_s: Annotated[float, Meta(ge=0, le=604_800)] = 3600.0  # for the sample, beyond a step's hold_s; then pause

    def __post_init__(self) -> None:
        percents = [step.percent for step in self.steps]
        if any(later <= earlier for earlier, later in pairwise(percents)):
            raise ValueError("the percents of the steps increase")


# --- surviving -----------------------------------------------------------------------------------------------------
class ActiveCheck(Policy, frozen=True):
    """Probes by the agent of each host. ``path`` empty: the service's healthEndpoint, else ``/``."""

    path: Annotated[str, Meta(max_length=200, pattern=r"^(/[!-~]*)?$")] = ""  # with a query, if need be
    method: Literal["GET", "HEAD"] = "GET"
    interval_s: Annotated[float, Meta(ge=0.5, le=3600)] = 10.0
    timeout_s: Annotated[float, Meta(ge=0.1, le=60)] = 2.0
    healthy_threshold: Annotated[int, Meta(ge=1, le=20)] = 2
    unhealthy_threshold: Annotated[int, Meta(ge=1, le=20)] = 3
    status_from: Annotated[int, Meta(ge=200, le=599)] = 200
    status_to: Annotated[int, Meta(ge=200, le=599)] = 399

    def __post_init__(self) -> None:
        if self.status_from > self.status_to:
            raise ValueError("statusFrom is above statusTo")


class PassiveCheck(Policy, frozen=True):
    """Ejection of a target whose real traffic fails: ``error_percent`` of at least ``min_requests`` in ``window_s``."""

    error_percent: Annotated[float, Meta(gt=0, le=100)] = 50.0
    min_requests: Count = 20
    window_s: Annotated[float, Meta(ge=1, le=600)] = 10.0
    eject_s: Annotated[float, Meta(ge=1, le=3600)] = 30.0


class HealthChecks(Policy, frozen=True):
    active: ActiveCheck | None = None
    passive: PassiveCheck | None = None


class Registration(Policy, frozen=True):
    """R14: instances register themselves. ``ttl_s``: how long a registration counts that is not renewed, at most and
    by default; ``redis``: those that services write to Redis themselves count too (REDIS_URL)."""

    ttl_s: Annotated[int, Meta(ge=5, le=3600)] = 30
    redis: bool = False


class DnsLookup(Policy, frozen=True):
    """R14: the addresses behind a name. An answer counts for its TTL, at most ``interval_s``. ``port`` absent: that of
    the version's URL (SRV says its own). ``version`` empty: the one that answers where nobody names one. ``server``
    empty: the host's name servers."""

    name: Annotated[str, Meta(pattern=r"^(?=.{1,253}$)[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_.])?$")]
    type: Literal["A", "AAAA", "SRV"] = "A"
    port: Annotated[int, Meta(ge=1, le=65535)] | None = None
    interval_s: Annotated[float, Meta(ge=1, le=3600)] = 30.0
    version: Annotated[str, Meta(max_length=32)] = ""
    server: Annotated[str, Meta(pattern=r"^([0-9a-fA-F.]+|\[[0-9a-fA-F:.]+\])?(:[0-9]{1,5})?$")] = ""

    def __post_init__(self) -> None:
        host, _ = server_address(self.server) if self.server else ("127.0.0.1", 53)
        ip_address(host)


def server_address(text: str) -> tuple[str, int]:
    """Host and port of a name server: ``10.0.0.2``, ``10.0.0.2:8600`` or ``[fd00::2]:8600``."""
    host, _, port = text.rpartition(":") if re.search(r"[\].0-9]:[0-9]+$", text) else (text, "", "53")
    return host.strip("[]"), int(port)


class Discovery(Policy, frozen=True):
    """R14: targets that are found rather than configured. ``static`` says when those that are configured count:
    ``beside`` the found ones, as a ``fallback`` while none is found, or ``never``. A version without targets of its own
    has its URL as a fallback, unless that is ``never``."""

    registration: Registration | None = None
    dns: DnsLookup | None = None
    static: Literal["beside", "fallback", "never"] = "beside"

    def __post_init__(self) -> None:
        if self.registration is None and self.dns is None:
            raise ValueError("say registration, dns or both")


class CircuitBreaker(Policy, frozen=True):
    """R9, rule 27. ``failures`` in a row open it; absent: CIRCUIT_BREAKER_FAILURES and CIRCUIT_BREAKER_TIMEOUT."""

    enabled: bool = True
    failures: Annotated[int, Meta(ge=1, le=10_000)] | None = None
    open_s: Annotated[float, Meta(ge=0.1, le=3600)] | None = None
    count_500: bool = False


RetryReason = Literal["connect", "reset", "timeout", "502", "503", "504"]


class Retries(Policy, frozen=True):
    """R10, rule 8: further tries on other targets, while all retries are at most ``budget_percent`` of requests.
    The wait before try n is random between 0 and min(max_ms, base_ms * 2**n) (full jitter)."""

    attempts: Annotated[int, Meta(ge=0, le=10)] = 1  # after the first
    on: tuple[RetryReason, ...] = ("connect", "reset", "502", "503", "504")
    base_ms: Annotated[int, Meta(ge=0, le=60_000)] = 25
    max_ms: Annotated[int, Meta(ge=0, le=60_000)] = 250
    budget_percent: Annotated[float, Meta(ge=0, le=100)] = 20.0


class Concurrency(Policy, frozen=True):
    """R22: how many requests may be with the upstreams, for each worker. A request beyond ``max_connections`` to a
    target waits, at most ``wait_ms`` and at most ``max_waiting`` at once. ``adaptive``: the service's total is found
    by watching its latency, and who has the lowest priority is refused first."""

    max_connections: Annotated[int, Meta(ge=1, le=100_000)] = 1024
    max_waiting: Annotated[int, Meta(ge=0, le=100_000)] = 1024
    wait_ms: Annotated[int, Meta(ge=0, le=60_000)] = 1000
    adaptive: bool = False
    min_limit: Annotated[int, Meta(ge=1, le=100_000)] = 8
    max_limit: Annotated[int, Meta(ge=1, le=100_000)] = 1000

    def __post_init__(self) -> None:
        if self.min_limit > self.max_limit:
            raise ValueError("minLimit is above maxLimit")


class Maintenance(Policy, frozen=True):
    """R28: every request is answered 503 with this message."""

    message: Annotated[str, Meta(min_length=1, max_length=500)] = "The service is being maintained."
    retry_after_s: Annotated[int, Meta(ge=1, le=604_800)] = 300


# --- answering from memory -----------------------------------------------------------------------------------------
class Caching(Policy, frozen=True):
    """R15: a shared cache (RFC 9111). Seconds that are absent follow the answer's own fields."""

    enabled: bool = True
    default_ttl_s: Annotated[int, Meta(ge=0, le=31_536_000)] | None = None  # of answers that say nothing
    heuristic: bool = True  # a tenth of the age since Last-Modified (RFC 9111 section 4.2.2)
    max_object_bytes: Annotated[int, Meta(ge=1, le=64 * 1024 * 1024)] = 1_048_576
    stale_while_revalidate_s: Annotated[int, Meta(ge=0, le=31_536_000)] | None = None
    stale_if_error_s: Annotated[int, Meta(ge=0, le=31_536_000)] | None = None
    serve_stale_when_down: bool = False  # R12: the last answer, marked stale, rather than 502 to 504
    collapse: bool = True  # one request to the upstream for many at once
    shared: bool = False  # the tier in Redis too (REDIS_URL)
    tag_header: Token = "cache-tag"
    heed_clients: bool = True  # what Cache-Control of requests asks for (RFC 9111 section 5.2.1)


class Compression(Policy, frozen=True):
    """R16."""

    enabled: bool = True
    algorithms: tuple[Literal["zstd", "br", "gzip"], ...] = ("zstd", "br", "gzip")  # preferred first
    min_bytes: Bytes = 1024
    types: tuple[Annotated[str, Meta(max_length=100)], ...] = (
        "text/*",
        "application/json",
        "application/*+json",
        "application/javascript",
        "application/xml",
        "application/*+xml",
        "image/svg+xml",
    )
    with_cookies: bool = False  # answers with Set-Cookie too


# --- upstreams -----------------------------------------------------------------------------------------------------
class UpstreamTls(Policy, frozen=True):
    """R24: how https targets are verified. Never unverified unless ``verify`` says so."""

    verify: bool = True
    ca_pem: Annotated[str, Meta(max_length=100_000)] = ""  # empty: the system's authorities
    server_name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.:-]{0,253}$")] = (
        ""  # SNI and the name to verify; empty: the target's host
    )
    client_certificate: SecretReference | None = None  # PEM: certificate chain
    client_key: SecretReference | None = None  # PEM
    min_version: Literal["1.2", "1.3"] = "1.2"

    def __post_init__(self) -> None:
        if (self.client_certificate is None) != (self.client_key is None):
            raise ValueError("clientCertificate and clientKey go together")
        for reference in (self.client_certificate, self.client_key):
            if reference is not None:
                check_reference(reference)
        if self.ca_pem:
            _check_authorities(self.ca_pem)


def _check_authorities(pem: str) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=pem)
    except (ssl.SSLError, ValueError):
        raise ValueError("caPem must hold one or more certificates in PEM (-----BEGIN CERTIFICATE-----)") from None


class UpstreamCredential(Policy, frozen=True):
    """R25: a field that the gateway sends to the service's targets, and to no fallback. ``value`` is plain text around
    one or more ``secret://…`` references in braces: ``Bearer {secret://env/UPSTREAM_ORDERS_TOKEN}``."""

    header: Token
    value: Annotated[str, Meta(min_length=1, max_length=1000)]


class WebSockets(Policy, frozen=True):
    """R18, rule 12. ``origins`` absent: CORS_ORIGINS. ``query_key`` names the query parameter that may carry the key
    (it is taken out before the upstream sees it)."""

    enabled: bool = True
    max_message_bytes: Annotated[int, Meta(ge=125, le=1_073_741_824)] = 16_777_216
    idle_s: Annotated[float, Meta(ge=1, le=86_400)] = 300.0
    origins: tuple[Annotated[str, Meta(max_length=300)], ...] | None = None
    query_key: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]{1,64}$")] | None = None

    def __post_init__(self) -> None:
        CorsPolicy(self.origins or ())  # says what is no origin


# --- routes --------------------------------------------------------------------------------------------------------
class FieldCondition(Policy, frozen=True):
    """A header field or query parameter: exactly one of ``equals``, ``prefix``, ``matches`` (RE2, the whole value) and
    ``present``."""

    name: Annotated[str, Meta(min_length=1, max_length=128)]
    equals: Text | None = None
    prefix: Text | None = None
    matches: Text | None = None
    present: bool | None = None

    def __post_init__(self) -> None:
        said = [each for each in (self.equals, self.prefix, self.matches, self.present) if each is not None]
        if len(said) != 1:
            raise ValueError("say exactly one of equals, prefix, matches and present")


class Conditions(Policy, frozen=True):
    """R4: beyond host, path and method; all of them must hold. ``path_parameters`` speak of ``{name}`` in the path."""

    headers: Annotated[tuple[FieldCondition, ...], Meta(max_length=20)] = ()
    query: Annotated[tuple[FieldCondition, ...], Meta(max_length=20)] = ()
    path_parameters: Annotated[tuple[FieldCondition, ...], Meta(max_length=20)] = ()


class Rewrite(Policy, frozen=True):
    """R5: the upstream's path by regular expression (RE2, linear time) on the client's path; ``replacement`` may name
    groups as ``\\1``. The version's own path stands before the result. In the place of stripPrefix, replacePrefix."""

    pattern: Annotated[str, Meta(min_length=1, max_length=1000)]
    replacement: Annotated[str, Meta(max_length=1000)]


class FieldValue(Policy, frozen=True):
    """``value`` is a template (`routing.templates`): text with ``${header.x}``, ``${query.q}``, ``${path.id}``, …"""

    name: Token
    value: Text


class HeaderChanges(Policy, frozen=True):
    """First ``remove``, then ``set`` (replaces), then ``add`` (beside what is there). No value: nothing is sent."""

    set: Annotated[tuple[FieldValue, ...], Meta(max_length=50)] = ()
    add: Annotated[tuple[FieldValue, ...], Meta(max_length=50)] = ()
    remove: Annotated[tuple[Token, ...], Meta(max_length=50)] = ()


class ParameterValue(Policy, frozen=True):
    """``value`` is a template; what it gives is percent-encoded."""

    name: Annotated[str, Meta(min_length=1, max_length=200)]
    value: Text


class QueryChanges(Policy, frozen=True):
    """As `HeaderChanges`, for parameters. Those that stay are forwarded as the client spelled them."""

    set: Annotated[tuple[ParameterValue, ...], Meta(max_length=50)] = ()
    add: Annotated[tuple[ParameterValue, ...], Meta(max_length=50)] = ()
    remove: Annotated[tuple[Annotated[str, Meta(min_length=1, max_length=200)], ...], Meta(max_length=50)] = ()


JsonPath = Annotated[str, Meta(min_length=1, max_length=500)]  # customer.address.city, items[0].id, items[*].price


class JsonChange(Policy, frozen=True):
    """``value``: a string is a template, anything else is itself."""

    path: JsonPath
    value: Any = None


class JsonRename(Policy, frozen=True):
    """The member at ``path`` is called ``to`` from then on, where it is."""

    path: JsonPath
    to: Annotated[str, Meta(min_length=1, max_length=200)]


class BodyChanges(Policy, frozen=True):
    """Of JSON bodies: first ``remove``, then ``rename``, then ``set``. ``max_bytes``: a larger body of a request is
    413, of an answer 502."""

    set: Annotated[tuple[JsonChange, ...], Meta(max_length=50)] = ()
    remove: Annotated[tuple[JsonPath, ...], Meta(max_length=50)] = ()
    rename: Annotated[tuple[JsonRename, ...], Meta(max_length=50)] = ()
    max_bytes: Annotated[int, Meta(ge=1, le=16 * 1024 * 1024)] = 1_048_576


class RequestChanges(Policy, frozen=True):
    headers: HeaderChanges | None = None
    query: QueryChanges | None = None
    body: BodyChanges | None = None


class AnswerChanges(Policy, frozen=True):
    headers: HeaderChanges | None = None
    body: BodyChanges | None = None


class Transformation(Policy, frozen=True):
    """R6: what is changed of requests on their way to the service, and of its answers."""

    request: RequestChanges | None = None
    response: AnswerChanges | None = None


class AggregatePart(Policy, frozen=True):
    """One call. Its answer stands in the document under ``key`` (empty: its members are laid into the document)."""

    key: Annotated[str, Meta(pattern=r"^([A-Za-z_][A-Za-z0-9_-]{0,99})?$")]
    service: Annotated[str, Meta(min_length=1, max_length=63)]
    path: Annotated[str, Meta(min_length=1, max_length=1000)]  # a template; what follows the service's base path
    method: Literal["GET", "POST"] = "GET"  # POST carries the client's body
    timeout_ms: Annotated[int, Meta(ge=1, le=600_000)] = 5000
    required: bool = False  # its failure fails the whole


class Aggregation(Policy, frozen=True):
    """R17: the route's answer is made of several calls in parallel."""

    parts: Annotated[tuple[AggregatePart, ...], Meta(min_length=1, max_length=20)]
    max_bytes: Annotated[int, Meta(ge=1, le=16 * 1024 * 1024)] = 1_048_576  # of each part's answer


GATEWAY_POLICIES: dict[str, type[Policy]] = {
    "maintenance": Maintenance,
    "ip_access": IpAccess,
}  # of everything
SERVICE_POLICIES: dict[str, type[Policy]] = {
    "access": Access,
    "ip_access": IpAccess,
    "cors": Cors,
    "load_balancing": LoadBalancing,
    "health_checks": HealthChecks,
    "discovery": Discovery,
    "circuit_breaker": CircuitBreaker,
    "retries": Retries,
    "concurrency": Concurrency,
    "mirroring": Mirroring,
    "maintenance": Maintenance,
    "caching": Caching,
    "compression": Compression,
    "upstream_tls": UpstreamTls,
    "websockets": WebSockets,
}
ROUTE_POLICIES: dict[str, type[Policy]] = {
    "access": Access,
    "ip_access": IpAccess,
    "cors": Cors,
    "charging": Charging,
    "conditions": Conditions,
    "rewrite": Rewrite,
    "transformation": Transformation,
    "aggregation": Aggregation,
    "retries": Retries,
    "caching": Caching,
    "compression": Compression,
    "websockets": WebSockets,
}

"""What an admin may say about who may do what, and how often, as typed documents (`core.policies`)."""

from __future__ import annotations

from functools import lru_cache
from ipaddress import ip_network
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo

from msgspec import Meta

from access.cors import CorsPolicy
from core.policies import Policy, SecretReference, Token
from core.secret_references import check_reference

Name = Annotated[str, Meta(min_length=1, max_length=100)]
Scope = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.:/*-]{1,200}$")]
ClaimPath = Annotated[str, Meta(min_length=1, max_length=200)]  # members by dots: realm_access.roles
Network = Annotated[str, Meta(min_length=2, max_length=64)]  # an address or a CIDR network
Algorithm = Literal[
    "HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"
]  # fmt: skip
Subject = Literal["gateway", "tenant", "application", "key", "user", "role", "ip", "endpoint", "service"]


# --- who -----------------------------------------------------------------------------------------------------------
class IpAccess(Policy, frozen=True):
    """A12: whose requests are taken. What ``deny`` holds is refused, and what ``allow`` does not hold if that names
    anything."""

    allow: Annotated[tuple[Network, ...], Meta(max_length=1000)] = ()
    deny: Annotated[tuple[Network, ...], Meta(max_length=1000)] = ()

    def __post_init__(self) -> None:
        for network in (*self.allow, *self.deny):
            try:
                ip_network(network, strict=False)
            except ValueError:
                raise ValueError(f"{network!r} is no address and no network such as 10.0.0.0/8") from None


class ClaimRule(Policy, frozen=True):
    """The claim at ``claim`` must be there, and be (or hold, if it is a list) one of ``values`` if that names any."""

    claim: ClaimPath
    values: Annotated[tuple[str | int | bool, ...], Meta(max_length=100)] = ()


class Access(Policy, frozen=True):
    """A4, K5: what a caller must bring. ``any``: an API key or a token; ``both``: one of each; ``public``: nothing.
    ``scopes``: all of them; ``roles``: one of them; ``issuers``: names of those whose tokens count, empty: all."""

    credentials: Literal["any", "key", "token", "both", "public"] = "any"
    scopes: Annotated[tuple[Scope, ...], Meta(max_length=50)] = ()
    roles: Annotated[tuple[Name, ...], Meta(max_length=50)] = ()
    issuers: Annotated[tuple[Name, ...], Meta(max_length=50)] = ()
    claims: Annotated[tuple[ClaimRule, ...], Meta(max_length=20)] = ()


class CertificateMatch(Policy, frozen=True):
    """A26: a client certificate of the application. All members that say something must fit. ``fingerprint``: SHA-256
    of the DER form, hexadecimal; ``subject``: as RFC 4514 writes it; ``san``: a DNS name, URI or e-mail address."""

    fingerprint: Annotated[str, Meta(pattern=r"^([0-9a-f]{64})?$")] = ""
    subject: Annotated[str, Meta(max_length=500)] = ""
    san: Annotated[str, Meta(max_length=500)] = ""

    def __post_init__(self) -> None:
        if not (self.fingerprint or self.subject or self.san):
            raise ValueError("say a fingerprint, a subject or a san")


class ClientCertificates(Policy, frozen=True):
    """A26: a request over TLS with one of these is the application's, without a key."""

    accepted: Annotated[tuple[CertificateMatch, ...], Meta(min_length=1, max_length=100)]


class Cors(Policy, frozen=True):
    """A16, rule 18: which origins may read answers in a browser. ``origins`` are whole (https://app.example.com), all
    hosts below a domain (https://*.example.com), or ``*``; empty: none. ``methods`` and ``headers`` empty: any."""

    origins: Annotated[tuple[Annotated[str, Meta(max_length=300)], ...], Meta(max_length=100)] = ()
    methods: Annotated[tuple[Token, ...], Meta(max_length=50)] = ()
    headers: Annotated[tuple[Token, ...], Meta(max_length=100)] = ()
    expose: Annotated[tuple[Token, ...], Meta(max_length=100)] = ()
    credentials: bool = False
    max_age_s: Annotated[int, Meta(ge=0, le=86_400)] = 600

    def __post_init__(self) -> None:
        CorsPolicy(self.origins)
        if self.credentials and "*" in self.origins:
            raise ValueError("credentials go to origins that are named, never to *")

    def compiled(self) -> CorsPolicy:
        return _compiled_cors(self)


@lru_cache(maxsize=256)  # many routes have the same policy
def _compiled_cors(policy: Cors) -> CorsPolicy:
    return CorsPolicy(
        policy.origins,
        methods=policy.methods,
        headers=policy.headers,
        expose=policy.expose,
        credentials=policy.credentials,
        max_age_s=policy.max_age_s,
    )


# --- tokens --------------------------------------------------------------------------------------------------------
class ClaimHeader(Policy, frozen=True):
    """The claim's value is sent to upstreams in the header field."""

    claim: ClaimPath
    header: Annotated[str, Meta(pattern=r"^[A-Za-z][A-Za-z0-9-]{0,63}$")]


class Introspection(Policy, frozen=True):
    """RFC 7662: tokens that are no JWT (or all, where the issuer has no keys) are shown to the issuer.

    ``token_prefix``: what its opaque tokens begin with; empty: it is shown those that are no other issuer's.
    """

    url: Annotated[str, Meta(min_length=8, max_length=500)]
    client_id: Annotated[str, Meta(min_length=1, max_length=200)]
    client_secret: SecretReference
    cache_s: Annotated[float, Meta(ge=0, le=3600)] = 30.0
    timeout_ms: Annotated[int, Meta(ge=50, le=30_000)] = 2000
    token_prefix: Annotated[str, Meta(max_length=100, pattern="^[!-~]*$")] = ""

    def __post_init__(self) -> None:
        check_reference(self.client_secret)


class TokenRules(Policy, frozen=True):
    """A4, A7: how an issuer's tokens are judged (RFC 8725) and what their claims mean here.

    ``algorithms`` are those that the issuer signs with: the token never chooses. Keys come from ``jwks_url``, ``jwks``
    (public keys) or ``secret`` (HS256 and its like). ``audiences``: one of them. ``application_claim``: the claim that
    names the application by id or name; empty: the issuer's own application. ``role_map``: names of roles there → here.
    """

    algorithms: Annotated[tuple[Algorithm, ...], Meta(min_length=1, max_length=13)] = ("RS256",)
    audiences: Annotated[tuple[Annotated[str, Meta(min_length=1, max_length=300)], ...], Meta(max_length=20)] = ()
    jwks_url: Annotated[str, Meta(max_length=500)] = ""
    jwks: dict[str, Any] | None = None
    secret: SecretReference | None = None
    decryption_key: SecretReference | None = None  # of JWE (A256GCM): 32 octets in base64url
    leeway_s: Annotated[float, Meta(ge=0, le=300)] = 30.0
    max_age_s: Annotated[int, Meta(ge=1, le=31_536_000)] | None = None  # since iat
    typ: Annotated[str, Meta(max_length=100)] = ""  # what the header's typ must be, such as at+jwt
    claims: Annotated[tuple[ClaimRule, ...], Meta(max_length=20)] = ()
    scope_claim: ClaimPath = "scope"
    roles_claim: ClaimPath = "roles"
    permissions_claim: ClaimPath = "permissions"
    application_claim: Annotated[str, Meta(max_length=200)] = ""
    role_map: dict[str, Name] = {}
    headers: Annotated[tuple[ClaimHeader, ...], Meta(max_length=20)] = ()
    introspection: Introspection | None = None

    @property
    def worker_secrets(self) -> tuple[str, ...]:
        """The references that workers resolve; that of the introspection is the agent's."""
        return tuple(each for each in (self.secret, self.decryption_key) if each is not None)

    @property
    def secrets(self) -> tuple[str, ...]:
        """All references."""
        return self.worker_secrets + ((self.introspection.client_secret,) if self.introspection is not None else ())

    def __post_init__(self) -> None:
        symmetric = [name for name in self.algorithms if name.startswith("HS")]
        for reference in (self.secret, self.decryption_key):
            if reference is not None:
                check_reference(reference)
        if symmetric and len(symmetric) < len(self.algorithms):
            raise ValueError("an issuer signs with a shared secret or with a private key, never with both (RFC 8725)")
        if symmetric and (self.jwks_url or self.jwks is not None):
            raise ValueError("HS256 and its like need a secret, and no jwks")
        if symmetric and self.secret is None:
            raise ValueError("HS256 and its like need a secret")
        if not symmetric and self.secret is not None:
            raise ValueError("a secret goes with HS256 and its like")
        if not symmetric and not self.jwks_url and self.jwks is None and self.introspection is None:
            raise ValueError("say where the keys are: jwksUrl, jwks or introspection")


# --- how often -----------------------------------------------------------------------------------------------------
class LimitRule(Policy, frozen=True):
    """A8 to A11: ``limit`` requests in ``window_s`` seconds for each subject.

    ``per``: what has a budget of its own; several make a combination, such as each key at each endpoint.
    ``services``, ``routes`` (names), ``applications`` (ids or names), ``roles``, ``methods`` and ``paths`` (patterns):
    what is limited; empty: everything. ``burst``: how many may come at once (token bucket); absent: the limit.
    ``queue``: how many wait for their turn, at most ``max_wait_ms`` (leaky bucket). A quota counts by calendar day or
    month (UTC) and survives restarts; concurrency counts requests under way. ``mode``: who counts. ``local``: each
    worker; ``strict``: all together, in Redis; ``leased``: all together, in slices; absent: RATE_LIMIT_MODE.
    ``outage``: what holds while Redis is away: each worker's share, everybody passes, or nobody.
    """

    limit: Annotated[int, Meta(ge=1, le=1_000_000_000)]
    algorithm: Literal[
        "token_bucket", "sliding_window", "sliding_log", "fixed_window", "leaky_bucket", "spike_arrest", "concurrency",
        "quota",
    ] = "token_bucket"  # fmt: skip
    window_s: Annotated[int, Meta(ge=1, le=2_678_400)] = 60
    period: Literal["day", "month"] = "day"
    burst: Annotated[int, Meta(ge=1, le=1_000_000_000)] | None = None
    queue: Annotated[int, Meta(ge=0, le=10_000)] = 100
    max_wait_ms: Annotated[int, Meta(ge=0, le=30_000)] = 1000
    per: Annotated[tuple[Subject, ...], Meta(min_length=1, max_length=6)] = ("key",)
    services: Annotated[tuple[Name, ...], Meta(max_length=200)] = ()
    routes: Annotated[tuple[Name, ...], Meta(max_length=200)] = ()
    applications: Annotated[tuple[Name, ...], Meta(max_length=200)] = ()
    roles: Annotated[tuple[Name, ...], Meta(max_length=50)] = ()
    methods: Annotated[tuple[Token, ...], Meta(max_length=20)] = ()
    paths: Annotated[tuple[Annotated[str, Meta(max_length=500)], ...], Meta(max_length=100)] = ()
    mode: Literal["local", "strict", "leased"] | None = None
    outage: Literal["share", "open", "closed"] = "share"
    alert: bool = False  # A27: violations are reported

    def __post_init__(self) -> None:
        if len(set(self.per)) < len(self.per):
            raise ValueError("per names something twice")
        if self.algorithm == "sliding_log" and self.limit > 100_000:
            raise ValueError("a sliding log remembers each request: at most 100,000; take sliding_window")


class Charging(Policy, frozen=True):
    """A8: what one request takes from each limit."""

    cost: Annotated[int, Meta(ge=0, le=10_000)] = 1


# --- keys ----------------------------------------------------------------------------------------------------------
DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


class Hours(Policy, frozen=True):
    """Days of the week and a span of the day, in the restriction's time zone. A span may pass midnight: it belongs to
    the day on which it begins."""

    days: Annotated[
        tuple[Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"], ...], Meta(min_length=1, max_length=7)
    ]
    start: Annotated[str, Meta(pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9]$")] = "00:00"
    end: Annotated[str, Meta(pattern=r"^(([01][0-9]|2[0-3]):[0-5][0-9]|24:00)$")] = "24:00"

    def __post_init__(self) -> None:
        if self.start == self.end:
            raise ValueError("a span that ends when it begins: leave start and end out for the whole day")


class Quota(Policy, frozen=True):
    limit: Annotated[int, Meta(ge=1, le=1_000_000_000_000)]
    period: Literal["day", "month"] = "month"


class Restrictions(Policy, frozen=True):
    """K6: what narrows one key further than its application. Empty members narrow nothing."""

    ips: Annotated[tuple[Network, ...], Meta(max_length=200)] = ()
    services: Annotated[tuple[Name, ...], Meta(max_length=200)] = ()
    hours: Annotated[tuple[Hours, ...], Meta(max_length=20)] = ()
    time_zone: Annotated[str, Meta(max_length=64)] = "UTC"
    quota: Quota | None = None

    def __post_init__(self) -> None:
        IpAccess(allow=self.ips)
        try:
            ZoneInfo(self.time_zone)
        except (KeyError, ValueError, OSError):  # unknown; not below the directory of zones; a directory
            raise ValueError(f"{self.time_zone!r} is no time zone such as Europe/Berlin") from None


APPLICATION_POLICIES: dict[str, type[Policy]] = {"ip_access": IpAccess, "client_certificates": ClientCertificates}

"""What a request asks of a cache: its Cache-Control, its conditions, the part that it wants."""

from __future__ import annotations

from hashlib import sha256

from core.bearer import bearer_token
from core.context import Exchange
from routing.cache.directives import MOST, cache_control, seconds
from routing.cache.freshness import Credentials
from routing.cache.store import MAX_VARY_NAMES, StoredAnswer, Vary

# Fields by which a request asks for something special; without them it is one of the many (`PLAIN`).
_SPECIAL = frozenset(
    b"cache-control if-match if-modified-since if-none-match if-range if-unmodified-since range "
    b"x-http-method x-http-method-override x-method-override".split()
)
# Preconditions that only the origin can judge (RFC 9110 section 13.2.1), and names of another method by which some
# services take a request: what answers it is none to a GET.
_FOR_ORIGIN = frozenset(b"if-match if-unmodified-since x-http-method x-http-method-override x-method-override".split())
# Conditions that an answer from memory settles, taken out where a whole answer is wanted.
_SETTLED_HERE = frozenset(b"if-modified-since if-none-match if-range range".split())
# What the gateway itself tells upstreams differs from request to request: an answer that varies by it is for nobody
# else. The host is part of the key; of the application's name see `vary_of`.
_OUR_OWN = frozenset(
    b"forwarded traceparent tracestate via x-forwarded-for x-forwarded-host x-forwarded-port x-forwarded-prefix "
    b"x-forwarded-proto x-forwarded-server x-real-ip x-request-id".split()
)
_IGNORES_CASE = frozenset((b"accept", b"accept-charset", b"accept-encoding", b"accept-language"))
APPLICATION = b"x-gateway-application"


class Asked:
    """The special wishes of one request, None or False where it has none."""

    __slots__ = (
        "if_modified_since",
        "if_none_match",
        "if_range",
        "is_for_origin",
        "max_age_s",
        "max_stale_s",
        "min_fresh_s",
        "no_cache",
        "no_store",
        "only_if_cached",
        "range",
    )

    def __init__(self, fields: dict[bytes, bytes], *, heeds_directives: bool = True) -> None:
        control = fields.get(b"cache-control")
        said = cache_control(control) if control is not None and heeds_directives else {}
        self.no_cache = "no-cache" in said
        self.no_store = "no-store" in said
        self.only_if_cached = "only-if-cached" in said
        self.max_age_s = seconds(said, "max-age")
        self.min_fresh_s = seconds(said, "min-fresh") or 0
        stale_s = seconds(said, "max-stale")
        self.max_stale_s = MOST if said.get("max-stale") == "" else stale_s or 0
        self.if_none_match = fields.get(b"if-none-match")
        self.if_modified_since = fields.get(b"if-modified-since") if self.if_none_match is None else None
        self.range = fields.get(b"range")
        self.if_range = fields.get(b"if-range") if self.range is not None else None
        self.is_for_origin = not _FOR_ORIGIN.isdisjoint(fields)

    @property
    def is_conditional(self) -> bool:
        return self.if_none_match is not None or self.if_modified_since is not None

    def accepts(self, answer: StoredAnswer, now: float) -> bool:
        """Whether it may be used as it is (RFC 9111 sections 4.2 and 5.2.1)."""
        if self.no_cache or (self.max_age_s is not None and answer.age_s(now) > self.max_age_s):
            return False
        staleness_s = answer.staleness_s(now)
        if staleness_s < 0:
            return -staleness_s >= self.min_fresh_s
        return not answer.forbids_stale and not self.min_fresh_s and staleness_s < self.max_stale_s


PLAIN = Asked({})


def read_asked(exchange: Exchange, *, heeds_directives: bool) -> Asked:
    passed = exchange.passed
    if _SPECIAL.isdisjoint(passed):
        return PLAIN
    fields: dict[bytes, bytes] = {}
    for i in range(0, len(passed), 4):
        name = passed[i]
        if name in _SPECIAL:
            value = passed[i + 2]
            fields[name] = fields[name] + b", " + value if name in fields else value
    return Asked(fields, heeds_directives=heeds_directives)


def without_conditions(passed: list[bytes]) -> list[bytes]:
    """The fields to forward, for a whole answer."""
    if _SETTLED_HERE.isdisjoint(passed):
        return passed
    kept: list[bytes] = []
    for i in range(0, len(passed), 4):
        if passed[i] not in _SETTLED_HERE:
            kept += passed[i : i + 4]
    return kept


def validating(passed: list[bytes], answer: StoredAnswer) -> list[bytes]:
    """The fields that ask whether ``answer`` still holds (RFC 9111 section 4.3.1)."""
    kept = list(without_conditions(passed))
    if answer.etag is not None:
        kept += (b"if-none-match", b": ", answer.etag, b"\r\n")
    if answer.last_modified is not None:
        kept += (b"if-modified-since", b": ", answer.last_modified, b"\r\n")
    return kept


def credentials_of(exchange: Exchange, *, are_passed: bool) -> Credentials:
    """``are_passed``: the gateway's own go to the upstream too."""
    authorization = exchange.noted.get(b"authorization")
    if authorization is not None and (are_passed or bearer_token(authorization) is None):
        return Credentials.UPSTREAM
    if exchange.key is None and exchange.user is None and exchange.certificate is None:
        return Credentials.NONE
    return Credentials.UPSTREAM if are_passed else Credentials.GATEWAY


def owner_of(exchange: Exchange) -> str | None:
    """Whose a private answer is: the application's or, where a user's token came, that user's of it, as the claims in
    the token describe the user to the upstream."""
    application, user = exchange.application, exchange.user
    if application is None:
        return None
    owner: str = application.id
    if user is not None:
        owner += f" {user.user}"
        if user.upstream_lines:
            owner += f"\n{sha256(user.upstream_lines).hexdigest()}"  # no name has line feeds
    return owner


# --- Vary (RFC 9111 section 4.1) ---
def vary_of(exchange: Exchange, names: bytes | None) -> tuple[Vary, bool] | None:
    """The request fields that an answer varies by, and whether it is the application's alone. None: it can serve no
    other request."""
    if names is None:
        return (), False
    wanted = {name.strip().lower() for name in names.split(b",")} - {b"", b"host"}
    is_owners = APPLICATION in wanted
    wanted.discard(APPLICATION)
    if b"*" in wanted or not _OUR_OWN.isdisjoint(wanted) or len(wanted) > MAX_VARY_NAMES:
        return None
    connection = exchange.noted.get(b"connection")
    if connection is not None and not wanted.isdisjoint(name.strip().lower() for name in connection.split(b",")):
        return None  # the upstream has not seen what the client sent (RFC 9110 section 7.6.1)
    return tuple((name, request_value(exchange, name)) for name in sorted(wanted)), is_owners


def varies_alike(exchange: Exchange, vary: Vary) -> bool:
    return all(request_value(exchange, name) == value for name, value in vary)


def request_value(exchange: Exchange, name: bytes) -> bytes | None:
    """A request field, spelled so that what means the same is the same. Secrets are kept as digests."""
    value = exchange.noted.get(name)
    if value is None:
        passed = exchange.passed
        values = [passed[i + 2] for i in range(0, len(passed), 4) if passed[i] == name]
        if exchange.user is not None:  # upstreams see claims in the place of what clients send
            values += _claimed(exchange.user.upstream_lines, name)
        if not values:
            return None
        value = values[0] if len(values) == 1 else b", ".join(values)
    elif name not in _PLAIN_NOTED:
        return sha256(value).digest()
    if b"," in value:
        value = b",".join(part.strip() for part in value.split(b","))
    return value.lower() if name in _IGNORES_CASE else value


def _claimed(lines: bytes, name: bytes) -> list[bytes]:
    """Kept as digests: what is said of a user is nobody else's to read."""
    fields = [line.partition(b": ") for line in lines.split(b"\r\n")]
    return [sha256(value).digest() for field, _, value in fields if field == name]


_PLAIN_NOTED = frozenset(b"accept content-type origin x-api-version access-control-request-method".split())

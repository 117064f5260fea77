"""Issuers of tokens as workers hold them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from access.policies import TokenRules
from core.policies import read
from core.secret_references import check_owner

# What the connection, the framing, the gateway or the client's own credentials say: a claim must not say it too.
_RESERVED = frozenset(
    b"accept accept-encoding authorization connection content-encoding content-length content-type cookie date expect "
    b"forwarded host http2-settings keep-alive origin proxy-authenticate proxy-authorization proxy-connection te "
    b"trailer traceparent tracestate transfer-encoding upgrade via x-api-version x-gateway-application x-gateway-debug "
    b"x-gateway-direct x-real-ip x-request-id".split()
)
_RESERVED_STARTS = (b"x-forwarded-", b"sec-websocket-")
_PRIVATE_MEMBERS = frozenset(("d", "p", "q", "dp", "dq", "qi", "oth", "k"))  # RFC 7518 section 6
_PUBLIC_TYPES = frozenset(("RSA", "EC", "OKP"))
MAX_KEYS = 100
# The issuer that we are ourselves. What these two stand for is in the workers' settings, where no reference of anybody
# else reaches.
OWN_ISSUER_ID = "iss_own"
OWN_SECRET = "secret://file/own-issuer/secret"  # noqa: S105
OWN_DECRYPTION_KEY = "secret://file/own-issuer/decryption-key"
MUST_CHANGE_PASSWORD = "must_change_password"  # noqa: S105 - a claim of our own: true, or not there


@dataclass(frozen=True, slots=True)
class IssuerRecord:
    """``issuer`` is the claim iss, octet for octet. ``is_own``: the tokens are ours, so that revocations concern
    them."""

    id: str
    tenant_id: str
    name: str
    issuer: str
    application_id: str | None
    rules: TokenRules
    header_names: frozenset[bytes]  # lower case: what its claims are sent to upstreams as
    is_own: bool
    token_prefix: bytes  # of its opaque tokens

    @classmethod
    def from_wire(cls, wire: Mapping[str, Any]) -> IssuerRecord:
        """Raises ValueError, with a sentence, for what does not compile."""
        rules = read(TokenRules, wire["rules"])
        names = [each.header.lower().encode("ascii") for each in rules.headers]
        for name in names:
            if name in _RESERVED or name.startswith(_RESERVED_STARTS):
                raise ValueError(f"no claim can be sent as {name.decode()}: the gateway or the connection needs it")
        if len(set(names)) < len(names):
            raise ValueError("two claims are sent in the same header")
        if rules.jwks is not None:
            public_keys(rules.jwks)
        if not wire["issuer"]:
            raise ValueError("the issuer is empty")
        if not wire.get("own"):
            for reference in rules.secrets:
                check_owner(reference, wire["tenant"])
        return cls(
            id=wire["id"],
            tenant_id=wire["tenant"],
            name=wire["name"],
            issuer=wire["issuer"],
            application_id=wire["application"],
            rules=rules,
            header_names=frozenset(names),
            is_own=bool(wire.get("own", False)),
            token_prefix=rules.introspection.token_prefix.encode("ascii") if rules.introspection is not None else b"",
        )


def public_keys(document: Any) -> list[dict[str, Any]]:
    """The keys of a JWK Set (RFC 7517 section 5) that are of a kind we know. Raises ValueError for what is no set, has
    too many keys, or holds a private or shared one, which nobody should publish."""
    keys = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(keys, list) or not all(isinstance(key, dict) for key in keys):
        raise ValueError('a JWK Set is an object whose member "keys" is a list of keys')
    if len(keys) > MAX_KEYS:
        raise ValueError(f"a JWK Set of more than {MAX_KEYS} keys is none that an issuer needs")
    if any(not _PRIVATE_MEMBERS.isdisjoint(key) for key in keys):
        raise ValueError("the JWK Set holds a private or shared key: only public ones belong there")
    return [key for key in keys if isinstance(key.get("kty"), str) and key["kty"] in _PUBLIC_TYPES]

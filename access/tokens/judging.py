"""What the claims of a token say, once nobody doubts who made them: whether it counts now, and who its bearer is."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from hashlib import sha256
from typing import Any

from access.policies import ClaimRule
from access.tokens.identity import Identity, Opaque, Proof
from access.tokens.parsing import Refused, SignedToken
from access.tokens.records import IssuerRecord

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_MAX_SUBJECT = 255
_MAX_TIME = 2**53
_MISSING: Any = object()


def claim_at(claims: Mapping[str, Any], path: str) -> Any:
    """The value at ``path``: the claim of that very name, or members by dots; None where there is none."""
    if path in claims:
        return claims[path]
    value: Any = claims
    for name in path.split("."):
        value = value.get(name, _MISSING) if isinstance(value, Mapping) else _MISSING
        if value is _MISSING:
            return None
    return value


def texts_at(claims: Mapping[str, Any], path: str, *, are_split: bool) -> list[str]:
    """A list of texts, or one text; ``are_split``: at its spaces (RFC 6749 section 3.3)."""
    value = claim_at(claims, path)
    if isinstance(value, str):
        return value.split() if are_split else [value]
    return [each for each in value if isinstance(each, str)] if isinstance(value, list) else []


def holds(claims: Mapping[str, Any], rule: ClaimRule) -> bool:
    value = claim_at(claims, rule.claim)
    if value is None:
        return False
    values = value if isinstance(value, list) else [value]
    # A list and a single value are judged alike. 1 and True are different things.
    return not rule.values or any(
        type(each) is type(wanted) and each == wanted for each in values for wanted in rule.values
    )


def check_form(issuer: IssuerRecord, token: SignedToken | Proof) -> None:
    """Before any key is looked at: the issuer's rules fix the algorithms (RFC 8725 section 3.1). Raises `Refused`."""
    rules = issuer.rules
    if token.algorithm not in rules.algorithms:
        raise Refused("its issuer does not sign with this algorithm")
    if rules.typ and _media_type(token.typ) != _media_type(rules.typ):
        raise Refused("it is of another type")  # RFC 8725 section 3.11


def _media_type(typ: str) -> str:
    return typ.lower().removeprefix("application/")


def lifetime(issuer: IssuerRecord, claims: Mapping[str, Any], now: float) -> tuple[float, float]:
    """From when (0.0 where it does not say) and until when the token counts here, in epoch seconds. Raises `Refused`
    where ``now`` is not within."""
    rules = issuer.rules
    leeway_s = rules.leeway_s
    expires_at = _time(claims, "exp")
    issued_at = _time(claims, "iat") if "iat" in claims else None
    if expires_at is None:
        raise Refused("it does not say when it expires")
    until = expires_at + leeway_s
    if issued_at is not None and issued_at > now + leeway_s:
        raise Refused("it was issued in the future")
    if rules.max_age_s is not None:
        if issued_at is None:
            raise Refused("it does not say how old it is")
        until = min(until, issued_at + rules.max_age_s + leeway_s)
    if until <= now:
        raise Refused("it has expired", "expired")
    if "nbf" in claims:
        not_before = _time(claims, "nbf")
        if not_before is None or not_before > now + leeway_s:
            raise Refused("it does not count yet")
    return issued_at or 0.0, until


def introspected_lifetime(issuer: IssuerRecord, claims: Mapping[str, Any], now: float) -> tuple[float, float]:
    """As `lifetime`, of a token that its issuer has just called active: it need not say more (RFC 7662 section 2.2).
    The second is infinite where it does not say when it expires."""
    if "exp" not in claims:
        issued_at, _ = lifetime(issuer, {**claims, "exp": _MAX_TIME}, now)
        return issued_at, float("inf")
    return lifetime(issuer, claims, now)


def _time(claims: Mapping[str, Any], name: str) -> float | None:
    """A NumericDate (RFC 7519 section 2): a number, and nothing that looks like one."""
    value = claims.get(name)
    if value is None and name not in claims:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _MAX_TIME:
        raise Refused(f"{name} is no time")
    return float(value)


def check_claims(issuer: IssuerRecord, claims: Mapping[str, Any]) -> None:
    """Issuer, audience and the issuer's own rules. Raises `Refused`."""
    rules = issuer.rules
    if claims.get("iss", issuer.issuer) != issuer.issuer:
        raise Refused("it is of another issuer")
    if rules.audiences:
        audience = claims.get("aud")
        named = audience if isinstance(audience, list) else [audience]
        if not any(isinstance(each, str) and each in rules.audiences for each in named):
            raise Refused("it is meant for somebody else")  # RFC 8725 section 3.9
    for rule in rules.claims:
        if not holds(claims, rule):
            raise Refused(f"the claim {rule.claim} is not as the rules say")


def application_named(issuer: IssuerRecord, claims: Mapping[str, Any]) -> str | None:
    """The id or name of the application whose request it is; None: it names none."""
    claim = issuer.rules.application_claim
    named = claim_at(claims, claim) if claim else None
    if named is None:
        return issuer.application_id
    if not isinstance(named, str):
        raise Refused("the claim that names the application is no text")
    return named


def identity_of(
    issuer: IssuerRecord,
    claims: Mapping[str, Any],
    application_id: str,
    issued_at: float,
    expires_at: float,
    proof: Proof | Opaque | None = None,
) -> Identity:
    """Raises `Refused` for claims that no field and no log line can carry (rule 24)."""
    rules = issuer.rules
    subject = _subject(claims)
    user = f"{issuer.name}:{subject}"
    roles = texts_at(claims, rules.roles_claim, are_split=False)
    if rules.role_map:
        roles = [rules.role_map[role] for role in roles if role in rules.role_map]
    return Identity(
        issuer=issuer.name,
        subject=subject,
        tenant_id=issuer.tenant_id,
        application_id=application_id,
        user=user,
        roles=tuple(dict.fromkeys(roles)),
        scopes=frozenset(texts_at(claims, rules.scope_claim, are_split=True)),
        permissions=frozenset(texts_at(claims, rules.permissions_claim, are_split=True)),
        token_id=_id(claims, "jti"),
        session_id=_id(claims, "sid"),
        issued_at=issued_at,
        expires_at=expires_at,
        upstream_lines=_header_lines(issuer, claims),
        claims=claims,
        id=f"{application_id} {user}",
        issuer_id=issuer.id,
        is_own=issuer.is_own,
        point=int.from_bytes(sha256(user.encode()).digest()[-4:]),
        proof=proof,
    )


def _subject(claims: Mapping[str, Any]) -> str:
    """Who the bearer is; of a machine's token, its client (RFC 9068 section 2.2, RFC 7662 section 2.2)."""
    subject = next((claims[name] for name in ("sub", "client_id", "azp") if name in claims), None)
    if not isinstance(subject, str) or not 0 < len(subject) <= _MAX_SUBJECT or not _is_plain(subject):
        raise Refused("it does not say, in plain text, whose it is")
    return subject


def _id(claims: Mapping[str, Any], name: str) -> str:
    value = claims.get(name, "")
    return value if isinstance(value, str) else ""


def _is_plain(text: str) -> bool:
    """Whether a header field and a log line can carry it."""
    if _CONTROL.search(text):
        return False
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can spell
        return False
    return True


def _header_lines(issuer: IssuerRecord, claims: Mapping[str, Any]) -> bytes:
    lines = b""
    for each in issuer.rules.headers:
        value = claim_at(claims, each.claim)
        if value is None or isinstance(value, Mapping):
            continue
        text = ",".join(_items(value)) if isinstance(value, list) else _text_of(value)
        if not _is_plain(text):
            raise Refused(f"the claim {each.claim} cannot be sent to upstreams")
        lines += each.header.lower().encode("ascii") + b": " + text.strip().encode() + b"\r\n"
    return lines


def _items(values: Iterable[Any]) -> list[str]:
    """A comma within an item must not look like the one between two."""
    plain = [_text_of(each) for each in values if not isinstance(each, Mapping | list)]
    return [each.replace("%", "%25").replace(",", "%2C") for each in plain]


def _text_of(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)

"""The access tokens that we issue: JWTs by RFC 9068 (``typ: at+jwt``), encrypted where JWT_ENCRYPTION says so."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from django.conf import settings
from joserfc import jwe, jwt
from joserfc.errors import JoseError
from joserfc.jwk import OctKey
from joserfc.jws import extract_compact

from access.signing.keys import LEEWAY_S, signer, verification_keys
from access.signing.sealing import derived_key
from access.tokens.records import MUST_CHANGE_PASSWORD
from core.faults import PolicyDenied
from core.ids import new_id

TYPE = "at+jwt"
_ENCRYPTION = {"alg": "dir", "enc": "A256GCM", "cty": "JWT"}
_LONGEST = 8192


@dataclass(frozen=True, slots=True)
class Claims:
    """What a token of ours says. Times are epoch seconds."""

    subject: str
    session_id: str
    token_id: str
    issued_at: int
    must_change_password: bool


def audience() -> str:
    return str(settings.JWT_AUDIENCE or settings.OWN_ISSUER)


def issue(
    *,
    subject: str,
    session_id: str,
    issued_at: int,
    roles: Sequence[str],
    scopes: Sequence[str],
    application: str,
    must_change_password: bool,
) -> str:
    """A signed token, good for ACCESS_TOKEN_S from ``issued_at`` (epoch seconds) on."""
    claims: dict[str, Any] = {
        "iss": settings.OWN_ISSUER,
        "aud": audience(),
        "sub": subject,
        "client_id": application or settings.SERVICE_NAME,  # RFC 9068 section 2.2 wants one
        "sid": session_id,
        "jti": new_id("tok"),
        "iat": issued_at,
        "nbf": issued_at,
        "exp": issued_at + settings.ACCESS_TOKEN_S,
        "roles": list(roles),
        "scope": " ".join(scopes),
    }
    if application:
        claims["application"] = application
    if must_change_password:
        claims[MUST_CHANGE_PASSWORD] = True
    by = signer()
    header = {"alg": by.algorithm, "kid": by.key_id, "typ": TYPE}
    signed = jwt.encode(header, claims, by.key, algorithms=[by.algorithm])
    if not settings.JWT_ENCRYPTION:
        return signed
    return jwe.encrypt_compact(_ENCRYPTION | {"typ": TYPE}, signed.encode(), OctKey.import_key(encryption_key()))


def encryption_key() -> bytes:
    """Of A256GCM: 32 octets."""
    return derived_key(b"token encryption")


def read(token: str) -> Claims:
    """What one of our own tokens says, once it has proved to be one and to be in time. Whether its session still goes
    on is the database's to say. Raises PolicyDenied ``invalid_credentials``."""
    try:
        return _read(token)
    except (JoseError, ValueError, KeyError, TypeError):
        raise refused() from None


def _read(token: str) -> Claims:
    if len(token) > _LONGEST:
        raise ValueError("too long to be one of ours")
    if settings.JWT_ENCRYPTION:
        opened = jwe.decrypt_compact(token, OctKey.import_key(encryption_key()), algorithms=["dir", "A256GCM"])
        if opened.plaintext is None:
            raise ValueError("nothing in it")
        token = opened.plaintext.decode("ascii")
    keys = verification_keys()
    key = keys[extract_compact(token.encode("ascii")).headers()["kid"]]
    algorithm = str(key.as_dict()["alg"])  # the key says how it signs, never the token (RFC 8725 section 3.1)
    found = jwt.decode(token, key, algorithms=[algorithm])
    if found.header.get("typ") != TYPE:
        raise ValueError("another kind of token")
    return _checked(found.claims, time.time())


def _checked(claims: Mapping[str, Any], now: float) -> Claims:
    if claims["iss"] != settings.OWN_ISSUER or claims["aud"] != audience():
        raise ValueError("not ours, or not for us")
    times = [claims["iat"], claims["nbf"], claims["exp"]]
    if not all(isinstance(each, int) and not isinstance(each, bool) for each in times):
        raise ValueError("times are whole numbers")
    issued_at, not_before, expires = times
    if not_before > now + LEEWAY_S or expires <= now or issued_at + settings.ACCESS_TOKEN_S + LEEWAY_S < now:
        raise ValueError("not in time")
    return Claims(
        str(claims["sub"]),
        str(claims["sid"]),
        str(claims["jti"]),
        issued_at,
        claims.get(MUST_CHANGE_PASSWORD) is True,
    )


def refused() -> PolicyDenied:
    challenge = ((b"www-authenticate", b'Bearer realm="portcullis", error="invalid_token"'),)
    return PolicyDenied("invalid_credentials", "The credentials are not valid.", headers=challenge)

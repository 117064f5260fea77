"""ID tokens (OpenID Connect Core 1.0 section 3.1.3.7). Their signature is checked although they come from the provider
itself: it costs nothing here, and a proxy between would go unnoticed otherwise."""

from collections.abc import Mapping
from typing import Any

import jwt

# No secrets shared with the provider: a client secret is a poor key (RFC 8725 section 3.5).
ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
_CLOCK_SKEW_S = 60


class BadIdToken(Exception):
    """The message says what is wrong, and holds nothing of the token."""


def verified_claims(token: str, keys: Mapping[str, Any], *, issuer: str, client_id: str) -> dict[str, Any]:
    """``keys`` is the provider's JWKS document. Raises BadIdToken."""
    try:
        header = jwt.get_unverified_header(token)
        algorithm = header.get("alg")
        if algorithm not in ALGORITHMS:
            raise BadIdToken(f"it is signed by {str(algorithm)[:20]!r}, which is not allowed")
        claims: dict[str, Any] = jwt.decode(
            token,
            key=_key(keys, header.get("kid"), algorithm),
            algorithms=[algorithm],
            audience=client_id,
            issuer=issuer,
            leeway=_CLOCK_SKEW_S,
            options={"require": ["exp", "iat", "aud", "iss", "sub"]},
        )
    except (jwt.PyJWTError, ValueError, TypeError) as error:
        raise BadIdToken(f"it does not verify: {type(error).__name__}") from error
    several = isinstance(claims["aud"], list) and len(claims["aud"]) > 1
    if (several or "azp" in claims) and claims.get("azp") != client_id:
        raise BadIdToken("it was made for another client")
    return claims


def _key(keys: Mapping[str, Any], kid: object, algorithm: str) -> Any:
    """Of the right name, and of a kind that the algorithm takes."""
    found = [key for key in keys.get("keys", []) if isinstance(key, dict) and key.get("use", "sig") == "sig"]
    if kid is not None:
        found = [key for key in found if key.get("kid") == kid]
    for key in found:
        if key.get("alg", algorithm) != algorithm:
            continue
        try:
            return jwt.PyJWK(key, algorithm=algorithm)
        except jwt.PyJWTError:
            continue
    raise BadIdToken("no key of the provider fits it")

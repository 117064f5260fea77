"""Makes tokens for tests: right ones, and wrong ones in every way that joserfc itself would not make."""

from __future__ import annotations

import hmac
import json
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from functools import cache
from hashlib import sha256
from typing import Any

from joserfc.jwk import ECKey, OKPKey, RSAKey
from joserfc.jws import JWSRegistry

ISSUER = "https://login.example.com"
AUDIENCE = "orders"
Key = RSAKey | ECKey | OKPKey
_KINDS: dict[str, tuple[Any, Any]] = {
    "RS": (RSAKey, 2048), "PS": (RSAKey, 2048), "ES256": (ECKey, "P-256"), "ES384": (ECKey, "P-384"),
    "ES512": (ECKey, "P-521"), "EdDSA": (OKPKey, "Ed25519"),
}  # fmt: skip


@cache
def private_key(algorithm: str = "RS256", which: int = 0) -> Key:
    """One of each kind and number, for all tests: making one takes long."""
    kind, size = _KINDS.get(algorithm) or _KINDS[algorithm[:2]]
    key: Key = kind.generate_key(size)
    return key


def kid_of(algorithm: str = "RS256", which: int = 0) -> str:
    return f"{algorithm}-{which}"


def public_jwk(algorithm: str = "RS256", which: int = 0, **members: Any) -> dict[str, Any]:
    jwk = dict(private_key(algorithm, which).as_dict(private=False))
    return {**jwk, "kid": kid_of(algorithm, which), **members}


def jwks(*algorithms: str, which: int = 0) -> dict[str, Any]:
    return {"keys": [public_jwk(each, which) for each in algorithms or ("RS256",)]}


def claims(**changes: Any) -> dict[str, Any]:
    """Good for ten minutes; a change to None takes a claim out."""
    now = int(time.time())
    said = {"iss": ISSUER, "sub": "ada", "aud": AUDIENCE, "iat": now - 1, "exp": now + 600} | changes
    return {name: value for name, value in said.items() if value is not None}


def part(value: Any) -> bytes:
    octets = value if isinstance(value, bytes) else json.dumps(value, separators=(",", ":")).encode()
    return urlsafe_b64encode(octets).rstrip(b"=")


def octets_of(part: bytes) -> bytes:
    return urlsafe_b64decode(part + b"=" * (-len(part) % 4))


def signature(algorithm: str, signed: bytes, key: Key) -> bytes:
    return JWSRegistry.algorithms[algorithm].sign(signed, key)


def token(
    said: dict[str, Any] | bytes | None = None,
    algorithm: str = "RS256",
    *,
    header: dict[str, Any] | None = None,
    key: Key | None = None,
    which: int = 0,
) -> bytes:
    """``header``: changes to it; None takes a member out. ``said``: the claims, or the octets in their place."""
    members = {"alg": algorithm, "typ": "JWT", "kid": kid_of(algorithm, which)} | (header or {})
    head = {name: value for name, value in members.items() if value is not None}
    signed = part(head) + b"." + part(claims() if said is None else said)
    return signed + b"." + part(signature(algorithm, signed, key or private_key(algorithm, which)))


def shared_token(secret: bytes, said: dict[str, Any] | None = None, **header: Any) -> bytes:
    signed = part({"alg": "HS256", **header}) + b"." + part(claims() if said is None else said)
    return signed + b"." + part(hmac.digest(secret, signed, sha256))

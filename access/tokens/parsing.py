"""Tokens as they arrive: every ambiguity is refused before any of it counts (RFC 7515 section 5.2, RFC 8725)."""

from __future__ import annotations

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MAX_TOKEN = 8192  # bytes: longer ones are refused before any work
# Header members that tell where keys are, or that whoever does not understand them must refuse. Our keys come from the
# configuration alone (RFC 8725 sections 3.8 to 3.10).
_REFUSED_MEMBERS = frozenset(("crit", "jku", "jwk", "x5u", "x5c", "b64", "zip"))
_MAX_KID = 500


class Refused(Exception):
    """The token does not count. ``status`` is for metrics: invalid, expired or revoked; the message is for whoever
    looks for the reason, and never for the bearer."""

    def __init__(self, reason: str, status: str = "invalid") -> None:
        super().__init__(reason)
        self.status = status


@dataclass(frozen=True, slots=True)
class SignedToken:
    """A JWT in the form of RFC 7515 section 7.1. Nothing in it is to be believed before the signature is verified."""

    algorithm: str
    kid: str | None
    typ: str
    claims: Mapping[str, Any]
    signed: bytes  # what the signature is of
    signature: bytes


@dataclass(frozen=True, slots=True)
class EncryptedToken:
    """A JWE in the form of RFC 7516 section 7.1."""

    algorithm: str
    compact: bytes


def parse(token: bytes) -> SignedToken | EncryptedToken:
    """Raises `Refused`."""
    if len(token) > MAX_TOKEN:
        raise Refused("it is too long")
    parts = token.split(b".")
    if len(parts) == 5:
        return _encrypted(token, parts)
    if len(parts) != 3:
        raise Refused("it has neither three parts nor five")
    header = _header(parts[0])
    return SignedToken(
        algorithm=header["alg"],
        kid=_text(header, "kid"),
        typ=_text(header, "typ") or "",
        claims=_object(parts[1]),
        signed=parts[0] + b"." + parts[1],
        signature=_octets(parts[2]),
    )


def _encrypted(token: bytes, parts: list[bytes]) -> EncryptedToken:
    header = _header(parts[0])
    if header["alg"] not in ("dir", "A256KW") or header.get("enc") != "A256GCM":
        raise Refused("only dir and A256KW with A256GCM are decrypted")
    for part in parts[1:]:
        _octets(part)
    return EncryptedToken(header["alg"], token)


def _header(part: bytes) -> dict[str, Any]:
    header = _object(part)
    if not _REFUSED_MEMBERS.isdisjoint(header):
        raise Refused("its header has members that are not taken")
    if not isinstance(header.get("alg"), str):
        raise Refused("its header names no algorithm")
    return header


def _text(header: Mapping[str, Any], name: str) -> str | None:
    value = header.get(name)
    if value is not None and (not isinstance(value, str) or len(value) > _MAX_KID):
        raise Refused(f"{name} is no text")
    return value


def _octets(part: bytes) -> bytes:
    """Of the one spelling that there is: without padding, and with no bits beyond the last octet (RFC 7515 section 2),
    so that no two tokens have the same signature."""
    try:
        octets = urlsafe_b64decode(part + b"=" * (-len(part) % 4))
    except ValueError:
        raise Refused("it is no base64url") from None
    if urlsafe_b64encode(octets).rstrip(b"=") != part:
        raise Refused("it is not in canonical base64url")
    return octets


def _object(part: bytes) -> dict[str, Any]:
    """A JSON object whose members are all named once (RFC 7515 section 4, RFC 7519 section 4)."""
    try:
        value = json.loads(_octets(part).decode("utf-8"), object_pairs_hook=_members, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise Refused("a part of it is no JSON that we take") from None
    if not isinstance(value, dict):
        raise Refused("a part of it is no JSON object")
    return value


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise ValueError("a member stands there twice")
    return members


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")

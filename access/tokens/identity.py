"""Who a token says that its bearer is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Proof:
    """What a signature was verified by, without the token: enough to tell later whether it still would be."""

    algorithm: str
    kid: str | None
    typ: str
    thumbprint: str  # of the key (RFC 7638)


@dataclass(frozen=True, slots=True)
class Opaque:
    """A token that its issuer was asked about, to ask again while what it opened is open; with its SHA-256."""

    token: bytes = field(repr=False)
    digest: bytes


@dataclass(frozen=True, slots=True)
class Identity:
    """What a verified token says, in the gateway's own terms. Times are epoch seconds.

    ``user`` stands for the user in limits, logs and tasks: ``<name of the issuer>:<subject>``. ``token_id`` (jti) and
    ``session_id`` (sid) are empty where the token has none. ``upstream_lines`` are whole header lines.
    """

    issuer: str  # the name that the configuration gives it
    subject: str
    tenant_id: str
    application_id: str
    user: str
    roles: tuple[str, ...]  # by our names
    scopes: frozenset[str]
    permissions: frozenset[str]
    token_id: str
    session_id: str
    issued_at: float  # 0.0 where the token does not say
    expires_at: float
    upstream_lines: bytes
    claims: Mapping[str, Any]
    id: str = ""  # tells callers from one another: whose application's user it is
    issuer_id: str = ""
    is_own: bool = False  # one that we have issued: revocations concern it
    point: int = 0  # where the user falls in every weighted split (rule 4)
    proof: Proof | Opaque | None = None

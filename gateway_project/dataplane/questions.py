"""What issuers are asked about clients' tokens, and what they answer."""

from __future__ import annotations

from hashlib import sha256
from typing import Any, NamedTuple

from access.tokens.records import IssuerRecord
from core.faults import GatewayFault


class Opinion(NamedTuple):
    claims: dict[str, Any] | None  # None: it is not active
    until: float
    issuer: IssuerRecord


Answers = dict[tuple[str, bytes], Opinion | GatewayFault]


class Question(Exception):
    """Something must be asked for first: the keys of an issuer or, with a ``token``, what the issuer thinks of it."""

    def __init__(self, issuer: IssuerRecord, token: bytes = b"") -> None:
        super().__init__()
        self.issuer = issuer
        self.token = token
        self.key = (issuer.id, sha256(token).digest() if token else b"")

"""API keys as workers hold them: the keyed digest and what it opens, never the key and never the argon2 hash."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """A live key. ``application_id`` is None for an admin key; ``expires_at`` is epoch seconds."""

    id: str
    tenant_id: str
    digest: bytes
    application_id: str | None
    expires_at: float | None
    scopes: tuple[str, ...]
    point: int  # where the key falls in every weighted split (rule 4)

    @classmethod
    def from_wire(cls, wire: Mapping[str, Any]) -> KeyRecord:
        digest = bytes.fromhex(wire["digest"])
        if len(digest) != 32:
            raise ValueError("the digest is not 32 bytes long")
        return cls(
            id=wire["id"],
            tenant_id=wire["tenant"],
            digest=digest,
            application_id=wire["application"],
            expires_at=wire["expires_at"],
            scopes=tuple(wire["scopes"]),
            point=int.from_bytes(digest[-4:]),
        )

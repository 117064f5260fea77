"""API keys as workers hold them: the keyed digest and what it opens, never the key and never the argon2 hash."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from access.limits.charges import LimitPolicy, quota_policy
from keys.restrictions import KeyRestrictions

WARNED_S = 7 * 86_400  # before its end, a key's answers say when that is


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """A live key. ``application_id`` is None for an admin key; ``expires_at`` is epoch seconds.

    ``bucket`` is what its limits and quotas are counted under: the id of the first key of its line, so that a rotated
    key and its successor share them (rule 10). From ``watched_from`` (epoch seconds) on, each request is looked at
    more closely (`keys.verify.look_closely`): because the key expires soon or is deprecated, or is restricted; None:
    never.
    """

    id: str
    tenant_id: str
    digest: bytes
    application_id: str | None
    expires_at: float | None
    scopes: tuple[str, ...]
    bucket: str
    is_deprecated: bool
    restrictions: KeyRestrictions | None
    quota: LimitPolicy | None  # the key's own, beside all other limits
    watched_from: float | None
    point: int  # where the key falls in every weighted split (rule 4): the same for all of its line

    @classmethod
    def from_wire(cls, wire: Mapping[str, Any]) -> KeyRecord:
        digest = bytes.fromhex(wire["digest"])
        if len(digest) != 32:
            raise ValueError("the digest is not 32 bytes long")
        bucket = wire.get("bucket") or wire["id"]
        expires_at = wire["expires_at"]
        is_deprecated = wire.get("deprecated", False)
        restrictions = wire.get("restrictions")
        restrictions = None if restrictions is None else KeyRestrictions.of(restrictions)
        watched_from = None if expires_at is None else expires_at - WARNED_S
        if is_deprecated or (restrictions is not None and not restrictions.is_only_quota):
            watched_from = 0.0
        return cls(
            id=wire["id"],
            tenant_id=wire["tenant"],
            digest=digest,
            application_id=wire["application"],
            expires_at=expires_at,
            scopes=tuple(wire["scopes"]),
            bucket=bucket,
            is_deprecated=is_deprecated,
            restrictions=restrictions,
            quota=None if restrictions is None else _quota(restrictions),
            watched_from=watched_from,
            point=int.from_bytes(sha256(bucket.encode()).digest()[-4:]),
        )


def _quota(restrictions: KeyRestrictions) -> LimitPolicy | None:
    quota = restrictions.policy.quota
    return None if quota is None else quota_policy("key", quota.limit, quota.period)

"""Whose key it is: one HMAC and one dict look-up, whether the key is right, wrong or unknown."""

from __future__ import annotations

from core.faults import GatewayFault, InternalFault, PolicyDenied
from core.shards import ShardMap
from keys.credential import Digester, is_well_formed
from keys.records import KeyRecord

MAX_KEY_BYTES = 256  # longer ones are refused before they are hashed
_CHALLENGE = (b"www-authenticate", b'Bearer realm="portcullis", error="invalid_token"')  # RFC 6750 section 3.1


def authenticate(
    keys: ShardMap[KeyRecord], digester: Digester, key: bytes, prefix: bytes, now: float, is_feed_fresh: bool
) -> KeyRecord:
    """The record of a live key; ``now`` is epoch seconds.

    Digests are found by plain equality in a dict: how far a comparison got tells nothing to somebody who cannot
    choose digests, and without the pepper nobody can.

    Raises `PolicyDenied` ``invalid_credentials``; or, while the feed is silent, `InternalFault`
    ``dependency_unavailable`` for a well-formed key that is unknown: it may be a new one (rule 11).
    """
    record = keys.get(digester(key)) if len(key) <= MAX_KEY_BYTES else None
    if record is None:
        raise _unknown(key, prefix, is_feed_fresh)
    if record.expires_at is not None and record.expires_at <= now:
        raise invalid_credentials()
    return record


def _unknown(key: bytes, prefix: bytes, is_feed_fresh: bool) -> GatewayFault:
    if is_feed_fresh or not is_well_formed(key, prefix):
        return invalid_credentials()
    detail = "The gateway cannot tell at the moment whether the key is valid."
    return InternalFault("dependency_unavailable", detail, retry_after_s=1)


def invalid_credentials() -> PolicyDenied:
    """The one answer for whatever is wrong with a key, so that it tells nothing of keys that exist."""
    return PolicyDenied("invalid_credentials", "The API key is not valid.", headers=(_CHALLENGE,))

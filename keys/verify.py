"""Whose key it is: one HMAC and one dict look-up, whether the key is right, wrong or unknown."""

from __future__ import annotations

from collections.abc import Collection
from functools import lru_cache

from core.faults import GatewayFault, InternalFault, PolicyDenied
from core.problem import common
from core.shards import ShardMap
from keys.credential import Digester, is_well_formed
from keys.records import WARNED_S, KeyRecord

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


def look_closely(key: KeyRecord, address: str | None, destinations: Collection[str], now: float) -> bytes:
    """What answers say of a live key that is watched (`KeyRecord.watched_from`): the field line, or nothing.

    ``@`` and epoch seconds, a Date of RFC 9651. The parameter says that there is a successor already.
    Raises `PolicyDenied`: ``ip_not_allowed``, ``key_not_allowed_now``, ``service_not_allowed``.
    """
    if key.restrictions is not None:
        refusal = key.restrictions.refusal(address, destinations, now)
        if refusal is not None:
            raise refusal
    if key.expires_at is None or (now < key.expires_at - WARNED_S and not key.is_deprecated):
        return b""
    return b"x-gateway-key-expires: @%d%b\r\n" % (key.expires_at, b";deprecated" if key.is_deprecated else b"")


def _unknown(key: bytes, prefix: bytes, is_feed_fresh: bool) -> GatewayFault:
    if is_feed_fresh or not is_well_formed(key, prefix):
        return invalid_credentials()
    detail = "The gateway cannot tell at the moment whether the key is valid."
    return InternalFault("dependency_unavailable", detail, retry_after_s=1)


def invalid_credentials() -> PolicyDenied:
    """The one answer for whatever is wrong with a key, so that it tells nothing of keys that exist."""
    return _INVALID.again()


_INVALID = common(PolicyDenied("invalid_credentials", "The API key is not valid.", headers=(_CHALLENGE,)))


def throttled(wait_s: int) -> PolicyDenied:
    """Nothing more is said of credentials, and nothing costly is done for them, while an address has failed too
    often."""
    return _throttled(wait_s).again()


@lru_cache(maxsize=128)
def _throttled(wait_s: int) -> PolicyDenied:
    detail = "Too many failed authentications came from this address."
    violated = {"violated-policies": ["authentication-failures"]}
    return common(PolicyDenied("rate_limited", detail, retry_after_s=wait_s, members=violated))

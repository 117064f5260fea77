"""Use-cases: the keys that sign the tokens of end users.

A key is published (`published_keys`) before it signs and for as long as tokens that it has signed may live. With
JWT_ALGORITHM HS256 and its like there are none: JWT_SECRET signs, and nothing is published.
"""

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from typing import Any

from django.conf import settings
from django.db.models import Q, QuerySet
from django.utils import timezone
from joserfc.jwk import ECKey, OctKey, OKPKey, RSAKey

from access.models import SigningKey
from access.signing.sealing import Unreadable, seal, unseal
from core.faults import ClientFault
from core.propagation import wait_for_nodes
from core.revisions import Actor, RevisionWriter, locked, observed, revision

logger = logging.getLogger("portcullis.access")

AnyKey = ECKey | OKPKey | RSAKey | OctKey
JWKS_MAX_AGE_S = 300
LEAD = timedelta(seconds=2 * JWKS_MAX_AGE_S)  # others have fetched a new key before it signs
LEEWAY_S = 30.0
_SLACK = timedelta(minutes=10)  # clocks of hosts, and what is under way
_CURVES = {"ES256": "P-256", "ES384": "P-384", "ES512": "P-521"}
_RSA_BITS = 3072
_ITSELF = Actor("command", name="signing keys")


@dataclass(frozen=True, slots=True)
class Signer:
    """What signs now."""

    key_id: str
    algorithm: str
    key: AnyKey


def is_symmetric() -> bool:
    return str(settings.JWT_ALGORITHM).startswith("HS")


def signer() -> Signer:
    """The newest key that signs already. Where there is none, or none that can be read, one is made at once."""
    if is_symmetric():
        return _secret_signer(settings.JWT_SECRET, settings.JWT_ALGORITHM)
    row = _signing_row()
    found = _opened(row) if row is not None else None
    if found is None:
        row = _make_up_for(row)
        found = _opened(row)
        assert found is not None  # it was sealed a moment ago
    return found


def rotate_signing_keys(*, at_once: bool = False, actor: Actor, source: str, reason: str = "") -> SigningKey:
    """A new key, which signs once everybody has had the time to fetch it, or ``at_once``; the present one signs until
    then and is published on. Raises ClientFault ``conflict`` while another one waits for its time."""
    _refuse_without_keys()
    fresh = _generated(str(settings.JWT_ALGORITHM))
    with revision(actor=actor, source=source, reason=reason) as change:
        waiting = _live().filter(signs_from__gt=timezone.now()).first()
        if waiting is not None and not at_once:
            at = waiting.signs_from.strftime("%Y-%m-%d %H:%M:%S UTC")
            raise ClientFault("conflict", f"The key {waiting.pk} waits already, and signs from {at} on.")
        return _enter(change, fresh, at_once=at_once or not _signs_now().exists())


def revoke_signing_key(
    *, key: SigningKey, if_revision: int | None = None, actor: Actor, source: str, reason: str = ""
) -> SigningKey:
    """Nothing that it signed counts any more, on any worker within a second; sessions get new tokens by refreshing. If
    it was the one that signs, a new one does at once."""
    with revision(actor=actor, source=source, reason=reason) as change:
        current = locked(key, if_revision)
        if current.revoked_at is None:
            before = current.recorded()
            current.revoked_at = timezone.now()
            change.save(current, before)
            if not is_symmetric() and not _signs_now().exists():
                _enter(change, _generated(str(settings.JWT_ALGORITHM)), at_once=True)
    return current


def keep_signing_keys() -> None:
    """Rotate by age (SIGNING_KEY_DAYS), and forget the keys none of whose tokens can be alive. Any host may do it at
    any time."""
    now = timezone.now()
    newest = None if is_symmetric() else _live().order_by("-signs_from").first()
    if newest is not None and newest.signs_from < now - timedelta(days=settings.SIGNING_KEY_DAYS):
        fresh = _generated(str(settings.JWT_ALGORITHM))
        with revision(actor=_ITSELF, source="command", reason="By age (SIGNING_KEY_DAYS)") as change:
            if not _live().filter(signs_from__gt=newest.signs_from).exists():  # another host was faster
                _enter(change, fresh, at_once=False)
    gone = now - timedelta(seconds=settings.ACCESS_TOKEN_S) - _SLACK
    dead = Q(retired_at__lt=gone) | Q(revoked_at__lt=gone)
    if SigningKey.objects.filter(dead).exists():
        with revision(actor=_ITSELF, source="command", reason="Their tokens have expired") as change:
            for key in SigningKey.objects.select_for_update().filter(dead):
                change.delete(key)


def published_keys() -> list[dict[str, Any]]:
    """Public JWKs (RFC 7517) of all that may have signed a living token, or soon will; oldest first."""
    if is_symmetric():
        return []
    return [dict(each) for each in _live().order_by("signs_from").values_list("public_jwk", flat=True)]


def verification_keys() -> dict[str, AnyKey]:
    """What our own tokens are checked with, by key id."""
    if is_symmetric():
        only = signer()
        return {only.key_id: only.key}
    return {jwk["kid"]: _imported(jwk) for jwk in published_keys()}


def state_of(key: SigningKey) -> str:
    """``waiting``, ``signing``, ``retired`` or ``revoked``."""
    now = timezone.now()
    if key.revoked_at is not None:
        return "revoked"
    if key.signs_from > now:
        return "waiting"
    return "retired" if key.retired_at is not None and key.retired_at <= now else "signing"


# --- rows ---
def _live() -> QuerySet[SigningKey]:
    return SigningKey.objects.filter(revoked_at__isnull=True)


def _signs_now() -> QuerySet[SigningKey]:
    now = timezone.now()
    not_retired = Q(retired_at__isnull=True) | Q(retired_at__gt=now)
    return _live().filter(not_retired, algorithm=settings.JWT_ALGORITHM, signs_from__lte=now)


def _signing_row() -> SigningKey | None:
    return _signs_now().order_by("-signs_from").first()


def _make_up_for(missing: SigningKey | None) -> SigningKey:
    """There is no key that could sign: make one, unless somebody else just has."""
    fresh = _generated(str(settings.JWT_ALGORITHM))
    reason = "There was none that could sign"
    with observed() as numbers, revision(actor=_ITSELF, source="command", reason=reason) as change:
        present = _signing_row()
        if present is not None and (missing is None or present.pk != missing.pk):
            return present
        _enter(change, fresh, at_once=True)
    if numbers:
        wait_for_nodes(numbers[-1])  # a token is not given out before the gateways know its key
    return fresh


def _enter(change: RevisionWriter, fresh: SigningKey, *, at_once: bool) -> SigningKey:
    """Store the new key; the others sign until it does."""
    fresh.signs_from = timezone.now() if at_once else timezone.now() + LEAD
    for key in _live().select_for_update().filter(Q(retired_at__isnull=True) | Q(retired_at__gt=fresh.signs_from)):
        before = key.recorded()
        key.retired_at = fresh.signs_from
        change.save(key, before)
    change.save_new(fresh)
    return fresh


def _refuse_without_keys() -> None:
    if is_symmetric():
        raise ClientFault("conflict", f"JWT_ALGORITHM is {settings.JWT_ALGORITHM}: tokens are signed with JWT_SECRET.")


# --- keys ---
def _generated(algorithm: str) -> SigningKey:
    row = SigningKey(algorithm=algorithm)
    named: Any = {"kid": row.pk, "use": "sig", "alg": algorithm}
    key: AnyKey
    if algorithm in _CURVES:
        key = ECKey.generate_key(_CURVES[algorithm], named)
    elif algorithm == "EdDSA":
        key = OKPKey.generate_key("Ed25519", named)
    else:
        key = RSAKey.generate_key(_RSA_BITS, named)
    row.public_jwk = dict(key.as_dict(private=False))
    row.sealed = seal(dict(key.as_dict(private=True)), row.pk)
    return row


def _opened(row: SigningKey) -> Signer | None:
    try:
        return _unsealed(row.pk, row.algorithm, row.sealed, settings.SECRET_KEY)
    except Unreadable as error:
        logger.error("%s: a new one takes its place", error)
        return None


@lru_cache(maxsize=16)
def _unsealed(key_id: str, algorithm: str, sealed: str, _secret: str) -> Signer:
    return Signer(key_id, algorithm, _imported(unseal(sealed, key_id)))


@lru_cache(maxsize=4)
def _secret_signer(secret: str, algorithm: str) -> Signer:
    """The name of the key tells one secret from the next, and nothing about either."""
    key_id = "hs-" + hashlib.sha256(b"portcullis key id:" + secret.encode()).hexdigest()[:16]
    return Signer(
        key_id, algorithm, OctKey.import_key(secret.encode(), {"kid": key_id, "alg": algorithm, "use": "sig"})
    )


def _imported(jwk: Mapping[str, Any]) -> AnyKey:
    kinds: dict[str, type[ECKey] | type[OKPKey] | type[RSAKey]] = {"EC": ECKey, "OKP": OKPKey, "RSA": RSAKey}
    return kinds[jwk["kty"]].import_key(dict(jwk))

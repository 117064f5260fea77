"""Use-case: a key is replaced by a new one of the same kind, and both work until the transition ends (K4)."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta

from django.utils import timezone

from core.faults import ClientFault, PolicyDenied
from core.permissions import refuse_escalation
from core.revisions import Actor, locked, revision
from core.validation import invalid
from keys.making import IssuedKey, acting_key, end_no_later, new_key, restrict_as
from keys.models import ApiKey
from keys.services import LONGEST_TRANSITION_DAYS

DEFAULT_TRANSITION_DAYS = 7


@dataclass(frozen=True, slots=True)
class Rotation:
    old: ApiKey
    issued: IssuedKey


def rotate_key(
    *,
    key: ApiKey,
    transition_days: int = DEFAULT_TRANSITION_DAYS,
    if_revision: int | None = None,
    own_scopes: Iterable[str] | None = None,
    actor: Actor,
    source: str,
    reason: str = "",
) -> Rotation:
    """A new key with the old one's name, owner, scopes, restrictions, application and lifetime, and its limits too.

    The old one is deprecated and ends when the transition does (0 days: now), never later than it would have. An admin
    key is rotated by its own user alone, since the new one acts in that user's name.

    Raises as `keys.services` has it; ``conflict`` for a key that is not active.
    """
    if not isinstance(transition_days, int) or not 0 <= transition_days <= LONGEST_TRANSITION_DAYS:
        sentence = f"A transition lasts from 0 (the old key ends at once) to {LONGEST_TRANSITION_DAYS} days."
        raise invalid("transition_period_days", sentence)
    secret, successor = new_key(name=key.name, actor=actor)
    with revision(actor=actor, source=source, reason=reason) as change:
        old = locked(key, if_revision)
        _refuse_unless_active(old)
        before = old.recorded()
        _take_after(successor, old)
        warning = _limit(successor, old, own_scopes, actor) if old.is_admin else ""
        change.save_new(successor)
        end = timezone.now() + timedelta(days=transition_days)
        old.status = ApiKey.Status.DEPRECATED
        old.expires_at = end if old.expires_at is None else min(old.expires_at, end)
        change.save(old, before)
    return Rotation(old, IssuedKey(successor, secret, warning))


def _refuse_unless_active(key: ApiKey) -> None:
    named = f"The key {key.name!r}"
    successor = key.successors.order_by("-pk").first()
    if key.status == ApiKey.Status.REVOKED:
        reason = f"{named} is revoked, and that is final. Make another one."
    elif key.status == ApiKey.Status.DEPRECATED or successor is not None:
        reason = f"{named} has been rotated already: {successor.pk if successor else 'another key'} is its successor."
    elif key.status == ApiKey.Status.SUSPENDED:
        reason = f"{named} is suspended: activate it before you rotate it."
    elif not key.is_active:
        reason = f"{named} has expired. Make another one."
    else:
        return
    raise ClientFault("conflict", reason)


def _take_after(successor: ApiKey, old: ApiKey) -> None:
    lifetime = None if old.expires_at is None else old.expires_at - old.created_at
    successor.tenant_id = old.tenant_id
    successor.name, successor.owner = old.name, old.owner
    successor.application_id, successor.user_id = old.application_id, old.user_id
    successor.scopes, successor.restrictions = list(old.scopes), old.restrictions
    successor.created_at = timezone.now()
    successor.expires_at = None if lifetime is None else successor.created_at + lifetime
    successor.replaces, successor.bucket = old, old.bucket or old.pk


def _limit(successor: ApiKey, old: ApiKey, own_scopes: Iterable[str] | None, actor: Actor) -> str:
    """Rule 14, for admin keys: nobody gets more than they have by it. Returns the warning."""
    refuse_escalation(old.scopes, own_scopes)
    acting = acting_key(actor)
    user_id = {"user": actor.id, "key": str(acting.user_id) if acting else ""}.get(actor.kind, str(old.user_id))
    if user_id != str(old.user_id):
        raise PolicyDenied(
            "insufficient_scope", "The new key would act in another's name: only its own user rotates an admin key."
        )
    restrict_as(successor, acting)
    return end_no_later(successor, acting)

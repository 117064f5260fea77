"""What making a key and rotating one share: the credential with its row, and how far whoever makes it may go (rule 14).

A key must not be a way around its own end or its own restrictions: what an admin key makes, or changes, ends no later
than itself and is restricted as it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import Enum
from typing import Any, Literal

from argon2 import PasswordHasher
from django.conf import settings
from django.utils import timezone

from access.policies import Restrictions
from core.faults import PolicyDenied
from core.policies import plain, read
from core.revisions import Actor
from core.validation import FieldErrors, check_policies
from keys.credential import Digester, generate
from keys.models import ApiKey
from keys.pepper import pepper, pepper_id
from keys.scopes import check_scopes, is_admin_scope

LONGEST_DAYS = 36_500
NEVER_EXPIRES = "This key never expires. Prefer an expiry date, or revoke the key when it is no longer needed."


class Expiry(Enum):
    DEFAULT = "API_KEY_DEFAULT_DAYS"


Days = int | None | Literal[Expiry.DEFAULT]


@dataclass(frozen=True, slots=True)
class IssuedKey:
    """A new key. ``key`` is the credential itself: show it once, keep it nowhere. ``warning`` may be empty."""

    row: ApiKey
    key: str = field(repr=False)
    warning: str = ""


def new_key(*, name: str, actor: Actor) -> tuple[str, ApiKey]:
    """The secret and its row, not stored yet. argon2's milliseconds pass here, before a revision takes its lock."""
    credential = generate(settings.API_KEY_PREFIX)
    row = ApiKey(
        name=name,
        lookup_id=credential.lookup_id,
        hash=hasher().hash(credential.key),
        digest=Digester(pepper())(credential.key.encode()).hex(),
        pepper_id=pepper_id(),
        created_by=actor.name,
    )
    return credential.key, row


def hasher() -> PasswordHasher:
    return PasswordHasher(
        time_cost=settings.ARGON2_TIME_COST,
        memory_cost=settings.ARGON2_MEMORY_KIB,
        parallelism=settings.ARGON2_PARALLELISM,
    )


def check_new(scopes: Sequence[str], expires_in_days: Days) -> datetime | None:
    """When a key ends that is made now; None: never. Raises ClientFault ``invalid_field``."""
    errors = FieldErrors()
    errors.check("scopes", lambda: check_scopes(list(scopes)))
    days = settings.API_KEY_DEFAULT_DAYS if expires_in_days is Expiry.DEFAULT else expires_in_days
    if days is not None and (not isinstance(days, int) or isinstance(days, bool) or not 1 <= days <= LONGEST_DAYS):
        errors.add("expires_in_days", f"A key lives from 1 to {LONGEST_DAYS} days; null means for ever.")
    errors.raise_any()
    return None if days is None else timezone.now() + timedelta(days=days)


def validate(key: ApiKey) -> None:
    """Raises ClientFault ``invalid_field``. What restricts nothing becomes no restriction."""
    errors = FieldErrors()
    errors.check_columns(key)
    errors.check("scopes", lambda: check_scopes(key.scopes))
    check_policies(key, {"restrictions": Restrictions}, errors)
    errors.raise_any()
    key.restrictions = normal(key.restrictions)
    if key.is_admin and key.restrictions is not None and (key.restrictions["services"] or key.restrictions["quota"]):
        errors.add("restrictions", "An admin key is restricted by ips and hours alone.")
    admin_scopes = [scope for scope in key.scopes if is_admin_scope(scope)]
    if key.is_admin != bool(admin_scopes) or (key.is_admin and admin_scopes != key.scopes):
        errors.add("scopes", "Admin keys have admin scopes and no others; keys of applications have none.")
    errors.raise_any()


def normal(restrictions: Any) -> dict[str, Any] | None:
    """The document with all of its members, as it is stored; None for one that restricts nothing."""
    if restrictions is None:
        return None
    policy = read(Restrictions, restrictions)
    document: dict[str, Any] = plain(policy)
    return document if policy.ips or policy.services or policy.hours or policy.quota else None


# --- rule 14 -------------------------------------------------------------------------------------------------------
def acting_key(actor: Actor) -> ApiKey | None:
    """The key by which ``actor`` acts, if they act by a key."""
    return ApiKey.objects.filter(pk=actor.id).first() if actor.kind == "key" else None


def end_no_later(row: ApiKey, acting: ApiKey | None) -> str:
    """Let a new admin key end with the one that makes it, if not before. Returns the sentence that says so, or
    nothing."""
    end = None if acting is None else acting.expires_at
    if acting is None or end is None or (row.expires_at is not None and row.expires_at <= end):
        return "" if row.expires_at else NEVER_EXPIRES
    row.expires_at = end
    return f"This key ends with the key that made it, {acting.name!r}: a key makes none that outlives it."


def restrict_as(row: ApiKey, acting: ApiKey | None) -> None:
    """Raises PolicyDenied ``insufficient_scope`` when a restricted key would make an admin key that is not so."""
    own = None if acting is None else normal(acting.restrictions)
    if own is None:
        return
    if row.restrictions is None:
        row.restrictions = own
    elif normal(row.restrictions) != own:
        raise PolicyDenied(
            "insufficient_scope", "Your own key is restricted: the admin keys that it makes are restricted as it is."
        )

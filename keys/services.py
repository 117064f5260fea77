"""Use-cases: API keys, from their making to their end.

Each is one revision (`core.revisions`): keyword-only, ``actor`` who, ``source`` panel, api or command, ``reason`` why.
They raise ClientFault: ``invalid_field`` with ``errors`` {field: [sentence, …]}, ``conflict``, ``not_found``, and
``stale_revision`` when ``if_revision`` is not the row's; PolicyDenied ``insufficient_scope`` for a key that would
open more than its giver may do (rule 14).

``own_scopes`` are those of whoever acts; None means all of them (a superuser, a command).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from enum import Enum
from typing import Any, Literal

from argon2 import PasswordHasher
from django.conf import settings
from django.contrib.auth.models import User
from django.db.models import Q
from django.utils import timezone

from access.models import Application
from access.services import create_application
from core.faults import ClientFault, PolicyDenied
from core.models import DEFAULT_TENANT
from core.permissions import covers
from core.revisions import Actor, locked, revision
from core.validation import FieldErrors, assign, invalid
from keys.credential import Digester, generate
from keys.models import ApiKey
from keys.pepper import pepper
from keys.scopes import check_scopes, is_admin_scope

KEY_FIELDS = ("name", "owner", "scopes", "expires_at", "is_active")
_LONGEST_DAYS = 36_500
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


def create_key(
    *,
    name: str,
    scopes: Sequence[str] = (),
    application: Application | None = None,
    owner: str = "",
    expires_in_days: Days = Expiry.DEFAULT,
    actor: Actor,
    source: str,
    reason: str = "",
) -> IssuedKey:
    """A key of an application: of the given one, else of the one named ``owner``, which is made if there is none.

    An application made this way is allowed nothing yet. ``expires_in_days`` None: never.
    """
    secret, row = _new_key(name=name, scopes=scopes, expires_in_days=expires_in_days, actor=actor)
    row.owner = owner or (application.name if application else "")
    if any(is_admin_scope(scope) for scope in row.scopes):
        raise invalid("scopes", "The key of an application has no admin scopes: make an admin key for that.")
    if not row.owner:
        raise invalid("owner", "Say whose key this is: an applicationId, or the name of an application as owner.")
    with revision(actor=actor, source=source, reason=reason) as change:
        row.application = locked(application) if application else _application_named(row.owner, actor, source)
        _validate(row)
        change.save_new(row)
    return IssuedKey(row, secret, "" if row.expires_at else NEVER_EXPIRES)


def create_admin_key(
    *,
    user: User,
    name: str,
    scopes: Sequence[str] = ("admin:*",),
    owner: str = "",
    expires_in_days: Days = Expiry.DEFAULT,
    own_scopes: Iterable[str] | None = None,
    actor: Actor,
    source: str,
    reason: str = "",
) -> IssuedKey:
    """A key that opens the admin API in the name of ``user`` and dies with the user's rights."""
    secret, row = _new_key(name=name, scopes=scopes, expires_in_days=expires_in_days, actor=actor)
    row.owner = owner or user.get_username()[:100]
    row.user = user
    if not row.scopes or not all(is_admin_scope(scope) for scope in row.scopes):
        raise invalid("scopes", "An admin key has admin scopes and no others.")
    _refuse_escalation(row.scopes, own_scopes)
    with revision(actor=actor, source=source, reason=reason) as change:
        _validate(row)
        change.save_new(row)
    return IssuedKey(row, secret, "" if row.expires_at else NEVER_EXPIRES)


def update_key(
    *,
    key: ApiKey,
    changes: Mapping[str, Any],
    if_revision: int | None = None,
    own_scopes: Iterable[str] | None = None,
    actor: Actor,
    source: str,
    reason: str = "",
) -> ApiKey:
    """``changes``: KEY_FIELDS; ``is_active`` false suspends and true activates. Whoever changes an admin key has all of
    its scopes, those of before and of after; to stop a key, `suspend_key` and `revoke_key` ask for none of them."""

    def apply(current: ApiKey) -> None:
        if current.is_admin:
            _refuse_escalation(current.scopes, own_scopes)
        values = dict(changes)
        is_active = values.pop("is_active", None)
        assign(current, values, KEY_FIELDS)
        if is_active is not None:
            _set_active(current, is_active)
        _validate(current)
        admin_scopes = [scope for scope in current.scopes if is_admin_scope(scope)]
        if current.is_admin != bool(admin_scopes) or (current.is_admin and admin_scopes != current.scopes):
            raise invalid("scopes", "Admin keys have admin scopes and no others; keys of applications have none.")
        if current.is_admin:
            _refuse_escalation(current.scopes, own_scopes)

    return _change(key, apply, if_revision, actor, source, reason)


def suspend_key(*, key: ApiKey, if_revision: int | None = None, actor: Actor, source: str, reason: str = "") -> ApiKey:
    """Stop a key until it is activated again."""
    return _change(key, lambda current: _set_active(current, False), if_revision, actor, source, reason)


def activate_key(
    *,
    key: ApiKey,
    if_revision: int | None = None,
    own_scopes: Iterable[str] | None = None,
    actor: Actor,
    source: str,
    reason: str = "",
) -> ApiKey:
    """Let a suspended key work again."""

    def apply(current: ApiKey) -> None:
        if current.is_admin:
            _refuse_escalation(current.scopes, own_scopes)
        _set_active(current, True)

    return _change(key, apply, if_revision, actor, source, reason)


def revoke_key(*, key: ApiKey, if_revision: int | None = None, actor: Actor, source: str, reason: str = "") -> ApiKey:
    """For good. A key that is revoked already stays as it is."""
    with revision(actor=actor, source=source, reason=reason) as change:
        current = locked(key, if_revision)
        if current.status != ApiKey.Status.REVOKED:
            before = current.recorded()
            current.status = ApiKey.Status.REVOKED
            current.revoked_at = timezone.now()
            change.save(current, before)
    return current


def find_live_key(secret: str, *, admin: bool) -> ApiKey | None:
    """The key that a request carries, if it works and is of the kind asked for.

    A key works while it is active and unexpired, and while its application is active or its user is active staff. The
    database judges all of that in one look-up by digest: whatever is wrong, it is the same work (rule 17).
    """
    digest = Digester(pepper())(secret.encode("utf-8", "surrogatepass")).hex()
    unexpired = Q(expires_at__isnull=True) | Q(expires_at__gt=timezone.now())
    usable = Q(user__is_active=True, user__is_staff=True) if admin else Q(application__is_active=True)
    working = ApiKey.objects.filter(unexpired, usable, status__in=(ApiKey.Status.ACTIVE, ApiKey.Status.DEPRECATED))
    return working.select_related("user" if admin else "application").filter(digest=digest).first()


def _new_key(*, name: str, scopes: Sequence[str], expires_in_days: Days, actor: Actor) -> tuple[str, ApiKey]:
    """The secret and its row, not stored yet. argon2's milliseconds pass here, before the revision takes its lock."""
    errors = FieldErrors()
    errors.check("scopes", lambda: check_scopes(list(scopes)))
    days = settings.API_KEY_DEFAULT_DAYS if expires_in_days is Expiry.DEFAULT else expires_in_days
    if days is not None and (not isinstance(days, int) or isinstance(days, bool) or not 1 <= days <= _LONGEST_DAYS):
        errors.add("expires_in_days", f"A key lives from 1 to {_LONGEST_DAYS} days; null means for ever.")
    errors.raise_any()
    credential = generate(settings.API_KEY_PREFIX)
    row = ApiKey(
        name=name,
        scopes=list(scopes),
        lookup_id=credential.lookup_id,
        hash=_hasher().hash(credential.key),
        digest=Digester(pepper())(credential.key.encode()).hex(),
        expires_at=None if days is None else timezone.now() + timedelta(days=days),
        created_by=actor.name,
    )
    return credential.key, row


def _hasher() -> PasswordHasher:
    return PasswordHasher(
        time_cost=settings.ARGON2_TIME_COST,
        memory_cost=settings.ARGON2_MEMORY_KIB,
        parallelism=settings.ARGON2_PARALLELISM,
    )


def _application_named(name: str, actor: Actor, source: str) -> Application:
    found = Application.objects.select_for_update().filter(tenant_id=DEFAULT_TENANT, name=name).first()
    return found or create_application(name=name, actor=actor, source=source)


def _change(
    key: ApiKey, apply: Callable[[ApiKey], None], if_revision: int | None, actor: Actor, source: str, reason: str
) -> ApiKey:
    with revision(actor=actor, source=source, reason=reason) as change:
        current = locked(key, if_revision)
        if current.status == ApiKey.Status.REVOKED:
            raise ClientFault("conflict", f"The key {current.name!r} is revoked, and that is final. Make another one.")
        before = current.recorded()
        apply(current)
        change.save(current, before)
    return current


def _set_active(key: ApiKey, is_active: bool) -> None:
    if not is_active:
        key.status = ApiKey.Status.SUSPENDED
    elif key.status == ApiKey.Status.SUSPENDED:
        key.status = ApiKey.Status.ACTIVE


def _refuse_escalation(scopes: Sequence[str], own_scopes: Iterable[str] | None) -> None:
    beyond = [] if own_scopes is None else [scope for scope in scopes if not covers(tuple(own_scopes), scope)]
    if beyond:
        raise PolicyDenied("insufficient_scope", f"This is beyond your own scopes: {', '.join(beyond)}.")


def _validate(key: ApiKey) -> None:
    errors = FieldErrors()
    errors.check_columns(key)
    errors.check("scopes", lambda: check_scopes(key.scopes))
    errors.raise_any()

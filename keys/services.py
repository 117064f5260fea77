"""Use-cases: API keys, from their making to their end. `keys.rotation` has their replacement.

Each is one revision (`core.revisions`): keyword-only, ``actor`` who, ``source`` panel, api or command, ``reason`` why.
They raise ClientFault: ``invalid_field`` with ``errors`` {field: [sentence, …]}, ``conflict``, ``not_found``, and
``stale_revision`` when ``if_revision`` is not the row's; PolicyDenied ``insufficient_scope`` for a key that would
open more than its giver may do (rule 14).

``own_scopes`` are those of whoever acts; None means all of them (a command).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from django.contrib.auth.models import User
from django.db.models import Q
from django.utils import timezone

from access.models import Application
from access.services import create_application
from core.faults import ClientFault, PolicyDenied
from core.permissions import refuse_escalation
from core.revisions import Actor, locked, revision
from core.validation import assign, invalid
from keys.credential import Digester
from keys.making import (
    NEVER_EXPIRES,
    Days,
    Expiry,
    acting_key,
    check_new,
    end_no_later,
    new_key,
    normal,
    restrict_as,
    validate,
)
from keys.making import IssuedKey as IssuedKey  # what use-cases answer with
from keys.models import ApiKey
from keys.pepper import pepper
from keys.scopes import is_admin_scope

KEY_FIELDS = ("name", "owner", "scopes", "expires_at", "restrictions", "is_active")
LONGEST_TRANSITION_DAYS = 90


def create_key(
    *,
    name: str,
    scopes: Sequence[str] = (),
    application: Application | None = None,
    owner: str = "",
    expires_in_days: Days = Expiry.DEFAULT,
    restrictions: Mapping[str, Any] | None = None,
    may_make_application: bool = True,
    actor: Actor,
    source: str,
    reason: str = "",
) -> IssuedKey:
    """A key of an application: of the given one, else of the one named ``owner``, which is made if there is none.

    An application made this way is allowed nothing yet. ``expires_in_days`` None: never. ``restrictions``: an
    `access.policies.Restrictions` as JSON types.
    """
    expires_at = check_new(scopes, expires_in_days)
    if any(is_admin_scope(scope) for scope in scopes):
        raise invalid("scopes", "The key of an application has no admin scopes: make an admin key for that.")
    owner = owner or (application.name if application else "")
    if not owner:
        raise invalid("owner", "Say whose key this is: an applicationId, or the name of an application as owner.")
    secret, row = new_key(name=name, actor=actor)
    row.owner, row.scopes, row.expires_at = owner, list(scopes), expires_at
    row.restrictions = None if restrictions is None else dict(restrictions)
    with revision(actor=actor, source=source, reason=reason) as change:
        row.application = (
            locked(application) if application else _application_named(owner, may_make_application, actor, source)
        )
        validate(row)
        change.save_new(row)
    return IssuedKey(row, secret, "" if row.expires_at else NEVER_EXPIRES)


def create_admin_key(
    *,
    user: User,
    name: str,
    scopes: Sequence[str] = ("admin:*",),
    owner: str = "",
    expires_in_days: Days = Expiry.DEFAULT,
    restrictions: Mapping[str, Any] | None = None,
    own_scopes: Iterable[str] | None = None,
    actor: Actor,
    source: str,
    reason: str = "",
) -> IssuedKey:
    """A key that opens the admin API in the name of ``user`` and dies with the user's rights. Made by another key, it
    ends no later than that one, which the answer's warning says."""
    expires_at = check_new(scopes, expires_in_days)
    if not scopes or not all(is_admin_scope(scope) for scope in scopes):
        raise invalid("scopes", "An admin key has admin scopes and no others.")
    refuse_escalation(scopes, own_scopes)
    secret, row = new_key(name=name, actor=actor)
    row.owner, row.user = owner or user.get_username()[:100], user
    row.scopes, row.expires_at = list(scopes), expires_at
    row.restrictions = None if restrictions is None else dict(restrictions)
    with revision(actor=actor, source=source, reason=reason) as change:
        acting = acting_key(actor)
        restrict_as(row, acting)
        warning = end_no_later(row, acting)
        validate(row)
        change.save_new(row)
    return IssuedKey(row, secret, warning)


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
            refuse_escalation(current.scopes, own_scopes)
        before = current.expires_at, normal(current.restrictions)
        values = dict(changes)
        is_active = values.pop("is_active", None)
        assign(current, values, KEY_FIELDS)
        if is_active is not None:
            _set_active(current, is_active)
        validate(current)
        _check_transition(current, before[0])
        if current.is_admin:
            refuse_escalation(current.scopes, own_scopes)
            _refuse_way_around(current, before, acting_key(actor))

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
            refuse_escalation(current.scopes, own_scopes)
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


def find_live_key(secret: str, *, admin: bool | None = None) -> ApiKey | None:
    """The key that a request carries, if it works and is of the kind asked for (None: of either).

    A key works while it is active and unexpired, and while its application is active or its user is active staff. The
    database judges all of that in one look-up by digest: whatever is wrong, it is the same work (rule 17).
    """
    digest = Digester(pepper())(secret.encode("utf-8", "surrogatepass")).hex()
    unexpired = Q(expires_at__isnull=True) | Q(expires_at__gt=timezone.now())
    usable = Q(user__is_active=True, user__is_staff=True), Q(application__is_active=True)
    kind = usable[0] | usable[1] if admin is None else usable[0 if admin else 1]
    working = ApiKey.objects.filter(unexpired, kind, status__in=(ApiKey.Status.ACTIVE, ApiKey.Status.DEPRECATED))
    return working.select_related("user", "application").filter(digest=digest).first()


def _application_named(name: str, may_make: bool, actor: Actor, source: str) -> Application:
    found = Application.objects.select_for_update().filter(name=name).first()
    if found is None and not may_make:
        detail = f"There is no application named {name!r}, and making one needs admin:applications:create."
        raise PolicyDenied("insufficient_scope", detail)
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
    """A key that has a successor goes on as deprecated."""
    if not is_active:
        key.status = ApiKey.Status.SUSPENDED
    elif key.status == ApiKey.Status.SUSPENDED:
        key.status = ApiKey.Status.DEPRECATED if key.successors.exists() else ApiKey.Status.ACTIVE


def _check_transition(key: ApiKey, former_end: datetime | None) -> None:
    """A rotated key may be given more time, but not without end."""
    if key.status != ApiKey.Status.DEPRECATED or key.expires_at == former_end:
        return
    latest = timezone.now() + timedelta(days=LONGEST_TRANSITION_DAYS, minutes=5)
    if key.expires_at is None or key.expires_at > latest:
        raise invalid("expires_at", f"A key that was rotated ends within {LONGEST_TRANSITION_DAYS} days.")


def _refuse_way_around(
    key: ApiKey, before: tuple[datetime | None, dict[str, Any] | None], acting: ApiKey | None
) -> None:
    """By a key that ends, or that is restricted (rule 14)."""
    if acting is None:
        return
    own = normal(acting.restrictions)
    if own is not None and key.restrictions not in (own, before[1]):
        raise PolicyDenied("insufficient_scope", "Your own key is restricted: it makes no admin key that is less so.")
    end = acting.expires_at
    if before[0] != key.expires_at and end is not None and (key.expires_at is None or key.expires_at > end):
        raise PolicyDenied("insufficient_scope", "Your own key ends before: it makes no admin key outlive it.")

"""Use-cases: inviting somebody to administer the gateway.

Keyword-only, ``actor`` who, ``source`` panel or api. An invitation is a link that works once, until it expires or is
withdrawn; a digest of its token is all that is kept. They raise ClientFault ``invalid_field``, ``conflict`` and
``not_found``, and PolicyDenied ``insufficient_scope`` when roles give more than the inviter has (rule 14).
"""

import hashlib
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

from django.conf import settings
from django.contrib.auth.models import User
from django.core.exceptions import ValidationError
from django.core.validators import validate_email
from django.db import transaction
from django.db.models import QuerySet
from django.utils import timezone

from access.administration.rights import permissions_of_roles, roles_of_tenant
from access.administration.users import create_admin
from access.models import AdminAccount, Invitation
from core.audit import record
from core.faults import ClientFault
from core.permissions import refuse_escalation
from core.revisions import Actor
from core.tenants import own_tenant, within_tenant
from core.validation import FieldErrors, is_storable, taken

PREFIX = "inv_"  # of tokens, so that scanners for secrets know them
_GONE = "This invitation is not valid any more: it was used, withdrawn, or has expired. Ask for another one."


@dataclass(frozen=True, slots=True)
class Invited:
    """``token`` is known here and to whom it is given, and to nobody afterwards."""

    invitation: Invitation
    token: str


def invite(
    *, email: str, roles: Sequence[str] = (), own_permissions: Iterable[str] | None, actor: Actor, source: str
) -> Invited:
    """An earlier open invitation to the same address is withdrawn."""
    _validate(email, roles)
    refuse_escalation(permissions_of_roles(roles, roles_of_tenant(own_tenant())), own_permissions)
    token = PREFIX + secrets.token_urlsafe(32)
    now = timezone.now()
    with transaction.atomic():
        open_ones().filter(email__iexact=email).update(withdrawn_at=now)
        invitation = Invitation.objects.create(
            tenant_id=own_tenant(),
            email=email,
            roles=list(roles),
            digest=_digest(token),
            invited_by=actor.name,
            expires_at=now + timedelta(days=settings.INVITATION_DAYS),
        )
        _note("invitation.created", invitation, actor, source)
    return Invited(invitation, token)


def withdraw(*, invitation: Invitation, actor: Actor, source: str) -> None:
    with transaction.atomic():
        if not open_ones().filter(pk=invitation.pk).update(withdrawn_at=timezone.now()):
            raise ClientFault("conflict", "This invitation is not open any more.")
        _note("invitation.withdrawn", invitation, actor, source)


def accept(
    *, invitation: Invitation, username: str, name: str = "", password: str | None, actor: Actor, source: str
) -> AdminAccount:
    """Makes the administrator, once. Without a password (an identity provider vouches) none can be used."""
    actor = replace(actor, tenant_id=str(invitation.tenant_id))  # where the trail of it belongs
    with transaction.atomic(), within_tenant(invitation.tenant_id):
        if not open_ones().filter(pk=invitation.pk).update(accepted_at=timezone.now()):
            raise ClientFault("conflict", _GONE)
        account = create_admin(
            username=username,
            email=invitation.email,
            name=name,
            roles=invitation.roles,
            password=password,
            actor=actor,
            source=source,
            reason=f"Invited by {invitation.invited_by}"[:500],
        )
        _note("invitation.accepted", invitation, actor, source)
    return account


def open_ones() -> QuerySet[Invitation]:
    return Invitation.objects.filter(accepted_at=None, withdrawn_at=None, expires_at__gt=timezone.now())


def find(token: str) -> Invitation:
    """The open invitation of a token. Raises ClientFault ``not_found``."""
    invitation = open_ones().filter(digest=_digest(token.strip())).first() if is_storable(token) else None
    if invitation is None:
        raise ClientFault("not_found", _GONE)
    return invitation


def open_for(email: str) -> Invitation | None:
    """To be asked with a verified address alone."""
    return open_ones().filter(email__iexact=email).first()


def status_of(invitation: Invitation) -> str:
    """``open``, ``accepted``, ``withdrawn`` or ``expired``."""
    if invitation.accepted_at is not None:
        return "accepted"
    if invitation.withdrawn_at is not None:
        return "withdrawn"
    return "open" if invitation.expires_at > timezone.now() else "expired"


def _digest(token: str) -> str:
    """The token is random, so that a plain digest keeps it."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def _validate(email: str, roles: Sequence[str]) -> None:
    errors = FieldErrors()
    try:
        if len(email) > 150 or not is_storable(email):
            raise ValidationError("")
        validate_email(email)
    except ValidationError:
        errors.add("email", "This is no e-mail address.")
    known = roles_of_tenant(own_tenant())
    for role in roles:
        if role not in known:
            errors.add("roles", f"There is no role {role[:63]!r}; there are {', '.join(sorted(known))}.")
    if not roles:
        errors.add("roles", "Choose at least one role: without any they could sign in and see nothing.")
    errors.raise_any()
    if User.objects.filter(email__iexact=email).exists():
        raise taken("email", f"A user with the address {email} exists already.")


def _note(action: str, invitation: Invitation, actor: Actor, source: str) -> None:
    record(
        action,
        actor=actor,
        source=source,
        object_kind="invitation",
        object_id=invitation.pk,
        object_name=invitation.email,
        details={"roles": invitation.roles},
    )

"""Use-cases: the roles of end users. Each is one revision (`core.revisions`), as in `access.services`."""

import re
from collections.abc import Mapping
from typing import Any

from access.models import EndUser, EndUserRole, TokenRevocation
from access.revocations import database_now, revoke, whole_second_after
from core.faults import ClientFault
from core.revisions import Actor, locked, revision
from core.validation import FieldErrors, assign, taken

ROLE_FIELDS = ("name", "description", "scopes", "requests_per_hour", "burst_limit")
ROLE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
_SCOPE = re.compile(r"(?!admin:)[A-Za-z0-9_.:/-]{1,200}")
MOST = 1_000_000_000


def create_role(*, actor: Actor, source: str, reason: str = "", **fields: Any) -> EndUserRole:
    """``fields``: ROLE_FIELDS; ``name`` is required."""
    with revision(actor=actor, source=source, reason=reason) as change:
        role = EndUserRole(tenant_id=actor.tenant_id)
        assign(role, fields, ROLE_FIELDS)
        _validate(role)
        change.save_new(role)
    return role


def update_role(
    *,
    role: EndUserRole,
    changes: Mapping[str, Any],
    if_revision: int | None = None,
    actor: Actor,
    source: str,
    reason: str = "",
) -> EndUserRole:
    """``changes``: ROLE_FIELDS. Other scopes: tokens that say the former ones hold no longer, and refreshing gives new
    ones. A role that somebody has keeps its name."""
    with revision(actor=actor, source=source, reason=reason) as change:
        current = locked(role, if_revision)
        before = current.recorded()
        assign(current, changes, ROLE_FIELDS)
        _validate(current)
        if current.name != before["name"] and _users_of(current, before["name"]):
            raise taken("name", f"There are users with the role {before['name']!r}: it keeps its name.")
        if sorted(current.scopes) != sorted(before["scopes"]):
            current.tokens_from = whole_second_after(database_now())
            EndUserRole.objects.filter(pk=current.pk).update(tokens_from=current.tokens_from)
            revoke(TokenRevocation.Kind.ROLE, current.name, current.tokens_from, str(current.tenant_id))
        change.save(current, before)
    return current


def delete_role(
    *, role: EndUserRole, if_revision: int | None = None, actor: Actor, source: str, reason: str = ""
) -> None:
    """Raises ClientFault ``conflict`` for one that somebody has."""
    with revision(actor=actor, source=source, reason=reason) as change:
        current = locked(role, if_revision)
        if _users_of(current, current.name):
            raise ClientFault(
                "conflict", f"There are users with the role {current.name!r}: give them another one first."
            )
        change.delete(current)


def _users_of(role: EndUserRole, name: str) -> bool:
    return EndUser.objects.filter(tenant_id=role.tenant_id, role=name).exists()


def _validate(role: EndUserRole) -> None:
    errors = FieldErrors()
    errors.check_columns(role)
    errors.check_list("scopes", role.scopes, _SCOPE, "orders:read (and nothing under admin:)", star=False)
    if not errors.has("name") and not ROLE_NAME.fullmatch(role.name):
        errors.add("name", "A role's name has up to 63 letters, digits and . _ -, and begins with a letter or digit.")
    for field in ("requests_per_hour", "burst_limit"):
        value = getattr(role, field)
        if value is not None and not errors.has(field) and not 1 <= value <= MOST:
            errors.add(field, "At least 1; none means that the role sets no limit.")
    if role.burst_limit is not None and role.requests_per_hour is None and not errors.has("burst_limit"):
        errors.add("burst_limit", "A burst belongs to a limit: say requestsPerHour too.")
    errors.raise_any()
    same = EndUserRole.objects.filter(tenant_id=role.tenant_id, name=role.name)
    if same.exclude(pk=role.pk).exists():
        raise taken("name", f"A role named {role.name!r} exists already.")

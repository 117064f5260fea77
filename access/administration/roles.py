"""Use-cases: roles of administrators, as `access.administration.users` has it. The built-in ones stay as they are."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from django.db.models import Q, QuerySet

from access.administration.builtin import BUILTIN_ROLES
from access.models import AdminAccount, AdminRole
from core.faults import ClientFault
from core.permissions import check_permissions, refuse_escalation
from core.revisions import Actor, locked, revision
from core.tenants import own_tenant
from core.validation import FieldErrors, assign, invalid, taken

ROLE_FIELDS = ("description", "permissions", "require_mfa")
ROLE_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,62}")
MOST_PERMISSIONS = 200


def visible_roles() -> QuerySet[AdminRole]:
    """The built-in ones, and those of the present tenant."""
    return AdminRole._base_manager.filter(Q(is_builtin=True) | Q(tenant_id=own_tenant()))


def create_role(
    *,
    name: str,
    description: str = "",
    permissions: Sequence[str] = (),
    require_mfa: bool = False,
    own_permissions: Iterable[str] | None = None,
    actor: Actor,
    source: str,
    reason: str = "",
) -> AdminRole:
    with revision(actor=actor, source=source, reason=reason) as change:
        role = AdminRole(name=name)
        values = {"description": description, "permissions": list(permissions), "require_mfa": require_mfa}
        assign(role, values, ROLE_FIELDS)
        _validate(role)
        refuse_escalation(role.permissions, own_permissions)
        if name in BUILTIN_ROLES or AdminRole.objects.filter(tenant_id=role.tenant_id, name=name).exists():
            raise taken("name", f"A role named {name!r} exists already.")
        change.save_new(role)
    return role


def update_role(
    *,
    role: AdminRole,
    changes: Mapping[str, Any],
    if_revision: int | None = None,
    own_permissions: Iterable[str] | None = None,
    actor: Actor,
    source: str,
    reason: str = "",
) -> AdminRole:
    """``changes``: ROLE_FIELDS. The name stays: accounts hold it. Whoever changes a role has all of its permissions,
    those of before and of after."""
    with revision(actor=actor, source=source, reason=reason) as change:
        current = _own(role, if_revision)
        refuse_escalation(current.permissions, own_permissions)
        if changes.get("name", current.name) != current.name:
            raise invalid("name", "The name cannot change: administrators have the role by it. Make another role.")
        before = current.recorded()
        assign(current, {name: changes[name] for name in changes if name != "name"}, ROLE_FIELDS)
        _validate(current)
        refuse_escalation(current.permissions, own_permissions)
        change.save(current, before)
    return current


def delete_role(
    *,
    role: AdminRole,
    if_revision: int | None = None,
    own_permissions: Iterable[str] | None = None,
    actor: Actor,
    source: str,
    reason: str = "",
) -> None:
    """Refused while somebody has it."""
    with revision(actor=actor, source=source, reason=reason) as change:
        current = _own(role, if_revision)
        refuse_escalation(current.permissions, own_permissions)
        holders = holders_of(current)
        if holders:
            named = ", ".join(account.user.get_username() for account in holders[:5])
            raise ClientFault("conflict", f"{len(holders)} administrators have this role: {named}. Take it from them.")
        change.delete(current)


def holders_of(role: AdminRole) -> list[AdminAccount]:
    """Accounts of the present tenant. JSON lists are searched here: SQLite cannot."""
    rows = AdminAccount.objects.select_related("user")
    rows = rows if role.is_builtin else rows.filter(tenant_id=role.tenant_id)
    return [account for account in rows if role.name in account.roles]


def _own(role: AdminRole, if_revision: int | None) -> AdminRole:
    if role.is_builtin:
        raise ClientFault("conflict", f"{role.name} is built in and stays as it is: make a role of your own.")
    return locked(role, if_revision)


def _validate(role: AdminRole) -> None:
    errors = FieldErrors()
    errors.check_columns(role)
    if not isinstance(role.name, str) or not ROLE_NAME.fullmatch(role.name):
        errors.add("name", "A name has 1 to 63 letters, digits, hyphens and underscores, and begins with a letter.")
    permissions = role.permissions
    if not isinstance(permissions, list) or not all(isinstance(permission, str) for permission in permissions):
        errors.add("permissions", "This must be a list of permissions.")
    elif len(permissions) > MOST_PERMISSIONS:
        errors.add("permissions", f"At most {MOST_PERMISSIONS} permissions are allowed.")
    else:
        errors.check("permissions", lambda: check_permissions(permissions))
        if len(set(permissions)) < len(permissions):
            errors.add("permissions", "A permission stands here twice.")
    errors.raise_any()

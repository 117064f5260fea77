"""Use-cases: administrators.

Each is one revision (`core.revisions`): keyword-only, ``actor`` who, ``source`` panel, api or command, ``reason`` why.
They raise ClientFault: ``invalid_field`` with ``errors`` {field: [sentence, …]}, ``conflict`` (a name in use, the last
SUPER_ADMIN), ``not_found``, and ``stale_revision`` when ``if_revision`` is not the row's; PolicyDenied
``insufficient_scope`` when somebody would give, or change an account that has, more than their own permissions
(rule 14). ``own_permissions`` are those of whoever acts; None: everything (a command).

Passwords pass through Django's validators and are kept as Django keeps them; no revision holds one. The keys of an
administrator who is deactivated work no longer: they hold only while their user may do something.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from django.contrib.auth.models import User
from django.contrib.auth.password_validation import validate_password
from django.core.exceptions import ValidationError
from django.core.validators import validate_email

from access.administration.builtin import SUPER_ADMIN
from access.administration.rights import (
    account_of,
    is_super_admin,
    permissions_of_roles,
    refuse_without_super_admin,
    roles_of_tenant,
    tenant_of,
)
from access.models import AdminAccount
from core.audit import record
from core.permissions import EVERYTHING, refuse_escalation
from core.revisions import Actor, locked, revision
from core.tenants import DEFAULT_TENANT, own_tenant
from core.validation import FieldErrors, is_storable, taken

ADMIN_FIELDS = ("username", "email", "name", "roles", "is_active")
_LONGEST_PASSWORD = 1000


def create_admin(
    *,
    username: str,
    email: str = "",
    name: str = "",
    roles: Sequence[str] = (),
    password: str | None = None,
    is_active: bool = True,
    own_permissions: Iterable[str] | None = None,
    actor: Actor,
    source: str,
    reason: str = "",
) -> AdminAccount:
    """Without a password nobody can sign in with one until it is set (an invitation, an identity provider)."""
    user = User(is_staff=True, username=username, email=email)  # which the password must not resemble
    account = AdminAccount(tenant_id=own_tenant(), user=user)
    _set_password(account, password)
    with revision(actor=actor, source=source, reason=reason) as change:
        values = {"username": username, "email": email, "name": name, "roles": list(roles), "is_active": is_active}
        _assign(account, values)
        _validate(account)
        refuse_escalation(rights_of(account), own_permissions)
        account.user.save()
        account.user_id = account.user.pk
        change.save_new(account)
    return account


def update_admin(
    *,
    account: AdminAccount,
    changes: Mapping[str, Any],
    if_revision: int | None = None,
    own_permissions: Iterable[str] | None = None,
    actor: Actor,
    source: str,
    reason: str = "",
) -> AdminAccount:
    """``changes``: ADMIN_FIELDS and ``password``. A new password ends the sessions that the old one began."""
    values = dict(changes)
    is_password_new = "password" in values
    if is_password_new:
        _set_password(account, values.pop("password"))  # argon2's milliseconds pass before the revision's lock
    hashed = account.user.password
    with revision(actor=actor, source=source, reason=reason) as change:
        current = _locked(account, if_revision)
        was_super_admin = is_super_admin(current.user, current)
        refuse_escalation(rights_of(current), own_permissions)
        before = current.recorded()
        _assign(current, values)
        if is_password_new:
            current.user.password = hashed
        _validate(current)
        refuse_escalation(rights_of(current), own_permissions)
        if was_super_admin and not is_super_admin(current.user, current):
            refuse_without_super_admin(current, current.user)
        current.user.save()
        change.save(current, before)
        if is_password_new:
            _note_password(current, actor, source)
    return current


def deactivate_admin(**arguments: Any) -> AdminAccount:
    """As `update_admin`: no signing in, no session, no key until they are activated again."""
    return update_admin(changes={"is_active": False}, **arguments)


def activate_admin(**arguments: Any) -> AdminAccount:
    return update_admin(changes={"is_active": True}, **arguments)


def delete_admin(
    *,
    account: AdminAccount,
    if_revision: int | None = None,
    own_permissions: Iterable[str] | None = None,
    actor: Actor,
    source: str,
    reason: str = "",
) -> None:
    """With the user and all of their keys."""
    with revision(actor=actor, source=source, reason=reason):
        current = _locked(account, if_revision)
        refuse_escalation(rights_of(current), own_permissions)
        if is_super_admin(current.user, current):
            refuse_without_super_admin(current, current.user)
        current.user.delete()  # `access.receivers` and `keys.receivers` record what goes with it


def ensure_account(
    *, user: User, roles: Sequence[str] = (SUPER_ADMIN,), name: str = "", actor: Actor, source: str, reason: str = ""
) -> AdminAccount:
    """The account of a user who exists already, with these roles among others, active as the user is."""
    with revision(actor=actor, source=source, reason=reason) as change:
        account = AdminAccount._base_manager.select_for_update().filter(user_id=user.pk).first()
        if account is None:
            account = AdminAccount(user=user, name=name or user.first_name, roles=list(roles), is_active=user.is_active)
            change.save_new(account)
            return account
        before = account.recorded()
        account.roles = [*account.roles, *(role for role in roles if role not in account.roles)]
        account.is_active = user.is_active
        change.save(account, before)
    return account


def follow_user(*, user: User, save: Callable[[], None], actor: Actor, source: str, reason: str = "") -> None:
    """``save`` stores changes of a user that were made elsewhere (the emergency administration); the account follows
    Django's flags: an active superuser has SUPER_ADMIN, and who is none has not.

    Raises ClientFault ``conflict`` when that would take away the last SUPER_ADMIN.
    """
    with revision(actor=actor, source=source, reason=reason) as change:
        stored = User.objects.select_for_update().filter(pk=user.pk).first() if user.pk else None
        account = AdminAccount._base_manager.select_for_update().filter(user_id=user.pk).first() if stored else None
        was_super_admin = stored is not None and is_super_admin(stored, account)
        was_superuser = stored is not None and stored.is_superuser
        before = account.recorded() if account is not None else {}
        save()
        if account is None and user.is_staff:
            account = ensure_account(
                user=user, roles=(SUPER_ADMIN,) if user.is_superuser else (), actor=actor, source=source
            )
        elif account is not None:
            account.user, account.is_active = user, user.is_active
            account.roles = _roles_by_flag(account.roles, was_superuser, user.is_superuser)
            change.save(account, before)
        if was_super_admin and not is_super_admin(user, account):
            refuse_without_super_admin(account, user)


def _roles_by_flag(roles: list[str], was_superuser: bool, is_superuser: bool) -> list[str]:
    if is_superuser and SUPER_ADMIN not in roles:
        return [*roles, SUPER_ADMIN]
    if was_superuser and not is_superuser:
        return [role for role in roles if role != SUPER_ADMIN]
    return roles


def refuse_deletion_of_last(user: User) -> None:
    """To be asked within the revision that deletes a user. Raises ClientFault ``conflict``."""
    account = account_of(user)
    if is_super_admin(user, account):
        refuse_without_super_admin(account, user)


def rights_of(account: AdminAccount) -> tuple[str, ...]:
    """What the account may do when it is active."""
    if account.user.is_superuser:
        return (EVERYTHING,)
    return permissions_of_roles(account.roles, roles_of_tenant(tenant_of(account)))


def _locked(account: AdminAccount, if_revision: int | None) -> AdminAccount:
    current = locked(account, if_revision)
    current.user = User.objects.select_for_update().get(pk=current.user_id)
    return current


def _assign(account: AdminAccount, values: Mapping[str, Any]) -> None:
    unknown = sorted(set(values) - set(ADMIN_FIELDS))
    if unknown:
        raise TypeError(f"an administrator has no writable field {', '.join(unknown)}")
    for name in ("name", "roles", "is_active"):
        if name in values:
            setattr(account, name, values[name])
    for name in ("username", "email", "is_active"):
        if name in values:
            setattr(account.user, name, values[name])
    if "roles" in values and isinstance(account.roles, list):
        # Django's own flag follows the role, where it means the whole installation.
        account.user.is_superuser = SUPER_ADMIN in account.roles and account.tenant_id == DEFAULT_TENANT


def _validate(account: AdminAccount) -> None:
    user, errors = account.user, FieldErrors()
    errors.check_columns(account)
    _check_user(user, errors)
    _check_roles(account, errors)
    errors.raise_any()
    others = User.objects.exclude(pk=user.pk)
    if others.filter(username__iexact=user.username).exists():
        raise taken("username", f"A user named {user.username!r} exists already.")
    if user.email and others.filter(email__iexact=user.email).exists():
        raise taken("email", f"A user with the address {user.email} exists already.")


def _check_user(user: User, errors: FieldErrors) -> None:
    for field in ("username", "email"):
        value = getattr(user, field)
        if not isinstance(value, str) or not is_storable(value):
            errors.add(field, "This is text without NUL characters.")
    if errors.has("username") or errors.has("email"):
        return
    try:
        user.clean_fields(exclude=["password"])
    except ValidationError as error:
        for field, sentences in error.message_dict.items():
            for sentence in sentences:
                errors.add(field, sentence)
    if user.email and not errors.has("email"):
        try:
            validate_email(user.email)
        except ValidationError:
            errors.add("email", "This is no e-mail address.")


def _check_roles(account: AdminAccount, errors: FieldErrors) -> None:
    roles = account.roles
    if not isinstance(roles, list) or not all(isinstance(role, str) for role in roles):
        errors.add("roles", "This must be a list of names of roles.")
        return
    known = roles_of_tenant(tenant_of(account))
    for role in roles:
        if role not in known:
            errors.add("roles", f"There is no role {role[:63]!r}; there are {', '.join(sorted(known))}.")
    if len(set(roles)) < len(roles):
        errors.add("roles", "A role stands here twice.")


def _set_password(account: AdminAccount, password: str | None) -> None:
    """Raises ClientFault ``invalid_field``."""
    if password is None:
        account.user.set_unusable_password()
        return
    errors = FieldErrors()
    if not isinstance(password, str) or not is_storable(password) or len(password) > _LONGEST_PASSWORD:
        errors.add("password", f"A password is text of at most {_LONGEST_PASSWORD} characters.")
    else:
        try:
            validate_password(password, account.user)
        except ValidationError as error:
            for sentence in error.messages:
                errors.add("password", sentence)
    errors.raise_any()
    account.user.set_password(password)


def _note_password(account: AdminAccount, actor: Actor, source: str) -> None:
    record(
        "admin.password",
        actor=actor,
        source=source,
        object_kind=AdminAccount.kind,
        object_id=account.pk,
        object_name=account.user.get_username(),
    )

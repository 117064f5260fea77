"""What administrators may do at present, and who is the last that may do everything."""

from collections.abc import Iterable

from django.contrib.auth.models import User
from django.db.models import Q
from django.http import HttpRequest

from access.administration.builtin import SUPER_ADMIN
from access.callers import client_address
from access.models import AdminAccount, AdminRole
from core.faults import ClientFault
from core.permissions import EVERYTHING, Caller
from core.revisions import Actor
from core.tenants import DEFAULT_TENANT


def account_of(user: User) -> AdminAccount | None:
    """In whatever tenant it is."""
    account: AdminAccount | None = AdminAccount._base_manager.filter(user_id=user.pk).first()
    return account


def tenant_of(account: AdminAccount | None) -> str:
    """A superuser without an account is of the default one."""
    return str(account.tenant_id) if account else DEFAULT_TENANT


def roles_of_tenant(tenant_id: str) -> dict[str, AdminRole]:
    """By name: the built-in ones, and the tenant's own."""
    rows = AdminRole._base_manager.filter(Q(is_builtin=True) | Q(tenant_id=tenant_id))
    return {row.name: row for row in rows.order_by("is_builtin")}  # a built-in one hides others of its name


def permissions_of_roles(names: Iterable[str], roles: dict[str, AdminRole]) -> tuple[str, ...]:
    """The union. Names of roles that are gone count for nothing."""
    found = {permission for name in names if name in roles for permission in roles[name].permissions}
    return (EVERYTHING,) if EVERYTHING in found else tuple(sorted(found))


def permissions_of(user: User, account: AdminAccount | None = None) -> tuple[str, ...]:
    """A superuser may do everything; others what their roles say, while they and their account are active."""
    if not (user.is_active and user.is_staff):
        return ()
    account = account or account_of(user)
    if account is not None and not account.is_active:
        return ()
    if user.is_superuser:
        return (EVERYTHING,)
    return permissions_of_roles(account.roles, roles_of_tenant(tenant_of(account))) if account else ()


def caller_by_session(request: HttpRequest, user: User) -> Caller:
    """Who acts in a panel session, in the panel and in the API alike."""
    account = account_of(user)
    actor = actor_of(request, "user", str(user.pk), user.get_username(), account)
    return Caller(actor, permissions_of(user, account))


def actor_of(request: HttpRequest, kind: str, id: str, name: str, account: AdminAccount | None) -> Actor:
    return Actor(
        kind,
        id,
        name[:150],
        tenant_id=tenant_of(account),
        request_id=str(getattr(request, "request_id", ""))[:64],
        address=client_address(request)[:64],
    )


def refuse_without_super_admin(account: AdminAccount | None, user: User) -> None:
    """Whether this is the last one, to be asked within a revision, under its lock, before ``user`` loses anything.

    Raises ClientFault ``conflict`` when nobody else of the tenant is an active SUPER_ADMIN.
    """
    tenant_id = tenant_of(account)
    others = User.objects.filter(is_active=True, is_staff=True).exclude(pk=user.pk).select_related("admin_account")
    if any(_is_super_admin(other, tenant_id) for other in others.iterator(chunk_size=200)):
        return
    raise ClientFault(
        "conflict", f"{user.get_username()} is the last {SUPER_ADMIN}: give somebody else that role before."
    )


def is_super_admin(user: User, account: AdminAccount | None) -> bool:
    """Now, as stored: active and allowed everything."""
    tenant_id = tenant_of(account)
    return user.is_active and user.is_staff and _is_super_admin(user, tenant_id, account)


def _is_super_admin(user: User, tenant_id: str, account: AdminAccount | None = None) -> bool:
    account = account or getattr(user, "admin_account", None)
    if account is None:
        return user.is_superuser and tenant_id == DEFAULT_TENANT
    has_role = user.is_superuser or SUPER_ADMIN in account.roles
    return account.tenant_id == tenant_id and account.is_active and has_role

"""Who must have a second factor, and whether they have one."""

from typing import Any

from allauth.mfa.models import Authenticator
from django.conf import settings

from access.administration.rights import account_of, permissions_of, roles_of_tenant, tenant_of

_REAL = (Authenticator.Type.TOTP, Authenticator.Type.WEBAUTHN)  # recovery codes are none by themselves


def has_factor(user: Any) -> bool:
    return bool(Authenticator.objects.filter(user_id=user.pk, type__in=_REAL).exists())


def is_factor_required(user: Any) -> bool:
    """By REQUIRE_MFA, or by a role, which asks it of those too who come by an identity provider."""
    return _is_required_by_setting(user) or _is_required_by_role(user)


def _is_required_by_setting(user: Any) -> bool:
    """``admins`` are those who may change anything. Of accounts without a password here, their identity provider says
    how they sign in."""
    if settings.REQUIRE_MFA == "off" or not user.has_usable_password():
        return False
    if settings.REQUIRE_MFA == "all":
        return True
    return any(not permission.endswith(":read") for permission in permissions_of(user))


def _is_required_by_role(user: Any) -> bool:
    account = account_of(user)
    if account is None or not account.roles:
        return False
    roles = roles_of_tenant(tenant_of(account))
    return any(roles[name].require_mfa for name in account.roles if name in roles)


def must_add_factor(user: Any) -> bool:
    """Whether somebody who has signed in has to add a factor before anything else."""
    return bool(user.is_authenticated) and not has_factor(user) and is_factor_required(user)

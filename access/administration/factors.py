"""Who must have a second factor, and whether they have one."""

from typing import Any

from allauth.mfa.models import Authenticator
from django.conf import settings

from access.administration.rights import permissions_of

_REAL = (Authenticator.Type.TOTP, Authenticator.Type.WEBAUTHN)  # recovery codes are none by themselves


def has_factor(user: Any) -> bool:
    return bool(Authenticator.objects.filter(user_id=user.pk, type__in=_REAL).exists())


def is_factor_required(user: Any) -> bool:
    """By REQUIRE_MFA: ``admins`` are those who may change anything. Of accounts without a password here, their identity
    provider says how they sign in."""
    if settings.REQUIRE_MFA == "off" or not user.has_usable_password():
        return False
    if settings.REQUIRE_MFA == "all":
        return True
    return any(not permission.endswith(":read") for permission in permissions_of(user))


def must_add_factor(user: Any) -> bool:
    """Whether somebody who has signed in has to add a factor before anything else."""
    return bool(user.is_authenticated) and is_factor_required(user) and not has_factor(user)

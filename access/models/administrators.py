"""Who administers the gateway, and what they may do there. Rollback never touches any of this (rule 13)."""

from typing import Any

from django.conf import settings
from django.db import models
from django.utils import timezone

from core.models import ConfigRow, TenantRow, prefixed_id


class AdminRole(ConfigRow):
    """A named set of permissions, ``admin:<resource>:<action>`` with wildcards. A built-in one cannot be changed."""

    kind = "role"

    id = prefixed_id("rle")
    name = models.CharField(max_length=63)
    description = models.CharField(max_length=300, blank=True)
    permissions = models.JSONField(default=list, blank=True)
    require_mfa = models.BooleanField(default=False)  # whoever has it adds a second factor before anything else
    is_builtin = models.BooleanField(default=False, editable=False)

    class Meta:
        db_table = "gateway_admin_role"
        ordering = ("name",)
        constraints = [models.UniqueConstraint(fields=["tenant", "name"], name="admin_role_name_unique")]

    def __str__(self) -> str:
        return self.name


class AdminAccount(ConfigRow):
    """What an administrator is beside a user of Django: the names of their roles, and their tenant."""

    kind = "admin"

    id = prefixed_id("adm")
    user = models.OneToOneField(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="admin_account")
    name = models.CharField(max_length=150, blank=True)
    roles = models.JSONField(default=list, blank=True)  # names of `AdminRole`
    is_active = models.BooleanField(default=True)
    has_roles_by_claims = models.BooleanField(default=False, editable=False)  # an identity provider's, at each sign-in

    class Meta:
        db_table = "gateway_admin_account"
        ordering = ("id",)

    def __str__(self) -> str:
        return self.user.get_username()

    def recorded(self) -> dict[str, Any]:
        """With what the history wants to know of the user. Never a password."""
        return super().recorded() | {"username": self.user.get_username(), "email": self.user.email}


class Invitation(TenantRow):
    """A link that makes an administrator of whoever opens it first. Only a digest of its token is kept."""

    id = prefixed_id("inv")
    email = models.EmailField(max_length=150)
    roles = models.JSONField(default=list, blank=True)
    digest = models.CharField(max_length=64, unique=True)
    invited_by = models.CharField(max_length=150, blank=True)
    created_at = models.DateTimeField(default=timezone.now)
    expires_at = models.DateTimeField()
    accepted_at = models.DateTimeField(null=True, blank=True)
    withdrawn_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        db_table = "gateway_invitation"
        ordering = ("-created_at",)

    def __str__(self) -> str:
        return self.email

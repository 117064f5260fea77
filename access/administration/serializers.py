"""JSON of administrators, their roles, and what permissions there are."""

from typing import Any, ClassVar

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from access.administration.rights import permissions_of
from access.administration.roles import MOST_PERMISSIONS, ROLE_NAME
from access.models import AdminAccount, AdminRole
from core.serializers import ConfigSerializer, EpochMillis, Flag, Text, config_meta, text_list, whole

_PERMISSIONS = {
    "items": {"type": "string", "pattern": r"^admin:(?:\*|[a-z-]+:(?:\*|[a-z]+))$"},
    "maxItems": MOST_PERMISSIONS,
    "uniqueItems": True,
}
_TEXTS: dict[str, Any] = {"type": "array", "items": {"type": "string"}}


class AdminSerializer(ConfigSerializer[AdminAccount]):
    """An administrator. ``permissions`` are the effective ones: of all roles together."""

    username = Text(source="user.username", max_length=150)
    email = Text(source="user.email", max_length=150, allow_blank=True, required=False)
    name = Text(max_length=150, allow_blank=True, required=False)
    roles = text_list(required=False)
    is_active = Flag(required=False)
    password = Text(write_only=True, required=False, trim_whitespace=False, max_length=1000)
    permissions = serializers.SerializerMethodField()
    last_login_at = EpochMillis(source="user.last_login", read_only=True, allow_null=True)

    Meta = config_meta(
        AdminAccount,
        "username", "email", "name", "roles", "is_active", "password",
        read_only=("permissions", "last_login_at"),
    )  # fmt: skip

    @extend_schema_field(_TEXTS)
    def get_permissions(self, account: AdminAccount) -> list[str]:
        return list(permissions_of(account.user, account))

    def changes(self) -> dict[str, Any]:
        """As use-cases take them. A PUT that leaves a member out empties it; the password and whether the account is
        active stay as they are."""
        values = dict(self.validated_data)
        values |= values.pop("user", {})
        if self.instance is not None and not self.partial:
            values = {"email": "", "name": "", "roles": []} | values
        return values


class RoleSerializer(ConfigSerializer[AdminRole]):
    """A role of administrators: own ones have the permissions that are listed at ``/admin/access/permissions``.
    ``requireMfa``: whoever has it must have a second factor to use the panel."""

    identity = "name"
    bounds: ClassVar = {"name": whole(ROLE_NAME), "permissions": _PERMISSIONS}
    permissions = text_list(required=False)

    Meta = config_meta(AdminRole, "name", "description", "permissions", "require_mfa", read_only=("is_builtin",))


class PermissionSerializer(serializers.Serializer[Any]):
    """What may be written in a role or as an admin key's scope: each of ``actions``, or ``*``."""

    resource = serializers.CharField()
    purpose = serializers.CharField()
    actions = serializers.ListField(child=serializers.CharField())
    permissions = serializers.ListField(child=serializers.CharField())


class PermissionsSerializer(serializers.Serializer[Any]):
    """Every permission that there is, and the caller's own."""

    resources = PermissionSerializer(many=True)
    own = serializers.ListField(child=serializers.CharField())

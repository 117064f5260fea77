"""The roles that are always there (requirements/000). Nobody edits them."""

from typing import Any

from django.apps import apps as loaded
from django.apps.registry import Apps

from core.apps import make_default_tenant
from core.permissions import EVERYTHING
from core.tenants import DEFAULT_TENANT

SUPER_ADMIN = "SUPER_ADMIN"
BUILTIN_ROLES: dict[str, tuple[str, tuple[str, ...]]] = {
    SUPER_ADMIN: ("Full system access", (EVERYTHING,)),
    "KEY_ADMIN": ("Can manage API keys", ("admin:keys:*",)),
    "KEY_VIEWER": ("Can only view API keys", ("admin:keys:read",)),
    "USER_ADMIN": ("Can manage admin users", ("admin:users:*",)),
    "SUPPORT": ("Limited read-only access", ("admin:keys:read", "admin:logs:read")),
}


def make_builtin_roles(using: str, apps: Apps = loaded, **_: Any) -> None:
    """By a migration, and after each: a test's flush empties all tables."""
    try:
        roles = apps.get_model("access", "AdminRole").objects.using(using)
    except LookupError:  # the migration was undone
        return
    known = set(roles.filter(is_builtin=True).values_list("name", flat=True))
    if not known.issuperset(BUILTIN_ROLES):
        make_default_tenant(using=using, apps=apps)
    for name, (description, permissions) in BUILTIN_ROLES.items():
        if name not in known:
            roles.create(
                tenant_id=DEFAULT_TENANT,
                name=name,
                description=description,
                permissions=list(permissions),
                is_builtin=True,
            )

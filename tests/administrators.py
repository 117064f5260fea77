"""What tests of administrators share: accounts with roles, keys of theirs, and another tenant."""

from typing import Any

from rest_framework.test import APIClient

from access.administration.users import create_admin
from access.models import AdminAccount
from core.models import Tenant
from core.revisions import Actor
from core.tenants import within_tenant
from keys.services import create_admin_key
from tests.admin_api import client_with_key

ROOT: dict[str, Any] = {"actor": Actor("command", name="tests"), "source": "command"}
PASSWORD = "nine lives of a cat 99"
USERS, ROLES = "/admin/access/users", "/admin/access/roles"


def make_account(username: str, *roles: str, tenant: str = "default", **fields: Any) -> AdminAccount:
    Tenant.objects.get_or_create(id=tenant, defaults={"name": tenant.title()})
    with within_tenant(tenant):
        return create_admin(username=username, roles=roles, **fields, **ROOT)


def key_of(account: AdminAccount, *scopes: str) -> str:
    with within_tenant(account.tenant_id):
        return create_admin_key(user=account.user, name="laptop", scopes=scopes or ("admin:*",), **ROOT).key


def client_of(account: AdminAccount, *scopes: str) -> APIClient:
    return client_with_key(key_of(account, *scopes))


def client_with(*roles: str, username: str = "uma", tenant: str = "default") -> APIClient:
    """A client of a new administrator with these roles."""
    return client_of(make_account(username, *roles, tenant=tenant))

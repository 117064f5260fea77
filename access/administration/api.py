"""``/admin/access/users[/{id}]``, ``/admin/access/roles[/{name}]`` and ``/admin/access/permissions``."""

from typing import Any, ClassVar

import django_filters
from django.db.models import QuerySet
from drf_spectacular.utils import extend_schema
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from access.administration import roles as role_use_cases
from access.administration import users as use_cases
from access.administration.serializers import AdminSerializer, PermissionsSerializer, RoleSerializer
from access.models import AdminAccount, AdminRole
from core.api import Author, ConfigViewSet, if_match, own_permissions, settle
from core.api import author as author_of
from core.listing import Filters, flag_filter
from core.permissions import RESOURCES
from core.revisions import observed


class AdminFilters(Filters):
    search_in = ("name", "user__username", "user__email")
    username = django_filters.CharFilter(field_name="user__username")
    email = django_filters.CharFilter(field_name="user__email", lookup_expr="iexact")
    isActive = flag_filter("is_active")


class AdminViewSet(ConfigViewSet[AdminAccount]):
    """Administrators: who they are, and their roles."""

    queryset = AdminAccount.objects.select_related("user")
    serializer_class = AdminSerializer
    filterset_class = AdminFilters
    lookup_field = "id"
    resource, plural = "users", "users"
    has_news_between_revisions = True  # the last sign-in; and roles give more or less when they change
    orderings: ClassVar = {"createdAt": "created_at", "name": "name"}

    def store(self, values: dict[str, Any], author: Author) -> tuple[AdminAccount, dict[str, Any]]:
        return use_cases.create_admin(**values, own_permissions=own_permissions(self.request), **author), {}

    def change(
        self, row: AdminAccount, changes: dict[str, Any], if_revision: int | None, author: Author
    ) -> tuple[AdminAccount, dict[str, Any]]:
        own = own_permissions(self.request)
        changed = use_cases.update_admin(
            account=row, changes=changes, if_revision=if_revision, own_permissions=own, **author
        )
        return changed, {}

    def remove(self, row: AdminAccount, if_revision: int | None, author: Author) -> None:
        own = own_permissions(self.request)
        use_cases.delete_admin(account=row, if_revision=if_revision, own_permissions=own, **author)


class AdminStateViewSet(AdminViewSet):
    """Deactivating and activating change a user, so they need ``admin:users:update``."""

    permission_actions: ClassVar = {"POST": "update"}

    @extend_schema(request=None, responses=AdminSerializer)
    def deactivate(self, request: Request, **_: Any) -> Response:
        """No session and no key of theirs works any more, until they are activated again."""
        return self._switch(request, is_active=False)

    @extend_schema(request=None, responses=AdminSerializer)
    def activate(self, request: Request, **_: Any) -> Response:
        """Let them work again."""
        return self._switch(request, is_active=True)

    def _switch(self, request: Request, *, is_active: bool) -> Response:
        row = self.get_object()
        with observed() as numbers:
            row, _ = self.change(row, {"is_active": is_active}, if_match(request, row.revision), author_of(request))
        return settle(request, self.answer(row, {}), numbers)


class RoleFilters(Filters):
    search_in = ("name", "description")
    isBuiltin = flag_filter("is_builtin")


class RoleViewSet(ConfigViewSet[AdminRole]):
    """Named sets of permissions."""

    queryset = AdminRole.objects.all()
    serializer_class = RoleSerializer
    filterset_class = RoleFilters
    lookup_field = "name"
    resource, plural = "roles", "roles"

    def get_queryset(self) -> QuerySet[AdminRole]:
        return role_use_cases.visible_roles()

    def store(self, values: dict[str, Any], author: Author) -> tuple[AdminRole, dict[str, Any]]:
        return role_use_cases.create_role(**values, own_permissions=own_permissions(self.request), **author), {}

    def change(
        self, row: AdminRole, changes: dict[str, Any], if_revision: int | None, author: Author
    ) -> tuple[AdminRole, dict[str, Any]]:
        own = own_permissions(self.request)
        changed = role_use_cases.update_role(
            role=row, changes=changes, if_revision=if_revision, own_permissions=own, **author
        )
        return changed, {}

    def remove(self, row: AdminRole, if_revision: int | None, author: Author) -> None:
        own = own_permissions(self.request)
        role_use_cases.delete_role(role=row, if_revision=if_revision, own_permissions=own, **author)


class PermissionsView(APIView):
    """What may stand in a role, or in the scopes of an admin key."""

    resource = "roles"

    @extend_schema(responses=PermissionsSerializer, operation_id="admin_access_permissions", summary="List permissions")
    def get(self, request: Request) -> Response:
        resources = [
            {
                "resource": name,
                "purpose": resource.purpose,
                "actions": list(resource.actions),
                "permissions": [f"admin:{name}:{action}" for action in (*resource.actions, "*")],
            }
            for name, resource in RESOURCES.items()
        ]
        return Response({"resources": resources, "own": list(own_permissions(request))})

"""Every path of the control process. One view for each thing, whatever the paths that lead to it."""

from typing import Any

from django.contrib import admin
from django.urls import URLPattern, URLResolver, include, path, register_converter
from django.urls.converters import StringConverter
from django.views.generic import RedirectView

from access.administration.api import AdminStateViewSet, AdminViewSet, PermissionsView, RoleViewSet
from access.administration.people_api import FactorsView, InvitationViewSet, PanelSessionsView, PanelSessionView
from access.alerts_api import AlertChannelViewSet, AlertMessageViewSet, AlertTestView
from access.api import ApplicationViewSet, EntryViewSet
from access.end_users.api import (
    EndSessionsView,
    EndUserRoleViewSet,
    EndUserViewSet,
    ResetPasswordView,
    SigningKeyStateViewSet,
    SigningKeyViewSet,
    UserSessionViewSet,
)
from access.end_users.auth_api import ChangePasswordView, JwksView, LoginView, LogoutView, ProfileView, RefreshView
from access.issuers_api import IssuerViewSet
from access.limiting.api import LimitUseView, LimitViewSet, ViolationViewSet
from core.audit_api import AuditEntryView, AuditExportView, AuditView
from core.system_api import NodeViewSet, RevisionViewSet
from gateway_project.api import AdminHealthView, LivenessView, OpenApiView, RedocView, SwaggerView
from keys.api import KeyCallersViewSet, KeyStateViewSet, KeyViewSet
from keys.management import ManagedKeyViewSet
from keys.public_api import SetupView, ValidateView
from queues.api import QueueRouteViewSet, TaskViewSet
from routing.api import GatewayViewSet, RouteViewSet, ServiceViewSet, TargetViewSet, VersionViewSet, WeightsView
from routing.bundles_api import BundleViewSet
from routing.cache_api import CachePurgeView, CachePurgeViewSet
from routing.discovery_api import DiscoveryView, RegistrationTokenView, RegistrationView
from routing.health_api import CircuitResetView, CircuitViewSet, HealthCheckView, ServiceHealthView
from routing.management import ManagedRouteViewSet, ManagedServiceViewSet
from routing.rollout_api import CallerViewSet, RolloutViewSet, TrafficView

handler400 = "core.api_problems.bad_request"
handler403 = "core.api_problems.permission_denied"
handler404 = "core.api_problems.page_not_found"
handler500 = "admin_panel.middleware.server_error"


class WordConverter(StringConverter):
    """A name or an id. Nothing else reaches a query."""

    regex = r"[A-Za-z0-9._-]{1,200}"


register_converter(WordConverter, "word")


def _rows(route: str, view_set: Any, parameter: str = "id") -> list[URLPattern]:
    """The list and its objects."""
    return [
        path(route, view_set.as_view({"get": "list", "post": "create"})),
        path(
            f"{route}/<word:{parameter}>",
            view_set.as_view({"get": "retrieve", "put": "update", "patch": "partial_update", "delete": "destroy"}),
        ),
    ]


def _services(route: str) -> list[URLPattern]:
    versions = f"{route}/<word:name>/versions"
    return [
        *_rows(route, ServiceViewSet, "name"),
        path(f"{route}/<word:name>/weights", WeightsView.as_view()),
        path(f"{route}/<word:name>/discovery", DiscoveryView.as_view()),
        path(f"{route}/<word:name>/registration-token", RegistrationTokenView.as_view()),
        path(f"{route}/<word:name>/health", ServiceHealthView.as_view()),
        path(f"{route}/<word:name>/health-check", HealthCheckView.as_view()),
        *_rows(versions, VersionViewSet, "version"),
        *_rows(f"{versions}/<word:version>/targets", TargetViewSet),
        path(f"{versions}/<word:version>/callers", CallerViewSet.as_view({"get": "list"})),
        path(f"{route}/<word:name>/traffic", TrafficView.as_view()),
        path(f"{route}/<word:name>/rollouts", RolloutViewSet.as_view({"get": "list", "post": "create"})),
        path(f"{route}/<word:name>/rollouts/<word:id>", RolloutViewSet.as_view({"get": "retrieve"})),
        *(
            path(f"{route}/<word:name>/rollouts/<word:id>/{verb}", RolloutViewSet.as_view({"post": verb}))
            for verb in ("promote", "pause", "resume", "abort")
        ),
    ]


def _managed(route: str, view_set: Any, parameter: str) -> list[URLPattern]:
    """Objects that are always written whole."""
    return [
        path(route, view_set.as_view({"get": "list", "post": "create"})),
        path(
            f"{route}/<word:{parameter}>",
            view_set.as_view({"get": "retrieve", "put": "update", "delete": "destroy"}),
        ),
    ]


urlpatterns: list[URLPattern | URLResolver] = [
    *_services("admin/routing/services"),
    *_services("admin/services"),
    *_rows("admin/routing/routes", RouteViewSet),
    *_rows("admin/routing/queue-routes", QueueRouteViewSet),
    *_rows("admin/access/applications", ApplicationViewSet),
    *_rows("admin/access/applications/<word:application>/whitelist", EntryViewSet),
    *_rows("admin/access/users", AdminViewSet),
    path("admin/access/users/<word:id>/deactivate", AdminStateViewSet.as_view({"post": "deactivate"})),
    path("admin/access/users/<word:id>/activate", AdminStateViewSet.as_view({"post": "activate"})),
    path("admin/access/users/<word:id>/sessions", PanelSessionsView.as_view()),
    path("admin/access/users/<word:id>/sessions/<word:session>", PanelSessionView.as_view()),
    path("admin/access/users/<word:id>/factors", FactorsView.as_view()),
    path("admin/access/invitations", InvitationViewSet.as_view({"get": "list", "post": "create"})),
    path("admin/access/invitations/<word:id>", InvitationViewSet.as_view({"get": "retrieve", "delete": "destroy"})),
    *_rows("admin/access/roles", RoleViewSet, "name"),
    path("admin/access/permissions", PermissionsView.as_view()),
    *_rows("admin/access/end-user-roles", EndUserRoleViewSet),
    *_rows("admin/access/end-users", EndUserViewSet),
    path("admin/access/end-users/<word:id>/reset-password", ResetPasswordView.as_view()),
    path("admin/access/end-users/<word:id>/end-sessions", EndSessionsView.as_view()),
    path("admin/access/end-users/<word:user>/sessions", UserSessionViewSet.as_view({"get": "list"})),
    path(
        "admin/access/end-users/<word:user>/sessions/<word:id>",
        UserSessionViewSet.as_view({"get": "retrieve", "delete": "destroy"}),
    ),
    path("admin/access/signing-keys", SigningKeyViewSet.as_view({"get": "list"})),
    path("admin/access/signing-keys/rotate", SigningKeyViewSet.as_view({"post": "rotate"})),
    path("admin/access/signing-keys/<word:id>", SigningKeyViewSet.as_view({"get": "retrieve"})),
    path("admin/access/signing-keys/<word:id>/revoke", SigningKeyStateViewSet.as_view({"post": "revoke"})),
    path("auth/login", LoginView.as_view()),
    path("auth/refresh", RefreshView.as_view()),
    path("auth/logout", LogoutView.as_view()),
    path("auth/profile", ProfileView.as_view()),
    path("auth/change-password", ChangePasswordView.as_view()),
    path(".well-known/jwks.json", JwksView.as_view()),
    *_rows("admin/access/bundles", BundleViewSet, "name"),
    *_rows("admin/access/limits", LimitViewSet),
    path("admin/access/limits/<word:id>/use", LimitUseView.as_view()),
    path("admin/access/limit-violations", ViolationViewSet.as_view({"get": "list"})),
    *_rows("admin/access/issuers", IssuerViewSet),
    *_rows("admin/access/alert-channels", AlertChannelViewSet),
    path("admin/access/alert-channels/<word:id>/test", AlertTestView.as_view()),
    path("admin/access/alert-channels/<word:channel>/messages", AlertMessageViewSet.as_view({"get": "list"})),
    *_managed("api/v1/management/routes", ManagedRouteViewSet, "id"),
    *_managed("api/v1/management/services", ManagedServiceViewSet, "name"),
    *_managed("api/v1/management/api-keys", ManagedKeyViewSet, "id"),
    *_rows("keys", KeyViewSet),
    path("keys/<word:id>/suspend", KeyStateViewSet.as_view({"post": "suspend"})),
    path("keys/<word:id>/activate", KeyStateViewSet.as_view({"post": "activate"})),
    path("keys/<word:id>/rotate", KeyStateViewSet.as_view({"post": "rotate"})),
    path("keys/<word:id>/callers", KeyCallersViewSet.as_view({"get": "list"})),
    path("validate", ValidateView.as_view()),
    path("setup", SetupView.as_view()),
    path("admin/gateway", GatewayViewSet.as_view({"get": "retrieve", "put": "update", "patch": "partial_update"})),
    path("admin/audit", AuditView.as_view()),
    path("admin/audit/export", AuditExportView.as_view()),
    path("admin/audit/<word:id>", AuditEntryView.as_view()),
    path("admin/revisions", RevisionViewSet.as_view({"get": "list"})),
    path("admin/revisions/<int:number>", RevisionViewSet.as_view({"get": "retrieve"})),
    path("admin/nodes", NodeViewSet.as_view({"get": "list"})),
    path("admin/queues/tasks", TaskViewSet.as_view({"get": "list"})),
    path("admin/queues/tasks/<word:id>", TaskViewSet.as_view({"get": "retrieve"})),
    path("admin/discovery/<word:name>/<word:instance>", RegistrationView.as_view()),
    path("admin/circuit-breaker", CircuitViewSet.as_view({"get": "list"})),
    path("admin/circuit-breaker/<word:name>/reset", CircuitResetView.as_view()),
    path("admin/cache/purge", CachePurgeView.as_view()),
    path("admin/cache/purges", CachePurgeViewSet.as_view({"get": "list"})),
    path("admin/health", AdminHealthView.as_view()),
    path("health", LivenessView.as_view()),
    path("openapi.json", OpenApiView.as_view(), name="openapi"),
    path("docs", SwaggerView.as_view(), name="docs"),
    path("redoc", RedocView.as_view(), name="redoc"),
    # The panel's sign-in page is the one that brakes guessing.
    path("django-admin/login/", RedirectView.as_view(pattern_name="panel:login", query_string=True)),
    path("django-admin/password_change/", RedirectView.as_view(pattern_name="account_change_password")),
    path("django-admin/", admin.site.urls),
    path("", include("admin_panel.urls")),
    path("", include("admin_panel.sign_in.urls")),
]

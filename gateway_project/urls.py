"""Every path of the control process. One view for each thing, whatever the paths that lead to it."""

from typing import Any

from django.contrib import admin
from django.urls import URLPattern, URLResolver, include, path, register_converter
from django.urls.converters import StringConverter
from django.views.generic import RedirectView

from access.api import ApplicationViewSet, EntryViewSet
from core.system_api import NodeViewSet, RevisionViewSet
from gateway_project.api import AdminHealthView, LivenessView, OpenApiView, RedocView, SwaggerView
from keys.api import KeyStateViewSet, KeyViewSet, SetupView, ValidateView
from queues.api import QueueRouteViewSet, TaskViewSet
from routing.api import RouteViewSet, ServiceViewSet, TargetViewSet, VersionViewSet, WeightsView

handler400 = "core.api_problems.bad_request"
handler403 = "core.api_problems.permission_denied"
handler404 = "core.api_problems.page_not_found"
handler500 = "core.api_problems.server_error"


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
        *_rows(versions, VersionViewSet, "version"),
        *_rows(f"{versions}/<word:version>/targets", TargetViewSet),
    ]


urlpatterns: list[URLPattern | URLResolver] = [
    *_services("admin/routing/services"),
    *_services("admin/services"),
    *_rows("admin/routing/routes", RouteViewSet),
    *_rows("admin/routing/queue-routes", QueueRouteViewSet),
    *_rows("admin/access/applications", ApplicationViewSet),
    *_rows("admin/access/applications/<word:application>/whitelist", EntryViewSet),
    *_rows("keys", KeyViewSet),
    path("keys/<word:id>/suspend", KeyStateViewSet.as_view({"post": "suspend"})),
    path("keys/<word:id>/activate", KeyStateViewSet.as_view({"post": "activate"})),
    path("validate", ValidateView.as_view()),
    path("setup", SetupView.as_view()),
    path("admin/revisions", RevisionViewSet.as_view({"get": "list"})),
    path("admin/revisions/<int:number>", RevisionViewSet.as_view({"get": "retrieve"})),
    path("admin/nodes", NodeViewSet.as_view({"get": "list"})),
    path("admin/queues/tasks", TaskViewSet.as_view({"get": "list"})),
    path("admin/queues/tasks/<word:id>", TaskViewSet.as_view({"get": "retrieve"})),
    path("admin/health", AdminHealthView.as_view()),
    path("health", LivenessView.as_view()),
    path("openapi.json", OpenApiView.as_view(), name="openapi"),
    path("docs", SwaggerView.as_view(), name="docs"),
    path("redoc", RedocView.as_view(), name="redoc"),
    # The panel's sign-in page is the one that brakes guessing.
    path("django-admin/login/", RedirectView.as_view(pattern_name="panel:login", query_string=True)),
    path("django-admin/", admin.site.urls),
    path("", include("admin_panel.urls")),
]

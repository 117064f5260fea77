"""Services with their versions, targets and weights, and routes: ``/admin/routing/…`` (and ``/admin/services``)."""

from typing import Any, ClassVar

import django_filters
from django.db.models import QuerySet
from drf_spectacular.utils import extend_schema
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from core.api import Author, ConfigViewSet, author, entity_tag, if_match, is_unchanged, settle
from core.faults import ClientFault
from core.listing import Filters, flag_filter
from core.revisions import observed
from core.validation import invalid
from routing import services as use_cases
from routing.models import GatewayPolicies, Route, ServiceConfig, ServiceTarget, ServiceVersion
from routing.serializers import (
    GatewaySerializer,
    RouteSerializer,
    ServiceSerializer,
    TargetSerializer,
    VersionSerializer,
    WeightsSerializer,
)


class GatewayViewSet(ConfigViewSet[GatewayPolicies]):
    """What holds for everything that is routed, whatever its service."""

    queryset = GatewayPolicies.objects.all()
    serializer_class = GatewaySerializer
    resource, plural = "gateway", "gateway policies"

    def get_object(self) -> GatewayPolicies:
        return use_cases.gateway_policies()

    def update(self, request: Request, **_: Any) -> Response:
        """Replace all of it: what is left out ends, so at least one policy must be named."""
        if not request.data:
            raise invalid("body", 'Nothing is named here; to end maintenance, send {"maintenance": null}.')
        return super().update(request)

    def change(
        self, row: GatewayPolicies, changes: dict[str, Any], if_revision: int | None, author: Author
    ) -> tuple[GatewayPolicies, dict[str, Any]]:
        return use_cases.update_gateway(changes=changes, if_revision=if_revision, **author), {}


class ServiceFilters(Filters):
    search_in = ("name", "description", "default_url")
    name = django_filters.CharFilter()
    isActive = flag_filter("is_active")


class ServiceViewSet(ConfigViewSet[ServiceConfig]):
    queryset = ServiceConfig.objects.all()
    serializer_class = ServiceSerializer
    filterset_class = ServiceFilters
    lookup_field = "name"
    resource, plural = "services", "services"

    def store(self, values: dict[str, Any], author: Author) -> tuple[ServiceConfig, dict[str, Any]]:
        return use_cases.create_service(**values, **author), {}

    def change(
        self, row: ServiceConfig, changes: dict[str, Any], if_revision: int | None, author: Author
    ) -> tuple[ServiceConfig, dict[str, Any]]:
        return use_cases.update_service(service=row, changes=changes, if_revision=if_revision, **author), {}

    def remove(self, row: ServiceConfig, if_revision: int | None, author: Author) -> None:
        use_cases.delete_service(service=row, if_revision=if_revision, **author)


def find_service(name: str) -> ServiceConfig:
    service = ServiceConfig.objects.filter(name=name).first()
    if service is None:
        raise ClientFault("not_found", f"There is no service named {name!r}.")
    return service


class VersionFilters(Filters):
    search_in = ("version", "url")
    isActive = flag_filter("is_active")


class VersionViewSet(ConfigViewSet[ServiceVersion]):
    queryset = ServiceVersion.objects.select_related("service")
    serializer_class = VersionSerializer
    filterset_class = VersionFilters
    lookup_field = "version"
    resource, plural = "services", "versions"
    orderings: ClassVar = {"version": "version", "weight": "weight", "createdAt": "created_at"}

    def get_queryset(self) -> QuerySet[ServiceVersion]:
        if "name" not in self.kwargs:  # the OpenAPI document is being written
            return self.queryset.none()
        return self.queryset.filter(service=find_service(self.kwargs["name"]))

    def store(self, values: dict[str, Any], author: Author) -> tuple[ServiceVersion, dict[str, Any]]:
        return use_cases.create_version(service=find_service(self.kwargs["name"]), **values, **author), {}

    def change(
        self, row: ServiceVersion, changes: dict[str, Any], if_revision: int | None, author: Author
    ) -> tuple[ServiceVersion, dict[str, Any]]:
        return use_cases.update_version(version=row, changes=changes, if_revision=if_revision, **author), {}

    def remove(self, row: ServiceVersion, if_revision: int | None, author: Author) -> None:
        use_cases.delete_version(version=row, if_revision=if_revision, **author)


class TargetFilters(Filters):
    search_in = ("url",)
    isActive = flag_filter("is_active")


class TargetViewSet(ConfigViewSet[ServiceTarget]):
    queryset = ServiceTarget.objects.select_related("version__service")
    serializer_class = TargetSerializer
    filterset_class = TargetFilters
    lookup_field = "id"
    resource, plural = "services", "targets"
    orderings: ClassVar = {"createdAt": "created_at", "url": "url"}

    def get_queryset(self) -> QuerySet[ServiceTarget]:
        if "name" not in self.kwargs:  # the OpenAPI document is being written
            return self.queryset.none()
        return self.queryset.filter(version=self._version())

    def _version(self) -> ServiceVersion:
        name = self.kwargs["version"]
        version = find_service(self.kwargs["name"]).versions.filter(version=name).first()
        if version is None:
            raise ClientFault("not_found", f"The service has no version {name!r}.")
        return version

    def store(self, values: dict[str, Any], author: Author) -> tuple[ServiceTarget, dict[str, Any]]:
        return use_cases.create_target(version=self._version(), **values, **author), {}

    def change(
        self, row: ServiceTarget, changes: dict[str, Any], if_revision: int | None, author: Author
    ) -> tuple[ServiceTarget, dict[str, Any]]:
        return use_cases.update_target(target=row, changes=changes, if_revision=if_revision, **author), {}

    def remove(self, row: ServiceTarget, if_revision: int | None, author: Author) -> None:
        use_cases.delete_target(target=row, if_revision=if_revision, **author)


class WeightsView(APIView):
    """The split of a service's traffic, read and written as one. Its revision is the newest of its versions'."""

    resource = "services"
    serializer_class = WeightsSerializer
    is_conditional = True

    @extend_schema(summary="Read weights", responses=WeightsSerializer)
    def get(self, request: Request, name: str) -> Response:
        return self._answer(find_service(name), request)

    @extend_schema(summary="Replace weights", request=WeightsSerializer, responses=WeightsSerializer)
    def put(self, request: Request, name: str) -> Response:
        service = find_service(name)
        serializer = WeightsSerializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        with observed() as numbers:
            use_cases.set_weights(
                service=service,
                weights=serializer.validated_data["weights"],
                if_revision=if_match(request, use_cases.weights_revision(service)),
                **author(request),
            )
        return settle(request, self._answer(service), numbers)

    def _answer(self, service: ServiceConfig, request: Request | None = None) -> Response:
        revision = use_cases.weights_revision(service)
        tag = {"ETag": entity_tag(revision), "Cache-Control": "private, no-cache"}
        if request is not None and is_unchanged(request, revision):
            return Response(status=304, headers=tag)
        weights = dict(service.versions.order_by("version").values_list("version", "weight"))
        return Response({"weights": weights}, headers=tag)


class RouteFilters(Filters):
    search_in = ("name", "path", "description")
    name = django_filters.CharFilter()
    path = django_filters.CharFilter()
    service = django_filters.CharFilter(field_name="service__name")
    queueRoute = django_filters.CharFilter(field_name="queue_route__name")
    isActive = flag_filter("is_active")


class RouteViewSet(ConfigViewSet[Route]):
    queryset = Route.objects.select_related("service", "queue_route")
    serializer_class = RouteSerializer
    filterset_class = RouteFilters
    lookup_field = "id"
    resource, plural = "routes", "routes"
    orderings: ClassVar = {"name": "name", "path": "path", "priority": "priority", "createdAt": "created_at"}

    def store(self, values: dict[str, Any], author: Author) -> tuple[Route, dict[str, Any]]:
        route = use_cases.create_route(**values, **author)
        return route, _told(route)

    def change(
        self, row: Route, changes: dict[str, Any], if_revision: int | None, author: Author
    ) -> tuple[Route, dict[str, Any]]:
        route = use_cases.update_route(route=row, changes=changes, if_revision=if_revision, **author)
        return route, _told(route) if "service" in changes else {}

    def remove(self, row: Route, if_revision: int | None, author: Author) -> None:
        use_cases.delete_route(route=row, if_revision=if_revision, **author)


def _told(route: Route) -> dict[str, Any]:
    """A service's first route ends its implicit one (rule 2), which surprises who does not know it."""
    service = route.service
    if service is None or service.implicit_route or service.routes.count() > 1:
        return {}
    notice = f"/api/v1/{service.name}/… leads nowhere now: with its first route a service needs implicitRoute for that."
    return {"notice": notice}

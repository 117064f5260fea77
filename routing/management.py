"""``/api/v1/management/routes`` and ``/services``: routes with their conditions and targets as one object, and services
by host and port (R27). Names are in snake_case and times in ISO 8601 here."""

import re
from collections.abc import Mapping
from typing import Any, ClassVar, cast
from urllib.parse import urlsplit

from django.db.models import QuerySet
from drf_spectacular.utils import (
    OpenApiExample,
    extend_schema,
    extend_schema_field,
    extend_schema_serializer,
    extend_schema_view,
)
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from core.api import Author, ConfigViewSet, author, settle
from core.faults import ClientFault
from core.listing import Filters, flag_filter
from core.permissions import MayAdminister, may, required_permission
from core.revisions import observed
from core.serializers import Flag, StrictSerializer, Text, WholeNumber, text_list
from core.snake_case import SnakeCaseErrors
from core.validation import is_storable
from routing import services as use_cases
from routing.managed_routes import (
    ManagedRoute,
    as_members,
    create_managed_route,
    delete_managed_route,
    find_managed_route,
    leaders,
    managed_routes,
    replace_managed_route,
)
from routing.models import Route, ServiceConfig

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_UNITS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000}
_DURATION = re.compile(r"(?:[0-9]{1,9}(?:\.[0-9]{1,9})?(?:ms|s|m|h))+")
_PIECE = re.compile(r"([0-9.]+)(ms|s|m|h)")
_LONGEST_S = 10**6
_MAX_CONDITIONS, _MAX_TARGETS = 50, 100
_STRATEGIES = ("round_robin", "weighted", "ip_hash", "least_connections", "peak_ewma")


@extend_schema_field({"type": ["string", "number"], "description": "`30s`, `500ms`, `1m30s`, or seconds"})
class Duration(serializers.Field[int, Any, str, int]):
    """Milliseconds, written as Go writes durations."""

    default_error_messages = {"invalid": "A duration is a text such as 30s, 500ms or 1m30s, or a number of seconds."}

    def to_internal_value(self, data: Any) -> int:
        if isinstance(data, str) and _DURATION.fullmatch(data):
            return round(sum(float(number) * _UNITS[unit] for number, unit in _PIECE.findall(data)))
        if not isinstance(data, int | float) or isinstance(data, bool) or not 0 < data < _LONGEST_S:
            self.fail("invalid")
        return round(data * 1000)

    def to_representation(self, value: int) -> str:
        return f"{value}ms" if value < 1000 else f"{value / 1000:.10g}s"


class TextByName(serializers.DictField):
    """``{"X-Tenant": "acme"}``"""

    child = Text(max_length=2000, allow_blank=True, trim_whitespace=False)


class ConditionSerializer(StrictSerializer):
    """All that it says must hold. ``methods`` may be one ``method``, ``hosts`` one ``host``."""

    shows_others = True
    path_pattern = Text(max_length=500)
    method = Text(required=False, allow_blank=True, max_length=32)
    methods = text_list(required=False)
    host = Text(required=False, allow_blank=True, max_length=300)
    hosts = text_list(required=False)
    headers = TextByName(required=False, help_text="Values by field name; `*`: any value")
    query_params = TextByName(required=False, help_text="Values by parameter; `*`: any value")

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        for one, many in (("method", "methods"), ("host", "hosts")):
            single = attrs.pop(one, "")
            if single in ("", "*"):
                single = ""
            if single and attrs.get(many):
                raise serializers.ValidationError({one: [f"Give {one} or {many}, not both."]})
            attrs[many] = [single] if single else attrs.get(many, [])
        attrs["methods"] = [method.upper() for method in attrs["methods"]]
        attrs["hosts"] = [host.lower() for host in attrs["hosts"]]
        for member in ("headers", "query_params"):
            values = attrs.setdefault(member, {})
            if not all(is_storable(name) and is_storable(value) for name, value in values.items()):
                raise serializers.ValidationError(
                    {member: ["A text holds a NUL character or half of a surrogate pair."]}
                )
        return attrs


class RouteTargetSerializer(StrictSerializer):
    """``healthy`` false takes the target out of the rotation; what probes find is told at the service's health."""

    shows_others = True
    host = Text(max_length=253)
    port = WholeNumber(min_value=1, max_value=65535)
    weight = WholeNumber(min_value=0, max_value=10_000, default=100)
    healthy = Flag(default=True)
    protocol = serializers.ChoiceField(choices=["http", "https"], default="http")


@extend_schema_serializer(
    examples=[
        OpenApiExample(
            "A route",
            {
                "id": "user-service",
                "name": "User Service",
                "conditions": [{"path_pattern": "/api/v1/users/*", "method": "GET"}],
                "targets": [{"host": "user-service", "port": 8080, "weight": 100, "healthy": True}],
                "load_balance": "weighted",
                "timeout": "30s",
                "retries": 3,
                "require_auth": True,
            },
            request_only=True,
        )
    ]
)
class ManagedRouteSerializer(StrictSerializer):
    """A request is taken that meets any of the ``conditions``. ``service`` is the name that applications must be
    allowed. With ``editable`` false the route was made elsewhere and is only shown."""

    shows_others = True
    id = Text(required=False, max_length=100)
    name = Text(max_length=90)
    description = Text(required=False, allow_blank=True, default="", max_length=1000)
    conditions = ConditionSerializer(many=True, allow_empty=False)
    targets = RouteTargetSerializer(many=True, allow_empty=False)
    load_balance = serializers.ChoiceField(choices=_STRATEGIES, default="weighted")
    timeout = Duration(required=False, allow_null=True, default=None)
    retries = WholeNumber(required=False, allow_null=True, default=None, min_value=0, max_value=10)
    require_auth = Flag(default=True)
    priority = WholeNumber(default=0, min_value=-(2**31), max_value=2**31 - 1)
    enabled = Flag(default=True)
    service = serializers.CharField(read_only=True, allow_null=True)
    editable = serializers.BooleanField(read_only=True)
    revision = serializers.IntegerField(read_only=True)
    created_at = serializers.DateTimeField(read_only=True)
    updated_at = serializers.DateTimeField(read_only=True)

    def validate_id(self, id: str) -> str:
        if not _ID.fullmatch(id):
            raise serializers.ValidationError("An id has 1 to 100 letters, digits and . _ -, a letter or digit first.")
        if self.instance is not None and id != self.instance.id:
            raise serializers.ValidationError("The id cannot change: it is what the address says.")
        return id

    def validate_conditions(self, conditions: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return self._few(conditions, _MAX_CONDITIONS)

    def validate_targets(self, targets: list[dict[str, Any]]) -> list[dict[str, Any]]:
        addresses = [(target["protocol"], target["host"], target["port"]) for target in targets]
        if len(set(addresses)) < len(addresses):
            raise serializers.ValidationError("A target stands here twice.")
        return self._few(targets, _MAX_TARGETS)

    def _few(self, entries: list[dict[str, Any]], limit: int) -> list[dict[str, Any]]:
        if len(entries) > limit:
            raise serializers.ValidationError(f"At most {limit} entries are allowed.")
        return entries

    def changes(self) -> dict[str, Any]:
        return dict(self.validated_data)

    def to_representation(self, managed: ManagedRoute) -> dict[str, Any]:
        first, service = managed.routes[0], managed.service
        times = {"created_at": managed.created_at.isoformat(), "updated_at": managed.updated_at.isoformat()}
        return {
            "id": managed.id,
            "name": first.name,
            "description": first.description,
            "conditions": [_condition(route) for route in managed.routes],
            "targets": _targets(managed),
            "load_balance": ((service.load_balancing or {}) if service else {}).get("strategy", "weighted"),
            "timeout": None
            if first.request_timeout_ms is None
            else Duration().to_representation(first.request_timeout_ms),
            "retries": (first.retries or {}).get("attempts"),
            "require_auth": first.requires_key,
            "priority": first.priority,
            "enabled": first.is_active,
            "service": service.name if service else None,
            "editable": managed.is_own,
            "revision": managed.revision,
            **times,
        }


def _condition(route: Route) -> dict[str, Any]:
    """As it is written most simply."""
    said: dict[str, Any] = {"path_pattern": route.path}
    for one, many, values in (("method", "methods", route.methods), ("host", "hosts", route.hosts)):
        if values:
            said |= {one: values[0]} if len(values) == 1 else {many: values}
    policy = route.conditions or {}
    for kind, member in (("headers", "headers"), ("query", "query_params")):
        values = {each["name"]: each.get("equals", "*") for each in policy.get(kind, ())}
        if values:
            said[member] = values
    return said


def _targets(managed: ManagedRoute) -> list[dict[str, Any]]:
    if managed.targets:
        return [_target(each.url, each.weight, each.is_active) for each in managed.targets]
    if managed.version is not None:
        return [_target(managed.version.url, 100, True)]
    if managed.service is not None and managed.service.default_url:
        return [_target(managed.service.default_url, 100, True)]
    return []


def _target(url: str, weight: int, healthy: bool) -> dict[str, Any]:
    return {**_address(url), "weight": weight, "healthy": healthy}


def _address(url: str) -> dict[str, Any]:
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return {"host": parts.hostname, "port": port, "protocol": parts.scheme}


class ManagedRouteFilters(Filters):
    search_in = ("name", "path", "group")


class MayRoute(MayAdminister):
    """Such a route brings its service along: whoever writes it must be allowed to write both."""

    def needed(self, method: str, view: Any) -> tuple[str, ...]:
        permission = required_permission(method, view)
        return permission, permission.replace(":routes:", ":services:")


class ManagedRouteViewSet(SnakeCaseErrors, ConfigViewSet[Any]):
    """Routes as one object each, with conditions and targets."""

    queryset = Route.objects.all()
    serializer_class = ManagedRouteSerializer
    filterset_class = ManagedRouteFilters
    permission_classes = [MayRoute]
    lookup_field = "id"
    resource, plural = "routes", "routes"
    orderings: ClassVar = {"name": "name", "created_at": "created_at"}

    def get_queryset(self) -> QuerySet[Any]:
        return leaders()

    def get_object(self) -> Any:
        managed = find_managed_route(self.kwargs["id"])
        if managed is None:
            raise ClientFault("not_found", f"There is no route with the id {self.kwargs['id']!r}.")
        return managed

    def list(self, request: Request, **_: Any) -> Response:
        page = self.paginate_queryset(self.filter_queryset(self.get_queryset())) or []
        return self.get_paginated_response(self.get_serializer(managed_routes(page), many=True).data)

    @extend_schema(responses={200: ManagedRouteSerializer, 201: ManagedRouteSerializer})
    def update(self, request: Request, **_: Any) -> Response:
        """Replace the route, or make it if there is none with this id."""
        if find_managed_route(self.kwargs["id"]) is not None:
            return super().update(request)
        if not _ID.fullmatch(self.kwargs["id"]) or "If-Match" in request.headers:
            self.get_object()  # which says that there is none
        if not may(request, "admin:routes:create") or not may(request, "admin:services:create"):
            self.permission_denied(request)
        serializer = self._validated(request)
        values = cast("ManagedRouteSerializer", serializer).changes()
        if values.get("id", self.kwargs["id"]) != self.kwargs["id"]:
            raise serializers.ValidationError({"id": ["This is not the id that the address says."]})
        with observed() as numbers:
            managed, members = self.store(values | {"id": self.kwargs["id"]}, author(request))
        return settle(request, self.answer(managed, members, status=201), numbers)

    def store(self, values: dict[str, Any], author: Author) -> tuple[Any, dict[str, Any]]:
        return create_managed_route(id=values.pop("id", ""), document=values, **author), {}

    def change(
        self, row: Any, changes: dict[str, Any], if_revision: int | None, author: Author
    ) -> tuple[Any, dict[str, Any]]:
        return replace_managed_route(managed=row, document=changes, if_revision=if_revision, **author), {}

    def remove(self, row: Any, if_revision: int | None, author: Author) -> None:
        delete_managed_route(managed=row, if_revision=if_revision, **author)


# --- services ------------------------------------------------------------------------------------------------------
@extend_schema_serializer(
    examples=[
        OpenApiExample(
            "A service",
            {
                "name": "user-service",
                "host": "user-service.local",
                "port": 8080,
                "health": "http://user-service.local:8080/health",
            },
            request_only=True,
        )
    ]
)
class ManagedServiceSerializer(StrictSerializer):
    """``health``: a path, or a URL on the service's own host and port; given, targets are probed there. A service whose
    versions have URLs of their own may have no host here."""

    id = serializers.CharField(read_only=True)
    name = Text(max_length=63)
    description = Text(required=False, allow_blank=True, default="")
    host = Text(max_length=253)
    port = WholeNumber(min_value=1, max_value=65535)
    protocol = serializers.ChoiceField(choices=["http", "https"], default="http")
    path = Text(required=False, allow_blank=True, default="", max_length=200)
    health = Text(required=False, allow_blank=True, default="", max_length=500)
    enabled = Flag(default=True)
    revision = serializers.IntegerField(read_only=True)
    created_at = serializers.DateTimeField(read_only=True)
    updated_at = serializers.DateTimeField(read_only=True)

    def get_fields(self) -> dict[str, Any]:
        fields = super().get_fields()
        fields["name"].required = self.instance is None
        return fields

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        attrs["health"] = self._health_path(attrs)
        return attrs

    def _health_path(self, attrs: Mapping[str, Any]) -> str:
        health: str = attrs["health"]
        if not health or health.startswith("/"):
            return health
        try:
            is_own = _address(health) == {name: attrs[name] for name in ("host", "port", "protocol")}
        except ValueError:
            is_own = False
        if not is_own or urlsplit(health).query:
            raise serializers.ValidationError(
                {
                    "health": [
                        "This is a path, or a URL with the service's own protocol, host and port, without a query."
                    ]
                }
            )
        return urlsplit(health).path or "/"

    def changes(self) -> dict[str, Any]:
        """By attribute of the service."""
        values = self.validated_data
        host = f"[{values['host']}]" if ":" in values["host"] else values["host"]
        changes = {
            "description": values["description"],
            "default_url": f"{values['protocol']}://{host}:{values['port']}{values['path']}",
            "health_endpoint": values["health"],
            "is_active": values["enabled"],
            "health_checks": self._health_checks(bool(values["health"])),
        }
        if "name" in values:
            changes["name"] = values["name"]
        return changes

    def _health_checks(self, is_probed: bool) -> dict[str, Any] | None:
        """What is there stays, but that there are probes or none."""
        present = dict(self.instance.health_checks or {}) if self.instance is not None else {}
        if is_probed:
            present.setdefault("active", {})
            present["active"] = present["active"] or {}
        else:
            present.pop("active", None)
        return present or None

    def to_representation(self, service: ServiceConfig) -> dict[str, Any]:
        url = service.default_url
        where = _address(url) if url else {"host": None, "port": None, "protocol": None}
        own = f"{urlsplit(url).scheme}://{urlsplit(url).netloc}" if url else ""
        return {
            "id": service.pk,
            "name": service.name,
            "description": service.description,
            **where,
            "path": urlsplit(url).path,
            "health": f"{own}{service.health_endpoint}" if service.health_endpoint else "",
            "enabled": service.is_active,
            "revision": service.revision,
            "created_at": service.created_at.isoformat(),
            "updated_at": service.updated_at.isoformat(),
        }


class ShownServiceSerializer(ManagedServiceSerializer):
    """For the OpenAPI document: what is null of a service without a host of its own."""

    shows_others = True
    host = Text(read_only=True, allow_null=True)
    port = WholeNumber(read_only=True, allow_null=True)
    protocol = serializers.ChoiceField(choices=["http", "https"], read_only=True, allow_null=True)


_SERVICE_MEMBERS = {
    "default_url": "host",
    "health_endpoint": "health",
    "health_checks": "health",
    "is_active": "enabled",
    "body": "host",
}


class ManagedServiceFilters(Filters):
    search_in = ("name", "description", "default_url")
    enabled = flag_filter("is_active")


@extend_schema_view(
    list=extend_schema(responses=ShownServiceSerializer(many=True)),
    create=extend_schema(responses={201: ShownServiceSerializer}),
    retrieve=extend_schema(responses=ShownServiceSerializer),
    update=extend_schema(responses=ShownServiceSerializer),
)
class ManagedServiceViewSet(SnakeCaseErrors, ConfigViewSet[ServiceConfig]):
    """Services by host and port. All else of them is at `/admin/routing/services`."""

    queryset = ServiceConfig.objects.all()
    serializer_class = ManagedServiceSerializer
    filterset_class = ManagedServiceFilters
    lookup_field = "name"
    resource, plural = "services", "services"
    orderings: ClassVar = {"name": "name", "created_at": "created_at"}

    def store(self, values: dict[str, Any], author: Author) -> tuple[ServiceConfig, dict[str, Any]]:
        with as_members(_SERVICE_MEMBERS):
            return use_cases.create_service(**values, **author), {}

    def change(
        self, row: ServiceConfig, changes: dict[str, Any], if_revision: int | None, author: Author
    ) -> tuple[ServiceConfig, dict[str, Any]]:
        with as_members(_SERVICE_MEMBERS):
            return use_cases.update_service(service=row, changes=changes, if_revision=if_revision, **author), {}

    def remove(self, row: ServiceConfig, if_revision: int | None, author: Author) -> None:
        use_cases.delete_service(service=row, if_revision=if_revision, **author)

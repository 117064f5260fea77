"""JSON of services, versions, targets and routes."""

from typing import Any

from drf_spectacular.utils import OpenApiExample, extend_schema_field, extend_schema_serializer
from rest_framework import serializers

from core.serializers import (
    ConfigSerializer,
    StrictSerializer,
    Text,
    WholeNumber,
    config_meta,
    policy_fields,
    text_list,
)
from core.tenants import own_tenant
from queues.models import QueueRoute
from routing.models import GatewayPolicies, Route, ServiceConfig, ServiceTarget, ServiceVersion
from routing.policies import GATEWAY_POLICIES, ROUTE_POLICIES, SERVICE_POLICIES
from routing.services import ROUTE_FIELDS, SERVICE_FIELDS, TARGET_FIELDS, VERSION_FIELDS

_LONGEST_S = 10**9  # far beyond what is allowed, and still a number in milliseconds
_ALIASES = {"url": "defaultUrl", "health_endpoint": "healthEndpoint", "timeout": "requestTimeoutMs"}


@extend_schema_serializer(
    examples=[
        OpenApiExample(
            "Maintenance",
            {"maintenance": {"message": "We are moving house. Back at nine.", "retryAfterS": 1800}},
            request_only=True,
        )
    ]
)
class GatewaySerializer(ConfigSerializer[GatewayPolicies]):
    Meta = config_meta(GatewayPolicies, *GATEWAY_POLICIES)

    def get_fields(self) -> dict[str, Any]:
        return super().get_fields() | policy_fields(GATEWAY_POLICIES)


@extend_schema_serializer(
    examples=[
        OpenApiExample(
            "A service",
            {
                "name": "orders",
                "description": "Orders and invoices",
                "defaultUrl": "http://orders.internal:7000",
                "healthEndpoint": "/health",
            },
            request_only=True,
        )
    ]
)
class ServiceSerializer(ConfigSerializer[ServiceConfig]):
    """``url``, ``health_endpoint`` and ``timeout`` (seconds) are taken as aliases, as other gateways name them."""

    identity = "name"
    bundles = text_list(required=False)
    Meta = config_meta(ServiceConfig, *SERVICE_FIELDS, read_only=("circuit_resets",))

    def get_fields(self) -> dict[str, Any]:
        return super().get_fields() | policy_fields(SERVICE_POLICIES)

    def to_internal_value(self, data: Any) -> Any:
        return super().to_internal_value(_without_aliases(data) if isinstance(data, dict) else data)


def _without_aliases(data: dict[str, Any]) -> dict[str, Any]:
    plain = dict(data)
    for alias, name in _ALIASES.items():
        if alias not in plain:
            continue
        value = plain.pop(alias)
        if name in data:
            raise serializers.ValidationError({alias: [f"This is another word for {name}, which stands here too."]})
        plain[name] = _milliseconds(value) if alias == "timeout" else value
    return plain


def _milliseconds(seconds: Any) -> Any:
    """What is no number of seconds stays as it is, for the field to refuse."""
    is_number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    return round(seconds * 1000) if is_number and abs(seconds) < _LONGEST_S else seconds


@extend_schema_serializer(
    examples=[
        OpenApiExample("A version", {"version": "v2", "url": "http://orders-v2.internal:7000"}, request_only=True)
    ]
)
class VersionSerializer(ConfigSerializer[ServiceVersion]):
    identity = "version"
    service = serializers.CharField(source="service.name", read_only=True)
    Meta = config_meta(ServiceVersion, *VERSION_FIELDS, read_only=("service",))


@extend_schema_serializer(examples=[OpenApiExample("A target", {"url": "http://10.0.3.17:7000"}, request_only=True)])
class TargetSerializer(ConfigSerializer[ServiceTarget]):
    version = serializers.CharField(source="version.version", read_only=True)
    Meta = config_meta(ServiceTarget, *TARGET_FIELDS, read_only=("version",))


@extend_schema_serializer(examples=[OpenApiExample("A split", {"weights": {"v1": 90, "v2": 10}}, request_only=True)])
class WeightsSerializer(StrictSerializer):
    """Weights by version. Versions that are not named keep theirs."""

    weights = serializers.DictField(child=WholeNumber(min_value=0, max_value=10_000))


@extend_schema_field({"type": "string", "description": "By name"})
class ByName(serializers.Field[Any, Any, Any, Any]):
    """A row that is referred to by its name."""

    default_error_messages = {"invalid": "This is a name, or null.", "unknown": "There is no {kind} named {name!r}."}

    def __init__(self, model: type[ServiceConfig] | type[QueueRoute], **options: Any) -> None:
        super().__init__(allow_null=True, required=False, **options)
        self._model = model

    def to_internal_value(self, data: Any) -> ServiceConfig | QueueRoute:
        if not isinstance(data, str):
            self.fail("invalid")
        row = self._model.objects.filter(tenant_id=own_tenant(), name=data).first()
        if row is None:
            self.fail("unknown", kind=self._model.kind.replace("_", " "), name=data[:80])
        return row

    def to_representation(self, value: ServiceConfig | QueueRoute) -> str:
        return str(value)


@extend_schema_serializer(
    examples=[
        OpenApiExample(
            "To a service",
            {
                "name": "order documents",
                "path": "/api/v1/documents/{order}/*",
                "methods": ["GET"],
                "service": "orders",
                "stripPrefix": "/api/v1",
            },
            request_only=True,
        ),
        OpenApiExample(
            "By conditions, with a rewritten path",
            {
                "name": "sign-in for the new app",
                "path": "/api/v1/auth/*",
                "service": "auth",
                "conditions": {
                    "headers": [{"name": "X-App", "matches": "web|ios"}],
                    "query": [{"name": "beta", "present": False}],
                },
                "rewrite": {"pattern": "^/api/v1/auth/(.*)", "replacement": r"/api/auth/\1"},
            },
            request_only=True,
        ),
        OpenApiExample(
            "With a transformation",
            {
                "name": "order",
                "path": "/api/orders/{id}",
                "service": "orders",
                "transformation": {
                    "request": {
                        "headers": {"set": [{"name": "X-Tenant", "value": "${lower(application.name)}"}]},
                        "query": {"set": [{"name": "lang", "value": "${header.accept-language|en}"}]},
                        "body": {"remove": ["isAdmin"], "set": [{"path": "meta.source", "value": "gateway"}]},
                    },
                    "response": {
                        "headers": {"remove": ["X-Powered-By"]},
                        "body": {"remove": ["internal", "items[*].cost"]},
                    },
                },
            },
            request_only=True,
        ),
        OpenApiExample(
            "To a queue",
            {"name": "send mail", "path": "/api/v1/notifications/email", "methods": ["POST"], "queueRoute": "email"},
            request_only=True,
        ),
    ]
)
class RouteSerializer(ConfigSerializer[Route]):
    hosts = text_list(required=False)
    methods = text_list(required=False)
    service = ByName(ServiceConfig)
    queue_route = ByName(QueueRoute)
    version = Text(required=False, allow_blank=True, max_length=32)
    bundles = text_list(required=False)
    Meta = config_meta(Route, *ROUTE_FIELDS, read_only=("group",))

    def get_fields(self) -> dict[str, Any]:
        return super().get_fields() | policy_fields(ROUTE_POLICIES)

"""JSON of services, versions, targets and routes."""

from typing import Any, ClassVar

from drf_spectacular.utils import OpenApiExample, extend_schema_field, extend_schema_serializer
from rest_framework import serializers

from core.serializers import (
    ConfigSerializer,
    StrictSerializer,
    Text,
    WholeNumber,
    config_meta,
    each_whole,
    policy_fields,
    text_list,
    whole,
)
from core.tenants import own_tenant
from core.validation import METHOD, NAME, VERSION
from queues.models import QueueRoute
from routing.checks import LONGEST_TIMEOUT_MS, MAX_WEIGHT, TIMEOUTS
from routing.models import GatewayPolicies, Route, ServiceConfig, ServiceTarget, ServiceVersion
from routing.policies import GATEWAY_POLICIES, ROUTE_POLICIES, SERVICE_POLICIES
from routing.services import ROUTE_FIELDS, SERVICE_FIELDS, TARGET_FIELDS, VERSION_FIELDS

_LONGEST_S = 10**9  # far beyond what is allowed, and still a number in milliseconds
_TIMEOUTS = {name: {"minimum": 1, "maximum": LONGEST_TIMEOUT_MS} for name in TIMEOUTS}
_TIMES = {
    "request_timeout_ms": "From the beginning of a try to the first byte of the answer; null: ",
    "connect_timeout_ms": "For resolving, connecting and TLS; null: ",
    "idle_timeout_ms": "Of silence in the middle of a body; null: ",
    "total_timeout_ms": "For everything, retries among it; null: ",
}
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
    of_all_members: ClassVar = {"minProperties": 1}
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
    words: ClassVar = {
        "name": "Clients call `/api/v1/{name}/…`; it cannot change",
        "default_url": "Serves as long as no version does",
        "current_version": "Answers when a request names no version and no weight decides",
        "fallback_url": "Used once, only if no byte of the request has reached a target",
        "path_prefix": "Stands before every path at the upstream",
        "health_endpoint": "A path that is probed, even without `healthChecks`",
        "implicit_route": "Keep `/api/v1/{name}/…` although routes lead here",
        "request_timeout_ms": _TIMES["request_timeout_ms"] + "`REQUEST_TIMEOUT`",
        "connect_timeout_ms": _TIMES["connect_timeout_ms"] + "5 seconds",
        "idle_timeout_ms": _TIMES["idle_timeout_ms"] + "30 seconds",
        "total_timeout_ms": _TIMES["total_timeout_ms"] + "no limit",
        "is_active": "false: its routes answer 404",
        "circuit_resets": "How often its circuits have been reset",
    }
    bounds: ClassVar = {"name": whole(NAME), "current_version": whole(VERSION, or_empty=True), **_TIMEOUTS}
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
    words: ClassVar = {
        "version": "`2` and `v2` are the same to clients; it cannot change",
        "weight": "0 to 10000: its share of the sum; with 0 it answers only requests that name it",
        "deprecation_link": "What callers of a deprecated version should read",
        "is_active": "false: it gets no traffic at all",
    }
    bounds: ClassVar = {"version": whole(VERSION), "weight": {"maximum": MAX_WEIGHT}}
    service = serializers.CharField(source="service.name", read_only=True)
    Meta = config_meta(ServiceVersion, *VERSION_FIELDS, read_only=("service",))


@extend_schema_serializer(examples=[OpenApiExample("A target", {"url": "http://10.0.3.17:7000"}, request_only=True)])
class TargetSerializer(ConfigSerializer[ServiceTarget]):
    words: ClassVar = {
        "url": "Scheme, host and port only",
        "weight": "0 to 10000: its share beside the other targets",
        "is_active": "false: it gets no traffic",
    }
    bounds: ClassVar = {"weight": {"maximum": MAX_WEIGHT}}
    version = serializers.CharField(source="version.version", read_only=True)
    Meta = config_meta(ServiceTarget, *TARGET_FIELDS, read_only=("version",))


@extend_schema_serializer(examples=[OpenApiExample("A split", {"weights": {"v1": 90, "v2": 10}}, request_only=True)])
class WeightsSerializer(StrictSerializer):
    """Weights by version. Versions that are not named keep theirs."""

    weights = serializers.DictField(child=WholeNumber(min_value=0, max_value=MAX_WEIGHT))


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
    """It leads to a ``service``, a ``queueRoute``, or an ``aggregation`` of several calls."""

    words: ClassVar = {
        "name": "For admins, logs and history",
        "path": "A pattern below `/api/`: `{name}` and `*` stand for one segment, a final `/*` for the rest",
        "hosts": "`*.example.com` for all below it; empty: any",
        "methods": "In upper case; empty: any",
        "priority": "Decides between patterns of the same literal beginning: the higher one wins",
        "version": "The version that answers, whatever the request names",
        "strip_prefix": "Whole segments that are taken off the beginning",
        "replace_prefix": "What comes in the place of `stripPrefix`",
        **{name: f"{words}the service's" for name, words in _TIMES.items()},
        "requires_key": "false: anybody may call it",
        "max_body_bytes": "null: `MAX_REQUEST_BODY_SIZE`",
        "allow_empty_segments": "Let paths with `//` pass",
        "retry_unsafe_methods": "POST and PATCH may be sent again when a kept connection turns out to be dead",
        "pass_credentials": "The upstream sees the client's key or token",
        "is_active": "false: 404, and nothing else takes the request",
        "group": "Empty but for routes of `/api/v1/management/routes`: the id there",
    }
    bounds: ClassVar = {
        "path": {"pattern": "^/api/"},
        "methods": each_whole(METHOD, star=False),
        "version": whole(VERSION, or_empty=True),
        **_TIMEOUTS,
    }
    hosts = text_list(required=False)
    methods = text_list(required=False)
    service = ByName(ServiceConfig)
    queue_route = ByName(QueueRoute)
    version = Text(required=False, allow_blank=True, max_length=32)
    bundles = text_list(required=False)
    Meta = config_meta(Route, *ROUTE_FIELDS, read_only=("group",))

    def get_fields(self) -> dict[str, Any]:
        return super().get_fields() | policy_fields(ROUTE_POLICIES)

"""JSON of applications and whitelist entries."""

from typing import Any, ClassVar

from drf_spectacular.utils import OpenApiExample, extend_schema_serializer

from access.models import Application, EndpointWhitelist
from access.policies import APPLICATION_POLICIES
from access.services import APPLICATION_FIELDS, ENTRY_FIELDS, MAX_PRIORITY
from core.serializers import ConfigSerializer, config_meta, each_whole, policy_fields, text_list
from core.validation import METHOD, NAME, VERSION


@extend_schema_serializer(
    examples=[
        OpenApiExample(
            "An application",
            {
                "name": "mobile app",
                "allowedServices": ["orders", "email"],
                "allowedVersions": ["*"],
                "rateLimit": 600,
            },
            request_only=True,
        )
    ]
)
class ApplicationSerializer(ConfigSerializer[Application]):
    """A client of the gateway, and what it may call."""

    words: ClassVar = {
        "name": "The client's",
        "allowed_services": 'Names of services and queue routes; `["*"]` all, `[]` none',
        "allowed_versions": '`["*"]` all, `[]` none',
        "endpoint_mode": "`all` endpoints of the allowed services, or only those `listed` in the whitelist",
        "rate_limit": "Requests per minute for each key; null: the gateway's",
        "priority": "0 to 9: where a service is overloaded, the lowest are refused first",
        "is_active": "false: its keys are refused",
    }
    bounds: ClassVar = {
        "allowed_services": each_whole(NAME),
        "allowed_versions": each_whole(VERSION),
        "rate_limit": {"minimum": 1},
        "priority": {"maximum": MAX_PRIORITY},
    }
    allowed_services = text_list(required=False)
    allowed_versions = text_list(required=False)
    bundles = text_list(required=False)
    Meta = config_meta(Application, *APPLICATION_FIELDS)

    def get_fields(self) -> dict[str, Any]:
        return super().get_fields() | policy_fields(APPLICATION_POLICIES)


@extend_schema_serializer(
    examples=[
        OpenApiExample(
            "An entry",
            {"endpointPath": "/api/v1/orders/*", "allowedMethods": ["GET", "POST"], "rateLimit": 60},
            request_only=True,
        )
    ]
)
class EntrySerializer(ConfigSerializer[EndpointWhitelist]):
    """An endpoint, by the path that clients see. The answer to a write says when the whitelist became binding."""

    words: ClassVar = {
        "endpoint_path": "A pattern, as clients write it: `{name}` and `*` for one segment, a final `/*` for the rest",
        "allowed_methods": '`["*"]` any',
        "allowed_versions": "Narrows the application's",
        "rate_limit": "Requests per minute for each key, or each address if public; null: the application's",
        "is_public": "No key is needed",
    }
    bounds: ClassVar = {
        "endpoint_path": {"pattern": "^/"},
        "allowed_methods": each_whole(METHOD) | {"minItems": 1},
        "allowed_versions": each_whole(VERSION),
        "rate_limit": {"minimum": 1},
    }
    allowed_methods = text_list(required=False, allow_empty=False)
    allowed_versions = text_list(required=False)
    Meta = config_meta(EndpointWhitelist, *ENTRY_FIELDS, read_only=("application_id",))

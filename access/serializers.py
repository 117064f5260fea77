"""JSON of applications and whitelist entries."""

from drf_spectacular.utils import OpenApiExample, extend_schema_serializer

from access.models import Application, EndpointWhitelist
from access.services import APPLICATION_FIELDS, ENTRY_FIELDS
from core.serializers import ConfigSerializer, config_meta, text_list


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
    """``allowedServices`` names services and queue routes: [] none, ["*"] all. ``rateLimit``: per minute and key."""

    allowed_services = text_list(required=False)
    allowed_versions = text_list(required=False)
    Meta = config_meta(Application, *APPLICATION_FIELDS)


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

    allowed_methods = text_list(required=False, allow_empty=False)
    allowed_versions = text_list(required=False)
    Meta = config_meta(EndpointWhitelist, *ENTRY_FIELDS, read_only=("application_id",))

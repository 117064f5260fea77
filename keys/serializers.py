"""JSON of API keys, of validation, and of setup."""

from typing import Any, ClassVar

from django.utils import timezone
from drf_spectacular.utils import OpenApiExample, extend_schema_serializer
from rest_framework import serializers

from access.policies import Restrictions
from core.serializers import (
    ConfigSerializer,
    EpochMillis,
    Flag,
    StrictSerializer,
    Text,
    WholeNumber,
    config_meta,
    policy_fields,
    text_list,
)
from keys import services as use_cases
from keys.making import LONGEST_DAYS, IssuedKey
from keys.models import ApiKey, KeyCaller
from keys.rotation import DEFAULT_TRANSITION_DAYS, Rotation

_KEY = {
    "id": "key_01k9zs8c0v7d3wq0m2t5r8x1za",
    "name": "Service API Key",
    "owner": "Example Service",
    "scopes": ["read:data", "write:data"],
    "status": "active",
    "createdAt": 1672531200000,
    "expiresAt": 1704067200000,
}
_REASONS = ("invalid_key", "insufficient_scope", "ip_not_allowed", "key_not_allowed_now", "service_not_allowed")
EXAMPLE_SECRET = "km_" + "0" * 48


_POLICIES = policy_fields({"restrictions": Restrictions})
_WRITABLE = ("name", "owner", "scopes", "isActive", "expires_at", "restrictions")
_READ_ONLY = (
    *("application_id", "isAdmin", "status", "created_by", "lookup_id", "replaces_id"),
    *("last_used_at", "last_used_address", "use_count", "revoked_at"),
)


def key_status(key: ApiKey) -> str:
    is_over = key.expires_at is not None and key.expires_at <= timezone.now()
    return "expired" if is_over and key.status != ApiKey.Status.REVOKED else str(key.status)


class KeySerializer(ConfigSerializer[ApiKey]):
    """A key, never the key itself. ``status`` is active, suspended, deprecated, revoked or expired; ``replacesId`` is
    the key in whose place it came. Uses are at most a minute old."""

    words: ClassVar = {
        "owner": "Who answers for it",
        "scopes": "What routes and services may ask for; of an admin key, what it may do here",
        "lookup_id": "How the key begins, after its prefix",
        "last_used_address": "The client's at the last use",
        "isActive": "false: the key is suspended",
        "isAdmin": "It opens this API, and belongs to a user",
        "created_by": "Who made it",
    }
    owner = Text(max_length=100, required=False)
    scopes = text_list(required=False)
    status = serializers.SerializerMethodField()
    isActive = Flag(source="is_active", required=False)
    isAdmin = serializers.BooleanField(source="is_admin", read_only=True)
    restrictions = _POLICIES["restrictions"]
    Meta = config_meta(ApiKey, *_WRITABLE, read_only=_READ_ONLY)

    def get_status(self, key: ApiKey) -> str:
        return key_status(key)

    def changes(self) -> dict[str, Any]:
        """Not even a PUT resets what it leaves out: no key loses its expiry or its scopes by omission."""
        return dict(self.validated_data)


@extend_schema_serializer(
    examples=[
        OpenApiExample(
            "A key of an application",
            {
                "name": "Service API Key",
                "owner": "Example Service",
                "scopes": ["read:data", "write:data"],
                "expiresInDays": 365,
            },
            request_only=True,
        ),
        OpenApiExample(
            "A restricted key",
            {
                "name": "Office",
                "owner": "Example Service",
                "expiresInDays": 90,
                "restrictions": {
                    "ips": ["192.0.2.0/24"],
                    "services": ["orders"],
                    "hours": [{"days": ["mon", "tue", "wed", "thu", "fri"], "start": "08:00", "end": "18:00"}],
                    "timeZone": "Europe/Berlin",
                    "quota": {"limit": 100000, "period": "month"},
                },
            },
            request_only=True,
        ),
    ]
)
class NewKeySerializer(StrictSerializer):
    """Without ``applicationId``, the application named like ``owner`` is used, or made with nothing allowed.

    Only ``admin:`` scopes make an admin key, which belongs to whoever makes it. ``expiresInDays`` left out is the
    default, null never.
    """

    name = Text(max_length=100)
    owner = Text(max_length=100, required=False)
    applicationId = Text(max_length=40, required=False, allow_null=True)
    scopes = text_list(required=False)
    expiresInDays = WholeNumber(required=False, allow_null=True, min_value=1, max_value=LONGEST_DAYS)
    restrictions = policy_fields({"restrictions": Restrictions})["restrictions"]


@extend_schema_serializer(examples=[OpenApiExample("A new key", {**_KEY, "key": EXAMPLE_SECRET}, response_only=True)])
class IssuedKeySerializer(KeySerializer):
    """The one answer that holds the key. ``warning`` says what to think of when it never expires."""

    key = serializers.CharField(read_only=True)
    warning = serializers.CharField(required=False)
    Meta = config_meta(ApiKey, *_WRITABLE, read_only=(*_READ_ONLY, "key", "warning"))


@extend_schema_serializer(examples=[OpenApiExample("A week", {"transitionPeriodDays": 7}, request_only=True)])
class RotationSerializer(StrictSerializer):
    """For how many days both keys work; 0 ends the old one at once."""

    transitionPeriodDays = WholeNumber(
        default=DEFAULT_TRANSITION_DAYS, min_value=0, max_value=use_cases.LONGEST_TRANSITION_DAYS
    )


class DeprecatedKeySerializer(ConfigSerializer[ApiKey]):
    status = serializers.SerializerMethodField()

    class Meta:
        model = ApiKey
        fields = ("id", "status", "expires_at")
        read_only_fields = fields

    def get_status(self, key: ApiKey) -> str:
        return key_status(key)


@extend_schema_serializer(
    examples=[
        OpenApiExample(
            "A rotated key",
            {
                "oldKey": {"id": _KEY["id"], "status": "deprecated", "expiresAt": 1688659200000},
                "newKey": {
                    **_KEY,
                    "id": "key_01k9zs8c0v7d3wq0m2t5r8x1zb",
                    "key": EXAMPLE_SECRET,
                    "createdAt": 1688054400000,
                    "expiresAt": 1719590400000,
                },
            },
            response_only=True,
        )
    ]
)
class RotatedKeySerializer(serializers.Serializer[Any]):
    """The old key ends when the transition does. The new one is shown this once; the old one cannot be shown."""

    oldKey = DeprecatedKeySerializer()
    newKey = IssuedKeySerializer()


class KeyCallerSerializer(serializers.ModelSerializer[KeyCaller]):
    """An empty ``address`` stands for several that were too many to be told apart."""

    lastUsedAt = EpochMillis(source="last_at", read_only=True)

    class Meta:
        model = KeyCaller
        fields = ("address", "requests", "lastUsedAt")
        read_only_fields = fields


@extend_schema_serializer(
    examples=[
        OpenApiExample(
            "A revoked key",
            {"id": _KEY["id"], "status": "revoked", "revokedAt": 1688054400000},
            response_only=True,
        )
    ]
)
class RevokedKeySerializer(ConfigSerializer[ApiKey]):
    class Meta:
        model = ApiKey
        fields = ("id", "status", "revoked_at")
        read_only_fields = fields


@extend_schema_serializer(
    examples=[OpenApiExample("A key", {"key": EXAMPLE_SECRET, "scopes": ["read:data"]}, request_only=True)]
)
class ValidationSerializer(StrictSerializer):
    key = Text(max_length=1000, allow_blank=True, trim_whitespace=False)
    scopes = text_list(required=False)
    address = serializers.IPAddressField(required=False, help_text="From where the key was sent")
    service = Text(required=False, max_length=100, help_text="For which service it was sent")


@extend_schema_serializer(
    examples=[
        OpenApiExample(
            "Valid",
            {
                "isValid": True,
                "keyId": _KEY["id"],
                "scopes": ["read:data", "write:data"],
                "owner": "Example Service",
            },
            response_only=True,
        ),
        OpenApiExample(
            "Insufficient scope",
            {
                "isValid": False,
                "reason": "insufficient_scope",
                "requiredScopes": ["read:data", "delete:data"],
                "providedScopes": ["read:data"],
            },
            response_only=True,
        ),
        OpenApiExample("Invalid", {"isValid": False, "reason": "invalid_key"}, response_only=True),
    ]
)
class VerdictSerializer(serializers.Serializer[Any]):
    """Whatever is wrong with a key, the answer is the same ``invalid_key`` (rule 17)."""

    isValid = serializers.BooleanField()
    keyId = serializers.CharField(required=False)
    scopes = serializers.ListField(child=serializers.CharField(), required=False)
    owner = serializers.CharField(required=False)
    reason = serializers.ChoiceField(choices=_REASONS, required=False)
    requiredScopes = serializers.ListField(child=serializers.CharField(), required=False)
    providedScopes = serializers.ListField(child=serializers.CharField(), required=False)


@extend_schema_serializer(
    examples=[
        OpenApiExample("The first admin", {"name": "Super Admin", "email": "admin@example.com"}, request_only=True)
    ]
)
class SetupSerializer(StrictSerializer):
    """``setupToken`` may stand in the header ``X-Setup-Token`` instead."""

    name = Text(max_length=150)
    email = Text(max_length=150)
    setupToken = Text(required=False, max_length=500)


class FirstAdminSerializer(IssuedKeySerializer):
    """An admin key, and username and password for the panel; both are shown this once."""

    email = serializers.CharField(read_only=True)
    username = serializers.CharField(read_only=True)
    password = serializers.CharField(read_only=True)
    Meta = config_meta(ApiKey, *_WRITABLE, read_only=(*_READ_ONLY, "key", "warning", "email", "username", "password"))


# --- what is shown once --------------------------------------------------------------------------------------------
def shown_once(issued: IssuedKey) -> dict[str, Any]:
    row = KeySerializer(issued.row).data
    warning = {"warning": issued.warning} if issued.warning else {}
    return {"id": row["id"], "key": issued.key, **row, **warning}


def shown_rotation(rotation: Rotation) -> dict[str, Any]:
    return {"oldKey": DeprecatedKeySerializer(rotation.old).data, "newKey": shown_once(rotation.issued)}

"""``/api/v1/management/api-keys[/{id}]``: keys in snake_case, with times in ISO 8601. The same rows and use-cases as
``/keys``, which has what is not here: rotation, suspension, callers."""

from typing import Any, ClassVar

import django_filters
from drf_spectacular.utils import OpenApiExample, extend_schema, extend_schema_serializer
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from core.api import author as author_of
from core.api import entity_tag, if_match, settle
from core.listing import Filters, flag_filter
from core.revisions import observed
from core.serializers import Flag, StrictSerializer, Text, WholeNumber, text_list
from core.snake_case import SnakeCaseErrors
from keys import services as use_cases
from keys.api import KeyFilters, KeyViewSet
from keys.making import LONGEST_DAYS, IssuedKey
from keys.models import ApiKey
from keys.serializers import EXAMPLE_SECRET, key_status

_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_EXAMPLE = {
    "name": "Mobile App Key",
    "scopes": ["read", "write"],
    "restrictions": {"allowed_ips": ["192.168.1.0/24"]},
}
# Of restrictions: as they are called here, and as they are kept.
_KEPT_AS = {
    "allowed_ips": "ips",
    "allowed_services": "services",
    "hours": "hours",
    "time_zone": "timeZone",
    "quota": "quota",
}


class ManagedHoursSerializer(StrictSerializer):
    days = serializers.ListField(child=serializers.ChoiceField(choices=_DAYS), min_length=1, max_length=7)
    start = Text(default="00:00", max_length=5)
    end = Text(default="24:00", max_length=5)


class ManagedQuotaSerializer(StrictSerializer):
    limit = WholeNumber(min_value=1, max_value=1_000_000_000_000)
    period = serializers.ChoiceField(choices=["day", "month"], default="month")


class ManagedRestrictionsSerializer(StrictSerializer):
    """What narrows the key further than its application. Empty members narrow nothing."""

    allowed_ips = text_list(required=False)
    allowed_services = text_list(required=False)
    hours = ManagedHoursSerializer(many=True, required=False)
    time_zone = Text(required=False, max_length=64)
    quota = ManagedQuotaSerializer(required=False, allow_null=True)


class ManagedKeySerializer(StrictSerializer):
    """``status`` is active, suspended, deprecated, revoked or expired. A PUT leaves as it is what it does not name."""

    id = serializers.CharField(read_only=True)
    name = Text(max_length=100)
    owner = Text(required=False, max_length=100)
    application_id = serializers.CharField(read_only=True, allow_null=True)
    scopes = text_list(required=False)
    restrictions = ManagedRestrictionsSerializer(required=False, allow_null=True)
    is_active = Flag(required=False)
    status = serializers.CharField(read_only=True)
    expires_at = serializers.DateTimeField(required=False, allow_null=True)
    last_used_at = serializers.DateTimeField(read_only=True, allow_null=True)
    use_count = serializers.IntegerField(read_only=True)
    revoked_at = serializers.DateTimeField(read_only=True, allow_null=True)
    revision = serializers.IntegerField(read_only=True)
    created_at = serializers.DateTimeField(read_only=True)
    updated_at = serializers.DateTimeField(read_only=True)

    def changes(self) -> dict[str, Any]:
        values = dict(self.validated_data)
        if "restrictions" in values:
            values["restrictions"] = _kept(values["restrictions"])
        return values

    def to_representation(self, key: ApiKey) -> dict[str, Any]:
        times = ("expires_at", "last_used_at", "revoked_at", "created_at", "updated_at")
        return {
            "id": key.pk,
            "name": key.name,
            "owner": key.owner,
            "application_id": key.application_id,
            "scopes": key.scopes,
            "restrictions": None
            if key.restrictions is None
            else {name: key.restrictions.get(kept) for name, kept in _KEPT_AS.items()},
            "is_active": key.is_active,
            "status": key_status(key),
            "use_count": key.use_count,
            "revision": key.revision,
            **{name: moment.isoformat() if (moment := getattr(key, name)) else None for name in times},
        }


def _kept(restrictions: dict[str, Any] | None) -> dict[str, Any] | None:
    return None if restrictions is None else {_KEPT_AS[name]: value for name, value in restrictions.items()}


@extend_schema_serializer(examples=[OpenApiExample("A key for one network", _EXAMPLE, request_only=True)])
class NewManagedKeySerializer(StrictSerializer):
    """Without ``application_id`` the application named like ``owner``, else like the key, is used, or made with nothing
    allowed. ``expires_in_days`` left out is the default, null never."""

    name = Text(max_length=100)
    owner = Text(max_length=100, required=False)
    application_id = Text(max_length=40, required=False, allow_null=True)
    scopes = text_list(required=False)
    restrictions = ManagedRestrictionsSerializer(required=False, allow_null=True)
    expires_in_days = WholeNumber(required=False, allow_null=True, min_value=1, max_value=LONGEST_DAYS)


@extend_schema_serializer(
    examples=[
        OpenApiExample(
            "A new key",
            {"id": "key_01k9zs8c0v7d3wq0m2t5r8x1za", "key": EXAMPLE_SECRET, **_EXAMPLE, "status": "active"},
            response_only=True,
        )
    ]
)
class IssuedManagedKeySerializer(ManagedKeySerializer):
    """The one answer that holds the key."""

    key = serializers.CharField(read_only=True)
    warning = serializers.CharField(required=False)


class ManagedKeyFilters(Filters):
    search_in = ("name", "owner", "id")
    name = django_filters.CharFilter()
    owner = django_filters.CharFilter()
    application_id = django_filters.CharFilter()
    status = KeyFilters.base_filters["status"]
    is_active = flag_filter("is_active", method="by_activity")
    by_status, by_activity = KeyFilters.by_status, KeyFilters.by_activity


class ManagedKeyViewSet(SnakeCaseErrors, KeyViewSet):
    """API keys. What else there is to do with them is at `/keys`."""

    serializer_class: Any = ManagedKeySerializer
    filterset_class = ManagedKeyFilters
    plural = "api_keys"
    orderings: ClassVar = {"created_at": "created_at", "name": "name", "owner": "owner"}

    @extend_schema(request=NewManagedKeySerializer, responses={201: IssuedManagedKeySerializer})
    def create(self, request: Request, **_: Any) -> Response:
        serializer = NewManagedKeySerializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        values = dict(serializer.validated_data)
        asked: dict[str, Any] = {
            "name": values["name"],
            "owner": values.get("owner", "" if values.get("application_id") else values["name"]),
            "scopes": values.get("scopes", []),
            "applicationId": values.get("application_id"),
            "restrictions": _kept(values.get("restrictions")),
        }
        if "expires_in_days" in values:
            asked["expiresInDays"] = values["expires_in_days"]
        with observed() as numbers:
            issued = self._issue(request, asked, application_field="application_id")
        response = Response(_shown_once(issued), status=201, headers={"ETag": entity_tag(issued.row.revision)})
        response["Location"] = f"{request.path.rstrip('/')}/{issued.row.pk}"
        return settle(request, response, numbers)

    @extend_schema(responses={200: ManagedKeySerializer})
    def destroy(self, request: Request, **_: Any) -> Response:
        """Revoke for good. The row stays for the history."""
        row = self.get_object()
        with observed() as numbers:
            row = use_cases.revoke_key(key=row, if_revision=if_match(request, row.revision), **author_of(request))
        return settle(request, self.answer(row, {}), numbers)


def _shown_once(issued: IssuedKey) -> dict[str, Any]:
    shown = ManagedKeySerializer(issued.row).data
    warning = {"warning": issued.warning} if issued.warning else {}
    return {"id": shown["id"], "key": issued.key, **shown, **warning}

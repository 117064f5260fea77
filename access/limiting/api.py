"""Limits and their use: ``/admin/access/limits[/{id}[/use]]``; who was refused: ``/admin/access/limit-violations``."""

from __future__ import annotations

from typing import Any, ClassVar

import django_filters
from django.utils import timezone
from drf_spectacular.utils import OpenApiExample, extend_schema, extend_schema_serializer
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from access.limiting import services as use_cases
from access.limiting.services import LIMIT_FIELDS
from access.limiting.use import SubjectUse, use_of
from access.models import LimitViolation, RateLimit
from access.policies import LimitRule
from core.api import Author, ConfigViewSet, ListViewSet
from core.faults import ClientFault
from core.listing import Filters, flag_filter
from core.serializers import ConfigSerializer, EpochMillis, config_meta, policy_fields, whole
from core.validation import NAME

_RULE = policy_fields({"rule": LimitRule})["rule"]


@extend_schema_serializer(
    examples=[
        OpenApiExample(
            "A limit",
            {
                "name": "burst",
                "rule": {
                    "limit": 20,
                    "windowS": 1,
                    "algorithm": "sliding_window",
                    "per": ["key", "endpoint"],
                    "services": ["orders"],
                },
            },
            request_only=True,
        )
    ]
)
class LimitSerializer(ConfigSerializer[RateLimit]):
    """``name`` is what clients read in RateLimit-Policy."""

    bounds: ClassVar = {"name": whole(NAME)}
    rule = type(_RULE)(required=True, allow_null=False)
    Meta = config_meta(RateLimit, *LIMIT_FIELDS)


class SubjectUseSerializer(serializers.Serializer[Any]):
    """``subject`` names whose budget it is, such as ``key:key_…``, ``user:…`` or ``ip:…``; empty: everybody's.
    ``admitted`` (by cost) and ``refused`` are of the last minute."""

    subject = serializers.CharField()
    used = serializers.IntegerField()
    remaining = serializers.IntegerField()
    admitted = serializers.IntegerField()
    refused = serializers.IntegerField()
    lastSeenAt = EpochMillis(allow_null=True)


class LimitUseSerializer(serializers.Serializer[Any]):
    """``period`` and ``periodEndsAt`` are of quotas."""

    limit = serializers.IntegerField()
    period = serializers.CharField(allow_null=True)
    periodEndsAt = serializers.IntegerField(allow_null=True, help_text="Milliseconds since 1970-01-01T00:00:00Z")
    subjects = SubjectUseSerializer(many=True)


class LimitFilters(Filters):
    search_in = ("name", "description")
    name = django_filters.CharFilter()
    isActive = flag_filter("is_active")


class LimitViewSet(ConfigViewSet[RateLimit]):
    queryset = RateLimit.objects.all()
    serializer_class = LimitSerializer
    filterset_class = LimitFilters
    lookup_field = "id"
    resource, plural = "limits", "limits"

    def store(self, values: dict[str, Any], author: Author) -> tuple[RateLimit, dict[str, Any]]:
        return use_cases.create_limit(**values, **author), {}

    def change(
        self, row: RateLimit, changes: dict[str, Any], if_revision: int | None, author: Author
    ) -> tuple[RateLimit, dict[str, Any]]:
        return use_cases.update_limit(limit=row, changes=changes, if_revision=if_revision, **author), {}

    def remove(self, row: RateLimit, if_revision: int | None, author: Author) -> None:
        use_cases.delete_limit(limit=row, if_revision=if_revision, **author)


class LimitUseView(APIView):
    """The busiest subjects of a limit, on all hosts."""

    resource = "limits"

    @extend_schema(operation_id="limit_use", summary="Read use of limit", responses=LimitUseSerializer)
    def get(self, request: Request, id: str) -> Response:
        limit = RateLimit.objects.filter(pk=id).first()
        if limit is None:
            raise ClientFault("not_found", f"There is no limit {id!r}.")
        use = use_of(limit, timezone.now())
        document = {
            "limit": use.limit,
            "period": use.period and use.period.name,
            "periodEndsAt": use.period and use.period.end * 1000,
            "subjects": [_subject(each) for each in use.subjects],
        }
        return Response(document)


def _subject(use: SubjectUse) -> dict[str, Any]:
    return {
        "subject": use.subject,
        "used": use.used,
        "remaining": use.remaining,
        "admitted": use.admitted,
        "refused": use.refused,
        "lastSeenAt": None if use.seen_at is None else EpochMillis().to_representation(use.seen_at),
    }


class ViolationSerializer(serializers.ModelSerializer[LimitViolation]):
    """``limitId`` is a limit's, or, of the limits that every request has, an application's or whitelist entry's."""

    minute = EpochMillis()
    limitId = serializers.CharField(source="limit_id")
    limitName = serializers.CharField(source="limit_name")
    applicationId = serializers.CharField(source="application_id")
    lastAt = EpochMillis(source="last_at")

    class Meta:
        model = LimitViolation
        fields = ("id", "minute", "limitId", "limitName", "subject", "applicationId", "refused", "lastAt", "address")
        read_only_fields = fields


class ViolationFilters(Filters):
    search_in = ("limit_name", "subject", "address")
    limitId = django_filters.CharFilter(field_name="limit_id")
    applicationId = django_filters.CharFilter(field_name="application_id")
    subject = django_filters.CharFilter()


class ViolationViewSet(ListViewSet[LimitViolation]):
    """Who was refused, by limit, subject and minute; kept for 30 days."""

    queryset = LimitViolation.objects.all()
    serializer_class = ViolationSerializer
    filterset_class = ViolationFilters
    resource, plural = "limits", "violations"
    orderings: ClassVar = {"lastAt": "last_at", "refused": "refused"}
    default_ordering = "-lastAt"

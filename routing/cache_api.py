"""Purging stored answers: ``/admin/cache/purge`` and the list of what was purged, ``/admin/cache/purges``."""

from typing import Any, ClassVar

import django_filters
from drf_spectacular.utils import OpenApiExample, extend_schema, extend_schema_field, extend_schema_serializer
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from core.api import ListViewSet, author
from core.listing import Filters
from core.serializers import EpochMillis, Flag, StrictSerializer, Text
from core.system_api import ActorSerializer
from routing.cache_purges import purge_cache
from routing.models import CachePurge


class PurgeSerializer(serializers.ModelSerializer[CachePurge]):
    """One purge: who had what dropped, and when."""

    actor = ActorSerializer(source="*")
    at = EpochMillis()

    class Meta:
        model = CachePurge
        fields = ("number", "kind", "value", "actor", "source", "reason", "at")
        read_only_fields = fields


@extend_schema_field({"type": "boolean", "const": True})
class _OnlyTrue(Flag):
    pass


@extend_schema_serializer(
    component_name="WhatToPurge",
    examples=[
        OpenApiExample("All below a path", {"prefix": "/api/v1/catalogue/"}, request_only=True),
        OpenApiExample("Whatever has a tag", {"tag": "product-17"}, request_only=True),
    ],
)
class PurgeRequestSerializer(StrictSerializer):
    """Exactly one of these. ``url`` and ``prefix`` begin with a slash, or with ``https://`` and a host."""

    of_all_members: ClassVar = {"minProperties": 1, "maxProperties": 1}
    url = Text(required=False, max_length=8192)
    prefix = Text(required=False, max_length=8192)
    service = Text(required=False, max_length=200)
    tag = Text(required=False, max_length=200)
    all = _OnlyTrue(required=False)

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if len(attrs) != 1:
            raise serializers.ValidationError("Say exactly one of url, prefix, service, tag and all.")
        if attrs.get("all") is False:
            raise serializers.ValidationError({"all": ["This can only be true."]})
        return attrs


class CachePurgeView(APIView):
    """In force on every worker within a second, also for answers that are on their way meanwhile."""

    resource = "cache"
    permission_actions: ClassVar[dict[str, str]] = {"POST": "delete"}
    takes_reason = True

    @extend_schema(summary="Purge stored answers", request=PurgeRequestSerializer, responses={202: PurgeSerializer})
    def post(self, request: Request) -> Response:
        serializer = PurgeRequestSerializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        ((kind, value),) = serializer.validated_data.items()
        purge = purge_cache(kind=kind, value="" if kind == "all" else value, **author(request))
        return Response(PurgeSerializer(purge).data, status=202)


class PurgeFilters(Filters):
    search_in = ("value", "reason", "actor_name")
    kind = django_filters.ChoiceFilter(choices=CachePurge.Kind.choices, empty_label=None)


class CachePurgeViewSet(ListViewSet[CachePurge]):
    queryset = CachePurge.objects.all()
    serializer_class = PurgeSerializer
    filterset_class = PurgeFilters
    resource, plural = "cache", "purges"
    orderings: ClassVar = {"number": "pk"}
    default_ordering = "-number"

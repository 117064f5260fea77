"""What has happened to the configuration, and which nodes run it: ``/admin/revisions[/{n}]``, ``/admin/nodes``."""

from typing import Any, ClassVar

import django_filters
from django.db.models import BooleanField, ExpressionWrapper, QuerySet
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from core.api import ListViewSet
from core.api_problems import camel
from core.listing import Filters
from core.models import ConfigChange, ConfigRevision, GatewayNode
from core.propagation import IS_LIVE
from core.serializers import EpochMillis

_JSON_OR_NULL = {"type": ["object", "null"], "additionalProperties": True}


class ChangeSerializer(serializers.ModelSerializer[ConfigChange]):
    """One object before and after; null where it did not exist. Secrets are never recorded (rule 13)."""

    objectId = serializers.CharField(source="object_id")
    objectName = serializers.CharField(source="object_name")
    before = serializers.SerializerMethodField()
    after = serializers.SerializerMethodField()

    class Meta:
        model = ConfigChange
        fields = ("kind", "objectId", "objectName", "operation", "before", "after")
        read_only_fields = fields

    @extend_schema_field(_JSON_OR_NULL)
    def get_before(self, change: ConfigChange) -> dict[str, Any] | None:
        return _camel_case(change.before)

    @extend_schema_field(_JSON_OR_NULL)
    def get_after(self, change: ConfigChange) -> dict[str, Any] | None:
        return _camel_case(change.after)


def _camel_case(recorded: dict[str, Any] | None) -> dict[str, Any] | None:
    return None if recorded is None else {camel(name): value for name, value in recorded.items()}


class ActorSerializer(serializers.Serializer[ConfigRevision]):
    kind = serializers.CharField(source="actor_kind")
    id = serializers.CharField(source="actor_id")
    name = serializers.CharField(source="actor_name")


class RevisionSerializer(serializers.ModelSerializer[ConfigRevision]):
    actor = ActorSerializer(source="*")
    createdAt = EpochMillis(source="created_at")
    changes = ChangeSerializer(many=True)

    class Meta:
        model = ConfigRevision
        fields = ("number", "actor", "source", "reason", "createdAt", "changes")
        read_only_fields = fields


class RevisionFilters(Filters):
    search_in = ("reason", "actor_name", "changes__object_name")
    source = django_filters.CharFilter()
    actor = django_filters.CharFilter(field_name="actor_name")
    kind = django_filters.CharFilter(field_name="changes__kind", distinct=True)
    objectId = django_filters.CharFilter(field_name="changes__object_id", distinct=True)

    def filter_queryset(self, queryset: QuerySet[Any]) -> QuerySet[Any]:
        filtered: QuerySet[Any] = super().filter_queryset(queryset).distinct()
        return filtered


class RevisionViewSet(ListViewSet[ConfigRevision]):
    queryset = ConfigRevision.objects.prefetch_related("changes")
    serializer_class = RevisionSerializer
    filterset_class = RevisionFilters
    lookup_field = "number"
    resource, plural = "revisions", "revisions"
    tenant_path = "tenant"
    orderings: ClassVar = {"number": "pk"}
    default_ordering = "-number"


class NodeSerializer(serializers.ModelSerializer[GatewayNode]):
    """A worker of a host. ``problems``: the rows that it had to skip because they do not compile."""

    appliedRevision = serializers.IntegerField(source="applied_revision")
    isLive = serializers.SerializerMethodField()
    startedAt = EpochMillis(source="started_at")
    seenAt = EpochMillis(source="seen_at")
    problems = serializers.ListField(child=serializers.DictField(child=serializers.CharField()))

    class Meta:
        model = GatewayNode
        fields = ("id", "host", "slot", "pid", "appliedRevision", "isLive", "problems", "startedAt", "seenAt")
        read_only_fields = fields

    def get_isLive(self, node: GatewayNode) -> bool:
        return bool(node.is_live)  # type: ignore[attr-defined]  # annotated by the view


class NodeFilters(Filters):
    search_in = ("id",)
    host = django_filters.CharFilter()


class NodeViewSet(ListViewSet[GatewayNode]):
    queryset = GatewayNode.objects.annotate(is_live=ExpressionWrapper(IS_LIVE, BooleanField()))
    serializer_class = NodeSerializer
    filterset_class = NodeFilters
    resource, plural = "nodes", "nodes"
    orderings: ClassVar = {"id": "pk", "seenAt": "seen_at"}

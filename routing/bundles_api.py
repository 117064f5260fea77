"""Bundles of policies: ``/admin/access/bundles[/{name}]``."""

from typing import Any, ClassVar

import django_filters
from drf_spectacular.utils import OpenApiExample, extend_schema_field, extend_schema_serializer
from rest_framework import serializers

from access.models import PolicyBundle
from core.api import Author, ConfigViewSet
from core.api_problems import camel
from core.listing import Filters
from core.serializers import ConfigSerializer, Document, config_meta, policy_schema, text_list, whole
from core.validation import NAME
from routing import bundles as use_cases
from routing.bundles import BUNDLE_FIELDS, BUNDLE_POLICIES, MOST_LIMITS

_BY_JSON = {camel(name): name for name in BUNDLE_POLICIES}


@extend_schema_field(
    {
        "type": "object",
        "properties": {camel(name): policy_schema(kind) for name, kind in BUNDLE_POLICIES.items()},
        "additionalProperties": False,
    }
)
class PoliciesField(Document):
    """Policies by name, each as services, routes and applications have them."""

    def to_internal_value(self, data: Any) -> dict[str, Any]:
        return {_BY_JSON.get(name, name): document for name, document in super().to_internal_value(data).items()}

    def to_representation(self, value: Any) -> Any:
        return {camel(name): document for name, document in value.items()}


class UsedBySerializer(serializers.Serializer[Any]):
    services = serializers.ListField(child=serializers.CharField())
    routes = serializers.ListField(child=serializers.CharField())
    applications = serializers.ListField(child=serializers.CharField())


@extend_schema_serializer(
    examples=[
        OpenApiExample(
            "For what faces the internet",
            {
                "name": "public",
                "description": "What everything has that faces the internet",
                "policies": {"cors": {"origins": ["https://app.example.com"]}, "retries": {"attempts": 2}},
                "limits": ["burst"],
            },
            request_only=True,
        )
    ]
)
class BundleSerializer(ConfigSerializer[PolicyBundle]):
    """``limits`` names limits that then hold for what has a bundle that names them. ``usedBy`` are those."""

    identity = "name"
    bounds: ClassVar = {"name": whole(NAME), "limits": {"maxItems": MOST_LIMITS}}
    policies = PoliciesField(allow_null=False)
    limits = text_list(required=False)
    used_by = serializers.SerializerMethodField("users")
    Meta = config_meta(PolicyBundle, *BUNDLE_FIELDS, read_only=("used_by",))

    @extend_schema_field(UsedBySerializer)
    def users(self, bundle: PolicyBundle) -> dict[str, list[str]]:
        return use_cases.used_by(str(bundle.tenant_id), bundle.name)


class BundleFilters(Filters):
    search_in = ("name", "description")
    name = django_filters.CharFilter()


class BundleViewSet(ConfigViewSet[PolicyBundle]):
    queryset = PolicyBundle.objects.all()
    serializer_class = BundleSerializer
    filterset_class = BundleFilters
    lookup_field = "name"
    resource, plural = "bundles", "bundles"
    orderings: ClassVar = {"name": "name", "createdAt": "created_at", "updatedAt": "updated_at"}

    def store(self, values: dict[str, Any], author: Author) -> tuple[PolicyBundle, dict[str, Any]]:
        return use_cases.create_bundle(**values, **author), {}

    def change(
        self, row: PolicyBundle, changes: dict[str, Any], if_revision: int | None, author: Author
    ) -> tuple[PolicyBundle, dict[str, Any]]:
        return use_cases.update_bundle(bundle=row, changes=changes, if_revision=if_revision, **author), {}

    def remove(self, row: PolicyBundle, if_revision: int | None, author: Author) -> None:
        use_cases.delete_bundle(bundle=row, if_revision=if_revision, **author)

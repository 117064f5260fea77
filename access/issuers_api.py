"""Issuers of tokens: ``/admin/access/issuers[/{id}]``."""

from typing import Any

import django_filters
from drf_spectacular.utils import OpenApiExample, extend_schema_serializer

from access import issuers as use_cases
from access.issuers import ISSUER_FIELDS
from access.models import TokenIssuer
from access.policies import TokenRules
from core.api import Author, ConfigViewSet
from core.listing import Filters, flag_filter
from core.serializers import ConfigSerializer, Text, config_meta, policy_fields


@extend_schema_serializer(
    examples=[
        OpenApiExample(
            "An OpenID Connect provider",
            {
                "name": "login",
                "issuer": "https://login.example.com",
                "applicationId": "app_01jd0000000000000000000000",
                "rules": {
                    "algorithms": ["RS256"],
                    "audiences": ["orders"],
                    "jwksUrl": "https://login.example.com/jwks",
                    "rolesClaim": "realm_access.roles",
                    "headers": [{"claim": "email", "header": "X-User-Email"}],
                },
            },
            request_only=True,
        )
    ]
)
class IssuerSerializer(ConfigSerializer[TokenIssuer]):
    """``issuer`` is the claim ``iss``, octet for octet. Requests with its tokens are those of ``applicationId``, unless
    ``rules.applicationClaim`` names a claim that says another."""

    issuer = Text(max_length=500)  # unique across tenants, which the use-case says
    application_id = Text(max_length=40, required=False, allow_null=True)
    rules = policy_fields({"rules": TokenRules})["rules"]
    Meta = config_meta(TokenIssuer, *ISSUER_FIELDS)

    def get_fields(self) -> dict[str, Any]:
        fields = super().get_fields()
        fields["rules"].required, fields["rules"].allow_null = True, False
        return fields


class IssuerFilters(Filters):
    search_in = ("name", "issuer")
    name = django_filters.CharFilter()
    issuer = django_filters.CharFilter()
    isActive = flag_filter("is_active")


class IssuerViewSet(ConfigViewSet[TokenIssuer]):
    queryset = TokenIssuer.objects.all()
    serializer_class = IssuerSerializer
    filterset_class = IssuerFilters
    lookup_field = "id"
    resource, plural = "issuers", "issuers"

    def store(self, values: dict[str, Any], author: Author) -> tuple[TokenIssuer, dict[str, Any]]:
        return use_cases.create_issuer(**values, **author), {}

    def change(
        self, row: TokenIssuer, changes: dict[str, Any], if_revision: int | None, author: Author
    ) -> tuple[TokenIssuer, dict[str, Any]]:
        return use_cases.update_issuer(issuer=row, changes=changes, if_revision=if_revision, **author), {}

    def remove(self, row: TokenIssuer, if_revision: int | None, author: Author) -> None:
        use_cases.delete_issuer(issuer=row, if_revision=if_revision, **author)

"""``/keys[/{id}]``, ``/keys/{id}/suspend``, ``/activate``, ``/rotate`` and ``/callers``."""

import re
from datetime import UTC, datetime
from typing import Any, ClassVar

import django_filters
from django import forms
from django.conf import settings
from django.contrib.auth.models import User
from django.db.models import Q, QuerySet
from django.utils import timezone
from drf_spectacular.utils import extend_schema, extend_schema_field
from rest_framework.exceptions import ValidationError
from rest_framework.request import Request
from rest_framework.response import Response

from access.models import Application
from core.api import Author, ConfigViewSet, ListViewSet, author, entity_tag, if_match, own_permissions, settle
from core.faults import ClientFault, PolicyDenied
from core.listing import Filters, flag_filter
from core.permissions import may
from core.revisions import observed
from core.validation import invalid
from keys import services as use_cases
from keys.credential import LOOKUP
from keys.making import IssuedKey
from keys.models import ApiKey, KeyCaller
from keys.rotation import rotate_key
from keys.scopes import is_admin_scope
from keys.serializers import (
    IssuedKeySerializer,
    KeyCallerSerializer,
    KeySerializer,
    NewKeySerializer,
    RevokedKeySerializer,
    RotatedKeySerializer,
    RotationSerializer,
    shown_once,
    shown_rotation,
)

_STATUSES = (*ApiKey.Status.choices, ("expired", "Expired"))
_END_OF_TIME = 253_402_300_800_000  # epoch milliseconds: the year 10000


class _MillisField(forms.CharField):
    def to_python(self, value: Any) -> Any:
        text = super().to_python(value)
        if not text:
            return None
        if not (text.isascii() and text.isdigit() and len(text) <= 15 and int(text) < _END_OF_TIME):
            raise forms.ValidationError("A time is a whole number of milliseconds since 1970-01-01T00:00:00Z.")
        return datetime.fromtimestamp(int(text) / 1000, UTC)


@extend_schema_field({"type": "integer", "format": "int64", "minimum": 0, "maximum": _END_OF_TIME - 1})
class MillisFilter(django_filters.Filter):  # type: ignore[misc]
    """A time in epoch milliseconds."""

    field_class = _MillisField


_LOOKUP_ID = f"({re.escape(settings.API_KEY_PREFIX)})?[0-9A-Za-z]{{{LOOKUP}}}"


@extend_schema_field({"type": "string", "pattern": f"^({_LOOKUP_ID})?$"})
class LookupIdFilter(django_filters.CharFilter):  # type: ignore[misc]
    pass


class KeyFilters(Filters):
    search_in = ("name", "owner", "id")
    name = django_filters.CharFilter()
    owner = django_filters.CharFilter()
    application = django_filters.CharFilter(field_name="application_id")
    status = django_filters.ChoiceFilter(choices=_STATUSES, method="by_status", empty_label=None)
    isActive = flag_filter("is_active", method="by_activity")
    isAdmin = flag_filter("user", method="by_kind")
    expiresBefore = MillisFilter(field_name="expires_at", lookup_expr="lt")
    lastUsedBefore = MillisFilter(method="by_last_use", label="Keys that were not used since, or never")
    lookupId = LookupIdFilter(method="by_lookup_id", label="Whose key is this? Its beginning, and no more of it")
    replaces = django_filters.CharFilter(field_name="replaces_id")

    def by_last_use(self, queryset: QuerySet[ApiKey], name: str, value: datetime) -> QuerySet[ApiKey]:
        return queryset.filter(Q(last_used_at__lt=value) | Q(last_used_at__isnull=True, created_at__lt=value))

    def by_lookup_id(self, queryset: QuerySet[ApiKey], name: str, value: str) -> QuerySet[ApiKey]:
        """A whole key does not belong into a URL, where logs would keep it."""
        if not re.fullmatch(_LOOKUP_ID, value):
            sentence = f"Send the {LOOKUP} characters that follow the prefix {settings.API_KEY_PREFIX}, and no more."
            raise ValidationError({"lookupId": [sentence]})
        return queryset.filter(lookup_id=value[-LOOKUP:])

    def by_status(self, queryset: QuerySet[ApiKey], name: str, value: str) -> QuerySet[ApiKey]:
        is_over = Q(expires_at__lte=timezone.now()) & ~Q(status=ApiKey.Status.REVOKED)
        return queryset.filter(is_over) if value == "expired" else queryset.filter(~is_over, status=value)

    def by_activity(self, queryset: QuerySet[ApiKey], name: str, value: bool) -> QuerySet[ApiKey]:
        is_over = Q(expires_at__isnull=False, expires_at__lte=timezone.now())
        works = Q(status__in=(ApiKey.Status.ACTIVE, ApiKey.Status.DEPRECATED)) & ~is_over
        return queryset.filter(works if value else ~works)

    def by_kind(self, queryset: QuerySet[ApiKey], name: str, value: bool) -> QuerySet[ApiKey]:
        return queryset.filter(user__isnull=not value)


class KeyViewSet(ConfigViewSet[ApiKey]):
    queryset = ApiKey.objects.all()
    serializer_class: Any = KeySerializer
    filterset_class = KeyFilters
    lookup_field = "id"
    resource, plural = "keys", "keys"
    has_news_between_revisions = True  # the last use, and that it has expired
    orderings: ClassVar = {"createdAt": "created_at", "name": "name", "owner": "owner", "useCount": "use_count"}

    @extend_schema(request=NewKeySerializer, responses={201: IssuedKeySerializer})
    def create(self, request: Request, **_: Any) -> Response:
        serializer = NewKeySerializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        with observed() as numbers:
            issued = self._issue(request, serializer.validated_data)
        response = Response(shown_once(issued), status=201, headers={"ETag": entity_tag(issued.row.revision)})
        response["Location"] = f"/keys/{issued.row.pk}"
        return settle(request, response, numbers)

    def _issue(self, request: Request, values: dict[str, Any], application_field: str = "applicationId") -> IssuedKey:
        scopes: list[str] = values.get("scopes", [])
        fields: dict[str, Any] = {"name": values["name"], "owner": values.get("owner", ""), "scopes": scopes}
        fields["restrictions"] = values.get("restrictions")
        if "expiresInDays" in values:
            fields["expires_in_days"] = values["expiresInDays"]
        application = _application(values.get("applicationId"), application_field)
        if application is None and scopes and all(is_admin_scope(scope) for scope in scopes):
            user = request.user
            assert isinstance(user, User)
            fields |= {"user": user, "own_scopes": own_permissions(request)}
            return use_cases.create_admin_key(**fields, **author(request))
        may_make = may(request, "admin:applications:create")
        return use_cases.create_key(**fields, application=application, may_make_application=may_make, **author(request))

    def change(
        self, row: ApiKey, changes: dict[str, Any], if_revision: int | None, author: Author
    ) -> tuple[ApiKey, dict[str, Any]]:
        own = own_permissions(self.request)
        return use_cases.update_key(key=row, changes=changes, if_revision=if_revision, own_scopes=own, **author), {}

    @extend_schema(responses={200: RevokedKeySerializer})
    def destroy(self, request: Request, **_: Any) -> Response:
        """Revoke for good. The row stays for the history."""
        row = self.get_object()
        with observed() as numbers:
            row = use_cases.revoke_key(key=row, if_revision=if_match(request, row.revision), **author(request))
        answer = Response(RevokedKeySerializer(row).data, headers={"ETag": entity_tag(row.revision)})
        return settle(request, answer, numbers)

    @extend_schema(request=None, responses=KeySerializer)
    def suspend(self, request: Request, **_: Any) -> Response:
        """Stop the key until it is activated again."""
        row = self.get_object()
        with observed() as numbers:
            row = use_cases.suspend_key(key=row, if_revision=if_match(request, row.revision), **author(request))
        return settle(request, self.answer(row, {}), numbers)

    @extend_schema(request=None, responses=KeySerializer)
    def activate(self, request: Request, **_: Any) -> Response:
        """Let a suspended key work again."""
        row = self.get_object()
        expected, own = if_match(request, row.revision), own_permissions(request)
        with observed() as numbers:
            row = use_cases.activate_key(key=row, if_revision=expected, own_scopes=own, **author(request))
        return settle(request, self.answer(row, {}), numbers)


class KeyStateViewSet(KeyViewSet):
    """Suspending, activating and rotating change a key, so they need ``admin:keys:update``."""

    permission_actions: ClassVar = {"POST": "update"}

    @extend_schema(request=RotationSerializer, responses={201: RotatedKeySerializer})
    def rotate(self, request: Request, **_: Any) -> Response:
        """Make a new key in the place of this one; both work until the transition ends. Needs ``admin:keys:create``
        too."""
        if not may(request, "admin:keys:create"):
            raise PolicyDenied("insufficient_scope", "This needs the permission admin:keys:create.")
        row = self.get_object()
        serializer = RotationSerializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        with observed() as numbers:
            rotation = rotate_key(
                key=row,
                transition_days=serializer.validated_data["transitionPeriodDays"],
                if_revision=if_match(request, row.revision),
                own_scopes=own_permissions(request),
                **author(request),
            )
        successor = rotation.issued.row
        response = Response(shown_rotation(rotation), status=201, headers={"ETag": entity_tag(successor.revision)})
        response["Location"] = f"/keys/{successor.pk}"
        return settle(request, response, numbers)


class CallerFilters(Filters):
    search_in = ("address",)
    address = django_filters.CharFilter()


class KeyCallersViewSet(ListViewSet[KeyCaller]):
    """Who uses a key, from which address, the latest first. At most a minute late; kept for 90 days after the last
    request."""

    queryset = KeyCaller.objects.all()
    serializer_class = KeyCallerSerializer
    filterset_class = CallerFilters
    resource, plural = "keys", "callers"
    orderings: ClassVar = {"lastUsedAt": "last_at", "requests": "requests"}
    default_ordering = "-lastUsedAt"

    def get_queryset(self) -> QuerySet[KeyCaller]:
        if "id" not in self.kwargs:  # the OpenAPI document is being written
            return KeyCaller.objects.none()
        key = ApiKey.objects.filter(pk=self.kwargs["id"]).first()
        if key is None:
            raise ClientFault("not_found", f"There is nothing named {self.kwargs['id']!r} here.")
        return KeyCaller.objects.filter(key=key)


def _application(application_id: str | None, field: str) -> Application | None:
    if application_id is None:
        return None
    application = Application.objects.filter(pk=application_id).first()
    if application is None:
        raise invalid(field, f"There is no application {application_id!r}.")
    return application

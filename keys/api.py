"""``/keys[/{id}]``, ``/keys/{id}/suspend`` and ``/activate``, ``/validate``, ``/setup``."""

import secrets
from typing import Any, ClassVar

import django_filters
from django.conf import settings
from django.contrib.auth.models import User
from django.db.models import Q, QuerySet
from django.utils import timezone
from drf_spectacular.utils import extend_schema
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from access.callers import AddressThrottle, client_address, is_direct_loopback
from access.models import Application
from core.api import Author, ConfigViewSet, author, entity_tag, if_match, settle
from core.faults import ClientFault, PolicyDenied
from core.listing import Filters, flag_filter
from core.permissions import Caller, covers
from core.revisions import observed
from core.validation import invalid
from keys import services as use_cases
from keys.authentication import FAILURES, refuse_when_exhausted
from keys.models import ApiKey
from keys.scopes import is_admin_scope
from keys.serializers import (
    FirstAdminSerializer,
    IssuedKeySerializer,
    KeySerializer,
    NewKeySerializer,
    RevokedKeySerializer,
    SetupSerializer,
    ValidationSerializer,
    VerdictSerializer,
)
from keys.services import IssuedKey
from keys.setup import complete_setup, is_set_up

VALIDATIONS = AddressThrottle(lambda: settings.VALIDATIONS_PER_MINUTE)
_STATUSES = (*ApiKey.Status.choices, ("expired", "Expired"))


class KeyFilters(Filters):
    search_in = ("name", "owner", "id")
    name = django_filters.CharFilter()
    owner = django_filters.CharFilter()
    application = django_filters.CharFilter(field_name="application_id")
    status = django_filters.ChoiceFilter(choices=_STATUSES, method="by_status", empty_label=None)
    isActive = flag_filter("is_active", method="by_activity")
    isAdmin = flag_filter("user", method="by_kind")

    def by_status(self, queryset: QuerySet[ApiKey], name: str, value: str) -> QuerySet[ApiKey]:
        is_over = Q(expires_at__lte=timezone.now()) & ~Q(status=ApiKey.Status.REVOKED)
        return queryset.filter(is_over) if value == "expired" else queryset.filter(~is_over, status=value)

    def by_activity(self, queryset: QuerySet[ApiKey], name: str, value: bool) -> QuerySet[ApiKey]:
        is_over = Q(expires_at__isnull=False, expires_at__lte=timezone.now())
        works = Q(status__in=(ApiKey.Status.ACTIVE, ApiKey.Status.DEPRECATED)) & ~is_over
        return queryset.filter(works if value else ~works)

    def by_kind(self, queryset: QuerySet[ApiKey], name: str, value: bool) -> QuerySet[ApiKey]:
        return queryset.filter(user__isnull=not value)


def own_scopes(request: Request) -> tuple[str, ...] | None:
    """What the caller may give at most (rule 14): None is everything."""
    caller = request.auth
    assert isinstance(caller, Caller)
    return caller.scopes


class KeyViewSet(ConfigViewSet[ApiKey]):
    queryset = ApiKey.objects.all()
    serializer_class = KeySerializer
    filterset_class = KeyFilters
    lookup_field = "id"
    resource, plural = "keys", "keys"
    has_news_between_revisions = True  # the last use, and that it has expired
    orderings: ClassVar = {"createdAt": "created_at", "name": "name", "owner": "owner"}

    @extend_schema(request=NewKeySerializer, responses={201: IssuedKeySerializer})
    def create(self, request: Request, **_: Any) -> Response:
        serializer = NewKeySerializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        with observed() as numbers:
            issued = self._issue(request, serializer.validated_data)
        response = Response(_shown_once(issued), status=201, headers={"ETag": entity_tag(issued.row.revision)})
        response["Location"] = f"/keys/{issued.row.pk}"
        return settle(request, response, numbers)

    def _issue(self, request: Request, values: dict[str, Any]) -> IssuedKey:
        scopes: list[str] = values.get("scopes", [])
        fields: dict[str, Any] = {"name": values["name"], "owner": values.get("owner", ""), "scopes": scopes}
        if "expiresInDays" in values:
            fields["expires_in_days"] = values["expiresInDays"]
        application = _application(values.get("applicationId"))
        if application is None and scopes and all(is_admin_scope(scope) for scope in scopes):
            user = request.user
            assert isinstance(user, User)
            fields |= {"user": user, "own_scopes": own_scopes(request)}
            return use_cases.create_admin_key(**fields, **author(request))
        return use_cases.create_key(**fields, application=application, **author(request))

    def change(
        self, row: ApiKey, changes: dict[str, Any], if_revision: int | None, author: Author
    ) -> tuple[ApiKey, dict[str, Any]]:
        own = own_scopes(self.request)
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
        expected, own = if_match(request, row.revision), own_scopes(request)
        with observed() as numbers:
            row = use_cases.activate_key(key=row, if_revision=expected, own_scopes=own, **author(request))
        return settle(request, self.answer(row, {}), numbers)


class KeyStateViewSet(KeyViewSet):
    """Suspending and activating change a key, so they need ``admin:keys:update``."""

    permission_actions: ClassVar = {"POST": "update"}


def _application(application_id: str | None) -> Application | None:
    if application_id is None:
        return None
    application = Application.objects.filter(pk=application_id).first()
    if application is None:
        raise invalid("applicationId", f"There is no application {application_id!r}.")
    return application


def _shown_once(issued: IssuedKey) -> dict[str, Any]:
    row = KeySerializer(issued.row).data
    warning = {"warning": issued.warning} if issued.warning else {}
    return {"id": row["id"], "key": issued.key, **row, **warning}


class ValidateView(APIView):
    """Whether a key works and has the scopes asked for. Public, and throttled for each address."""

    authentication_classes = []
    permission_classes = []

    @extend_schema(request=ValidationSerializer, responses=VerdictSerializer, operation_id="validate", auth=[])
    def post(self, request: Request) -> Response:
        refuse_when_exhausted(VALIDATIONS.charge(client_address(request._request)))
        serializer = ValidationSerializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        key = use_cases.find_live_key(serializer.validated_data["key"], admin=False)
        wanted = serializer.validated_data.get("scopes", [])
        return Response(_verdict(key, wanted))


def _verdict(key: ApiKey | None, wanted: list[str]) -> dict[str, Any]:
    if key is None:
        return {"isValid": False, "reason": "invalid_key"}
    if all(covers(key.scopes, scope) for scope in wanted):
        return {"isValid": True, "keyId": key.pk, "scopes": key.scopes, "owner": key.owner}
    return {
        "isValid": False,
        "reason": "insufficient_scope",
        "requiredScopes": wanted,
        "providedScopes": key.scopes,
    }


class SetupView(APIView):
    """Make the first admin, once (rule 16). Needs the setup token, except from this very host when embedded."""

    authentication_classes = []
    permission_classes = []

    @extend_schema(request=SetupSerializer, responses={201: FirstAdminSerializer}, operation_id="setup", auth=[])
    def post(self, request: Request) -> Response:
        if is_set_up():
            raise ClientFault("conflict", "Setup is done already. `manage.py createadmin` recovers a lost admin.")
        serializer = SetupSerializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        values = serializer.validated_data
        _check_setup_token(request, request.headers.get("X-Setup-Token") or values.get("setupToken", ""))
        with observed() as numbers:
            admin = complete_setup(name=values["name"], email=values["email"], source="api")
        panel = {"email": admin.user.email, "username": admin.user.get_username(), "password": admin.password}
        return settle(request, Response({**_shown_once(admin.issued), **panel}, status=201), numbers)


def _check_setup_token(request: Request, given: str) -> None:
    if settings.EMBEDDED and is_direct_loopback(request._request):
        return
    address = client_address(request._request)
    refuse_when_exhausted(FAILURES.wait_s(address))
    expected = settings.SETUP_TOKEN
    if expected and secrets.compare_digest(given.encode(), expected.encode()):
        return
    if given:
        FAILURES.charge(address)
    raise PolicyDenied(
        "invalid_credentials" if given else "missing_credentials",
        "Setup needs the one-time token that the gateway printed when it started (or SETUP_TOKEN), as X-Setup-Token.",
        headers=((b"www-authenticate", b'SetupToken realm="portcullis"'),),
    )

"""What admins do about end users: ``/admin/access/end-users``, ``/admin/access/end-user-roles`` and
``/admin/access/signing-keys``."""

from typing import Any, ClassVar

import django_filters
from django.db import transaction
from django.db.models import QuerySet
from django.utils import timezone
from drf_spectacular.utils import OpenApiExample, extend_schema, extend_schema_serializer
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from access.end_users import accounts, roles
from access.end_users.sessions import end_session, end_sessions
from access.models import EndUser, EndUserRole, SigningKey, UserSession
from access.signing.keys import revoke_signing_key, rotate_signing_keys, state_of
from core import audit
from core.api import Author, ConfigViewSet, ListViewSet, author, if_match, settle
from core.faults import ClientFault
from core.listing import Filters, flag_filter
from core.revisions import observed
from core.serializers import (
    ConfigSerializer,
    EpochMillis,
    Flag,
    StrictSerializer,
    Text,
    config_meta,
    text_list,
    whole,
)


# --- roles ---
@extend_schema_serializer(
    examples=[
        OpenApiExample(
            "A role",
            {"name": "crew", "scopes": ["orders:read"], "requestsPerHour": 5000, "burstLimit": 100},
            request_only=True,
        )
    ]
)
class EndUserRoleSerializer(ConfigSerializer[EndUserRole]):
    """``requestsPerHour`` and ``burstLimit`` are each user's own; null: the role sets no limit."""

    bounds: ClassVar = {
        "name": whole(roles.ROLE_NAME),
        "requests_per_hour": {"minimum": 1, "maximum": roles.MOST},
        "burst_limit": {"minimum": 1, "maximum": roles.MOST},
    }
    scopes = text_list(required=False)
    Meta = config_meta(EndUserRole, *roles.ROLE_FIELDS)


class RoleFilters(Filters):
    search_in = ("name", "description")
    name = django_filters.CharFilter()


class EndUserRoleViewSet(ConfigViewSet[EndUserRole]):
    queryset = EndUserRole.objects.all()
    serializer_class = EndUserRoleSerializer
    filterset_class = RoleFilters
    lookup_field = "id"
    resource, plural = "end-users", "roles"

    def store(self, values: dict[str, Any], author: Author) -> tuple[EndUserRole, dict[str, Any]]:
        return roles.create_role(**values, **author), {}

    def change(
        self, row: EndUserRole, changes: dict[str, Any], if_revision: int | None, author: Author
    ) -> tuple[EndUserRole, dict[str, Any]]:
        return roles.update_role(role=row, changes=changes, if_revision=if_revision, **author), {}

    def remove(self, row: EndUserRole, if_revision: int | None, author: Author) -> None:
        roles.delete_role(role=row, if_revision=if_revision, **author)


# --- users ---
class EndUserSerializer(ConfigSerializer[EndUser]):
    """A user of the services behind the gateway. ``role`` names one of the end users' roles."""

    Meta = config_meta(EndUser, *accounts.USER_FIELDS, read_only=("last_login_at",))


@extend_schema_serializer(
    examples=[
        OpenApiExample(
            "A user",
            {"username": "test@example.com", "name": "Ann Example", "role": "passenger", "password": "a long password"},
            request_only=True,
        )
    ]
)
class NewEndUserSerializer(EndUserSerializer):
    """With a ``password``, or without: then nobody can log in before it is reset."""

    password = Text(required=False, write_only=True, trim_whitespace=False, max_length=4096)

    Meta = config_meta(EndUser, *accounts.USER_FIELDS, "password", read_only=("last_login_at",))


class UserFilters(Filters):
    search_in = ("username", "name")
    username = django_filters.CharFilter()
    role = django_filters.CharFilter()
    isActive = flag_filter("is_active")


class EndUserViewSet(ConfigViewSet[EndUser]):
    queryset = EndUser.objects.all()
    serializer_class = EndUserSerializer
    filterset_class = UserFilters
    lookup_field = "id"
    resource, plural = "end-users", "users"
    orderings: ClassVar = {
        "username": "username",
        "createdAt": "created_at",
        "updatedAt": "updated_at",
    }

    def get_serializer_class(self) -> Any:
        return NewEndUserSerializer if self.action == "create" else EndUserSerializer

    def store(self, values: dict[str, Any], author: Author) -> tuple[EndUser, dict[str, Any]]:
        return accounts.create_user(**values, **author), {}

    def change(
        self, row: EndUser, changes: dict[str, Any], if_revision: int | None, author: Author
    ) -> tuple[EndUser, dict[str, Any]]:
        return accounts.update_user(user=row, changes=changes, if_revision=if_revision, **author), {}

    def remove(self, row: EndUser, if_revision: int | None, author: Author) -> None:
        accounts.delete_user(user=row, if_revision=if_revision, **author)


class ResetPasswordSerializer(StrictSerializer):
    """``mustChange``: whoever logs in with it has to choose another."""

    password = Text(required=False, write_only=True, trim_whitespace=False, max_length=4096)
    mustChange = Flag(required=False, default=True)


class PasswordResetSerializer(serializers.Serializer[Any]):
    """``password`` is what was made up, where none was given; it cannot be shown again."""

    id = serializers.CharField()
    username = serializers.CharField()
    mustChangePassword = serializers.BooleanField()
    password = serializers.CharField(required=False)


def _user(user_id: str) -> EndUser:
    user = EndUser.objects.filter(pk=user_id).first()
    if user is None:
        raise ClientFault("not_found", f"There is nothing named {user_id!r} here.")
    return user


class ResetPasswordView(APIView):
    """Set a user's password, or have one made up. All sessions of the user end."""

    resource = "end-users"
    permission_actions: ClassVar = {"POST": "update"}
    is_conditional = True

    @extend_schema(
        summary="Reset password",
        request=ResetPasswordSerializer,
        responses=PasswordResetSerializer,
        operation_id="end_user_reset_password",
    )
    def post(self, request: Request, id: str) -> Response:
        serializer = ResetPasswordSerializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        values, row = serializer.validated_data, _user(id)
        with observed() as numbers:
            made = accounts.reset_password(
                user=row,
                password=values.get("password", ""),
                must_change=values["mustChange"],
                if_revision=if_match(request, row.revision),
                **author(request),
            )
        user = made.user
        document = {"id": user.pk, "username": user.username, "mustChangePassword": user.must_change_password}
        shown = {"password": made.password} if made.password else {}
        return settle(request, Response(document | shown), numbers)


# --- sessions ---
class UserSessionSerializer(serializers.ModelSerializer[UserSession]):
    """From a login to its end. ``revokedWhy`` is empty for one that goes on, or ended by its age."""

    createdAt = EpochMillis(source="created_at")
    lastUsedAt = EpochMillis(source="last_used_at")
    endsAt = EpochMillis(source="ends_at")
    revokedAt = EpochMillis(source="revoked_at", allow_null=True)
    revokedWhy = serializers.CharField(source="revoked_why")
    userAgent = serializers.CharField(source="user_agent")
    isLive = serializers.SerializerMethodField()

    class Meta:
        model = UserSession
        fields = (
            "id", "isLive", "createdAt", "lastUsedAt", "endsAt", "revokedAt", "revokedWhy", "address", "userAgent",
        )  # fmt: skip
        read_only_fields = fields

    def get_isLive(self, session: UserSession) -> bool:
        return session.revoked_at is None and session.ends_at > timezone.now()


class SessionFilters(Filters):
    search_in = ("address", "user_agent")
    isLive = flag_filter("revoked_at", method="_is_live")

    def _is_live(self, queryset: QuerySet[Any], name: str, value: bool) -> QuerySet[Any]:
        live = {"revoked_at__isnull": True, "ends_at__gt": timezone.now()}
        return queryset.filter(**live) if value else queryset.exclude(**live)


class UserSessionViewSet(ListViewSet[UserSession]):
    queryset = UserSession.objects.all()
    serializer_class = UserSessionSerializer
    filterset_class = SessionFilters
    lookup_field = "id"
    resource, plural = "end-users", "sessions"
    permission_actions: ClassVar = {"POST": "update", "DELETE": "update"}
    orderings: ClassVar = {"createdAt": "created_at", "lastUsedAt": "last_used_at"}
    default_ordering = "-createdAt"

    def get_queryset(self) -> QuerySet[UserSession]:
        if "user" not in self.kwargs:  # the OpenAPI document is being written
            return UserSession.objects.none()
        return UserSession.objects.filter(user=_user(self.kwargs["user"]))

    @extend_schema(responses={204: None})
    def destroy(self, request: Request, **_: Any) -> Response:
        """End a session: no gateway takes its tokens any longer, within a second."""
        session = self.get_object()
        with transaction.atomic():
            EndUser.objects.select_for_update().get(pk=session.user_id)
            end_session(session=session, why="ended by an admin")
            _note(request, "end_user.session_ended", session.user, session_id=session.pk)
        return Response(status=204)


class EndedSerializer(serializers.Serializer[Any]):
    ended = serializers.IntegerField()


class EndSessionsView(APIView):
    """End all sessions of a user."""

    resource = "end-users"
    permission_actions: ClassVar = {"POST": "update"}

    @extend_schema(
        summary="End all sessions", request=None, responses=EndedSerializer, operation_id="end_user_end_sessions"
    )
    def post(self, request: Request, id: str) -> Response:
        with transaction.atomic():
            user = EndUser.objects.select_for_update().filter(pk=_user(id).pk).get()
            ended = end_sessions(user=user, why="ended by an admin")
            _note(request, "end_user.sessions_ended", user, ended=ended)
        return Response({"ended": ended})


def _note(request: Request, action: str, user: EndUser, **details: Any) -> None:
    given = author(request)
    audit.record(
        action,
        actor=given["actor"],
        source=given["source"],
        object_kind="end_user",
        object_id=user.pk,
        object_name=user.username,
        details=details,
    )


# --- signing keys ---
class SigningKeySerializer(ConfigSerializer[SigningKey]):
    """A key that signs end users' tokens. ``state``: waiting, signing, retired (published on) or revoked."""

    state = serializers.SerializerMethodField()
    Meta = config_meta(
        SigningKey, read_only=("algorithm", "public_jwk", "signs_from", "retired_at", "revoked_at", "state")
    )

    def get_state(self, key: SigningKey) -> str:
        return state_of(key)


class RotateSerializer(StrictSerializer):
    """``atOnce``: it signs now, and whoever keeps the published keys for a while does not know it yet."""

    atOnce = Flag(required=False, default=False)


class KeyFilters(Filters):
    search_in = ("id",)


class SigningKeyViewSet(ListViewSet[SigningKey]):
    queryset = SigningKey.objects.all()
    serializer_class = SigningKeySerializer
    filterset_class = KeyFilters
    lookup_field = "id"
    resource, plural = "signing-keys", "keys"
    orderings: ClassVar = {"signsFrom": "signs_from"}
    default_ordering = "-signsFrom"
    is_conditional = True
    has_news_between_revisions = True  # a waiting key comes to sign

    @extend_schema(request=RotateSerializer, responses={201: SigningKeySerializer})
    def rotate(self, request: Request, **_: Any) -> Response:
        """Make a new key. It signs once others have had the time to fetch it; the present one is published until its
        tokens have expired."""
        serializer = RotateSerializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        with observed() as numbers:
            key = rotate_signing_keys(at_once=serializer.validated_data["atOnce"], **author(request))
        return settle(request, Response(self.get_serializer(key).data, status=201), numbers)


class SigningKeyStateViewSet(SigningKeyViewSet):
    """Revoking changes a key, so it needs ``admin:signing-keys:update``."""

    permission_actions: ClassVar = {"POST": "update"}

    @extend_schema(request=None, responses=SigningKeySerializer)
    def revoke(self, request: Request, **_: Any) -> Response:
        """Nothing that the key has signed counts any longer. Sessions go on, with new tokens by refreshing."""
        row = self.get_object()
        with observed() as numbers:
            row = revoke_signing_key(key=row, if_revision=if_match(request, row.revision), **author(request))
        return settle(request, Response(self.get_serializer(row).data), numbers)

"""``/admin/access/invitations[/{id}]``, and of ``/admin/access/users/{id}`` ``/sessions[/{session}]`` and
``/factors``."""

from typing import Any, ClassVar
from urllib.parse import quote

import django_filters
from allauth.usersessions.models import UserSession
from django.conf import settings
from django.db.models import Q, QuerySet
from django.http import HttpRequest
from django.utils import timezone
from drf_spectacular.utils import OpenApiExample, extend_schema, extend_schema_serializer
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from access.administration import invitations
from access.administration.mail import send_invitation
from access.administration.sessions import end_sessions, live_sessions, reset_factors
from access.models import AdminAccount, Invitation
from core.api import ListViewSet, author, own_permissions
from core.faults import ClientFault
from core.ingress import is_through_gateway
from core.listing import Filters
from core.serializers import EpochMillis, Flag, StrictSerializer, Text, text_list

_STATUSES = tuple((name, name) for name in ("open", "accepted", "withdrawn", "expired"))


def invitation_link(request: HttpRequest, token: str) -> str:
    """The code stands behind the #: browsers send that to nobody, so no log and no proxy gets to see it."""
    if settings.PANEL_URL:
        base = settings.PANEL_URL
    elif is_through_gateway(request):
        base = f"http://{settings.PANEL_BIND}:{settings.ADMIN_PORT}"
    else:
        base = f"{request.scheme}://{request.get_host()}"
    return f"{base}/invitation#{quote(token)}"


# --- invitations ---------------------------------------------------------------------------------------------------
class InvitationSerializer(serializers.ModelSerializer[Invitation]):
    """``status`` is open, accepted, withdrawn or expired."""

    invitedBy = serializers.CharField(source="invited_by")
    createdAt = EpochMillis(source="created_at")
    expiresAt = EpochMillis(source="expires_at")
    acceptedAt = EpochMillis(source="accepted_at", allow_null=True)
    withdrawnAt = EpochMillis(source="withdrawn_at", allow_null=True)
    status = serializers.SerializerMethodField()

    class Meta:
        model = Invitation
        fields = (
            "id", "email", "roles", "status", "invitedBy", "createdAt", "expiresAt", "acceptedAt", "withdrawnAt",
        )  # fmt: skip
        read_only_fields = fields

    def get_status(self, invitation: Invitation) -> str:
        return invitations.status_of(invitation)


@extend_schema_serializer(
    examples=[OpenApiExample("An invitation", {"email": "bob@example.com", "roles": ["KEY_ADMIN"]}, request_only=True)]
)
class NewInvitationSerializer(StrictSerializer):
    """``roles`` give no more than the caller has. ``mail``: send the link too, where EMAIL_URL is set."""

    email = Text(max_length=150)
    roles = text_list()
    mail = Flag(required=False, default=True)


class MadeInvitationSerializer(InvitationSerializer):
    """``link`` is in this answer and nowhere else. ``mailed``: whether it was sent to the address."""

    link = serializers.CharField()
    mailed = serializers.BooleanField()

    class Meta:
        model = Invitation
        fields = (*InvitationSerializer.Meta.fields, "link", "mailed")
        read_only_fields = fields


class InvitationFilters(Filters):
    search_in = ("email", "invited_by")
    email = django_filters.CharFilter(lookup_expr="iexact")
    status = django_filters.ChoiceFilter(choices=_STATUSES, method="by_status", empty_label=None)

    def by_status(self, queryset: QuerySet[Invitation], name: str, value: str) -> QuerySet[Invitation]:
        late = Q(expires_at__lte=timezone.now())
        ended = Q(accepted_at__isnull=False) | Q(withdrawn_at__isnull=False)
        found = {
            "accepted": Q(accepted_at__isnull=False),
            "withdrawn": Q(accepted_at=None, withdrawn_at__isnull=False),
            "expired": ~ended & late,
            "open": ~ended & ~late,
        }
        return queryset.filter(found[value])


class InvitationViewSet(ListViewSet[Invitation]):
    queryset = Invitation.objects.all()
    serializer_class = InvitationSerializer
    filterset_class = InvitationFilters
    lookup_field = "id"
    resource, plural = "users", "invitations"
    orderings: ClassVar = {"createdAt": "created_at", "email": "email"}
    default_ordering = "-createdAt"

    def get_queryset(self) -> QuerySet[Invitation]:
        return Invitation.objects.all()

    @extend_schema(request=NewInvitationSerializer, responses={201: MadeInvitationSerializer})
    def create(self, request: Request, **_: Any) -> Response:
        """Invite somebody. The link works once, until it expires or is withdrawn."""
        serializer = NewInvitationSerializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        values, by = serializer.validated_data, author(request)
        made = invitations.invite(
            email=values["email"],
            roles=values["roles"],
            own_permissions=own_permissions(request),
            actor=by["actor"],
            source=by["source"],
        )
        link = invitation_link(request._request, made.token)
        is_mailed = values["mail"] and send_invitation(made.invitation, link)
        shown = {**InvitationSerializer(made.invitation).data, "link": link, "mailed": is_mailed}
        return Response(shown, status=201, headers={"Location": f"{request.path.rstrip('/')}/{made.invitation.pk}"})

    @extend_schema(responses={204: None})
    def destroy(self, request: Request, **_: Any) -> Response:
        """Withdraw an invitation that is still open."""
        by = author(request)
        invitations.withdraw(invitation=self.get_object(), actor=by["actor"], source=by["source"])
        return Response(status=204)


# --- sessions ------------------------------------------------------------------------------------------------------
class PanelSessionSerializer(serializers.ModelSerializer[UserSession]):
    """Where an administrator is signed in to the panel."""

    id = serializers.CharField()
    createdAt = EpochMillis(source="created_at")
    lastSeenAt = EpochMillis(source="last_seen_at")
    address = serializers.CharField(source="ip")
    userAgent = serializers.CharField(source="user_agent")

    class Meta:
        model = UserSession
        fields = ("id", "createdAt", "lastSeenAt", "address", "userAgent")
        read_only_fields = fields


class PanelSessionsSerializer(serializers.Serializer[Any]):
    sessions = PanelSessionSerializer(many=True)


class PanelSessionsView(APIView):
    """The sessions of an administrator."""

    resource = "sessions"

    @extend_schema(
        responses=PanelSessionsSerializer, operation_id="admin_access_user_sessions", summary="List panel sessions"
    )
    def get(self, request: Request, id: str) -> Response:
        """Where an administrator is signed in, the latest used first."""
        rows = live_sessions(_account(id).user)
        return Response({"sessions": PanelSessionSerializer(rows, many=True).data})

    @extend_schema(
        responses={204: None}, operation_id="admin_access_user_sessions_end", summary="End all panel sessions"
    )
    def delete(self, request: Request, id: str) -> Response:
        """Sign an administrator out everywhere."""
        account = _account(id)
        return _end(request, account, live_sessions(account.user))


class PanelSessionView(APIView):
    resource = "sessions"

    @extend_schema(responses={204: None}, operation_id="admin_access_user_session_end", summary="End panel session")
    def delete(self, request: Request, id: str, session: str) -> Response:
        """Sign an administrator out in one place."""
        account = _account(id)
        found = [row for row in live_sessions(account.user) if str(row.pk) == session]
        if not found:
            raise ClientFault("not_found", f"There is no session {session!r} of this user.")
        return _end(request, account, found)


class FactorsView(APIView):
    """The second factors of an administrator. They are of the user, as the password is."""

    resource = "users"
    permission_actions: ClassVar = {"DELETE": "update"}

    @extend_schema(
        responses={204: None}, operation_id="admin_access_user_factors_reset", summary="Reset second factors"
    )
    def delete(self, request: Request, id: str) -> Response:
        """Take all second factors away from somebody who has lost them.

        Recovery codes go too, and their sessions end. Make sure that it is they who ask: until they add a new factor,
        the password alone lets in."""
        by = author(request)
        reset_factors(
            account=_account(id), own_permissions=own_permissions(request), actor=by["actor"], source=by["source"]
        )
        return Response(status=204)


def _account(account_id: str) -> AdminAccount:
    account = AdminAccount.objects.select_related("user").filter(pk=account_id).first()
    if account is None:
        raise ClientFault("not_found", f"There is nothing named {account_id!r} here.")
    return account


def _end(request: Request, account: AdminAccount, sessions: list[UserSession]) -> Response:
    by = author(request)
    own = own_permissions(request)
    end_sessions(account=account, sessions=sessions, own_permissions=own, actor=by["actor"], source=by["source"])
    return Response(status=204)

"""``/auth/login``, ``/auth/refresh``, ``/auth/logout``, ``/auth/profile`` and ``/auth/change-password`` for end users,
and the keys that prove their tokens: ``/.well-known/jwks.json``. Names are in snake_case, times in ISO 8601."""

import hashlib
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, ClassVar

import orjson
from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.views import View
from drf_spectacular.utils import OpenApiExample, extend_schema, extend_schema_serializer
from rest_framework import serializers
from rest_framework.authentication import BaseAuthentication
from rest_framework.permissions import BasePermission
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from access.callers import AddressThrottle, client_address
from access.end_users.accounts import rename_user
from access.end_users.login import (
    Client,
    SignedIn,
    Tokens,
    change_password,
    log_in,
    log_out,
    recognise,
    refresh_tokens,
)
from access.end_users.sessions import actor_of
from access.models import EndUser, EndUserRole
from access.signing.keys import JWKS_MAX_AGE_S, published_keys
from access.signing.tokens import refused
from core.api_problems import CHALLENGE, as_fault, problem_response
from core.faults import GatewayFault, PolicyDenied
from core.serializers import StrictSerializer, Text

FAILURES = AddressThrottle(lambda: settings.AUTH_FAILURES_PER_MINUTE)


class _Public(APIView):
    """Problem documents name members as these endpoints do; nobody needs a permission of the admin API."""

    resource: ClassVar[str] = "end-user sessions"
    open_to: ClassVar[str] = "everybody: a log-in, a refresh token or a key set is what it asks for or gives"
    authentication_classes = []
    permission_classes = []

    def get_exception_handler(self) -> Callable[[Exception, Mapping[str, Any]], HttpResponse]:
        return _handle


def _handle(error: Exception, context: Mapping[str, Any]) -> HttpResponse:
    fault = error if isinstance(error, GatewayFault) else as_fault(error)
    return problem_response(fault, context["request"])


class AccessTokenAuthentication(BaseAuthentication):
    """``Authorization: Bearer <access token>``. ``request.auth`` becomes a `SignedIn`."""

    def authenticate(self, request: Request) -> tuple[Any, SignedIn] | None:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            return None
        address = client_address(request._request)
        refuse_when_exhausted(FAILURES.wait_s(address))
        try:
            signed_in = recognise(token.strip())
        except PolicyDenied:
            FAILURES.charge(address)
            raise
        return signed_in.user, signed_in

    def authenticate_header(self, request: Request) -> str:
        return 'Bearer realm="portcullis"'


def refuse_when_exhausted(wait_s: int) -> None:
    if wait_s:
        raise PolicyDenied("rate_limited", "Too many attempts from your address.", retry_after_s=wait_s)


class IsSignedIn(BasePermission):
    """With a token that may do more than change the password, unless the view is for those too."""

    def has_permission(self, request: Request, view: APIView) -> bool:
        if not isinstance(request.auth, SignedIn):
            raise PolicyDenied("missing_credentials", "Send an access token from /auth/login.", headers=CHALLENGE)
        is_limited = request.auth.claims.must_change_password
        if is_limited and not getattr(view, "serves_limited", False):
            raise PolicyDenied("password_change_required", "Choose a new password first: POST /auth/change-password.")
        return True


class _SignedIn(_Public):
    open_to = "end users, with the token that they got at /auth/login"
    authentication_classes = [AccessTokenAuthentication]
    permission_classes = [IsSignedIn]


# --- shapes ---
class Secret(Text):
    """A text that may begin and end with spaces and is never shown."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**({"trim_whitespace": False, "write_only": True, "max_length": 4096} | options))


@extend_schema_serializer(
    examples=[OpenApiExample("A login", {"username": "test@example.com", "password": "password"}, request_only=True)]
)
class LoginSerializer(StrictSerializer):
    """``device_token``: what an earlier login on this device has given; with it nobody else's attempts count here."""

    username = Text(max_length=300)
    password = Secret()
    device_token = Secret(required=False, allow_blank=True)


class RefreshSerializer(StrictSerializer):
    refresh_token = Secret()


class PasswordSerializer(StrictSerializer):
    current_password = Secret()
    new_password = Secret()


class ProfileSerializer(StrictSerializer):
    name = Text(max_length=150, allow_blank=True)


class UserSerializer(serializers.Serializer[Any]):
    id = serializers.CharField()
    username = serializers.CharField()
    name = serializers.CharField(allow_blank=True)
    role = serializers.CharField()
    scopes = serializers.ListField(child=serializers.CharField())
    must_change_password = serializers.BooleanField()
    created_at = serializers.DateTimeField()
    last_login_at = serializers.DateTimeField(allow_null=True)


class TokensSerializer(serializers.Serializer[Any]):
    """``expires_in``: seconds. A refresh token works once; the answer holds the next one."""

    access_token = serializers.CharField()
    token_type = serializers.ChoiceField(choices=["Bearer"])
    expires_in = serializers.IntegerField()
    refresh_token = serializers.CharField(required=False)
    device_token = serializers.CharField(required=False)
    user = UserSerializer()


def tokens_document(tokens: Tokens) -> dict[str, Any]:
    document = {"access_token": tokens.access_token, "token_type": "Bearer", "expires_in": tokens.expires_in}
    optional = {"refresh_token": tokens.refresh_token, "device_token": tokens.device_token}
    given = {name: value for name, value in optional.items() if value}
    return {**document, **given, "user": user_document(tokens.user, tokens.scopes)}


def user_document(user: EndUser, scopes: tuple[str, ...] | None = None) -> dict[str, Any]:
    if scopes is None:
        role = EndUserRole.objects.filter(tenant_id=user.tenant_id, name=user.role).first()
        scopes = tuple(role.scopes) if role is not None else ()
    return {
        "id": user.pk,
        "username": user.username,
        "name": user.name,
        "role": user.role,
        "scopes": list(scopes),
        "must_change_password": user.must_change_password,
        "created_at": _iso(user.created_at),
        "last_login_at": _iso(user.last_login_at),
    }


def _iso(moment: datetime | None) -> str | None:
    """RFC 3339 in UTC, by the millisecond."""
    if moment is None:
        return None
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _client(request: Request) -> Client:
    return Client(
        client_address(request._request),
        request.headers.get("User-Agent", ""),
        getattr(request._request, "request_id", ""),
    )


def _valid(kind: type[StrictSerializer], request: Request) -> dict[str, Any]:
    serializer = kind(data=request.data)
    serializer.is_valid(raise_exception=True)
    values: dict[str, Any] = serializer.validated_data
    return values


# --- views ---
class LoginView(_Public):
    """Log in. Whatever is wrong with the name or the password, the answer is the same, in the same time."""

    @extend_schema(
        request=LoginSerializer, responses=TokensSerializer, operation_id="auth_login", summary="Log in", auth=[]
    )
    def post(self, request: Request) -> Response:
        return Response(tokens_document(log_in(**_valid(LoginSerializer, request), client=_client(request))))


class RefreshView(_Public):
    """New tokens for a refresh token, which works once: a second use ends the session."""

    @extend_schema(
        request=RefreshSerializer,
        responses=TokensSerializer,
        operation_id="auth_refresh",
        summary="Refresh tokens",
        auth=[],
    )
    def post(self, request: Request) -> Response:
        client = _client(request)
        values = _valid(RefreshSerializer, request)
        refuse_when_exhausted(FAILURES.wait_s(client.address))
        try:
            tokens = refresh_tokens(**values, client=client)
        except PolicyDenied:
            FAILURES.charge(client.address)
            raise
        return Response(tokens_document(tokens))


class LogoutView(_SignedIn):
    """End the session: within a second no gateway takes its access token, and its refresh token is void."""

    serves_limited = True

    @extend_schema(request=None, responses={204: None}, operation_id="auth_logout", summary="Log out")
    def post(self, request: Request) -> Response:
        log_out(signed_in=_signed_in(request), client=_client(request))
        return Response(status=204)


class ProfileView(_SignedIn):
    """Who one is."""

    @extend_schema(responses=UserSerializer, operation_id="auth_profile", summary="Read profile")
    def get(self, request: Request) -> Response:
        return Response(user_document(_signed_in(request).user))

    @extend_schema(
        request=ProfileSerializer, responses=UserSerializer, operation_id="auth_rename", summary="Change name"
    )
    def patch(self, request: Request) -> Response:
        """Change one's name."""
        user, client = _signed_in(request).user, _client(request)
        actor = actor_of(user, address=client.address, request_id=client.request_id)
        return Response(
            user_document(rename_user(user=user, **_valid(ProfileSerializer, request), actor=actor, source="api"))
        )


class ChangePasswordView(_SignedIn):
    """Choose another password. All other sessions end; the answer holds the present one's new access token."""

    serves_limited = True

    @extend_schema(
        request=PasswordSerializer,
        responses=TokensSerializer,
        operation_id="auth_change_password",
        summary="Change password",
    )
    def post(self, request: Request) -> Response:
        values = _valid(PasswordSerializer, request)
        tokens = change_password(
            signed_in=_signed_in(request),
            present=values["current_password"],
            new=values["new_password"],
            client=_client(request),
        )
        return Response(tokens_document(tokens))


def _signed_in(request: Request) -> SignedIn:
    if not isinstance(request.auth, SignedIn):
        raise refused()
    return request.auth


class JwksView(View):
    """RFC 7517: the public keys of all that may have signed a living token of ours, and of the one that soon will."""

    open_to = "everybody: public keys"

    def get(self, request: HttpRequest) -> HttpResponse:
        body = orjson.dumps({"keys": published_keys()})
        etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
        is_known = etag in [
            each.strip().removeprefix("W/") for each in request.headers.get("If-None-Match", "").split(",")
        ]
        response = HttpResponse(status=304) if is_known else HttpResponse(body, content_type="application/jwk-set+json")
        response["ETag"] = etag
        response["Cache-Control"] = f"public, max-age={JWKS_MAX_AGE_S}"
        response["Access-Control-Allow-Origin"] = "*"  # they are public, and nothing else is said
        return response

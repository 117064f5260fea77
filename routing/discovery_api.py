"""Instances that register themselves: ``/admin/discovery/{service}/{instance}``, with the service's registration token;
and ``…/services/{name}/registration-token`` and ``…/discovery`` for admins."""

import time
from typing import Any, ClassVar

from django.contrib.auth.models import AnonymousUser
from django.db.models.functions import Now
from drf_spectacular.extensions import OpenApiAuthenticationExtension
from drf_spectacular.utils import OpenApiExample, extend_schema, extend_schema_serializer
from rest_framework import serializers
from rest_framework.authentication import BaseAuthentication
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from access.callers import client_address
from core.api import author, settle
from core.faults import ClientFault
from core.revisions import observed
from core.serializers import EpochMillis, StrictSerializer, Text, WholeNumber, epoch_ms
from keys.authentication import FAILURES, refuse_when_exhausted
from routing import registration
from routing.api import find_service
from routing.models import DiscoveredTarget, RegistrationToken, ServiceConfig


class RegistrationTokenAuthentication(BaseAuthentication):
    """``Authorization: Bearer`` with the token of the service that the path names; ``request.auth`` becomes that. The
    same answer for a wrong token and for a service that does not exist."""

    def authenticate(self, request: Request) -> tuple[AnonymousUser, ServiceConfig]:
        address = client_address(request._request)
        refuse_when_exhausted(FAILURES.wait_s(address))
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        challenge = ((b"www-authenticate", b'Bearer realm="portcullis"'),)
        if scheme.lower() != "bearer" or not token.strip():
            raise ClientFault("missing_credentials", "Send the service's registration token.", headers=challenge)
        service = registration.service_of(request.parser_context["kwargs"]["name"], token.strip())
        if service is None:
            FAILURES.charge(address)
            raise ClientFault("invalid_credentials", "The registration token is not valid here.", headers=challenge)
        return AnonymousUser(), service


class RegistrationTokenScheme(OpenApiAuthenticationExtension):  # type: ignore[no-untyped-call]
    target_class = RegistrationTokenAuthentication
    name = "registrationToken"

    def get_security_definition(self, auto_schema: Any) -> dict[str, Any]:
        return {"type": "http", "scheme": "bearer", "description": "A service's registration token"}


def _caller(request: Request) -> ServiceConfig:
    assert isinstance(request.auth, ServiceConfig)
    return request.auth


@extend_schema_serializer(
    examples=[OpenApiExample("An instance", {"url": "http://10.0.3.17:7000", "weight": 100, "ttlS": 30})]
)
class InstanceSerializer(StrictSerializer):
    """``ttlS`` and ``version`` may be left out: the longest time that the service allows, and the version that answers
    where nobody names one."""

    url = Text(max_length=300)
    weight = WholeNumber(required=False, default=100)
    ttlS = WholeNumber(required=False, allow_null=True, default=None)
    version = Text(required=False, allow_blank=True, max_length=32, default="")


class RegisteredSerializer(serializers.Serializer[Any]):
    instance = serializers.CharField()
    version = serializers.CharField()
    url = serializers.CharField()
    weight = serializers.IntegerField()
    ttlS = serializers.IntegerField()
    expiresAt = serializers.IntegerField(help_text="Milliseconds since 1970; renew it well before")


class RegistrationView(APIView):
    """``Authorization: Bearer`` carries the service's registration token. No revision is made."""

    resource = "discovery"
    open_to = "instances, with the registration token of their service"
    authentication_classes = [RegistrationTokenAuthentication]
    permission_classes = []

    @extend_schema(
        operation_id="discovery_register",
        summary="Register instance",
        request=InstanceSerializer,
        responses={200: RegisteredSerializer, 201: RegisteredSerializer},
    )
    def put(self, request: Request, name: str, instance: str) -> Response:
        """Register an instance, or keep it registered, with its service's registration token. It is taken away when
        it has not been registered again for ``ttlS`` seconds. No revision is made."""
        serializer = InstanceSerializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        values = serializer.validated_data
        registered = registration.register(
            service=_caller(request),
            instance=instance,
            url=values["url"],
            weight=values["weight"],
            ttl_s=values["ttlS"],
            version=values["version"],
        )
        return Response(_document(registered), status=201 if registered.is_new else 200)

    @extend_schema(operation_id="discovery_deregister", summary="Deregister instance", responses={204: None})
    def delete(self, request: Request, name: str, instance: str) -> Response:
        """Take an instance away at once, with its service's registration token."""
        registration.deregister(service=_caller(request), instance=instance)
        return Response(status=204)


def _document(registered: registration.Registered) -> dict[str, Any]:
    return {
        "instance": registered.instance,
        "version": registered.version,
        "url": registered.url,
        "weight": registered.weight,
        "ttlS": registered.ttl_s,
        "expiresAt": round((time.time() + registered.ttl_s) * 1000),
    }


# --- for admins --------------------------------------------------------------------------------------------------
class TokenSerializer(serializers.Serializer[Any]):
    """``token`` is shown this once."""

    service = serializers.CharField()
    token = serializers.CharField()
    createdAt = EpochMillis()


class RegistrationTokenView(APIView):
    """The token with which a service's instances register."""

    resource = "services"
    permission_actions: ClassVar[dict[str, str]] = {"POST": "update", "DELETE": "update"}
    makes_revisions = True

    @extend_schema(summary="Create registration token", request=None, responses={201: TokenSerializer})
    def post(self, request: Request, name: str) -> Response:
        """Make the token with which a service's instances register, in the place of the one before. The revision does
        not hold it."""
        service = find_service(name)
        with observed() as numbers:
            token, made_at = registration.create_token(service=service, **author(request))
        document = {"service": service.name, "token": token, "createdAt": epoch_ms(made_at)}
        headers = {"Cache-Control": "no-store"}
        return settle(request, Response(document, status=201, headers=headers), numbers)

    @extend_schema(summary="Delete registration token", responses={204: None})
    def delete(self, request: Request, name: str) -> Response:
        """Let no instance register any more."""
        with observed() as numbers:
            registration.revoke_token(service=find_service(name), **author(request))
        return settle(request, Response(status=204), numbers)


class InstanceRowSerializer(serializers.ModelSerializer[DiscoveredTarget]):
    registeredAt = EpochMillis(source="registered_at")
    expiresAt = EpochMillis(source="expires_at")

    class Meta:
        model = DiscoveredTarget
        fields = ("instance", "version", "url", "weight", "registeredAt", "expiresAt")
        read_only_fields = fields


@extend_schema_serializer(component_name="ServiceDiscovery")
class DiscoverySerializer(serializers.Serializer[Any]):
    """``instances`` are those registered by HTTP; what hosts found in Redis and DNS stands in the service's health.
    ``tokenCreatedAt`` is null while nobody can register."""

    service = serializers.CharField()
    tokenCreatedAt = EpochMillis(allow_null=True)
    instances = InstanceRowSerializer(many=True)


class DiscoveryView(APIView):
    resource = "services"

    @extend_schema(summary="List registered instances", responses=DiscoverySerializer)
    def get(self, request: Request, name: str) -> Response:
        """Who is registered with a service."""
        service = find_service(name)
        token = RegistrationToken.objects.filter(service=service).first()
        instances = DiscoveredTarget.objects.filter(service=service, expires_at__gt=Now()).order_by("instance")
        document = {
            "service": service.name,
            "tokenCreatedAt": token.created_at if token is not None else None,
            "instances": list(instances),
        }
        return Response(DiscoverySerializer(document).data)

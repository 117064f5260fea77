"""``/validate`` and ``/setup``: what nobody needs an admin key for."""

import secrets
import time
from typing import Any

from django.conf import settings
from drf_spectacular.utils import extend_schema
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from access.callers import AddressThrottle, client_address, is_direct_loopback
from core.api import settle
from core.faults import ClientFault, PolicyDenied
from core.permissions import covers
from core.revisions import observed
from keys.authentication import FAILURES, refuse_when_exhausted
from keys.finding import known_key
from keys.models import ApiKey
from keys.restrictions import KeyRestrictions
from keys.serializers import (
    FirstAdminSerializer,
    SetupSerializer,
    ValidationSerializer,
    VerdictSerializer,
    shown_once,
)
from keys.setup import complete_setup, is_set_up

VALIDATIONS = AddressThrottle(lambda: settings.VALIDATIONS_PER_MINUTE)


class ValidateView(APIView):
    """Whether a key works and has the scopes asked for. Public, and throttled for each address.

    Of the key's restrictions, its hours are judged, and the others as far as ``address`` and ``service`` are told.
    """

    open_to = "everybody: it tells of a key to whoever holds it, and is throttled by address"
    authentication_classes = []
    permission_classes = []

    @extend_schema(
        request=ValidationSerializer,
        responses=VerdictSerializer,
        operation_id="validate",
        summary="Validate key",
        auth=[],
    )
    def post(self, request: Request) -> Response:
        refuse_when_exhausted(VALIDATIONS.charge(client_address(request._request)))
        serializer = ValidationSerializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        values = serializer.validated_data
        return Response(_verdict(known_key(values["key"], admin=False), values))


def _verdict(key: ApiKey | None, asked: dict[str, Any]) -> dict[str, Any]:
    if key is None:
        return {"isValid": False, "reason": "invalid_key"}
    wanted = asked.get("scopes", [])
    if not all(covers(key.scopes, scope) for scope in wanted):
        return {
            "isValid": False,
            "reason": "insufficient_scope",
            "requiredScopes": wanted,
            "providedScopes": key.scopes,
        }
    if key.restrictions is not None:
        services = [asked["service"]] if "service" in asked else []
        refusal = KeyRestrictions.of(key.restrictions).refusal(asked.get("address"), services, time.time())
        if refusal is not None:
            return {"isValid": False, "reason": refusal.code}
    return {"isValid": True, "keyId": key.pk, "scopes": key.scopes, "owner": key.owner}


class SetupView(APIView):
    """Make the first admin, once (rule 16). Needs the setup token, except from this very host when embedded."""

    open_to = "whoever has the setup token, once"
    authentication_classes = []
    permission_classes = []

    @extend_schema(
        request=SetupSerializer, responses={201: FirstAdminSerializer}, operation_id="setup", summary="Set up", auth=[]
    )
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
        return settle(request, Response({**shown_once(admin.issued), **panel}, status=201), numbers)


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

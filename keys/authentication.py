"""Who may call the admin API: the bearer of a live admin key, or, on the panel's own port, signed-in staff."""

from datetime import timedelta
from typing import Any

from django.conf import settings
from django.contrib.auth.models import AnonymousUser
from django.db.models import Q
from django.utils import timezone
from rest_framework.authentication import BaseAuthentication, SessionAuthentication
from rest_framework.exceptions import AuthenticationFailed
from rest_framework.request import Request

from access.callers import AddressThrottle, client_address
from core.faults import ClientFault, PolicyDenied
from core.ingress import is_through_gateway
from core.permissions import Caller
from core.revisions import Actor
from keys.models import ApiKey
from keys.services import find_live_key

FAILURES = AddressThrottle(lambda: settings.AUTH_FAILURES_PER_MINUTE)
_USE_NOTED_EVERY = timedelta(seconds=30)


class AdminKeyAuthentication(BaseAuthentication):
    """``X-API-Key: km_…`` or ``Authorization: Bearer km_…``."""

    def authenticate(self, request: Request) -> tuple[Any, Caller] | None:
        secret = _credential(request)
        if secret is None:
            return None
        address = client_address(request._request)
        refuse_when_exhausted(FAILURES.wait_s(address))
        # A live key of an application is known, but lacks every admin scope: 403 rather than 401.
        key = find_live_key(secret, admin=True) or find_live_key(secret, admin=False)
        if key is None:
            FAILURES.charge(address)
            raise AuthenticationFailed()
        _note_use(key)
        name = f"{key.user.get_username()} ({key.name})"[:150] if key.user else key.name
        return key.user or AnonymousUser(), Caller(Actor("key", key.pk, name), tuple(key.scopes))

    def authenticate_header(self, request: Request) -> str:
        return 'Bearer realm="portcullis"'


class PanelSessionAuthentication(SessionAuthentication):
    """A panel session, with the CSRF token in ``X-CSRFToken``. Not on the gateway port (rule 15)."""

    def authenticate(self, request: Request) -> tuple[Any, Caller] | None:
        if is_through_gateway(request._request):
            return None
        found = super().authenticate(request)
        if found is None or not found[0].is_staff:
            return None
        user = found[0]
        return user, Caller(Actor("user", str(user.pk), user.get_username()), None)

    def enforce_csrf(self, request: Any) -> None:
        try:
            super().enforce_csrf(request)
        except Exception as error:
            raise PolicyDenied("blocked", "The CSRF token is missing or wrong: load the page again.") from error


def refuse_when_exhausted(wait_s: int) -> None:
    if wait_s:
        raise PolicyDenied("rate_limited", "Too many attempts from your address.", retry_after_s=wait_s)


def _credential(request: Request) -> str | None:
    by_header = request.headers.get(settings.API_KEY_HEADER)
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    bearer = token.strip() if scheme.lower() == "bearer" else None
    if by_header is not None and bearer is not None and by_header != bearer:
        raise ClientFault("bad_request", "The request holds two different credentials.")
    return by_header if by_header is not None else bearer


def _note_use(key: ApiKey) -> None:
    """At most a minute late, so that reading the API does not write for each request."""
    now = timezone.now()
    due = Q(last_used_at__isnull=True) | Q(last_used_at__lt=now - _USE_NOTED_EVERY)
    if key.last_used_at is None or key.last_used_at < now - _USE_NOTED_EVERY:
        ApiKey.objects.filter(due, pk=key.pk).update(last_used_at=now)

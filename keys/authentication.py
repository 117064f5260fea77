"""Who may call the admin API: the bearer of a live admin key, or, on the panel's own port, signed-in staff."""

import time
from collections.abc import Callable
from dataclasses import replace
from threading import Lock
from typing import Any

from django.conf import settings
from django.contrib.auth.models import AnonymousUser
from django.http import HttpRequest
from rest_framework.authentication import BaseAuthentication, SessionAuthentication
from rest_framework.exceptions import AuthenticationFailed
from rest_framework.request import Request

from access.administration.factors import must_add_factor
from access.administration.rights import account_of, actor_of, caller_by_session, permissions_of
from access.callers import AddressThrottle, client_address
from core.faults import ClientFault, PolicyDenied
from core.ingress import is_through_gateway
from core.permissions import Caller, common
from core.tenants import enter_tenant
from keys.finding import known_key
from keys.models import ApiKey
from keys.restrictions import KeyRestrictions
from keys.uses import KeyUse, store_uses

FAILURES = AddressThrottle(lambda: settings.AUTH_FAILURES_PER_MINUTE)
_USE_NOTED_EVERY_S = 30.0
_MOST_WAITING = 1_000


class AdminKeyAuthentication(BaseAuthentication):
    """``X-API-Key: km_…`` or ``Authorization: Bearer km_…``."""

    def authenticate(self, request: Request) -> tuple[Any, Caller] | None:
        secret = _credential(request)
        if secret is None:
            return None
        address = client_address(request._request)
        refuse_when_exhausted(FAILURES.wait_s(address))
        # A live key of an application is known, but lacks every admin scope: 403 rather than 401.
        key = known_key(secret)
        if key is None:
            FAILURES.charge(address)
            raise AuthenticationFailed()
        if key.restrictions is not None:
            refusal = KeyRestrictions.of(key.restrictions).refusal(address, (), time.time())
            if refusal is not None:
                raise refusal
        USES.note(key.pk, address[:64])
        caller = _caller(request._request, key)
        enter_tenant(caller.tenant_id)
        return key.user or AnonymousUser(), caller

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
        if must_add_factor(user):
            raise PolicyDenied("blocked", "Your account needs a second factor first: open the panel and add one.")
        caller = caller_by_session(request._request, user)
        enter_tenant(caller.tenant_id)
        return user, caller

    def enforce_csrf(self, request: Any) -> None:
        try:
            super().enforce_csrf(request)
        except Exception as error:
            raise PolicyDenied("blocked", "The CSRF token is missing or wrong: load the page again.") from error


def _caller(request: HttpRequest, key: ApiKey) -> Caller:
    """A key may do what its scopes say, as far as its user may do it at present (K10). An application's: nothing."""
    if key.user is None:
        return Caller(replace(actor_of(request, "key", key.pk, key.name, None), tenant_id=str(key.tenant_id)), ())
    account = account_of(key.user)
    name = f"{key.user.get_username()} ({key.name})"
    actor = actor_of(request, "key", key.pk, name, account)
    return Caller(actor, common(key.scopes, permissions_of(key.user, account)))


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


class AdminKeyUses:
    """Uses on their way to the database: written at most every half a minute for a key, so that reading the API does
    not write for each request. What came since is written with the next use of any key."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lock = Lock()
        self._waiting: dict[tuple[str, str], KeyUse] = {}
        self._written: dict[str, float] = {}  # by key

    def note(self, key_id: str, address: str) -> None:
        now = self._clock()
        with self._lock:
            known = self._waiting.get((key_id, address))
            use = KeyUse(key_id, address, known.requests + 1 if known else 1, now)
            self._waiting[key_id, address] = use
            if abs(now - self._written.get(key_id, 0.0)) < _USE_NOTED_EVERY_S and len(self._waiting) < _MOST_WAITING:
                return
            uses, self._waiting = list(self._waiting.values()), {}
            self._written = {each: at for each, at in self._written.items() if now - at < _USE_NOTED_EVERY_S}
            self._written |= dict.fromkeys((use.key_id for use in uses), now)
        store_uses(uses)


USES = AdminKeyUses()

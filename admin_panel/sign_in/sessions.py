"""How long a session of the panel lives: so long without use, and so long at most."""

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from allauth.account.adapter import get_adapter
from allauth.usersessions.models import UserSession
from django.conf import settings
from django.contrib.auth import logout
from django.contrib.auth.signals import user_logged_in, user_logged_out
from django.db import InterfaceError, OperationalError
from django.http import HttpRequest, HttpResponse
from django.utils import timezone

SIGNED_IN_AT, SEEN_AT = "signed_in_at", "seen_at"  # epoch seconds, in the session
_NOTED_EVERY_S = 60
_POLLED = ("/status",)  # asked by a page that lies open, which is no use


class SessionMiddleware:
    """After Django's own. Sessions of users who are gone or not active any more count for nobody already."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        if settings.SESSION_COOKIE_NAME in request.COOKIES:
            with suppress(OperationalError, InterfaceError):  # the view meets it again, and says so calmly
                self._judge(request)
        return self._get_response(request)

    def _judge(self, request: HttpRequest) -> None:
        if not request.user.is_authenticated:
            return
        now, session = time.time(), request.session
        signed_in_at = session.get(SIGNED_IN_AT, 0)
        seen_at = session.get(SEEN_AT, signed_in_at)
        if is_over(now, signed_in_at, seen_at, settings.PANEL_SESSION_IDLE, settings.PANEL_SESSION_LIFETIME):
            logout(request)
        elif now - seen_at >= _NOTED_EVERY_S and request.path not in _POLLED:
            session[SEEN_AT] = now
            note = {"last_seen_at": timezone.now(), "ip": get_adapter().get_client_ip(request)}
            UserSession.objects.filter(session_key=session.session_key).update(**note)


def is_over(now: float, signed_in_at: float, seen_at: float, idle_s: int, lifetime_s: int) -> bool:
    return now - seen_at >= idle_s or now - signed_in_at >= lifetime_s


def _begin(request: HttpRequest, **_: Any) -> None:
    request.session[SIGNED_IN_AT] = request.session[SEEN_AT] = time.time()


def _end(request: HttpRequest, **_: Any) -> None:
    UserSession.objects.filter(session_key=request.session.session_key).delete()


def listen() -> None:
    """Once the apps are ready."""
    user_logged_in.connect(_begin, dispatch_uid="session lifetime")
    user_logged_out.connect(_end, dispatch_uid="session lifetime")

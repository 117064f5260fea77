"""`access.lockout` for the panel: whose attempts are counted together, and the cookie of a device that is known."""

import time

from django.conf import settings
from django.contrib.auth.models import User
from django.http import HttpRequest, HttpResponse

from access.callers import client_address
from access.lockout import DEVICE_COOKIE_S, Attempt, Lockout, device_cookie, device_of
from core.validation import is_storable

COOKIE = "portcullis_device"
LOCKOUT = Lockout()  # a host has one control process
_LONGEST_NAME = 254


def user_named(typed: str) -> User | None:
    """By user name, else by e-mail address. Two users with one address are nobody's by that address."""
    name = typed.strip()[:_LONGEST_NAME]
    if not name or not is_storable(name):
        return None
    found = list(User.objects.filter(username__iexact=name)[:2])
    if not found and "@" in name:
        found = list(User.objects.filter(email__iexact=name)[:2])
    return found[0] if len(found) == 1 else None


def account_of(typed: str, user: User | None) -> str:
    """One name for an account, whether its user name or its address was typed; of none, what was typed."""
    return f"name:{typed.strip()[:_LONGEST_NAME]}" if user is None else key_of(user.pk)


def key_of(user_id: int) -> str:
    return f"user:{user_id}"


def attempt_at(request: HttpRequest, account: str, *, step: str = "") -> Attempt:
    """``step`` tells guesses at a second factor from those at the password."""
    device = device_of(request.COOKIES.get(COOKIE, ""), account, settings.SECRET_KEY, time.time())
    return Attempt(f"{account}{step}", client_address(request), f"{device}{step}" if device else "")


def remember_device(request: HttpRequest, response: HttpResponse, user: User) -> None:
    """After a whole sign-in: strangers' failures do not hold this browser back at this account."""
    account = key_of(user.pk)
    known = request.COOKIES.get(COOKIE, "")
    if device_of(known, account, settings.SECRET_KEY, time.time()):
        return
    response.set_cookie(
        COOKIE,
        device_cookie(account, settings.SECRET_KEY, time.time()),
        max_age=DEVICE_COOKIE_S,
        httponly=True,
        secure=settings.SESSION_COOKIE_SECURE,
        samesite="Strict",
    )

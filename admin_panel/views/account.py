"""My account: how I sign in, where I am signed in, and my admin keys."""

from collections.abc import Sequence
from typing import Any

from allauth.mfa.models import Authenticator
from allauth.socialaccount.models import SocialAccount
from allauth.usersessions.models import UserSession
from django.contrib import messages
from django.http import HttpResponse
from django.views.decorators.http import require_http_methods, require_safe

from access.administration.factors import is_factor_required
from admin_panel.devices import device_name
from admin_panel.pages import PanelRequest, fragment, go_to, page
from admin_panel.sign_in import trail
from keys.models import ApiKey


@require_safe
def account(request: PanelRequest) -> HttpResponse:
    factors: dict[str, list[Any]] = {"totp": [], "webauthn": [], "recovery_codes": []}
    for row in Authenticator.objects.filter(user=request.user).order_by("created_at"):
        factors[row.type].append(row)
    codes = factors["recovery_codes"][0].wrap().get_unused_codes() if factors["recovery_codes"] else []
    context = {
        "apps": factors["totp"],
        "passkeys": factors["webauthn"],
        "codes_left": len(codes),
        "has_factor": bool(factors["totp"] or factors["webauthn"]),
        "is_factor_required": is_factor_required(request.user),
        "sessions": [shown_session(row, request) for row in UserSession.objects.purge_and_list(request.user)],
        "providers": SocialAccount.objects.filter(user=request.user),
        "keys": ApiKey.objects.filter(user=request.user).exclude(status="revoked").order_by("-pk"),
    }
    return page(request, "admin_panel/account/account.html", context)


def shown_session(row: UserSession, request: PanelRequest) -> dict[str, Any]:
    is_current = row.session_key == request.session.session_key
    return {"row": row, "device": device_name(row.user_agent), "is_current": is_current}


@require_http_methods(["GET", "HEAD", "POST"])
def account_session_end(request: PanelRequest, pk: int) -> HttpResponse:
    """One other session of mine. The present one ends by signing out."""
    return _end(request, pk)


@require_http_methods(["GET", "HEAD", "POST"])
def account_sessions_end(request: PanelRequest) -> HttpResponse:
    return _end(request, None)


def _end(request: PanelRequest, only: int | None) -> HttpResponse:
    others = UserSession.objects.filter(user=request.user).exclude(session_key=request.session.session_key)
    sessions = [each for each in others if only in (None, each.pk)]
    if request.method != "POST":
        return ask_to_end(request, sessions, only=only)
    for session in sessions:
        session.end()
    if sessions:
        trail.sessions_ended(request, request.user, len(sessions))
        messages.success(request, "One session has ended." if len(sessions) == 1 else "The other sessions have ended.")
    return go_to("account")


def ask_to_end(
    request: PanelRequest, sessions: Sequence[UserSession], *, only: int | None, whose: str = ""
) -> HttpResponse:
    """The dialog before all of somebody's sessions end, or ``only`` one; ``whose`` is empty where they are mine."""
    device = device_name(sessions[0].user_agent) if only is not None and sessions else ""
    context = {"device": device, "whose": whose, "is_over": not sessions, "url": request.path}
    return fragment(request, "admin_panel/users/end_sessions.html", context)

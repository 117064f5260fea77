"""The audit trail of signing in (rule 23): sessions, factors and passwords, who, from where, by which request."""

from typing import Any

from allauth.account.signals import password_changed, password_set, user_logged_in
from allauth.mfa import signals as factors
from django.contrib.auth.models import User
from django.contrib.auth.signals import user_logged_out
from django.http import HttpRequest

from access.administration.rights import account_of, tenant_of
from access.callers import client_address
from core.audit import Outcome, record
from core.revisions import Actor

SOURCE = "panel"
_FACTORS = {"totp": "authenticator app", "webauthn": "passkey", "recovery_codes": "recovery codes"}


def actor_of(request: HttpRequest, user: Any = None, name: str = "") -> Actor:
    """``name``: what somebody typed who is not known."""
    place = {"request_id": getattr(request, "request_id", ""), "address": client_address(request)}
    if isinstance(user, User) and user.pk:
        return Actor("user", str(user.pk), user.get_username(), tenant_id=tenant_of(account_of(user)), **place)
    return Actor("anonymous", "", name[:150], **place)


def listen() -> None:
    """Called once, when the app is ready."""
    user_logged_in.connect(_signed_in, dispatch_uid="trail")
    user_logged_out.connect(_signed_out, dispatch_uid="trail")
    password_changed.connect(_password_changed, dispatch_uid="trail")
    password_set.connect(_password_changed, dispatch_uid="trail")
    factors.authenticator_added.connect(_factor_added, dispatch_uid="trail")
    factors.authenticator_reset.connect(_factor_added, dispatch_uid="trail")
    factors.authenticator_removed.connect(_factor_removed, dispatch_uid="trail")
    factors.authentication_failed.connect(_factor_failed, dispatch_uid="trail")


def refused(request: HttpRequest, why: str, *, user: Any = None, name: str = "", held_back: bool = False) -> None:
    """A sign-in that failed, or (``held_back``) was not even looked at."""
    outcome = Outcome.DENIED if held_back else Outcome.FAILURE
    record(
        "session.login_failed",
        actor=actor_of(request, user, name),
        source=SOURCE,
        outcome=outcome,
        details={"reason": why},
    )


def _signed_in(request: HttpRequest, user: User, **_: Any) -> None:
    records = request.session.get("account_authentication_methods", [])
    methods = [_method(each) for each in records]
    record("session.login", actor=actor_of(request, user), source=SOURCE, details={"methods": methods})


def _method(authentication: dict[str, Any]) -> str:
    kind = str(authentication.get("method", ""))
    if kind == "mfa":
        return _FACTORS.get(str(authentication.get("type")), "second factor")
    return str(authentication.get("provider", kind)) if kind == "socialaccount" else kind


def _signed_out(request: HttpRequest, user: User | None, **_: Any) -> None:
    if user is not None:
        record("session.logout", actor=actor_of(request, user), source=SOURCE)


def _password_changed(request: HttpRequest, user: User, **_: Any) -> None:
    record("password.changed", actor=actor_of(request, user), source=SOURCE, **_whom(user))


def password_reset(request: HttpRequest, user: User) -> None:
    """By a link that was mailed to them."""
    record("password.reset", actor=actor_of(request, user), source=SOURCE, **_whom(user))


def _factor_added(request: HttpRequest, user: User, authenticator: Any, **_: Any) -> None:
    kind = {"factor": _FACTORS.get(authenticator.type, authenticator.type)}
    record("mfa.added", actor=actor_of(request, user), source=SOURCE, details=kind, **_whom(user))


def _factor_removed(request: HttpRequest, user: User, authenticator: Any, **_: Any) -> None:
    kind = {"factor": _FACTORS.get(authenticator.type, authenticator.type)}
    record("mfa.removed", actor=actor_of(request, user), source=SOURCE, details=kind, **_whom(user))


def _factor_failed(request: HttpRequest, user: User, **_: Any) -> None:
    refused(request, "wrong code of the second factor", user=user)


def _whom(user: User) -> dict[str, Any]:
    return {"object_kind": "admin", "object_id": str(user.pk), "object_name": user.get_username()}


def sessions_ended(request: HttpRequest, whose: User, count: int) -> None:
    actor = actor_of(request, request.user)
    record("session.ended", actor=actor, source=SOURCE, details={"sessions": count}, **_whom(whose))

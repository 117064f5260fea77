"""Logging in and out of ``/auth``, and what users do about themselves."""

import time
from dataclasses import dataclass, field

from django.conf import settings
from django.db import transaction
from django.db.models import Q
from django.utils import timezone

from access.end_users.accounts import username_of
from access.end_users.compile import end_user_application
from access.end_users.sessions import Began, actor_of, begin, end_session, end_sessions, go_on, refresh
from access.lockout import Attempt, Lockout, device_cookie, device_of
from access.models import EndUser, UserSession
from access.passwords import complaints, hashed, matches
from access.signing.tokens import Claims, issue, read, refused
from core import audit
from core.faults import GatewayFault, PolicyDenied
from core.models import DEFAULT_TENANT
from core.revisions import Actor, locked, revision
from core.validation import FieldErrors, invalid

LOCKOUT = Lockout()


@dataclass(frozen=True, slots=True)
class Client:
    """Where a request comes from."""

    address: str
    user_agent: str = ""
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class Tokens:
    """What a login gives. Times in seconds. ``refresh_token`` and ``device_token`` may be empty."""

    user: EndUser
    scopes: tuple[str, ...]
    expires_in: int
    access_token: str = field(repr=False)
    refresh_token: str = field(default="", repr=False)
    device_token: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class SignedIn:
    """Whose access token came with a request to ``/auth``, and it holds."""

    user: EndUser
    session: UserSession
    claims: Claims


def log_in(*, username: str, password: str, device_token: str = "", client: Client) -> Tokens:
    """Raises PolicyDenied ``invalid_credentials`` (the same, in the same time, for whatever is wrong) and
    ``rate_limited``; InternalFault ``overloaded``."""
    name = username_of(username)
    device = device_of(device_token, _on_devices(name), settings.SECRET_KEY, time.time()) if device_token else ""
    attempt = Attempt(name, client.address, device)
    wait_s = LOCKOUT.begin(attempt)
    if wait_s:
        raise PolicyDenied("rate_limited", "Too many attempts to log in.", retry_after_s=wait_s)
    user = EndUser.objects.filter(tenant_id=_tenant(), username=name).first()
    encoded = user.password if user is not None else ""
    renewed: list[str] = []
    try:
        is_right = matches(password, encoded, renewed.append)
    except GatewayFault:
        LOCKOUT.not_looked_at(attempt)
        raise
    began = _begin(user, encoded, renewed, client) if is_right and user is not None else None
    if began is None:
        _note_failure(user, client)
        detail = "The user name or the password is wrong."
        raise PolicyDenied("invalid_credentials", detail, headers=refused().headers)
    LOCKOUT.succeeded(attempt)
    return _tokens(began, device_cookie(_on_devices(name), settings.SECRET_KEY, time.time()))


@transaction.atomic
def _begin(user: EndUser, encoded: str, renewed: list[str], client: Client) -> Began | None:
    """None: the account is not active, or was changed while its password was checked."""
    current = EndUser.objects.select_for_update().filter(pk=user.pk, password=encoded, is_active=True).first()
    if current is None:
        return None
    current.last_login_at = timezone.now()
    columns = {"last_login_at": current.last_login_at} | ({"password": renewed[-1]} if renewed else {})
    EndUser.objects.filter(pk=current.pk).update(**columns)
    began = begin(current, address=client.address, user_agent=client.user_agent)
    _note("end_user.login", current, began.session, client)
    return began


def refresh_tokens(*, refresh_token: str, client: Client) -> Tokens:
    """Raises PolicyDenied ``invalid_credentials``."""
    return _tokens(refresh(refresh_token, actor_address=client.address, request_id=client.request_id))


def log_out(*, signed_in: SignedIn, client: Client) -> None:
    with transaction.atomic():
        EndUser.objects.select_for_update().get(pk=signed_in.user.pk)
        end_session(session=signed_in.session, why="logout")
        _note("end_user.logout", signed_in.user, signed_in.session, client)


def change_password(*, signed_in: SignedIn, present: str, new: str, client: Client) -> Tokens:
    """All other sessions end, and every access token from before: the answer holds the present session's new one. Its
    refresh token goes on. Raises ClientFault ``invalid_field``, PolicyDenied ``rate_limited``."""
    user, session = signed_in.user, signed_in.session
    attempt = Attempt(user.username, client.address, device=f"session:{session.pk}")
    wait_s = LOCKOUT.begin(attempt)
    if wait_s:
        raise PolicyDenied("rate_limited", "Too many attempts with a wrong password.", retry_after_s=wait_s)
    try:
        is_right = matches(present, user.password, lambda renewed: None)
    except GatewayFault:
        LOCKOUT.not_looked_at(attempt)
        raise
    if not is_right:
        raise invalid("current_password", "This is not your present password.")
    LOCKOUT.succeeded(attempt)
    _check_new(user, present, new)
    encoded = hashed(new)
    actor = actor_of(user, address=client.address, request_id=client.request_id)
    with revision(actor=actor, source="api", reason="Changed by the user") as change:
        current = locked(user)
        if current.password != user.password or not current.is_active:  # changed meanwhile
            raise refused()
        before = current.recorded()
        current.password, current.must_change_password = encoded, False
        end_sessions(user=current, why="password changed", but=session)
        if not change.save(current, before):
            change.touch(current)
        _note("end_user.password_changed", current, session, client)
        began = go_on(current, session)
    return _tokens(began)


def recognise(token: str) -> SignedIn:
    """Whose access token it is. The database is asked, so that this answer is never late. Raises PolicyDenied
    ``invalid_credentials``."""
    claims = read(token)
    live = Q(revoked_at__isnull=True, ends_at__gt=timezone.now(), user__is_active=True)
    session = UserSession.objects.select_related("user").filter(live, pk=claims.session_id).first()
    if session is None or session.user_id != claims.subject:
        raise refused()
    user = session.user
    if user.tokens_from is not None and claims.issued_at < user.tokens_from.timestamp():
        raise refused()
    return SignedIn(user, session, claims)


def _on_devices(name: str) -> str:
    """What device tokens call an account: nothing that cookies of the panel call one, whatever users are named."""
    return f"end-user:{name}"


def _tenant() -> str:
    application = end_user_application()
    return str(application.tenant_id) if application is not None else DEFAULT_TENANT


def _tokens(began: Began, device_token: str = "") -> Tokens:
    user = began.user
    application = end_user_application()
    token = issue(
        subject=user.pk,
        session_id=began.session.pk,
        issued_at=began.issued_at,
        roles=(user.role,),
        scopes=began.scopes,
        application=application.pk if application is not None else "",
        must_change_password=user.must_change_password,
    )
    return Tokens(user, began.scopes, settings.ACCESS_TOKEN_S, token, began.refresh_token, device_token)


def _check_new(user: EndUser, present: str, new: str) -> None:
    errors = FieldErrors()
    if new == present:
        errors.add("new_password", "This is the password that you have.")
    for sentence in complaints(new, user):
        errors.add("new_password", sentence)
    errors.raise_any()


def _note(action: str, user: EndUser, session: UserSession, client: Client) -> None:
    actor = actor_of(user, address=client.address, request_id=client.request_id)
    audit.record(action, actor=actor, source="api", object_kind="user_session", object_id=session.pk)


def _note_failure(user: EndUser | None, client: Client) -> None:
    """What somebody typed for a name is not kept unless it is one: people type passwords there."""
    tenant = str(user.tenant_id) if user is not None else DEFAULT_TENANT
    actor = Actor("anonymous", tenant_id=tenant, request_id=client.request_id, address=client.address)
    audit.record(
        "end_user.login_failed",
        actor=actor,
        source="api",
        outcome=audit.Outcome.FAILURE,
        object_kind="end_user",
        object_id=user.pk if user is not None else "",
        object_name=user.username if user is not None else "",
    )

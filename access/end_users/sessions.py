"""Sessions of end users and their refresh tokens: how they begin, go on, and end.

A refresh token works once. A second use says that two hold it, so its whole family, which is its session, ends; there
is no grace, so a client asks for one refresh at a time, and logs in anew when an answer was lost (RFC 9700 section
4.14.2).

Whoever locks several rows locks the user first, then sessions and refresh tokens; revocations come last.
"""

import hashlib
import secrets
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from django.conf import settings
from django.db import transaction
from django.utils import timezone

from access.models import EndUser, EndUserRole, RefreshToken, TokenRevocation, UserSession
from access.revocations import database_now, revoke, whole_second_after
from access.signing.tokens import refused
from core import audit
from core.revisions import Actor
from core.validation import is_storable

REFRESH_PREFIX = "rt_"
_REFRESH_BYTES = 32
_LONGEST_AGENT = 300


@dataclass(frozen=True, slots=True)
class Began:
    """A session that is new or goes on. ``issued_at`` (epoch seconds) is when tokens of now are dated; ``scopes`` are
    those of the user's role. The refresh token can be shown this once."""

    user: EndUser
    session: UserSession
    issued_at: int
    scopes: tuple[str, ...]
    refresh_token: str = field(default="", repr=False)


def begin(user: EndUser, *, address: str, user_agent: str) -> Began:
    """A new session of a user whose row the caller has locked."""
    now = database_now()
    session = UserSession.objects.create(
        tenant_id=user.tenant_id,
        user=user,
        created_at=now,
        last_used_at=now,
        ends_at=now + timedelta(days=settings.USER_SESSION_DAYS),
        address=address,
        user_agent=user_agent[:_LONGEST_AGENT] if is_storable(user_agent) else "",
    )
    return _with_new_refresh_token(user, session, now)


def refresh(refresh_token: str, *, actor_address: str, request_id: str) -> Began:
    """The next refresh token of the family, and the user as they are now. Raises PolicyDenied
    ``invalid_credentials``."""
    found = _refresh(_digest(refresh_token), actor_address, request_id)
    if found is None:
        raise refused()
    return found


@transaction.atomic
def _refresh(digest: str, address: str, request_id: str) -> Began | None:
    """None: it is no good; what follows from that is committed."""
    user_id = RefreshToken.objects.filter(pk=digest).values_list("session__user_id", flat=True).first()
    user = EndUser.objects.select_for_update().filter(pk=user_id).first() if user_id else None
    if user is None:
        return None
    token = RefreshToken.objects.select_for_update(of=("self",)).select_related("session").get(pk=digest)
    session, now = token.session, database_now()
    if session.revoked_at is not None or session.ends_at <= now or not user.is_active:
        return None
    if token.used_at is not None:
        end_session(session=session, why="refresh token reused")
        audit.record(
            "end_user.refresh_reuse",
            actor=actor_of(user, address=address, request_id=request_id),
            source="api",
            outcome=audit.Outcome.DENIED,
            object_kind="user_session",
            object_id=session.pk,
        )
        return None
    if token.expires_at <= now:
        return None
    token.used_at = session.last_used_at = now
    token.save(update_fields=["used_at"])
    session.save(update_fields=["last_used_at"])
    return _with_new_refresh_token(user, session, now)


def go_on(user: EndUser, session: UserSession) -> Began:
    """Tokens of now for a session that goes on with the refresh token it has. The user's row is locked."""
    return _began(user, session, database_now(), "")


def end_session(*, session: UserSession, why: str) -> None:
    """Its tokens hold no longer, on any worker within a second. Ended ones stay as they are."""
    with transaction.atomic():
        ended = UserSession.objects.filter(pk=session.pk, revoked_at__isnull=True)
        if ended.update(revoked_at=timezone.now(), revoked_why=why):
            revoke(TokenRevocation.Kind.SESSION, session.pk, database_now(), str(session.tenant_id))


def end_sessions(*, user: EndUser, why: str, but: UserSession | None = None) -> int:
    """End all sessions of a user whose row the caller has locked, and every token of theirs from before; ``but`` one,
    which goes on with new tokens. Returns how many."""
    live = user.sessions.filter(revoked_at__isnull=True)
    if but is not None:
        live = live.exclude(pk=but.pk)
    count = live.update(revoked_at=timezone.now(), revoked_why=why)
    user.tokens_from = whole_second_after(database_now())
    EndUser.objects.filter(pk=user.pk).update(tokens_from=user.tokens_from)
    revoke(TokenRevocation.Kind.USER, user.pk, user.tokens_from, str(user.tenant_id))
    return int(count)


def forget_ended() -> None:
    """Sessions that are over since SESSION_DAYS, and refresh tokens that have expired."""
    now = timezone.now()
    RefreshToken.objects.filter(expires_at__lt=now).delete()
    if settings.SESSION_DAYS:
        since = now - timedelta(days=settings.SESSION_DAYS)
        UserSession.objects.filter(ends_at__lt=since).delete()
        UserSession.objects.filter(revoked_at__lt=since).delete()


def actor_of(user: EndUser, *, address: str = "", request_id: str = "") -> Actor:
    return Actor("end_user", user.pk, user.username, str(user.tenant_id), request_id, address)


def _with_new_refresh_token(user: EndUser, session: UserSession, now: datetime) -> Began:
    token = REFRESH_PREFIX + secrets.token_urlsafe(_REFRESH_BYTES)
    expires_at = min(now + timedelta(days=settings.REFRESH_TOKEN_DAYS), session.ends_at)
    RefreshToken.objects.create(digest=_digest(token), session=session, created_at=now, expires_at=expires_at)
    return _began(user, session, now, token)


def _began(user: EndUser, session: UserSession, now: datetime, refresh_token: str) -> Began:
    role = EndUserRole.objects.filter(tenant_id=user.tenant_id, name=user.role).first()
    # Not before what has been revoked within this very second, which is up to a second from now.
    earliest = [each for each in (user.tokens_from, role.tokens_from if role else None) if each is not None]
    issued_at = max([int(now.timestamp()), *(int(each.timestamp()) for each in earliest)])
    return Began(user, session, issued_at, tuple(role.scopes) if role else (), refresh_token)


def _digest(token: str) -> str:
    """Of 256 random bits, so nothing slower is needed."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()

"""Use-cases: where administrators are signed in to the panel, ending that, and taking their second factors away.

Keyword-only, ``actor`` who, ``source`` panel or api. They raise PolicyDenied ``insufficient_scope`` when the account
may do more than whoever acts (rule 14).
"""

from collections.abc import Iterable
from typing import Any

from allauth.mfa.models import Authenticator
from allauth.usersessions.models import UserSession
from django.contrib.auth.models import User
from django.db import transaction

from access.administration.users import rights_of
from access.models import AdminAccount
from core.audit import record
from core.permissions import refuse_escalation
from core.revisions import Actor


def live_sessions(user: User) -> list[UserSession]:
    """Those that still open something, the latest used first."""
    found = UserSession.objects.purge_and_list(user)
    return sorted(found, key=lambda session: session.last_seen_at, reverse=True)


def end_sessions(
    *,
    account: AdminAccount,
    sessions: Iterable[UserSession],
    own_permissions: Iterable[str] | None,
    actor: Actor,
    source: str,
) -> int:
    """How many have ended. They open nothing from this moment on."""
    refuse_escalation(rights_of(account), own_permissions)
    ended = [session for session in sessions if session.user_id == account.user_id]
    with transaction.atomic():
        for session in ended:
            session.end()
        if ended:
            _note("session.ended", account, actor, source, {"sessions": len(ended)})
    return len(ended)


def end_all_sessions(user: User) -> None:
    for session in UserSession.objects.filter(user=user):
        session.end()


def reset_factors(*, account: AdminAccount, own_permissions: Iterable[str] | None, actor: Actor, source: str) -> int:
    """Take all second factors and recovery codes away from somebody who has lost them, and end their sessions."""
    refuse_escalation(rights_of(account), own_permissions)
    with transaction.atomic():
        count: int = Authenticator.objects.filter(user_id=account.user_id).delete()[0]
        end_all_sessions(account.user)
        _note("mfa.removed", account, actor, source, {"factor": "all", "count": count})
    return count


def _note(action: str, account: AdminAccount, actor: Actor, source: str, details: dict[str, Any]) -> None:
    record(
        action,
        actor=actor,
        source=source,
        object_kind=AdminAccount.kind,
        object_id=account.pk,
        object_name=account.user.get_username(),
        details=details,
    )

"""Use-cases: end users. Each is one revision (`core.revisions`), as in `access.services`.

What takes a right away ends the user's sessions, and every token of theirs on every worker within a second.
"""

import re
import secrets
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from access.end_users.sessions import end_sessions
from access.models import EndUser, EndUserRole
from access.passwords import complaints, hashed
from core.revisions import Actor, locked, revision
from core.validation import FieldErrors, assign, taken

USER_FIELDS = ("username", "name", "role", "is_active", "must_change_password")
_USERNAME = re.compile(r"[^\s\x00-\x1f\x7f](?:[^\x00-\x1f\x7f]{0,148}[^\s\x00-\x1f\x7f])?")


@dataclass(frozen=True, slots=True)
class NewPassword:
    """``password`` is what was made up for the user, to be shown once; empty where the admin chose it."""

    user: EndUser
    password: str = field(repr=False)


def username_of(text: str) -> str:
    """The form in which names are stored and compared."""
    return unicodedata.normalize("NFKC", text).strip().casefold()


def create_user(*, password: str = "", actor: Actor, source: str, reason: str = "", **fields: Any) -> EndUser:
    """``fields``: USER_FIELDS; ``username`` and ``role`` are required. Without a password nobody can log in yet."""
    user = EndUser(tenant_id=actor.tenant_id)
    assign(user, fields, USER_FIELDS)
    _normalize(user)
    if password:
        _check_password(password, user, "password")
        user.password = hashed(password)  # before the lock of revisions
    with revision(actor=actor, source=source, reason=reason) as change:
        _validate(user)
        change.save_new(user)
    return user


def update_user(
    *,
    user: EndUser,
    changes: Mapping[str, Any],
    if_revision: int | None = None,
    actor: Actor,
    source: str,
    reason: str = "",
) -> EndUser:
    """``changes``: USER_FIELDS. Another role, or not being active, ends the user's sessions."""
    with revision(actor=actor, source=source, reason=reason) as change:
        current = locked(user, if_revision)
        before = current.recorded()
        assign(current, changes, USER_FIELDS)
        _normalize(current)
        _validate(current)
        is_less = before["is_active"] and not current.is_active
        must_change = current.must_change_password and not before["must_change_password"]
        if is_less or must_change or current.role != before["role"]:
            end_sessions(user=current, why="deactivated" if is_less else "changed")
        change.save(current, before)
    return current


def delete_user(*, user: EndUser, if_revision: int | None = None, actor: Actor, source: str, reason: str = "") -> None:
    with revision(actor=actor, source=source, reason=reason) as change:
        current = locked(user, if_revision)
        end_sessions(user=current, why="deleted")
        change.delete(current)


def reset_password(
    *,
    user: EndUser,
    password: str = "",
    must_change: bool = True,
    if_revision: int | None = None,
    actor: Actor,
    source: str,
    reason: str = "",
) -> NewPassword:
    """A new password, the admin's or one made up, and an end to all sessions. ``must_change``: whoever logs in with it
    may do nothing but choose another."""
    made_up = "" if password else secrets.token_urlsafe(15)
    if password:
        _check_password(password, user, "password")
    encoded = hashed(password or made_up)
    with revision(actor=actor, source=source, reason=reason) as change:
        current = locked(user, if_revision)
        before = current.recorded()
        current.password, current.must_change_password = encoded, must_change
        end_sessions(user=current, why="password reset")
        if not change.save(current, before):
            change.touch(current)
    return NewPassword(current, made_up)


def rename_user(*, user: EndUser, name: str, actor: Actor, source: str) -> EndUser:
    """What users may change about themselves."""
    return update_user(user=user, changes={"name": name}, actor=actor, source=source)


def _normalize(user: EndUser) -> None:
    if isinstance(user.username, str):
        user.username = username_of(user.username)


def _validate(user: EndUser) -> None:
    errors = FieldErrors()
    errors.check_columns(user)
    if not errors.has("username") and not _USERNAME.fullmatch(user.username):
        errors.add("username", "A user name has up to 150 characters, none of them a control character.")
    if not errors.has("role") and not EndUserRole.objects.filter(tenant_id=user.tenant_id, name=user.role).exists():
        errors.add("role", f"There is no role {user.role!r}.")
    errors.raise_any()
    same = EndUser.objects.filter(tenant_id=user.tenant_id, username=user.username)
    if same.exclude(pk=user.pk).exists():
        raise taken("username", f"A user named {user.username!r} exists already.")


def _check_password(password: str, user: EndUser, field_name: str) -> None:
    errors = FieldErrors()
    for sentence in complaints(password, user):
        errors.add(field_name, sentence)
    errors.raise_any()

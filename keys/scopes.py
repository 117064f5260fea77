"""Scopes: ``read:data``, ``admin:keys:read``; a final ``:*`` covers everything below (`core.permissions.covers`)."""

import re

ADMIN = "admin"
_SCOPE = re.compile(r"[A-Za-z0-9_.-]{1,40}(:[A-Za-z0-9_.-]{1,40}){0,4}(:\*)?")
_MOST = 100


def check_scopes(scopes: object) -> None:
    """Raises ValueError for what is no list of different, well-formed scopes."""
    if not isinstance(scopes, list) or not all(isinstance(scope, str) for scope in scopes):
        raise ValueError("this must be a list of strings")
    if len(scopes) > _MOST:
        raise ValueError(f"at most {_MOST} scopes are allowed")
    for scope in scopes:
        if not _SCOPE.fullmatch(scope):
            raise ValueError(f"{scope[:80]!r} is no scope: write something like read:data or admin:keys:*")
    if len(set(scopes)) < len(scopes):
        raise ValueError("a scope stands here twice")


def is_admin_scope(scope: str) -> bool:
    return scope == ADMIN or scope.startswith(ADMIN + ":")

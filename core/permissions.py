"""Who calls the admin API, and what they may do there.

A permission is ``admin:<resource>:<action>``, with the actions read, create, update and delete.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from django.http import HttpRequest
from rest_framework.permissions import BasePermission
from rest_framework.request import Request

from core.revisions import Actor

if TYPE_CHECKING:
    from rest_framework.views import APIView  # which itself loads the permissions that the settings name

_ACTIONS = {"GET": "read", "HEAD": "read", "OPTIONS": "read", "POST": "create", "DELETE": "delete"}


@dataclass(frozen=True, slots=True)
class Caller:
    """Set as ``request.auth``. ``scopes`` is None for a signed-in member of staff, who may do everything."""

    actor: Actor
    scopes: tuple[str, ...] | None


def covers(granted: Iterable[str], wanted: str) -> bool:
    """Whether one of the granted scopes is the wanted one or a wildcard above it. ``wanted`` may be a wildcard too."""
    return any(scope == wanted or (scope.endswith(":*") and wanted.startswith(scope[:-1])) for scope in granted)


def may(request: HttpRequest | Request, permission: str) -> bool:
    """The one question that API and panel ask before they show or do anything."""
    caller = getattr(request, "auth", None)
    if isinstance(caller, Caller) and caller.scopes is not None:
        return covers(caller.scopes, permission)
    return bool(request.user.is_active and request.user.is_staff)


class MayAdminister(BasePermission):
    """The view names its ``resource``; the method is the action, unless ``permission_actions`` say otherwise."""

    def has_permission(self, request: Request, view: "APIView") -> bool:
        return bool(request.auth) and may(request, required_permission(request.method or "", view))


def required_permission(method: str, view: "APIView") -> str:
    action = {**_ACTIONS, **getattr(view, "permission_actions", {})}.get(method, "update")
    return f"admin:{getattr(view, 'resource', 'system')}:{action}"

"""Who calls the admin API or the panel, and what they may do there: one function decides, `may`.

A permission is ``admin:<resource>:<action>``; ``admin:keys:*`` is every action on keys, ``admin:*`` everything.
``RESOURCES`` names them all. Views declare the one they need: those of the API by ``resource`` and
``permission_actions``, pages of the panel in its URL configuration.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from django.http import HttpRequest
from rest_framework.permissions import BasePermission
from rest_framework.request import Request

from core.faults import PolicyDenied
from core.revisions import Actor
from core.tenants import DEFAULT_TENANT

if TYPE_CHECKING:
    from rest_framework.views import APIView  # which itself loads the permissions that the settings name

EVERYTHING = "admin:*"
ACTIONS = ("read", "create", "update", "delete")
_BY_METHOD = {"GET": "read", "HEAD": "read", "OPTIONS": "read", "POST": "create", "DELETE": "delete"}


@dataclass(frozen=True, slots=True)
class Resource:
    """``of_all``: it is the whole installation's, so only administrators of the default tenant have to do with it."""

    purpose: str
    actions: tuple[str, ...] = ACTIONS
    of_all: bool = False


_LOOK_AND_CHANGE = ("read", "update")
RESOURCES: Mapping[str, Resource] = {
    "alerts": Resource("Who is told of violated limits, and what happened"),
    "analytics": Resource("Figures about the traffic", ("read",)),
    "applications": Resource("Clients of the gateway, and what they may call"),
    "bundles": Resource("Policies under a name"),
    "cache": Resource("Stored answers: what was purged, and purging", ("read", "delete"), of_all=True),
    "end-users": Resource("People who log in at /auth/login, their roles and sessions"),
    "gateway": Resource("What holds for everything that is routed", _LOOK_AND_CHANGE, of_all=True),
    "issuers": Resource("Whose tokens clients may bring"),
    "keys": Resource("API keys"),
    "limits": Resource("Rate limits and quotas, and their use"),
    "logs": Resource("The audit log", ("read", "create")),
    "nodes": Resource("Which nodes run which revision", ("read",), of_all=True),
    "revisions": Resource("The history of the configuration", ("read", "create")),
    "roles": Resource("Roles of administrators"),
    "routes": Resource("Routes and queue routes"),
    "services": Resource("Services, their versions, targets, health and rollouts"),
    "sessions": Resource("Who is signed in to the panel", ("read", "delete")),
    "signing-keys": Resource("The keys that sign our own tokens", of_all=True),
    "system": Resource("The health of the whole system", ("read",), of_all=True),
    "tasks": Resource("Tasks in queues"),
    "users": Resource("Administrators and invitations"),
}


@dataclass(frozen=True, slots=True)
class Caller:
    """Set as ``request.auth`` in the API and ``request.caller`` in the panel. ``permissions`` are the present ones: of
    a user those of all roles, of an admin key its scopes as far as its user has them."""

    actor: Actor
    permissions: tuple[str, ...]

    @property
    def tenant_id(self) -> str:
        return self.actor.tenant_id

    def may(self, permission: str) -> bool:
        resource = RESOURCES.get(permission.split(":")[1]) if permission.count(":") == 2 else None
        if resource is not None and resource.of_all and self.tenant_id != DEFAULT_TENANT:
            return False
        return covers(self.permissions, permission)


def covers(granted: Iterable[str], wanted: str) -> bool:
    """Whether one of the granted scopes is the wanted one or a wildcard above it. ``wanted`` may be a wildcard too."""
    return any(scope == wanted or (scope.endswith(":*") and wanted.startswith(scope[:-1])) for scope in granted)


def common(one: Iterable[str], other: Iterable[str]) -> tuple[str, ...]:
    """What both cover, in order."""
    ours, theirs = tuple(one), tuple(other)
    both = {scope for scope in ours if covers(theirs, scope)} | {scope for scope in theirs if covers(ours, scope)}
    return tuple(sorted(both))


def check_permissions(permissions: Iterable[str]) -> None:
    """Raises ValueError for what is no permission that anything here asks for."""
    for permission in permissions:
        area, _, rest = permission.partition(":")
        resource, _, action = rest.partition(":")
        if permission == EVERYTHING:
            continue
        if area != "admin" or not action:
            raise ValueError(f"{permission[:80]!r} is no permission: write something like admin:keys:read")
        if resource not in RESOURCES:
            raise ValueError(f"there is no resource {resource[:40]!r}; there are {', '.join(RESOURCES)}")
        actions = RESOURCES[resource].actions
        if action not in (*actions, "*"):
            raise ValueError(f"{resource} have no action {action[:40]!r}; there are {', '.join((*actions, '*'))}")


def refuse_escalation(wanted: Iterable[str], own: Iterable[str] | None) -> None:
    """Rule 14: nobody gives what they do not have. ``own`` None: whoever acts may do everything (a command).

    Raises PolicyDenied ``insufficient_scope``.
    """
    mine = () if own is None else tuple(own)
    beyond = [] if own is None else [scope for scope in wanted if not covers(mine, scope)]
    if beyond:
        raise PolicyDenied("insufficient_scope", f"This is beyond your own permissions: {', '.join(beyond)}.")


def caller_of(request: HttpRequest | Request) -> Caller | None:
    """Who was let in: by a key or a session in the API, by a session in the panel."""
    caller = getattr(request, "auth", None) or getattr(request, "caller", None)
    return caller if isinstance(caller, Caller) else None


def may(request: HttpRequest | Request, permission: str) -> bool:
    """The one question that API and panel ask before they show or do anything."""
    caller = caller_of(request)
    return caller is not None and caller.may(permission)


class MayAdminister(BasePermission):
    """The view names its ``resource``; the method is the action, unless ``permission_actions`` say otherwise."""

    def needed(self, method: str, view: Any) -> tuple[str, ...]:
        """All of these. ``view``: a view or its class."""
        return (required_permission(method, view),)

    def has_permission(self, request: Request, view: "APIView") -> bool:
        caller = caller_of(request)
        if caller is None:
            return False  # 401: the framework asks for credentials
        for permission in self.needed(request.method or "", view):
            if not caller.may(permission):
                raise PolicyDenied("insufficient_scope", f"This needs the permission {permission}.")
        return True


def required_permission(method: str, view: Any) -> str:
    """``view``: a view or its class."""
    action = {**_BY_METHOD, **getattr(view, "permission_actions", {})}.get(method, "update")
    return f"admin:{view.resource}:{action}"

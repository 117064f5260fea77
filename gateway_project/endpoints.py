"""Every endpoint of the control process and who may use it, read from the URL configuration itself.

An endpoint declares its rule where it is made: views of the API by ``resource`` (`core.permissions`), pages of the
panel in `admin_panel.urls`, and what asks for no permission by ``open_to``, which says whom it serves and why. What
declares nothing is a mistake (`Undeclared`), which the tests find.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from django.urls import URLPattern, URLResolver, get_resolver

from core.permissions import MayAdminister, covers

_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
_EMERGENCY = "django-admin/"
_PARAMETER = re.compile(r"<(?:\w+:)?(\w+)>")


class Undeclared(Exception):
    """An endpoint without a rule."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """``permissions``: all of them are needed; none: any administrator, unless ``open_to`` says whom it serves."""

    method: str
    route: str  # admin/routing/services/<word:name>
    permissions: tuple[str, ...] = ()
    open_to: str = ""
    is_page: bool = False

    @property
    def path(self) -> str:
        """``/admin/routing/services/{name}``."""
        return "/" + _PARAMETER.sub(r"{\1}", self.route)

    @property
    def parameters(self) -> tuple[str, ...]:
        return tuple(_PARAMETER.findall(self.route))

    def allows(self, granted: Iterable[str]) -> bool:
        mine = tuple(granted)
        return all(covers(mine, permission) for permission in self.permissions)


def endpoints() -> list[Endpoint]:
    """All but the emergency administration, which is Django's own and for superusers. Raises Undeclared."""
    return list(walked(get_resolver().url_patterns))


def walked(patterns: Sequence[URLPattern | URLResolver], prefix: str = "") -> Iterator[Endpoint]:
    for pattern in patterns:
        route = prefix + str(pattern.pattern)
        if route.startswith(_EMERGENCY):
            continue
        if isinstance(pattern, URLResolver):
            yield from walked(pattern.url_patterns, route)
        elif hasattr(pattern.callback, "permission") or hasattr(pattern.callback, "open_to"):
            yield from _of_page(route, pattern.callback)
        else:
            yield from _of_api(route, pattern.callback)


def _of_page(route: str, callback: Any) -> Iterator[Endpoint]:
    """`admin_panel.pages.guarded` and `for_anybody` say it of the function itself."""
    permission, open_to = getattr(callback, "permission", ""), getattr(callback, "open_to", "")
    for method in ("GET", "POST"):
        yield Endpoint(method, route, (permission,) if permission else (), open_to, is_page=True)


def _of_api(route: str, callback: Any) -> Iterator[Endpoint]:
    view = getattr(callback, "cls", None) or getattr(callback, "view_class", None)
    asking = [each() for each in getattr(view, "permission_classes", ()) if issubclass(each, MayAdminister)]
    open_to = "" if asking else str(getattr(view, "open_to", ""))
    if not open_to and (not asking or not hasattr(view, "resource")):
        raise Undeclared(f"/{route} says neither which permission it needs nor whom it is open to")
    actions: Mapping[str, str] = getattr(callback, "actions", None) or {}
    for method in _METHODS:
        if method.lower() in actions if actions else hasattr(view, method.lower()):
            needed = {permission for each in asking for permission in each.needed(method, view)}
            yield Endpoint(method, route, tuple(sorted(needed)), open_to)

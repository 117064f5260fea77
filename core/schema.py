"""What the OpenAPI document says of an operation beyond what it finds by itself; `core.openapi` says the rest."""

import inspect
import re
from typing import Any

from drf_spectacular.openapi import AutoSchema
from drf_spectacular.utils import OpenApiParameter

from core.api_problems import camel
from core.serializers import StrictSerializer

_VERBS = {
    "list": "List",
    "create": "Create",
    "retrieve": "Read",
    "update": "Replace",
    "partial_update": "Change",
    "destroy": "Delete",
}
_BOUNDS = ("maxLength", "minLength", "maximum", "minimum", "maxItems")
_SINGULARS = {"whitelist": "entry", "circuit-breaker": "service", "discovery": "service"}


class AdminSchema(AutoSchema):
    """Lists under their own names, conditional requests, the headers of writes, and words for what has none.

    Of views it knows: ``plural``, what the list holds; ``is_conditional``, If-Match and If-None-Match count;
    ``has_news_between_revisions``, so there is no 304; ``makes_revisions`` (as the conditional ones do), writes take
    Prefer and X-Change-Reason; ``takes_reason``, the latter alone. Of serializers: ``of_all_members``, JSON Schema's
    keywords about how many there must be; ``shows_others``, the bounds of what it takes do not hold for what it shows.
    """

    def _get_paginator(self) -> Any:
        paginator: Any = super()._get_paginator()  # type: ignore[no-untyped-call]
        if paginator is not None:
            paginator.plural = getattr(self.view, "plural", paginator.plural)
        return paginator

    def _get_filter_parameters(self) -> Any:
        found: Any = super()._get_filter_parameters()  # type: ignore[no-untyped-call]
        for parameter in found:
            parameter.setdefault("description", f"Only those with this `{parameter['name']}`")
        return found

    def _resolve_path_parameters(self, variables: Any) -> Any:
        found: Any = super()._resolve_path_parameters(variables)  # type: ignore[no-untyped-call]
        for parameter in found:
            parameter.setdefault("description", _named_in(self.path, parameter["name"]))
        return found

    def _map_basic_serializer(self, serializer: Any, direction: Any) -> Any:
        schema: Any = super()._map_basic_serializer(serializer, direction)  # type: ignore[no-untyped-call]
        if direction == "response" and getattr(serializer, "shows_others", False):
            schema["properties"] = {name: _unbounded(each) for name, each in schema["properties"].items()}
        if direction == "request":
            for name, bounds in getattr(serializer, "bounds", {}).items():
                schema["properties"][camel(name)].update(bounds)
        if direction == "request" and not serializer.partial:
            schema |= getattr(serializer, "of_all_members", {})
        if direction == "request" and _is_closed(serializer):
            schema["additionalProperties"] = False
        return schema

    def _get_request_for_media_type(self, serializer: Any, direction: Any = "request") -> Any:
        """A body is needed too where none of its members is, but some are."""
        schema, is_required = super()._get_request_for_media_type(  # type: ignore[no-untyped-call]
            serializer, direction
        )
        is_required |= isinstance(serializer, dict)  # a schema
        needs_some = self.method != "PATCH" and "minProperties" in getattr(serializer, "of_all_members", {})
        return schema, is_required or needs_some

    def get_tags(self) -> list[str]:
        return [getattr(self.view, "resource", "public")]

    def get_summary(self) -> str | None:
        action, plural = getattr(self.view, "action", ""), getattr(self.view, "plural", "")
        if not action or not plural:
            return None
        verb, words = _VERBS.get(action, action.capitalize()), re.sub(r"_|(?=[A-Z])", " ", plural).lower()
        return f"{verb} {words if verb == 'List' else _one_of(words)}"

    def get_description(self) -> str:  # type: ignore[override]
        """The method's docstring, else the view's own: what a base class says is meant for engineers."""
        action = getattr(self.view, getattr(self.view, "action", self.method.lower()), None)
        own = type(self.view).__dict__.get("__doc__")
        return inspect.cleandoc(getattr(action, "__doc__", None) or own or "")

    def get_override_parameters(self) -> list[Any]:
        is_conditional = getattr(self.view, "is_conditional", False)
        if self.method == "GET":
            has_news = getattr(self.view, "has_news_between_revisions", False)
            return [_IF_NONE_MATCH] if is_conditional and not has_news and not self._is_list_view() else []
        is_new = self.method == "POST" and (getattr(self.view, "action", "") == "create" or "{" not in self.path)
        found = [_IF_MATCH] if is_conditional and not is_new else []
        if is_conditional or getattr(self.view, "makes_revisions", False):
            return [*found, _PREFER, _CHANGE_REASON]
        return [_CHANGE_REASON] if getattr(self.view, "takes_reason", False) else []


def _unbounded(schema: dict[str, Any]) -> dict[str, Any]:
    values = schema.get("additionalProperties")
    inner = {"additionalProperties": _unbounded(values)} if isinstance(values, dict) else {}
    return {name: each for name, each in schema.items() if name not in _BOUNDS} | inner


def _is_closed(serializer: Any) -> bool:
    """Whether any member but those of the document is refused: it takes no other words for them, and has none that one
    may send back unchanged."""
    is_strict = getattr(type(serializer), "to_internal_value", None) is StrictSerializer.to_internal_value
    return is_strict and not any(field.read_only for field in serializer.fields.values())


def _one_of(plural: str) -> str:
    return plural[:-3] + "y" if plural.endswith("ies") else plural[:-1]


def _named_in(path: str, parameter: str) -> str:
    """``/admin/access/roles/{name}`` → ``The role's name``."""
    if parameter not in ("id", "name", "number"):
        return f"The {parameter}'s {'name' if parameter in ('version', 'instance') else 'id'}"
    before = path.partition(f"/{{{parameter}}}")[0].rpartition("/")[2]
    return f"The {_SINGULARS.get(before) or _one_of(before.replace('-', ' '))}'s {parameter}"


def _header(name: str, description: str, **bounds: Any) -> OpenApiParameter:
    return OpenApiParameter(name, {"type": "string", **bounds}, OpenApiParameter.HEADER, description=description)


MAX_REASON = 500  # characters
_TAG = r'(W/)?"[\x21\x23-\x7e]*"'  # RFC 9110 section 8.8.3
_TAGS = rf"^(\*|{_TAG}(, *{_TAG})*)$"
_IF_MATCH = _header(
    "If-Match", 'The ETag of the object as read; if it has changed since, the answer is 412. E.g. `"42"`', pattern=_TAGS
)
_IF_NONE_MATCH = _header("If-None-Match", "An ETag; if the object is still the same, the answer is 304", pattern=_TAGS)
_PREFER = _header("Prefer", "`wait=0` not to wait until the gateways have applied the change, else up to a second")
_CHANGE_REASON = _header("X-Change-Reason", "Why, for the history; percent-encoded beyond ASCII", maxLength=MAX_REASON)

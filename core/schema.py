"""What the OpenAPI document says beyond what it finds by itself."""

import inspect
import re
from collections.abc import Iterator
from typing import Any

from drf_spectacular.openapi import AutoSchema
from drf_spectacular.utils import OpenApiParameter

_VERBS = {
    "list": "List",
    "create": "Create",
    "retrieve": "Read",
    "update": "Replace",
    "partial_update": "Change",
    "destroy": "Delete",
    "suspend": "Suspend",
    "activate": "Activate",
}
_WRITES = ("PUT", "PATCH", "DELETE")
_STATE_CHANGES = ("suspend", "activate")


class AdminSchema(AutoSchema):
    """Lists under their own names, conditional requests, and the headers of writes."""

    def _get_paginator(self) -> Any:
        paginator: Any = super()._get_paginator()  # type: ignore[no-untyped-call]
        if paginator is not None:
            paginator.plural = getattr(self.view, "plural", paginator.plural)
        return paginator

    def get_tags(self) -> list[str]:
        return [getattr(self.view, "resource", "public")]

    def get_summary(self) -> str | None:
        verb, plural = _VERBS.get(getattr(self.view, "action", "")), getattr(self.view, "plural", "")
        if verb is None or not plural:
            return None
        words = re.sub(r"(?=[A-Z])", " ", plural).lower()
        one = words[:-3] + "y" if words.endswith("ies") else words[:-1]
        return f"{verb} {words if verb == 'List' else one}"

    def get_description(self) -> str:  # type: ignore[override]
        """The method's docstring, else the view's own: what a base class says is meant for engineers."""
        action = getattr(self.view, getattr(self.view, "action", self.method.lower()), None)
        own = type(self.view).__dict__.get("__doc__")
        return inspect.cleandoc(getattr(action, "__doc__", None) or own or "")

    def get_override_parameters(self) -> list[Any]:
        if not getattr(self.view, "is_conditional", False):
            return []
        if self.method in _WRITES or getattr(self.view, "action", "") in _STATE_CHANGES:
            return [_IF_MATCH, _PREFER, _CHANGE_REASON]
        if self.method == "POST":
            return [_PREFER, _CHANGE_REASON]
        has_news = getattr(self.view, "has_news_between_revisions", False)
        return [] if self._is_list_view() or has_news else [_IF_NONE_MATCH]


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

PROBLEM_SCHEMA = {
    "type": "object",
    "description": "A problem document (RFC 9457)",
    "required": ["type", "title", "status", "detail", "instance", "code", "request_id"],
    "properties": {
        "type": {"type": "string", "format": "uri-reference"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "One sentence for whoever reads it"},
        "instance": {"type": "string"},
        "code": {"type": "string", "description": "Stable, for programs"},
        "request_id": {"type": "string"},
        "errors": {
            "type": "object",
            "description": "Of `invalid_field` and `conflict`: sentences by field",
            "additionalProperties": {"type": "array", "items": {"type": "string"}},
        },
        "current": {"type": "integer", "description": "Of `stale_revision`: the object's present revision"},
        "routes": {
            "type": "array",
            "items": {"type": "string"},
            "description": "Of `conflict`: what stands in the way",
        },
    },
    "example": {
        "type": "urn:portcullis:error:invalid_field",
        "title": "A field is not valid",
        "status": 422,
        "detail": "Not valid: name.",
        "instance": "/admin/routing/services",
        "code": "invalid_field",
        "request_id": "6f1ed002ab5595859014ebf0951522d9",
        "errors": {"name": ["This field is required."]},
    },
}


def _problem_statuses(path: str, method: str, operation: dict[str, Any]) -> Iterator[str]:
    """The refusals and failures that the operation may answer with."""
    yield from ("400", "429", "503")
    if operation.get("security"):
        yield from ("401", "403")
    elif method != "get":
        yield "401"  # credentials come otherwise: a password, a token for setting up
    if "{" in path:
        yield "404"
    if method != "get":
        yield from ("404", "409", "413", "415", "422")
    elif operation.get("parameters"):
        yield "422"
    if any(parameter["name"] == "If-Match" for parameter in operation.get("parameters", ())):
        yield "412"


def _let_null_fit_once(node: Any) -> None:
    """``oneOf: [{}, null]``, said of a field that holds any JSON or null, would refuse null: it fits both."""
    if isinstance(node, dict):
        if {} in node.get("oneOf", ()):
            del node["oneOf"]
        for inner in node.values():
            _let_null_fit_once(inner)
    elif isinstance(node, list):
        for inner in node:
            _let_null_fit_once(inner)


def add_problems(result: dict[str, Any], generator: Any, request: Any, public: bool) -> dict[str, Any]:
    """A drf-spectacular postprocessing hook: every operation may answer with a problem document."""
    result.setdefault("components", {}).setdefault("schemas", {})["Problem"] = PROBLEM_SCHEMA
    problem = {
        "description": "What went wrong: 4xx is the request's fault, 503 says with Retry-After when to come again",
        "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }
    _let_null_fit_once(result["components"])
    for path, operations in result["paths"].items():
        for method, operation in operations.items():
            for status in (*_problem_statuses(path, method, operation), "default"):
                operation["responses"].setdefault(status, problem)
            if any(parameter["name"] == "If-None-Match" for parameter in operation.get("parameters", ())):
                operation["responses"]["304"] = {"description": "It is still as `If-None-Match` says"}
    return result

"""What is done to the OpenAPI document once it is written: how it begins, problem documents as answers, the headers of
answers, and policies as schemas of their own. `core.schema` says how each operation is described."""

import re
from collections.abc import Iterator
from typing import Any

from core.api_problems import camel
from core.faults import KINDS
from core.permissions import RESOURCES
from core.serializers import POLICY_SCHEMAS

DESCRIPTION = """
Everything that the panel does, by HTTP.

**Credentials.** An admin key, as `X-API-Key` or `Authorization: Bearer`. An operation needs the permission
`admin:<tag>:<action>`, where the action is `read` for GET, `create` for POST, `update` for PUT and PATCH and `delete`
for DELETE unless the operation says otherwise; `GET /admin/access/permissions` lists them and one's own.

**Form.** JSON in UTF-8. An unknown member or parameter is an error, never ignored; read-only members may be sent back
as they were read, so that GET, edit, PUT works. PATCH changes what it names; PUT replaces, and what it leaves out goes
back to its default. Every answer has an `X-Request-ID`.

**Errors** are problem documents (RFC 9457) with a stable `code`. Of a field or parameter that is not valid, `errors`
says why, in sentences.

**Lists** come in pages of `limit` objects; `cursor` is where the next page begins, and null on the last one.

**Writes** of the configuration are one revision each. They are answered when every gateway has applied them, or after
a second (`Prefer: wait=`). The `ETag` of what was read, sent as `If-Match`, keeps others' changes from being lost.
"""
_OTHER_TAGS = {
    "discovery": "For instances of services that register themselves",
    "end-user sessions": "For end users: logging in and out, and one's own password",
    "public": "Without credentials",
}
_PROBLEMS = {
    "400": ("bad_request", "The JSON, a header or the path is malformed"),
    "401": ("missing_credentials", "There are no credentials, or they are not valid"),
    "403": ("insufficient_scope", "The credentials do not allow it"),
    "404": ("not_found", "What the path or the body names is not there"),
    "409": ("conflict", "It conflicts with what is there: a name is taken, or something is in use"),
    "412": ("stale_revision", "The object has changed since the revision in `If-Match`"),
    "413": ("payload_too_large", "The body is larger than 1 MiB"),
    "415": ("unsupported_media_type", "The body is not `application/json`"),
    "422": ("invalid_field", "A field or parameter is not valid; `errors` says why"),
    "429": ("rate_limited", "Too many requests; `Retry-After` says when to come again"),
    "503": (
        "dependency_unavailable",
        "The database is away, or works on too much; `Retry-After` says when to come again",
    ),
}
_DETAILS = {"errors": {"name": ["This field is required."]}, "current": 42}
PROBLEM_SCHEMA = {
    "type": "object",
    "description": "A problem document (RFC 9457)",
    "required": ["type", "title", "status", "detail", "instance", "code", "request_id"],
    "properties": {
        "type": {"type": "string", "format": "uri-reference"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "One sentence for whoever reads it"},
        "instance": {"type": "string", "description": "The path of the request"},
        "code": {"type": "string", "description": "Stable, for programs"},
        "request_id": {"type": "string", "description": "As in `X-Request-ID`, for finding it in logs"},
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
}
_HEADERS = {
    "ETag": "The object's revision in quotes, for `If-Match` and `If-None-Match`",
    "Location": "Where the new object is",
    "Retry-After": "In how many seconds to come again",
    "WWW-Authenticate": "How to authenticate",
    "X-Config-Pending": "The nodes that have not applied the change yet, where there are some",
    "X-Config-Revision": "The number of the revision that the change has made; absent where nothing changed",
}
_ANSWERS = {"200": "Done", "201": "Created", "202": "Accepted", "204": "Done; there is no body"}


def complete(result: dict[str, Any], generator: Any, request: Any, public: bool) -> dict[str, Any]:
    """A drf-spectacular postprocessing hook."""
    result["info"]["description"] = DESCRIPTION.strip()
    components = result["components"]
    _let_null_fit_once(components)
    components["headers"] = {
        name: {"description": description, "schema": {"type": "string"}} for name, description in _HEADERS.items()
    }
    components["responses"] = _problems()
    used = set()
    for path, operations in result["paths"].items():
        for method, operation in operations.items():
            used.update(operation["tags"])
            _answers(path, method, operation, is_list=any(each.startswith(f"{path}/{{") for each in result["paths"]))
    result["tags"] = [{"name": tag, "description": _purpose(tag)} for tag in sorted(used)]
    schemas, policies = components["schemas"], {name: _policy(schema) for name, schema in POLICY_SCHEMAS.items()}
    assert not policies.keys() & schemas.keys(), policies.keys() & schemas.keys()
    result["paths"] = _in_markdown(result["paths"])
    components["schemas"] = dict(sorted(_in_markdown(schemas | policies | {"Problem": PROBLEM_SCHEMA}).items()))
    return result


def _purpose(tag: str) -> str:
    return RESOURCES[tag].purpose if tag in RESOURCES else _OTHER_TAGS[tag]


# --- answers -------------------------------------------------------------------------------------------------------
def _problems() -> dict[str, Any]:
    schema = {"$ref": "#/components/schemas/Problem"}
    found: dict[str, Any] = {
        "Problem": {"description": "What went wrong", "content": {"application/problem+json": {"schema": schema}}}
    }
    for status, (code, description) in _PROBLEMS.items():
        content = {"application/problem+json": {"schema": schema, "example": _example(code)}}
        found[_name(code)] = {"description": description, "content": content}
        header = {"401": "WWW-Authenticate", "429": "Retry-After", "503": "Retry-After"}.get(status)
        if header:
            found[_name(code)]["headers"] = _referred(header)
    return found


def _name(code: str) -> str:
    return code.title().replace("_", "")


def _example(code: str) -> dict[str, Any]:
    kind = KINDS[code]
    document = {"type": kind.type, "title": kind.title, "status": kind.status, "detail": f"{kind.title}."}
    own = {"invalid_field": "errors", "stale_revision": "current"}.get(code)
    return {
        **document,
        "instance": "/admin/routing/services",
        "code": code,
        "request_id": "6f1ed002ab5595859014ebf0951522d9",
        **({own: _DETAILS[own]} if own else {}),
    }


def _referred(*names: str) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _answers(path: str, method: str, operation: dict[str, Any], *, is_list: bool) -> None:
    """``is_list``: what is made there has a path of its own below this one."""
    headers = {parameter["name"] for parameter in operation.get("parameters", ()) if parameter["in"] == "header"}
    answers = operation["responses"]
    for status, answer in answers.items():
        answer["description"] = answer.get("description") or _ANSWERS[status]
        names = ["Location", "ETag"] if status == "201" and is_list and "Prefer" in headers else []
        names += ["ETag"] if status == "200" and headers & {"If-Match", "If-None-Match"} else []
        names += ["X-Config-Revision", "X-Config-Pending"] if "Prefer" in headers else []
        if names:
            answer.setdefault("headers", {}).update(_referred(*names))
    if "If-None-Match" in headers:
        answers["304"] = {"description": "It is still as `If-None-Match` says", "headers": _referred("ETag")}
    for status in _problem_statuses(path, method, operation):
        answers.setdefault(status, {"$ref": f"#/components/responses/{_name(_PROBLEMS[status][0])}"})
    answers.setdefault("default", {"$ref": "#/components/responses/Problem"})


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


# --- schemas -------------------------------------------------------------------------------------------------------
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


def _policy(schema: dict[str, Any]) -> dict[str, Any]:
    """Its docstring names members as attributes, the document in camelCase."""
    members = schema.get("properties", {})

    def as_member(match: re.Match[str]) -> str:
        return f"``{camel(match[1])}``" if camel(match[1]) in members else match[0]

    return {**schema, "description": re.sub(r"``([a-z0-9_]+)``", as_member, schema.get("description", ""))}


_OUR_NUMBERS = re.compile(
    r"^(?:[A-Z]\d+|rules? \d+)(?:(?:, | to )(?:[A-Z]\d+|rules? \d+))*[.:]\s*(\w?)| \(rules? \d+\)"
)


def _in_markdown(node: Any) -> Any:
    """Descriptions come from docstrings: in reStructuredText, and with the numbers of our rules and features."""
    if isinstance(node, list):
        return [_in_markdown(each) for each in node]
    if not isinstance(node, dict):
        return node
    found = {name: each if name in ("example", "examples") else _in_markdown(each) for name, each in node.items()}
    text = found.get("description")
    if isinstance(text, str):
        text = _OUR_NUMBERS.sub(lambda match: (match[1] or "").upper(), text)
        found["description"] = re.sub(r"[ \t]*\n[ \t]*", "\n", text).replace("``", "`").strip()
    return {name: value for name, value in found.items() if (name, value) != ("description", "")}

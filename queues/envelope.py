"""The body of a queue request, checked before anything is stored, and the answer to an accepted one.

A body that passes here can be kept as ``jsonb``, carried by any broker, and handed to a Celery task, unchanged: so it
is stricter than JSON itself (RFC 8259 leaves duplicate names, numbers without bounds and lone surrogates open).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from math import isfinite
from typing import Any

import orjson

from core.faults import ClientFault
from queues.records import QueueRouteRecord

MAX_BYTES = 1024 * 1024  # brokers carry messages, not files; parsing more would hold up the worker's loop
MAX_DEPTH = 64
_INTEGERS = range(-(2**63), 2**64)  # what orjson carries between worker and agent
_SHOWN = 40  # characters of a name that a message repeats
_LOCATION = "/api/v1/tasks/"

Headers = list[tuple[bytes, bytes]]


def parse_body(record: QueueRouteRecord, content_type: bytes | None, body: bytes) -> Any:
    """The JSON value of a request to a queue route; an empty body counts as ``{}``.

    Raises ClientFault: ``unsupported_media_type`` (415), ``payload_too_large`` (413), ``bad_request`` (400: not JSON),
    ``invalid_field`` (422: JSON that cannot be stored, or cannot become the task's arguments).
    """
    if not body:
        return {}
    _check_media_type(content_type)
    if len(body) > MAX_BYTES:
        raise ClientFault("payload_too_large", f"A queue request's body may have {MAX_BYTES} bytes, not {len(body)}.")
    value = _parse(body)
    _check_values(value, body)
    if record.arguments == "members":
        _check_members(value)
    return value


def accepted(task_id: str) -> tuple[Headers, bytes]:
    """Header fields and body of the 202 (RFC 9110 section 15.3.3) for an accepted task."""
    url = _LOCATION + task_id
    headers = [(b"content-type", b"application/json"), (b"location", url.encode()), (b"retry-after", b"1")]
    return headers, orjson.dumps({"task_id": task_id, "status": "queued", "status_url": url})


def _check_media_type(content_type: bytes | None) -> None:
    media_type, *parameters = (content_type or b"").decode("latin-1").lower().split(";")
    kind, _, subtype = media_type.strip().partition("/")
    if kind != "application" or not (subtype == "json" or subtype.endswith("+json")):
        raise ClientFault("unsupported_media_type", "The body must be JSON, sent as application/json.")
    for parameter in parameters:
        name, _, value = parameter.strip().partition("=")
        if name == "charset" and value.strip('"') != "utf-8":
            raise ClientFault("unsupported_media_type", "JSON is sent in UTF-8 (RFC 8259 section 8.1).")


def _parse(body: bytes) -> Any:
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise ClientFault("bad_request", f"The body is not UTF-8 (byte {error.start}).") from None
    try:
        return json.loads(
            text,
            object_pairs_hook=_members,
            parse_int=_integer,
            parse_float=_fraction,
            parse_constant=_no_constant,
        )
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise ClientFault("bad_request", f"The body is not valid JSON ({where}).") from None
    except RecursionError:
        raise _too_deep() from None


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        [(name, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise _invalid(f"The member {_shown(name)} stands more than once in one object.")
    return members


def _integer(text: str) -> int:
    # The length first: int() itself refuses more than 4,300 digits.
    if len(text) > 20 or (value := int(text)) not in _INTEGERS:
        raise _invalid("A whole number is beyond 64 bits; send it as a string.")
    return value


def _fraction(text: str) -> float:
    value = float(text)
    if not isfinite(value):
        raise _invalid("A number is too large for a double; send it as a string.")
    return value


def _no_constant(name: str) -> Any:
    raise ClientFault("bad_request", f"The body is not valid JSON: {name} is no JSON number.")


def _check_values(value: Any, body: bytes) -> None:
    """Refuse what is nested too deeply, and strings that PostgreSQL or UTF-8 cannot hold.

    Both looks cost as much as the body is long, so they are spared where the bytes show that there is nothing to find:
    such characters can only come from an escape.
    """
    may_be_deep = body.count(b"[") + body.count(b"{") > MAX_DEPTH
    if not may_be_deep and b"\\u" not in body:
        return
    level, depth = [value], 0
    while level:
        for text in _strings(level):
            _check_text(text)
        if depth == MAX_DEPTH and any(isinstance(inner, dict | list) for inner in level):
            raise _too_deep()
        level, depth = list(_children(level)), depth + 1


def _strings(values: list[Any]) -> Iterator[str]:
    for value in values:
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            yield from value


def _children(values: list[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, dict):
            yield from value.values()
        elif isinstance(value, list):
            yield from value


def _check_text(text: str) -> None:
    if "\x00" in text:
        raise _invalid("A string holds the character U+0000, which cannot be stored.")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _invalid("A string holds half of a surrogate pair, which is no character.") from None


def _check_members(value: Any) -> None:
    if not isinstance(value, dict):
        raise _invalid("The body must be a JSON object: its members become the task's keyword arguments.")
    for name in value:
        if not name.isidentifier():
            raise _invalid(f"The member name {_shown(name)} cannot be the name of a keyword argument.")


def _shown(name: str) -> str:
    return json.dumps(name[:_SHOWN] + ("…" if len(name) > _SHOWN else ""), ensure_ascii=not name.isprintable())


def _too_deep() -> ClientFault:
    return _invalid(f"The body is nested more than {MAX_DEPTH} levels deep.")


def _invalid(sentence: str) -> ClientFault:
    return ClientFault("invalid_field", sentence, members={"errors": {"body": [sentence]}})

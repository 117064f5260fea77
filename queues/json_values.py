"""JSON values on their way into the database's ``jsonb`` and out of it."""

from math import isfinite
from typing import Any

import orjson

SIZE_LIMIT = 64 * 1024  # bytes of a kept result's JSON
DEPTH_LIMIT = 64
_INTEGERS = range(-(2**63), 2**64)  # what orjson carries


def storable(value: Any) -> Any:
    """A task's return value in a form that database and wire hold; a note in its place where it is too large.

    kombu has decoded it, so it may hold dates, UUIDs and decimals: they become strings.
    """
    try:
        plain = _plain(value, DEPTH_LIMIT)
    except ValueError:
        return {"omitted": f"The result is nested more than {DEPTH_LIMIT} levels deep."}
    size = len(orjson.dumps(plain))
    if size > SIZE_LIMIT:
        return {"omitted": f"The result has {size} bytes of JSON, more than the {SIZE_LIMIT} that are kept."}
    return plain


def storable_text(text: str) -> str:
    """The text without what PostgreSQL cannot hold: U+0000 and halves of surrogate pairs."""
    return text.replace("\x00", "\ufffd").encode("utf-8", "replace").decode()


def restored(value: Any) -> Any:
    """A value as it was stored: jsonb gives a large double (``1e20``) back as an integer."""
    if isinstance(value, dict):
        return {name: restored(member) for name, member in value.items()}
    if isinstance(value, list):
        return [restored(member) for member in value]
    if isinstance(value, int) and value not in _INTEGERS:
        return float(value)
    return value


def _plain(value: Any, levels: int) -> Any:
    if isinstance(value, dict | list | tuple) and not levels:
        raise ValueError("too deep")
    if isinstance(value, dict):
        return {storable_text(str(name)): _plain(member, levels - 1) for name, member in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(member, levels - 1) for member in value]
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int) and value in _INTEGERS:
        return value
    if isinstance(value, float):
        return value if isfinite(value) else None  # JSON has neither NaN nor infinities
    return storable_text(value.isoformat() if hasattr(value, "isoformat") else str(value))

"""Regular expressions that admins write: RE2, whose time is linear in the text, whatever the expression."""

from __future__ import annotations

from functools import cache
from typing import Any

_MAX_MEMORY = 1 << 20  # of a compiled expression; RE2's own limit is 8 MiB, and there may be thousands
Expression = Any  # of re2, which has no types: ``fullmatch`` and ``search`` of bytes, ``groups``


@cache
def _engine() -> tuple[Any, Any]:
    """Not before a route needs it: most workers never do."""
    import re2

    options = re2.Options()
    options.max_mem = _MAX_MEMORY
    options.log_errors = False
    return re2, options


def compile_expression(pattern: str) -> Expression:
    """For texts as bytes in UTF-8. Raises ValueError with a sentence."""
    re2, options = _engine()
    try:
        return re2.compile(pattern, options)
    except re2.error as error:
        reason = error.args[0] if error.args else error
        reason = reason.decode("utf-8", "replace") if isinstance(reason, bytes) else str(reason)
        raise ValueError(f"RE2 does not take this expression: {reason}") from None

"""The request target for the upstream: other bytes in front, or an expression's replacement, and the rest as the client
sent it (rules 1 and 3)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from core.context import MAX_TARGET
from core.faults import ClientFault
from core.policies import PolicyError
from core.uri_path import canonical_path
from routing.expressions import Expression, compile_expression
from routing.policies import Rewrite

if TYPE_CHECKING:
    from routing.records import RouteRecord

_GROUP = re.compile(r"\\([0-9])")
_LITERAL = re.compile(r"(?:[\w.~!$&'()*+,;=:@/-]|%[0-9A-Fa-f]{2})*", re.ASCII)  # RFC 3986 section 3.3


def upstream_target(route: RouteRecord | None, version_base_path: bytes, raw_path: bytes, query: bytes | None) -> bytes:
    """Path and query for the upstream. ``route`` None is the implicit route; ``query`` None: the client sent no ``?``.
    Raises ClientFault when an expression makes of this path one that would be ambiguous.

    Escapes never hide a slash that separates (``%2F`` is data), so the segments of ``raw_path`` are those of the
    canonical path that was matched.
    """
    if route is None:
        path = version_base_path + _after(raw_path, 3)  # /api/v1/{service}
    elif route.rewriter is not None:
        path = version_base_path + route.rewriter.rewritten(raw_path, route.allow_empty_segments)
    elif route.strip_prefix:
        path = version_base_path + route.replace_prefix + _after(raw_path, route.strip_prefix.count(b"/"))
    else:
        path = version_base_path + route.replace_prefix + raw_path
    if not path:
        path = b"/"
    return path if query is None else path + b"?" + query


def _after(path: bytes, count: int) -> bytes:
    """What follows the first ``count`` segments, with its slash; empty when nothing does."""
    parts = path.split(b"/", count + 1)
    return b"/" + parts[-1] if len(parts) > count + 1 else b""


@dataclass(frozen=True, slots=True)
class Rewriter:
    """R5: the first place where the expression matches the canonical path is replaced; a path where it matches nowhere
    stays. What groups hold, and what the expression leaves alone, are the client's own bytes."""

    expression: Expression
    replacement: tuple[bytes | int, ...]  # text, and numbers of groups

    def rewritten(self, raw_path: bytes, allow_empty_segments: bool) -> bytes:
        """``raw_path`` has a canonical form. Raises ClientFault ``bad_path`` when the result would be no path, or one
        that upstreams could read in two ways (rule 1), and ``uri_too_long``."""
        canonical = canonical_path(raw_path)
        found = self.expression.search(canonical)
        if found is None:
            return raw_path
        spelled = _Spelling(raw_path, canonical)
        start, end = found.span()
        pieces = [spelled.cut(0, start)]
        for part in self.replacement:
            pieces.append(part if isinstance(part, bytes) else spelled.cut(*found.span(part)))
        pieces.append(spelled.cut(end, len(canonical)))
        path = b"".join(pieces)
        _refuse_ambiguous(path, allow_empty_segments)
        return path


def _refuse_ambiguous(path: bytes, allow_empty_segments: bool) -> None:
    if len(path) > MAX_TARGET:
        raise ClientFault(
            "uri_too_long", f"The route's expression makes a path of over {MAX_TARGET} bytes of this one."
        )
    try:
        if path and b"//" in canonical_path(path) and not allow_empty_segments:
            raise ValueError("The path holds an empty segment (//).")
    except ValueError as error:
        detail = f"What the route's expression makes of this path would be none. {error}"
        raise ClientFault("bad_path", detail) from None


class _Spelling:
    """Cuts pieces out of a path as the client spelled it, by places in its canonical form."""

    __slots__ = ("_places", "_raw")

    def __init__(self, raw: bytes, canonical: bytes) -> None:
        self._raw = raw
        self._places = None if raw == canonical else _places(raw, canonical)

    def cut(self, start: int, end: int) -> bytes:
        if start < 0:
            return b""  # a group that took no part in the match
        places = self._places
        return self._raw[start:end] if places is None else self._raw[places[start] : places[end]]


def _places(raw: bytes, canonical: bytes) -> list[int]:
    """For each place in ``canonical``, where it is in ``raw``. Both hold the same octets, each as itself or escaped."""
    places: list[int] = []
    at = 0
    while len(places) < len(canonical):
        size = 3 if raw[at] == 0x25 else 1
        if canonical[len(places)] == 0x25:
            places += (at, at + 1, at + 2) if size == 3 else (at, at, at)
        else:
            places.append(at)
        at += size
    places.append(at)
    return places


def compile_rewrite(policy: Rewrite) -> Rewriter:
    """Raises PolicyError (``pattern`` or ``replacement``)."""
    for error in faulty_rewrite(policy):
        raise error
    expression = compile_expression(policy.pattern)
    return Rewriter(expression, _parts(policy.replacement, expression.groups))


def faulty_rewrite(policy: Rewrite) -> Iterator[PolicyError]:
    try:
        expression = compile_expression(policy.pattern)
    except ValueError as error:
        yield PolicyError(str(error), "pattern")
        return
    try:
        _parts(policy.replacement, expression.groups)
    except ValueError as error:
        yield PolicyError(str(error), "replacement")


def _parts(replacement: str, groups: int) -> tuple[bytes | int, ...]:
    """Raises ValueError with a sentence."""
    parts: list[bytes | int] = []
    for place, piece in enumerate(_GROUP.split(replacement)):
        if place % 2:
            if int(piece) > groups:
                raise ValueError(f"the pattern has no group {piece}")
            parts.append(int(piece))
        elif not _LITERAL.fullmatch(piece):
            raise ValueError("only \\0 to \\9 and what may stand in a path are allowed: all else is percent-encoded")
        elif piece:
            parts.append(piece.encode("ascii"))
    try:
        canonical_path(b"/" + b"".join(part if isinstance(part, bytes) else b"x" for part in parts))
    except ValueError as error:
        raise ValueError(f"this would never be a path. {error}") from None
    return tuple(parts)

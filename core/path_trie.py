"""Path patterns by the segments of a path: finding costs what the path costs, however many patterns there are.

A pattern is literal segments, ``{name}`` or ``*`` for exactly one segment that is not empty, and a final ``*`` for the
rest: at least one further slash, so ``/x/*`` covers ``/x/`` and ``/x/a/b`` but not ``/x``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Generic, TypeVar
from urllib.parse import quote

from core.uri_path import canonical_path

V = TypeVar("V")
MAX_SEGMENTS = 64
_WILDCARD = re.compile(r"\*|\{[A-Za-z_][A-Za-z0-9_-]*\}")
# Most patterns are canonical as typed, and an application's are compiled anew whenever one of them changes.
_CANONICAL = re.compile(rf"(?:/(?:[\w~!$&'()+,;=:@-][\w.~!$&'()+,;=:@-]*|{_WILDCARD.pattern}))+/?", re.ASCII)
_ASCII = "".join(map(chr, range(128)))


def compile_pattern(pattern: str) -> bytes:
    """The canonical form of a pattern as an admin types it. Raises ValueError with a sentence for the admin."""
    if _CANONICAL.fullmatch(pattern) and pattern.count("/") <= MAX_SEGMENTS:
        return pattern.encode()
    if not pattern.startswith("/"):
        raise ValueError("The path must begin with a slash.")
    if "?" in pattern or "#" in pattern:
        raise ValueError("The path may have neither a query nor a fragment.")
    segments = pattern[1:].split("/")
    if len(segments) > MAX_SEGMENTS:
        raise ValueError(f"The path may have at most {MAX_SEGMENTS} segments.")
    if "" in segments[:-1]:
        raise ValueError("The path holds an empty segment (//).")
    return b"/" + b"/".join(map(_compile_segment, segments))


def _compile_segment(segment: str) -> bytes:
    if _WILDCARD.fullmatch(segment):
        return segment.encode()
    if "{" in segment or "}" in segment or "*" in segment:
        raise ValueError(
            "{name} and * stand for a whole segment each; a name is made of letters, digits, hyphens and underscores. "
            "Write %2A for an asterisk itself."
        )
    return canonical_path(b"/" + quote(segment, safe=_ASCII).encode())[1:]


def pattern_shape(pattern: bytes) -> bytes:
    """One octet for each segment: 0 a literal one, 1 a wildcard, 2 the rest. Of patterns that match one path, a lesser
    shape is more specific."""
    *inner, last = pattern.split(b"/")[1:]
    return bytes((*map(_is_single, inner), 2 if last == b"*" else _is_single(last)))


class _Node(Generic[V]):
    """Where a pattern stands after some of its segments. ``owner`` is the change that may still write to the node."""

    __slots__ = ("literals", "owner", "rest", "single", "whole")

    def __init__(self, owner: object) -> None:
        self.owner = owner
        self.literals: dict[bytes, _Node[V]] = {}
        self.single: _Node[V] | None = None
        self.whole: tuple[V, ...] = ()  # values of the patterns that end here
        self.rest: tuple[V, ...] = ()  # values of those that go on with a final *

    def owned_by(self, owner: object) -> _Node[V]:
        if self.owner is owner:
            return self
        copy: _Node[V] = _Node(owner)
        copy.literals = dict(self.literals)
        copy.single, copy.whole, copy.rest = self.single, self.whole, self.rest
        return copy

    @property
    def is_empty(self) -> bool:
        return not (self.whole or self.rest or self.literals or self.single)


class PathTrie(Generic[V]):
    """Values by path pattern (as `compile_pattern` returns it). Immutable for readers: a change copies its way down."""

    __slots__ = ("_root",)

    def __init__(self, root: _Node[V] | None = None) -> None:
        self._root: _Node[V] = root if root is not None else _Node(object())

    def __bool__(self) -> bool:
        return not self._root.is_empty

    def find(self, path: bytes) -> list[V]:
        """The values of every pattern that matches the canonical ``path``, most specific first.

        That is: the longest literal prefix; then patterns for the whole path before those with a final ``*``; then,
        from segment to segment, a literal one before ``{name}`` before the rest; then as they were laid in.
        """
        groups = self.groups(path)
        return list(groups[0]) if len(groups) == 1 else [value for values in groups for value in values]

    def best(self, path: bytes) -> tuple[V, ...]:
        """The first of `groups`, or an empty tuple."""
        groups = self.groups(path, only_best=True)
        return groups[0] if groups else ()

    def groups(self, path: bytes, only_best: bool = False) -> list[tuple[V, ...]]:
        """As `find`, the values of patterns that differ in nothing but names together.

        With ``only_best`` less specific ones may be missing.
        """
        segments = path.split(b"/", MAX_SEGMENTS + 1)
        node, depth, end = self._root, 1, len(segments)
        forks: list[tuple[_Node[V], int]] = []  # where patterns leave the literal way, the shortest prefix first
        found: list[tuple[V, ...]] = []
        while depth < end:
            if node.single is not None or node.rest:
                forks.append((node, depth))
            child = node.literals.get(segments[depth])
            if child is None:
                break
            node = child
            depth += 1
        else:
            if node.whole:
                found.append(node.whole)
        while forks and not (only_best and found):
            node, depth = forks.pop()
            rests: list[tuple[V, ...]] = []
            if node.single is not None and segments[depth]:
                _descend(node.single, segments, depth + 1, found, rests)
            found += rests
            if node.rest:
                found.append(node.rest)
        return found

    def changed(self, put: Iterable[tuple[bytes, V]], drop: Iterable[tuple[bytes, V]]) -> PathTrie[V]:
        """A trie with ``drop`` (pattern and equal value) taken out and ``put`` laid in; this one stays as it is."""
        owner = object()
        root = self._root.owned_by(owner)
        for pattern, value in drop:
            _take_out(root, pattern.split(b"/"), 1, value, owner)
        for pattern, value in put:
            _lay_in(root, pattern, value, owner)
        return PathTrie(root)

    def load(self, pattern: bytes, value: V) -> None:
        """Lay in a value in place: only while nobody else sees this trie yet."""
        _lay_in(self._root, pattern, value, self._root.owner)


def _is_single(segment: bytes) -> bool:
    return segment == b"*" or segment[:1] == b"{"  # a canonical literal never begins with either


def _descend(
    node: _Node[V], segments: list[bytes], depth: int, wholes: list[tuple[V, ...]], rests: list[tuple[V, ...]]
) -> None:
    """Collect what matches below a node that a wildcard led to."""
    if depth == len(segments):
        if node.whole:
            wholes.append(node.whole)
        return
    child = node.literals.get(segments[depth])
    if child is not None:
        _descend(child, segments, depth + 1, wholes, rests)
    if node.single is not None and segments[depth]:
        _descend(node.single, segments, depth + 1, wholes, rests)
    if node.rest:
        rests.append(node.rest)


def _lay_in(node: _Node[V], pattern: bytes, value: V, owner: object) -> None:
    *inner, last = pattern.split(b"/")[1:]
    for segment in inner if last == b"*" else (*inner, last):
        if _is_single(segment):
            child = _Node(owner) if node.single is None else node.single.owned_by(owner)
            node.single = child
        else:
            known = node.literals.get(segment)
            child = node.literals[segment] = _Node(owner) if known is None else known.owned_by(owner)
        node = child
    if last == b"*":
        node.rest = (*node.rest, value)
    else:
        node.whole = (*node.whole, value)


def _take_out(node: _Node[V], segments: list[bytes], depth: int, value: V, owner: object) -> None:
    """Take one value out below a node that is ours; nodes that hold nothing any more go with it."""
    if depth == len(segments):
        node.whole = _without(node.whole, value)
        return
    segment = segments[depth]
    if segment == b"*" and depth == len(segments) - 1:
        node.rest = _without(node.rest, value)
        return
    single = _is_single(segment)
    known = node.single if single else node.literals.get(segment)
    if known is None:
        return
    child: _Node[V] | None = known.owned_by(owner)
    assert child is not None
    _take_out(child, segments, depth + 1, value, owner)
    if child.is_empty:
        child = None
    if single:
        node.single = child
    elif child is None:
        del node.literals[segment]
    else:
        node.literals[segment] = child


def _without(values: tuple[V, ...], value: V) -> tuple[V, ...]:
    return tuple(kept for kept in values if kept != value)

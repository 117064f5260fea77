"""Routes in the order in which the gateway tries them (`routing.table`), and those that stand in each other's way."""

from collections.abc import Iterable
from typing import Any

from core.path_trie import compile_pattern, pattern_shape
from routing.models import Route


def matching_order(routes: Iterable[Route]) -> list[Route]:
    """Exact hosts first, then the longest ``*.suffix``, then any host; then as `routing.table` decides: the longer
    literal prefix, the higher priority, patterns for the whole path before those with a rest, the plainer shape, the
    older route."""
    return sorted(routes, key=_order)


def _order(route: Route) -> tuple[Any, ...]:
    shape = pattern_shape(_compiled(route.path))
    literals = len(shape) - len(shape.lstrip(b"\0"))
    return (min(map(_host_order, route.hosts or [""])), -literals, -route.priority, shape[-1] == 2, shape, route.pk)


def _host_order(host: str) -> tuple[int, int]:
    if not host:
        return (2, 0)
    return (1, -len(host)) if host.startswith("*.") else (0, 0)


def overlaps(route: Route, others: Iterable[Route]) -> list[tuple[Route, bool]]:
    """Routes that take some of the same requests by an equally specific pattern, and whether each goes first."""
    found = []
    for other in others:
        if other.pk == route.pk or _nameless(other.path) != _nameless(route.path):
            continue
        if _share_hosts(route.hosts, other.hosts) and _share_methods(route.methods, other.methods):
            found.append((other, matching_order([route, other])[0] is other))
    return found


def _compiled(path: str) -> bytes:
    """The canonical pattern. One broken by hand does not compile; the gateway skips it, and here it stands as it is."""
    try:
        return compile_pattern(path)
    except ValueError:
        return path.encode("utf-8", "replace")


def _nameless(path: str) -> bytes:
    """A pattern without the names of its parameters."""
    *inner, last = _compiled(path).split(b"/")
    singles = [b"{}" if segment == b"*" or segment.startswith(b"{") else segment for segment in inner]
    return b"/".join((*singles, b"{}" if last.startswith(b"{") else last))


def _share_hosts(left: list[str], right: list[str]) -> bool:
    """Whether two routes stand under one host rule. ``*.example.com`` is a rule of its own, and so is any host."""
    return not set(left or [""]).isdisjoint(right or [""])


def _share_methods(left: list[str], right: list[str]) -> bool:
    return not left or not right or not set(left).isdisjoint(right)

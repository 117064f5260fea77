"""Routes in the order in which the gateway tries them (`routing.table`), and those that stand in each other's way."""

from collections.abc import Iterable
from typing import Any

from core.path_trie import compile_pattern
from routing.models import Route


def matching_order(routes: Iterable[Route]) -> list[Route]:
    """Exact hosts first, then the longest ``*.suffix``, then any host; then as `routing.table` decides: the longer
    literal prefix, the higher priority, patterns for the whole path before those with a rest, the older route."""
    return sorted(routes, key=_order)


def _order(route: Route) -> tuple[Any, ...]:
    segments = route.path.split("/")[1:]
    literal = next((i for i, segment in enumerate(segments) if _is_wildcard(segment)), len(segments))
    return (min(map(_host_order, route.hosts or [""])), -literal, -route.priority, segments[-1] == "*", route.pk)


def _host_order(host: str) -> tuple[int, int]:
    if not host:
        return (2, 0)
    return (1, -len(host)) if host.startswith("*.") else (0, 0)


def overlaps(route: Route, others: Iterable[Route]) -> list[tuple[Route, bool]]:
    """Routes that take some of the same requests by an equally specific pattern, and whether each goes first."""
    found = []
    for other in others:
        if other.pk == route.pk or _shape(other.path) != _shape(route.path):
            continue
        if _share_hosts(route.hosts, other.hosts) and _share_methods(route.methods, other.methods):
            goes_first = matching_order([route, other])[0] is other
            found.append((other, goes_first))
    return found


def _shape(path: str) -> list[bytes]:
    """A pattern without the names of its parameters. A pattern that does not compile is like no other."""
    try:
        segments = compile_pattern(path).split(b"/")
    except ValueError:
        return [path.encode("utf-8", "replace")]
    return [b"*" if segment.startswith(b"{") else segment for segment in segments[:-1]] + [
        b"{}" if segments[-1].startswith(b"{") else segments[-1]
    ]


def _is_wildcard(segment: str) -> bool:
    return segment == "*" or segment.startswith("{")


def _share_hosts(left: list[str], right: list[str]) -> bool:
    """Whether two routes stand under one host rule. ``*.example.com`` is a rule of its own, and so is any host."""
    return not set(left or [""]).isdisjoint(right or [""])


def _share_methods(left: list[str], right: list[str]) -> bool:
    return not left or not right or not set(left).isdisjoint(right)

"""The request target for the upstream: other bytes in front, the rest as the client sent it (rules 1 and 3)."""

from __future__ import annotations

from routing.records import RouteRecord


def upstream_target(route: RouteRecord | None, version_base_path: bytes, raw_path: bytes, query: bytes | None) -> bytes:
    """Path and query for the upstream. ``route`` None is the implicit route; ``query`` None: the client sent no ``?``.

    Escapes never hide a slash that separates (``%2F`` is data), so the segments of ``raw_path`` are those of the
    canonical path that was matched.
    """
    if route is None:
        path = version_base_path + _after(raw_path, 3)  # /api/v1/{service}
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

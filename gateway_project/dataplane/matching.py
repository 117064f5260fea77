"""Step 3: what a request leads to, and a memory of it.

The same few endpoints are asked for again and again, so what host, method and path lead to is remembered until the
configuration changes, together with what was granted there to whom. The memory is bounded, only requests that were
authorized enter it, so that nobody else can fill it, and only when they come a second time, so that paths that are
new each time cost no more than finding their way.
"""

from __future__ import annotations

from typing import Any

from access.policy import authorize
from access.records import ApplicationRecord, Grant
from core.context import Exchange
from core.faults import ClientFault
from gateway_project.dataplane.snapshot import Snapshot
from keys.records import KeyRecord
from queues.records import QueueRouteRecord
from routing.forwarding import Terms
from routing.paths import has_empty_segment
from routing.records import RouteRecord, ServiceRecord, VersionRecord
from routing.rewriting import upstream_target
from routing.selection import choose_version
from routing.table import implicit

_MAX_REMEMBERED = 4096
_MAX_SEEN = 4096
_MAX_PATH = 512
_MAX_GRANTS = 1024


class Match:
    """What host, method and path lead to. One of ``service`` and ``queue_route`` is set."""

    __slots__ = (
        "_choices",
        "_grants",
        "_request_paths",
        "api_version",
        "destination",
        "max_body_bytes",
        "method",
        "path",
        "queue_route",
        "route",
        "service",
        "template",
        "terms",
    )

    def __init__(
        self,
        path: bytes,
        method: bytes,
        route: RouteRecord | None,
        service: ServiceRecord | None,
        queue_route: QueueRouteRecord | None,
        api_version: bytes,
    ) -> None:
        self.path = path  # canonical
        self.method = method
        self.route = route
        self.service = service
        self.queue_route = queue_route
        self.api_version = api_version  # as the path names it
        led_to: Any = service or queue_route
        self.destination: str = led_to.name
        self.template: str = route.template if route is not None else led_to.template
        self.max_body_bytes: int | None = route.max_body_bytes if route is not None else None
        self.terms: Terms | None = None
        # By application, by version and by key, once the match is remembered.
        self._grants: dict[str, Grant] | None = None
        self._choices: dict[str, tuple[VersionRecord, bytes]] | None = None
        self._request_paths: dict[str, bytes] | None = None

    def keep(self) -> None:
        """From now on, what follows from the match is remembered with it."""
        self._grants = {}
        self._request_paths = {}
        self._choices = {}

    def grant(self, application: ApplicationRecord) -> Grant:
        """What ``application`` may do here. Raises PolicyDenied."""
        grants = self._grants
        grant = grants.get(application.id) if grants is not None else None
        if grant is None:
            grant = authorize(application, self.destination, self.path, self.method)
            if grants is not None and len(grants) < _MAX_GRANTS:
                grants[application.id] = grant
        return grant

    def usual_version(self, key: KeyRecord, grant: Grant, raw_path: bytes) -> tuple[VersionRecord, bytes]:
        """The version that answers ``key`` where the request names none, and the path to ask it for: the split goes by
        key, so it is always the same. Raises GatewayFault."""
        choices = self._choices
        choice = choices.get(key.id) if choices is not None else None
        if choice is None:
            version = choose_version(self.served_by(), grant.versions, None, key.point)
            choice = version, self.request_path(version, raw_path)
            if choices is not None and len(choices) < _MAX_GRANTS:
                choices[key.id] = choice
        return choice

    def served_by(self) -> ServiceRecord:
        assert self.service is not None  # asked only of matches that lead to a service
        return self.service

    def request_path(self, version: VersionRecord, raw_path: bytes) -> bytes:
        """The path to ask the version's targets for."""
        paths = self._request_paths
        path = paths.get(version.name) if paths is not None else None
        if path is None:
            path = upstream_target(self.route, version.base_path, raw_path, None)
            if paths is not None:
                paths[version.name] = path
        return path


def find_match(snapshot: Snapshot, host: bytes, method: bytes, path: bytes) -> Match:
    """What the request leads to (rules 2, 3); ``path`` is canonical. Raises ClientFault."""
    route = snapshot.routes.match(host, path, method)
    if has_empty_segment(path) and not (route is not None and route.allow_empty_segments):
        raise ClientFault("bad_path", "The path holds an empty segment (//).")
    named = implicit(path)
    service, queue_route = None, None
    if route is not None:
        if route.queue_route is not None:
            queue_route = snapshot.queue_routes.get(route.queue_route)
        else:
            service = snapshot.services.get(route.service or "")
    elif named is not None:
        service = snapshot.services.get(named[1].decode("latin-1"))
        if service is not None and not service.implicit:
            service = None
    if service is not None and not service.is_active:
        service = None
    if service is None and queue_route is None:
        where = path[:500].decode("ascii", "replace")
        raise ClientFault("no_route", f"No active route leads to {where}.")
    return Match(path, method, route, service, queue_route, named[0] if named is not None else b"v1")


class MatchMemory:
    """Matches of authorized requests, for one snapshot at a time."""

    __slots__ = ("_matches", "_seen", "_snapshot")

    def __init__(self) -> None:
        self._snapshot: Snapshot | None = None
        self._matches: dict[tuple[bytes, bytes, bytes], Match] = {}
        self._seen: set[int] = set()  # hashes of what came once

    def recall(self, snapshot: Snapshot, exchange: Exchange) -> Match | None:
        if snapshot is not self._snapshot:
            self._snapshot = snapshot
            self._matches = {}
            return None
        return self._matches.get((exchange.raw_path, exchange.method, exchange.identity.host))

    def remember(self, exchange: Exchange, match: Match) -> None:
        """``match`` is what the exchange's own host, method and path led to in its snapshot."""
        if exchange.snapshot is not self._snapshot or len(exchange.raw_path) > _MAX_PATH:
            return
        asked = (exchange.raw_path, exchange.method, exchange.identity.host)
        if hash(asked) not in self._seen:
            if len(self._seen) >= _MAX_SEEN:
                self._seen.clear()
            self._seen.add(hash(asked))
            return
        if len(self._matches) >= _MAX_REMEMBERED:
            self._matches = {}
        match.keep()
        self._matches[asked] = match

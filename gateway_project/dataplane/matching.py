"""Step 3: what a request leads to, and a memory of it.

What a route says is the same for all of its paths, so it is put together once (`Match`). The same few endpoints are
asked for again and again, so what host, method and path lead to is remembered too (`KnownPath`), together with what was
granted there to whom. Both are remembered until the configuration changes. The memory is bounded, only requests that
were authorized enter it, so that nobody else can fill it, and paths only when they come a second time, so that paths
that are new each time cost no more than finding their way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from access.cors import CorsPolicy
from access.limits.records import LimitIndex, Place
from access.networks import AddressRules
from access.policy import PublicIndex, authorize, service_not_allowed
from access.records import ApplicationRecord, EntryRecord, Grant
from access.tokens.identity import Identity
from access.tokens.requirements import Requirement, all_of
from core.context import Exchange
from core.faults import ClientFault
from gateway_project.dataplane.snapshot import Snapshot
from keys.records import KeyRecord
from queues.records import QueueRouteRecord
from routing.aggregation import Aggregate
from routing.balancing import TargetGroup
from routing.paths import has_empty_segment
from routing.policies import Caching
from routing.records import RouteRecord, ServiceRecord, VersionRecord
from routing.request_fields import RequestFields
from routing.rewriting import upstream_target
from routing.selection import choose_version
from routing.table import implicit
from routing.target_registry import TargetRegistry
from routing.terms import Terms

_MAX_MATCHES = 4096
_MAX_PATHS = 4096
_MAX_SEEN = 4096
_MAX_PATH = 512
# Of applications, and of keys, with each match and each path: for the busiest, which are remembered first, and for the
# others.
_MAX_GRANTS, _MAX_GRANTS_LATER, _BUSIEST = 1024, 32, 128

Mark = tuple[str, bytes, bytes, bytes]  # the id of a route, or a service's name; the path's API version; the method
Choice = tuple[VersionRecord, TargetGroup, bytes]  # and the path to ask for

Step = Callable[[Exchange, "Match"], bool]
Listed = tuple[str, AddressRules]  # whose list it is, in words


class Match:
    """What a route leads to, or the paths of a service that has none, for one method and API version: the same for all
    paths. One of ``service`` and ``queue_route`` is set, or it is an `AggregateMatch`."""

    __slots__ = (
        "_limited",
        "_most",
        "_usual_versions",
        "addresses",
        "api_version",
        "cache_scope",
        "caching",
        "cost",
        "destination",
        "is_open",
        "limits",
        "mark",
        "max_body_bytes",
        "method",
        "origins",
        "queue_route",
        "required",
        "route",
        "service",
        "steps",
        "template",
        "tenant_id",
        "terms",
        "transformer",
    )

    def __init__(
        self,
        method: bytes,
        route: RouteRecord | None,
        service: ServiceRecord | None,
        queue_route: QueueRouteRecord | None,
        api_version: bytes,
    ) -> None:
        self.method = method
        self.route = route
        self.service = service
        self.queue_route = queue_route
        self.api_version = api_version  # as the path names it
        self.mark: Mark | None = None  # under which it is remembered
        led_to: Any = service or queue_route
        self.destination: str = led_to.name if led_to is not None else ""
        owner: Any = led_to or route
        self.tenant_id: str = owner.tenant_id
        self.template: str = route.template if route is not None else led_to.template
        self.max_body_bytes: int | None = route.max_body_bytes if route is not None else None
        self.cost = route.charging.cost if route is not None and route.charging is not None else 1
        self.caching: Caching | None = None
        self.cache_scope = ""
        if service is not None:
            policy = route.caching if route is not None and route.caching is not None else service.caching
            if policy is not None and policy.enabled:
                self.caching = policy
                # Purges name services: what was stored under a former name must not be found under the present one.
                named = f"{service.id} {service.name}"
                self.cache_scope = named if route is None else f"{named} {route.id}"
        # Whose lists must admit the client's address, most often nobody's; and what holds for pages of other origins,
        # None: CORS_ORIGINS.
        self.addresses: tuple[Listed, ...] = _lists(route, [service] if service is not None else [])
        self.origins: CorsPolicy | None = route.origins if route is not None else None
        if self.origins is None and service is not None:
            self.origins = service.origins
        self.limits: LimitIndex | None = None  # None: there are none
        # What callers must bring, None: an API key or a token of an application; and whether nothing will do as well.
        self.required = required_by(route, [service] if service is not None else [])
        self.is_open = is_open(route, self.required)
        self.terms: Terms | None = None
        self.transformer = route.transformer if route is not None else None
        self.steps: tuple[Step, ...] | None = None  # beyond those that every request goes through
        # Once the match is remembered: grants with the further limits that hold here, and who is served by what.
        self._limited: dict[tuple[Any, ...], Grant] = {}
        self._usual_versions: dict[tuple[str, frozenset[str] | None], tuple[VersionRecord, TargetGroup]] = {}
        self._most = 0

    def keep(self, most: int) -> None:
        """From now on, what follows from the match is remembered with it, for so many callers."""
        self._most = most

    def grant(self, application: ApplicationRecord, exchange: Exchange) -> Grant:
        """What ``application`` may do at the exchange's path. Raises PolicyDenied."""
        known: KnownPath | None = exchange.known_path
        grant = known.grants.get(application.id) if known is not None else None
        if grant is None:
            if application.tenant_id != self.tenant_id:  # "*" never crosses tenants (rule 26)
                raise service_not_allowed(application, self.destination)
            grant = self._limited_grant(self.authorize(application, exchange.path), application, exchange.path)
            if known is not None:
                known.keep_grant(application.id, grant)
        return grant

    def open_grant(self, grant: Grant, to: str, application: ApplicationRecord | None, exchange: Exchange) -> Grant:
        """``grant``, which the match does not know of, with the limits that hold here. ``to`` tells it from others."""
        if self.limits is None and self.cost == 1:
            return grant
        known: KnownPath | None = exchange.known_path
        limited = known.grants.get(to) if known is not None else None
        if limited is None:
            limited = self._limited_grant(grant, application, exchange.path)
            if known is not None:
                known.keep_grant(to, limited)
        return limited

    def _limited_grant(self, grant: Grant, application: ApplicationRecord | None, path: bytes) -> Grant:
        """``grant`` with the limits that hold at a path. All paths that the same patterns match share it."""
        limits = self.limits
        if limits is None and self.cost == 1:
            return grant
        owner = (application.id, application.name) if application is not None else ("", "")
        selected = limits.selected_by_path(path, owner) if limits is not None else ()
        of = (owner, grant.limit.key, grant.versions, selected)
        limited = self._limited.get(of)
        if limited is None:
            plan = (limits or LimitIndex()).plan(self._place(application, path), grant.limit, self.cost)
            limited = grant if plan is None else replace(grant, plan=plan)
            if len(self._limited) < self._most:
                self._limited[of] = limited
        return limited

    def _place(self, application: ApplicationRecord | None, path: bytes) -> Place:
        route = self.route
        return Place(
            tenant_id=application.tenant_id if application is not None else self.tenant_id,
            application_id=application.id if application is not None else "",
            application=application.name if application is not None else "",
            services=self.destinations,
            route=route.name if route is not None else "",
            endpoint=self.template,
            method=self.method,
            path=path,
            bundles=frozenset[str]().union(
                *(each.bundles for each in (application, self.service, route) if each is not None)
            ),
        )

    @property
    def destinations(self) -> tuple[str, ...]:
        """The names of all that it leads to."""
        return (self.destination,)

    def authorize(self, application: ApplicationRecord, path: bytes) -> Grant:
        """Raises PolicyDenied."""
        return authorize(application, self.destination, path, self.method)

    def public_entry(
        self, index: PublicIndex, path: bytes, method: bytes
    ) -> tuple[ApplicationRecord, EntryRecord] | None:
        """What lets an anonymous request pass, if anything does (rule 6)."""
        return index.find(path, method, self.destination, tenant_id=self.tenant_id)

    def usual_version(
        self, caller: KeyRecord | Identity, grant: Grant, exchange: Exchange, registry: TargetRegistry
    ) -> Choice:
        """The version that answers ``caller`` where the request names none, its targets, and the path to ask them for:
        the split goes by key, or by user, so it is always the same. Raises GatewayFault."""
        known: KnownPath | None = exchange.known_path
        choice = known.choices.get(caller.id) if known is not None else None
        if choice is None:
            version, group = self._usual(caller, grant, registry)
            choice = version, group, self.request_path(version, exchange)
            if known is not None:
                known.keep_choice(caller.id, choice)
        return choice

    def _usual(
        self, caller: KeyRecord | Identity, grant: Grant, registry: TargetRegistry
    ) -> tuple[VersionRecord, TargetGroup]:
        """The same for all paths where the caller may use the same versions."""
        of = (caller.id, grant.versions)
        usual = self._usual_versions.get(of)
        if usual is None:
            service = self.served_by()
            version = choose_version(service, grant.versions, None, caller.point)
            usual = version, registry.group(service, version)
            if len(self._usual_versions) < self._most:
                self._usual_versions[of] = usual
        return usual

    def served_by(self) -> ServiceRecord:
        assert self.service is not None  # asked only of matches that lead to a service
        return self.service

    def request_path(self, version: VersionRecord, exchange: Exchange) -> bytes:
        """The path to ask the version's targets for."""
        known: KnownPath | None = exchange.known_path
        path = known.request_paths.get(version.name) if known is not None else None
        if path is None:
            path = upstream_target(self.route, version.base_path, exchange.raw_path, None)
            if known is not None:
                known.request_paths[version.name] = path
        return path


class KnownPath:
    """What host, method and path led to before, and what followed for whom: ``grants`` by application, ``choices`` by
    key or user, and ``request_paths`` by version."""

    __slots__ = ("_most", "choices", "grants", "match", "path", "request_paths")

    def __init__(self, match: Match, path: bytes, most: int) -> None:
        """``path`` is canonical."""
        self.match = match
        self.path = path
        self.grants: dict[str, Grant] = {}
        self.choices: dict[str, Choice] = {}
        self.request_paths: dict[str, bytes] = {}
        self._most = most

    def keep_grant(self, to: str, grant: Grant) -> None:
        if len(self.grants) < self._most:
            self.grants[to] = grant

    def keep_choice(self, caller: str, choice: Choice) -> None:
        if len(self.choices) < self._most:
            self.choices[caller] = choice


def _lists(route: RouteRecord | None, services: Iterable[ServiceRecord]) -> tuple[Listed, ...]:
    lists = [(f"the service {service.name}", service.addresses) for service in services]
    if route is not None:
        lists.append((f"the route {route.name}", route.addresses))
    return tuple((whose, rules) for whose, rules in lists if rules is not None)


def required_by(route: RouteRecord | None, services: Iterable[ServiceRecord]) -> Requirement | None:
    """What a route says goes before what the services do that it leads to, which all count."""
    if route is not None:
        if route.required is not None:
            return route.required
        if not route.requires_key:
            return None
    return all_of(service.required for service in services if service.required is not None)


def is_open(route: RouteRecord | None, required: Requirement | None) -> bool:
    return required.is_public if required is not None else route is not None and not route.requires_key


class AggregateMatch(Match):
    """Leads to several services: whoever asks must be allowed to use each of them."""

    __slots__ = ("aggregate",)

    def __init__(
        self,
        method: bytes,
        route: RouteRecord,
        aggregate: Aggregate,
        api_version: bytes,
        services: Iterable[ServiceRecord],
    ) -> None:
        super().__init__(method, route, None, None, api_version)
        self.aggregate = aggregate
        self.addresses = _lists(route, services)
        self.required = required_by(route, services)
        self.is_open = is_open(route, self.required)

    @property
    def destinations(self) -> tuple[str, ...]:
        return tuple(self.aggregate.services)

    def authorize(self, application: ApplicationRecord, path: bytes) -> Grant:
        # One path and method: the same entry decides for all of them, and its grant is the same.
        return [authorize(application, name, path, self.method) for name in self.aggregate.services][-1]

    def public_entry(
        self, index: PublicIndex, path: bytes, method: bytes
    ) -> tuple[ApplicationRecord, EntryRecord] | None:
        first, *others = self.aggregate.services
        return index.find(path, method, first, others, tenant_id=self.tenant_id)


def _found(
    snapshot: Snapshot, route: RouteRecord | None, named: tuple[bytes, bytes] | None, method: bytes, path: bytes
) -> Match:
    """What ``route`` leads to, or else the service that ``path`` names. Raises ClientFault."""
    api_version = named[0] if named is not None else b"v1"
    if route is not None and route.aggregate is not None:
        services = [found for name in route.aggregate.services if (found := snapshot.services.get(name)) is not None]
        return AggregateMatch(method, route, route.aggregate, api_version, services)
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
    return Match(method, route, service, queue_route, api_version)


class MatchMemory:
    """Finds what requests lead to, and remembers it of those that were authorized, for one snapshot at a time."""

    __slots__ = ("_matches", "_paths", "_seen", "_snapshot")

    def __init__(self) -> None:
        self._begin(None)
        self._seen: set[int] = set()  # hashes of what came once

    def _begin(self, snapshot: Snapshot | None) -> None:
        self._snapshot = snapshot
        self._matches: dict[Mark, Match] = {}
        self._paths: dict[tuple[bytes, bytes, bytes], KnownPath] = {}

    def recall(self, snapshot: Snapshot, exchange: Exchange) -> KnownPath | None:
        if snapshot is not self._snapshot:
            self._begin(snapshot)
            return None
        return self._paths.get((exchange.raw_path, exchange.method, exchange.identity.host))

    def find(self, snapshot: Snapshot, host: bytes, method: bytes, path: bytes, fields: RequestFields) -> Match:
        """What the request leads to (rules 2, 3); ``path`` is canonical. Where ``fields`` have been read, another
        request for the same may lead elsewhere. Raises ClientFault."""
        route = snapshot.routes.match(host, path, method, fields)
        if has_empty_segment(path) and not (route is not None and route.allow_empty_segments):
            raise ClientFault("bad_path", "The path holds an empty segment (//).")
        named = implicit(path)
        version, service = named if named is not None else (b"v1", b"")
        mark = ("", service, version, method) if route is None else (route.id, b"", version, method)
        match = self._matches.get(mark) if snapshot is self._snapshot else None
        if match is None:
            match = _found(snapshot, route, named, method, path)
            match.mark = mark
            if snapshot.limits:
                match.limits = snapshot.limits
        return match

    def remember(self, exchange: Exchange, match: Match) -> None:
        """``match`` is what the exchange's own host, method and path led to in its snapshot."""
        if exchange.snapshot is not self._snapshot:
            return
        if match.mark not in self._matches:
            self._keep(match)
        if exchange.is_conditional or len(exchange.raw_path) > _MAX_PATH:
            return
        asked = (exchange.raw_path, exchange.method, exchange.identity.host)
        seen = hash(asked)
        if seen not in self._seen:
            if len(self._seen) >= _MAX_SEEN:
                self._seen.clear()
            self._seen.add(seen)
            return
        if len(self._paths) >= _MAX_PATHS:
            self._paths = {}
        self._paths[asked] = KnownPath(match, exchange.path, _most(len(self._paths)))

    def _keep(self, match: Match) -> None:
        if len(self._matches) >= _MAX_MATCHES:
            self._matches = {}
        match.keep(_most(len(self._matches)))
        assert match.mark is not None  # `find` has marked it
        self._matches[match.mark] = match


def _most(known: int) -> int:
    return _MAX_GRANTS if known < _BUSIEST else _MAX_GRANTS_LATER

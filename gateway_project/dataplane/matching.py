"""Step 3: what a request leads to, and a memory of it.

The same few endpoints are asked for again and again, so what host, method and path lead to is remembered until the
configuration changes, together with what was granted there to whom. The memory is bounded, only requests that were
authorized enter it, so that nobody else can fill it, and only when they come a second time, so that paths that are
new each time cost no more than finding their way.
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

_MAX_REMEMBERED = 4096
_MAX_SEEN = 4096
_MAX_PATH = 512
# Of applications, and of keys, with each match: for the busiest paths, which are remembered first, and for the others.
_MAX_GRANTS, _MAX_GRANTS_LATER, _BUSIEST = 1024, 32, 128

Choice = tuple[VersionRecord, TargetGroup, bytes]  # and the path to ask for


Step = Callable[[Exchange, "Match"], bool]
Listed = tuple[str, AddressRules]  # whose list it is, in words


class Match:
    """What host, method and path lead to. One of ``service`` and ``queue_route`` is set, or it is an
    `AggregateMatch`."""

    __slots__ = (
        "_choices",
        "_grants",
        "_most",
        "_request_paths",
        "addresses",
        "api_version",
        "cache_scope",
        "caching",
        "destination",
        "is_conditional",
        "is_open",
        "limits",
        "max_body_bytes",
        "method",
        "origins",
        "path",
        "queue_route",
        "required",
        "route",
        "service",
        "steps",
        "template",
        "terms",
        "transformer",
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
        self.is_conditional = False  # header fields or the query led here: never to be remembered
        led_to: Any = service or queue_route
        self.destination: str = led_to.name if led_to is not None else ""
        self.template: str = route.template if route is not None else led_to.template
        self.max_body_bytes: int | None = route.max_body_bytes if route is not None else None
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
        # By application, by version and by key, once the match is remembered.
        self._grants: dict[str, Grant] | None = None
        self._choices: dict[str, Choice] | None = None
        self._request_paths: dict[str, bytes] | None = None

    def keep(self, most: int) -> None:
        """From now on, what follows from the match is remembered with it, for so many callers."""
        self._most = most
        self._grants = {}
        self._request_paths = {}
        self._choices = {}

    def grant(self, application: ApplicationRecord) -> Grant:
        """What ``application`` may do here. Raises PolicyDenied."""
        grants = self._grants
        grant = grants.get(application.id) if grants is not None else None
        if grant is None:
            if application.tenant_id != self.tenant_id:  # "*" never crosses tenants (rule 26)
                raise service_not_allowed(application, self.destination)
            grant = self._limited(self.authorize(application), application)
            if grants is not None and len(grants) < self._most:
                grants[application.id] = grant
        return grant

    def open_grant(self, grant: Grant, to: str, application: ApplicationRecord | None) -> Grant:
        """``grant``, which the match does not know of, with the limits that hold here. ``to`` tells it from others."""
        if self.limits is None and (self.route is None or self.route.charging is None):
            return grant
        grants = self._grants
        limited = grants.get(to) if grants is not None else None
        if limited is None:
            limited = self._limited(grant, application)
            if grants is not None and len(grants) < self._most:
                grants[to] = limited
        return limited

    def _limited(self, grant: Grant, application: ApplicationRecord | None) -> Grant:
        charging = self.route.charging if self.route is not None else None
        cost = charging.cost if charging is not None else 1
        if self.limits is None and cost == 1:
            return grant
        plan = (self.limits or LimitIndex()).plan(self._place(application), grant.limit, cost)
        return grant if plan is None else replace(grant, plan=plan)

    @property
    def tenant_id(self) -> str:
        """Whose the service, the queue route or the aggregate is."""
        led_to = self.service or self.queue_route or self.route
        return led_to.tenant_id if led_to is not None else ""

    def _place(self, application: ApplicationRecord | None) -> Place:
        route = self.route
        return Place(
            tenant_id=application.tenant_id if application is not None else self.tenant_id,
            application_id=application.id if application is not None else "",
            application=application.name if application is not None else "",
            services=self.destinations,
            route=route.name if route is not None else "",
            endpoint=self.template,
            method=self.method,
            path=self.path,
            bundles=frozenset[str]().union(
                *(each.bundles for each in (application, self.service, route) if each is not None)
            ),
        )

    @property
    def destinations(self) -> tuple[str, ...]:
        """The names of all that it leads to."""
        return (self.destination,)

    def authorize(self, application: ApplicationRecord) -> Grant:
        """Raises PolicyDenied."""
        return authorize(application, self.destination, self.path, self.method)

    def public_entry(self, index: PublicIndex, method: bytes) -> tuple[ApplicationRecord, EntryRecord] | None:
        """What lets an anonymous request pass, if anything does (rule 6)."""
        return index.find(self.path, method, self.destination, tenant_id=self.tenant_id)

    def usual_version(
        self, caller: KeyRecord | Identity, grant: Grant, raw_path: bytes, registry: TargetRegistry
    ) -> Choice:
        """The version that answers ``caller`` where the request names none, its targets, and the path to ask them for:
        the split goes by key, or by user, so it is always the same. Raises GatewayFault."""
        choices = self._choices
        choice = choices.get(caller.id) if choices is not None else None
        if choice is None:
            service = self.served_by()
            version = choose_version(service, grant.versions, None, caller.point)
            choice = version, registry.group(service, version), self.request_path(version, raw_path)
            if choices is not None and len(choices) < self._most:
                choices[caller.id] = choice
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
        path: bytes,
        method: bytes,
        route: RouteRecord,
        aggregate: Aggregate,
        api_version: bytes,
        services: Iterable[ServiceRecord],
    ) -> None:
        super().__init__(path, method, route, None, None, api_version)
        self.aggregate = aggregate
        self.addresses = _lists(route, services)
        self.required = required_by(route, services)
        self.is_open = is_open(route, self.required)

    @property
    def destinations(self) -> tuple[str, ...]:
        return tuple(self.aggregate.services)

    def authorize(self, application: ApplicationRecord) -> Grant:
        # One path and method: the same entry decides for all of them, and its grant is the same.
        return [authorize(application, name, self.path, self.method) for name in self.aggregate.services][-1]

    def public_entry(self, index: PublicIndex, method: bytes) -> tuple[ApplicationRecord, EntryRecord] | None:
        first, *others = self.aggregate.services
        return index.find(self.path, method, first, others, tenant_id=self.tenant_id)


def find_match(snapshot: Snapshot, host: bytes, method: bytes, path: bytes, fields: RequestFields | None) -> Match:
    """What the request leads to (rules 2, 3); ``path`` is canonical. Where ``fields`` have been read, another request
    for the same may lead elsewhere. Raises ClientFault."""
    match = _found(snapshot, host, method, path, fields)
    if snapshot.limits:
        match.limits = snapshot.limits
    return match


def _found(snapshot: Snapshot, host: bytes, method: bytes, path: bytes, fields: RequestFields | None) -> Match:
    route = snapshot.routes.match(host, path, method, fields)
    if has_empty_segment(path) and not (route is not None and route.allow_empty_segments):
        raise ClientFault("bad_path", "The path holds an empty segment (//).")
    named = implicit(path)
    if route is not None and route.aggregate is not None:
        services = [found for name in route.aggregate.services if (found := snapshot.services.get(name)) is not None]
        return AggregateMatch(path, method, route, route.aggregate, named[0] if named is not None else b"v1", services)
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
        match.keep(_MAX_GRANTS if len(self._matches) < _BUSIEST else _MAX_GRANTS_LATER)
        self._matches[asked] = match

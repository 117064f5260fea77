"""What goes on for long stands on the configuration as it is now, not as it was when it began (rules 11, 12).

WebSockets, event streams and every other answer that is under way are looked at again when the configuration has
changed: they end, visibly, once their key, application, service or route does not allow them any longer.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from access.tokens.requirements import Requirement
from core.context import Exchange
from core.faults import PolicyDenied
from gateway_project.dataplane.matching import AggregateMatch, Match, is_open, required_by
from gateway_project.dataplane.snapshot import Snapshot
from keys.records import KeyRecord
from routing.forwarding import Forwarding
from routing.records import RouteRecord

if TYPE_CHECKING:
    from gateway_project.dataplane.app import Gateway

_LOOK_S = 0.6  # how often those are looked for whose key has expired, or which began just before a change
_SLICE = 500  # looked at in one turn of the loop

_Long = tuple[Exchange, Callable[[], None]]


class Revocation:
    """Driven by the worker's sweep."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._snapshot: Snapshot | None = None
        self._revoked = 0  # the number of the latest revocation of our own tokens that was looked at
        self._epoch: object = None  # of issuers' keys
        self._next_look = 0.0
        self._is_looking = False

    def sweep(self, now: float) -> None:
        snapshot, tokens = self._gateway.link.snapshot, self._gateway.tokens
        revoked, epoch = tokens.revocations.number, tokens.epoch
        is_news = snapshot is not self._snapshot or revoked != self._revoked or epoch is not self._epoch
        if self._is_looking or (not is_news and now < self._next_look):
            return
        self._snapshot, self._revoked, self._epoch = snapshot, revoked, epoch
        self._next_look = now + _LOOK_S
        self._look(self._under_way(), snapshot, 0)

    def _under_way(self) -> list[_Long]:
        gateway = self._gateway
        found: list[_Long] = [(tunnel.exchange, tunnel.revoke) for tunnel in gateway.tunnels.open_ones]
        for forwarding in gateway.forwarder.active:
            exchange = forwarding.exchange
            if exchange.status and exchange.match is not None:
                found.append((exchange.part_of or exchange, partial(_cut_off, forwarding)))
        return found

    def is_still_known(self, exchange: Exchange) -> bool:
        """Of a request that was held: whether whoever it was admitted as would still be somebody. All else stays as it
        was when the request came."""
        snapshot, user = self._gateway.link.snapshot, exchange.user
        is_news = exchange.snapshot is not snapshot
        if user is not None:
            tokens, epoch = self._gateway.tokens, time.time()
            if not tokens.holds(user, epoch):
                return False
            if (is_news or exchange.session.known_by is not tokens.epoch) and tokens.as_of_now(exchange, epoch) is None:
                return False
        return not is_news or _is_live(snapshot, exchange)

    def _look(self, under_way: list[_Long], snapshot: Snapshot, start: int) -> None:
        epoch = time.time()
        is_too_old = self._gateway.is_config_too_old  # then no credential is trusted (MAX_CONFIG_AGE)
        for exchange, revoke in under_way[start : start + _SLICE]:
            is_known = exchange.key is not None or exchange.user is not None or exchange.certificate is not None
            if (
                (is_too_old and is_known)
                or (exchange.user is not None and not self._has_token_of_now(exchange, epoch))
                or not may_go_on(snapshot, self._gateway.link.route, exchange, epoch)
            ):
                revoke()
        start += _SLICE
        self._is_looking = start < len(under_way)
        if self._is_looking:
            self._gateway.loop.call_soon(self._look, under_way, snapshot, start)

    def _has_token_of_now(self, exchange: Exchange, epoch: float) -> bool:
        """If so, the exchange stands on what is said of its user now."""
        link = self._gateway.link
        user = self._gateway.tokens.as_of_now(exchange, epoch)
        if user is None or user is exchange.user:
            return user is not None
        exchange.user = user
        return _is_met(link.snapshot, link.route, exchange)


def _is_live(snapshot: Snapshot, exchange: Exchange) -> bool:
    """Whether the key or certificate that an exchange came with, and the application whose it is, are in force."""
    key, certificate, application = exchange.key, exchange.certificate, exchange.application
    if key is not None:
        current = snapshot.keys.get(key.digest)
        if current is None or (current.expires_at is not None and current.expires_at <= time.time()):
            return False
    if certificate is not None and (application is None or snapshot.certificates.find(certificate) != application.id):
        return False
    is_known = key is not None or certificate is not None or exchange.user is not None
    return not is_known or application is None or application.id in snapshot.applications


def _cut_off(forwarding: Forwarding) -> None:
    """End an answer that is under way: its truncation is visible."""
    exchange = forwarding.exchange
    exchange.fault_code = "invalid_credentials"
    forwarding.client_gone()
    exchange.abort()


def may_go_on(
    snapshot: Snapshot, route_of: Callable[[str], RouteRecord | None], exchange: Exchange, epoch: float
) -> bool:
    """Whether what the exchange was allowed holds in ``snapshot``; if so, the exchange stands on that one from now on.
    ``route_of`` finds an explicit route by id; ``epoch`` is now in epoch seconds. Whether a user's token holds is told
    by `Tokens.as_of_now`."""
    key = exchange.key
    if key is not None and not _is_allowed_now(key, exchange, epoch):
        return False
    if exchange.certificate is not None and not exchange.certificate.is_valid(epoch):
        return False
    if exchange.snapshot is snapshot:
        return True
    if not _leads_there(snapshot, route_of, exchange) or not _is_listed(snapshot, route_of, exchange):
        return False
    if not _is_met(snapshot, route_of, exchange):
        return False
    if key is not None:
        key = exchange.key = snapshot.keys.get(key.digest)
        if key is None or not _is_allowed_now(key, exchange, epoch):
            return False
    application = exchange.application
    if application is not None and not _is_granted(snapshot, route_of, exchange, application):
        return False
    exchange.snapshot = snapshot
    return True


def _is_allowed_now(key: KeyRecord, exchange: Exchange, epoch: float) -> bool:
    """A key's end, and the end of the hours in which it may be used, end what was begun with it. Where no key is
    required, one that is restricted does no harm."""
    if key.watched_from is None or key.watched_from > epoch:
        return True
    if key.expires_at is not None and key.expires_at <= epoch:
        return False
    match = exchange.match
    if key.restrictions is None or match.is_open:
        return True
    return key.restrictions.refusal(exchange.identity.client, match.destinations, epoch) is None


def _leads_there(snapshot: Snapshot, route_of: Callable[[str], RouteRecord | None], exchange: Exchange) -> bool:
    """Whether the service is still there, and the way to it, whatever else has changed about them."""
    match = exchange.match
    if match.service is None:
        return True  # a route that leads to no service of its own
    service = snapshot.services.get(match.service.name)
    if service is None or not service.is_active:
        return False
    if exchange.version is not None and exchange.version.name not in service.versions:
        return False
    if match.route is None:
        return service.implicit
    route = route_of(match.route.id)
    return route is not None and route.is_active and route.service == service.name


def _is_met(snapshot: Snapshot, route_of: Callable[[str], RouteRecord | None], exchange: Exchange) -> bool:
    """Whether the caller has brought what must be brought there now."""
    key, user = exchange.key, exchange.user
    route, required = _asked_for(snapshot, route_of, exchange.match)
    if key is None and user is None and exchange.certificate is None:
        return is_open(route, required) or (required is None and exchange.application is not None)
    if required is None:
        return True
    try:
        scopes = key.scopes if key is not None else () if exchange.certificate is not None else None
        required.judge(scopes, user)
    except PolicyDenied:
        return False
    return True


def _asked_for(
    snapshot: Snapshot, route_of: Callable[[str], RouteRecord | None], match: Match
) -> tuple[RouteRecord | None, Requirement | None]:
    """The route, if one led there, and what must be brought."""
    route = route_of(match.route.id) if match.route is not None else None
    services = [found for name in _services(match) if (found := snapshot.services.get(name)) is not None]
    return route, required_by(route, services)


def _services(match: Match) -> tuple[str, ...]:
    return match.aggregate.services if isinstance(match, AggregateMatch) else (match.destination,)


def _is_listed(snapshot: Snapshot, route_of: Callable[[str], RouteRecord | None], exchange: Exchange) -> bool:
    """Whether the lists of addresses, as they are now, admit the client (A12)."""
    match, client = exchange.match, exchange.identity.client
    route = route_of(match.route.id) if match.route is not None else None
    holders: list[Any] = [snapshot.gateway, route, *(snapshot.services.get(name) for name in _services(match))]
    if exchange.application is not None:
        holders.append(snapshot.applications.get(exchange.application.id))
    return all(holder is None or holder.addresses is None or holder.addresses.permits(client) for holder in holders)


def _is_granted(
    snapshot: Snapshot, route_of: Callable[[str], RouteRecord | None], exchange: Exchange, application: Any
) -> bool:
    """Whether the application may still do this, and the caller still is of it."""
    match = exchange.match
    is_by_token_alone = exchange.user is not None and exchange.key is None and exchange.certificate is None
    if exchange.key is None and exchange.certificate is None and not is_by_token_alone:
        found = match.public_entry(snapshot.public, exchange.path, match.method)
        return found is not None and found[0].id == application.id
    current = snapshot.applications.get(application.id)
    if current is None or (not is_by_token_alone and _owner(snapshot, exchange) != current.id):
        return False
    try:
        grant = match.authorize(current, exchange.path)
    except PolicyDenied:
        exchange.application = current
        return is_open(*_asked_for(snapshot, route_of, match))  # who is known has no less than who is not
    exchange.application = current
    version = exchange.version
    return version is None or grant.versions is None or version.name in grant.versions


def _owner(snapshot: Snapshot, exchange: Exchange) -> str | None:
    """The id of the application whose the key or the certificate is now."""
    if exchange.certificate is not None:
        return snapshot.certificates.find(exchange.certificate)
    owner: str | None = exchange.key.application_id
    return owner

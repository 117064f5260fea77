"""Step 9 of the pipeline: a stored answer ends the trip here, or the way to the upstream is made to store one.

RFC 9111 for a shared cache, with stale-while-revalidate and stale-if-error (RFC 5861), collapsed requests (section 4),
targeted directives (RFC 9213) and Cache-Status (RFC 9211). One per worker; nothing here waits: what cannot be answered
at once is forwarded, or waits for a request that already is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Protocol
from urllib.parse import urljoin, urlsplit

from core.context import Exchange
from core.faults import GatewayFault, InternalFault
from core.uri_path import canonical_path
from routing.answers import AnswerHead, through_filters
from routing.cache.asking import PLAIN, Asked, owner_of, read_asked, varies_alike
from routing.cache.dropping import Place, Rule
from routing.cache.fetching import CachedMatch, Fetch, Forward, Invalidating, Noting
from routing.cache.pouring import LARGE, deliver
from routing.cache.purges import PurgeBook
from routing.cache.serving import serve
from routing.cache.store import EVERYBODY, Key, Resource, Store, StoredAnswer
from routing.inner_exchange import InnerExchange
from routing.policies import Caching

COLLAPSE_WAIT_S = 5.0  # for a request that is on its way; then everybody goes alone
_MAX_FOLLOWERS = 10_000  # of one request
_SLICE = 50  # followers answered in one go of the event loop
_NOT_SHARED_S = 10.0  # how long it is remembered that an answer was for nobody else
_MAX_REMEMBERED = 4096
_TELL_S = 0.01  # in which what is to be told gathers
# RFC 9110 section 9.2.1, and those of the registry that are safe; any other method may change something.
SAFE = frozenset((b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"QUERY", b"PROPFIND", b"REPORT", b"SEARCH"))
_FWD_METHOD = b"cache-status: portcullis; fwd=method\r\n"
_FWD_BYPASS = b"cache-status: portcullis; fwd=bypass\r\n"


class Host(Protocol):
    """The worker, as the cache needs it."""

    @property
    def loop(self) -> asyncio.AbstractEventLoop: ...
    @property
    def now(self) -> Callable[[], float]: ...
    def refuse(self, exchange: Exchange, fault: GatewayFault) -> None: ...
    def unexpected(self, error: BaseException) -> GatewayFault: ...


class Tier(Protocol):
    """A slower cache that several workers share (`routing.cache.shared_tier`)."""

    @property
    def is_usable(self) -> bool: ...
    async def find(self, fetch: Fetch) -> StoredAnswer | None: ...
    def keep(self, fetch: Fetch, answer: StoredAnswer) -> None: ...
    def drop_place(self, place: Place, service: str) -> None: ...
    async def close(self) -> None: ...


class Flight:
    """A request on its way to the upstream, and those that wait for what comes of it."""

    __slots__ = ("fetch", "followers", "key", "timer")

    def __init__(self, key: Key, fetch: Fetch) -> None:
        self.key = key
        self.fetch = fetch
        self.followers: dict[Follower, None] = {}
        self.timer: asyncio.TimerHandle | None = None


class Follower:
    """A request that waits for the same answer."""

    __slots__ = ("arrived", "asked", "exchange", "forward", "match", "policy", "resource")

    def __init__(
        self,
        exchange: Exchange,
        match: CachedMatch,
        policy: Caching,
        resource: Resource,
        asked: Asked,
        forward: Forward,
        arrived: float,
    ) -> None:
        self.exchange = exchange
        self.match = match
        self.policy = policy
        self.resource = resource
        self.asked = asked
        self.forward = forward
        self.arrived = arrived


class Cache:
    """``via`` is our own field line. ``tell``, where it is set, passes places that unsafe requests
    have made void on to the host's other workers."""

    def __init__(
        self,
        host: Host,
        limit: int,
        via: bytes,
        make_tier: Callable[[PurgeBook], Tier] | None = None,
    ) -> None:
        self._host = host
        self.now = host.now
        self.via = via
        self.store = Store(limit)
        self.purges = PurgeBook()
        self.tier: Tier | None = None  # made when a policy asks for it
        self._make_tier = make_tier
        self.tell: Callable[[list[list[str | None]]], bool] | None = None
        self._untold: dict[tuple[str, Place], None] = {}
        self.counts: dict[tuple[str, bytes], int] = {}  # by service and result
        self._flights: dict[Key, Flight] = {}
        self._not_shared: dict[Resource, tuple[bool, float, bool]] = {}  # for its owner? until when, does it vary
        self._tasks: set[asyncio.Task[None]] = set()

    # --- the step ---
    def answers(self, exchange: Exchange, match: CachedMatch, policy: Caching, forward: Forward) -> bool:
        """Whether the request is dealt with, now or later. If not, whoever asks forwards it, and the exchange's filters
        see to the rest. ``forward`` sends an exchange to the upstream that was chosen for this one.

        Raises GatewayFault.
        """
        if exchange.method not in (b"GET", b"HEAD"):
            self._pass_by(exchange, match, policy)
            return False
        service = match.service
        if service is None or exchange.has_body or b"upgrade" in exchange.noted:
            self._bypass(exchange, match)
            return False
        origin = exchange.identity.origin
        resource = (match.cache_scope, exchange.version.name, origin, exchange.raw_path, exchange.query)
        asked = read_asked(exchange, heeds_directives=policy.heed_clients)
        if asked.is_for_origin:
            self._bypass(exchange, match)
            return False
        now = self.now()  # the request may have waited for its turn on the connection
        answer = self._find(exchange, resource)
        if answer is not None and asked is PLAIN and answer.fresh_until > now:  # most requests
            self._hit(exchange, match, answer, now)
            return True
        follower = Follower(exchange, match, policy, resource, asked, forward, now)
        return self._answers_otherwise(follower, answer, may_wait=True)

    def _find(self, exchange: Exchange, resource: Resource) -> StoredAnswer | None:
        owner = owner_of(exchange)
        if owner is not None:
            for answer in self.store.variants((owner, resource)) or ():
                if not answer.vary or varies_alike(exchange, answer.vary):
                    return answer
        for answer in self.store.variants((EVERYBODY, resource)) or ():
            if not answer.vary or varies_alike(exchange, answer.vary):
                return answer
        return None

    def _hit(self, exchange: Exchange, match: CachedMatch, answer: StoredAnswer, now: float) -> None:
        said = b"age: %d\r\ncache-status: portcullis; hit; ttl=%d\r\n" % (
            answer.initial_age_s + now - answer.at,
            answer.fresh_until - now,
        )
        self.count(match, b"hit")
        if exchange.filters or answer.size > LARGE:
            deliver(exchange, through_filters(exchange, self.via + said), *serve(answer, PLAIN, exchange.method, []))
        else:
            exchange.answer(answer.status, b"".join((answer.head, said, self.via, exchange.answer_lines)), answer.body)

    def _answers_otherwise(self, request: Follower, answer: StoredAnswer | None, *, may_wait: bool) -> bool:
        """Not a plain hit: what is stored is used with care, waited for, or asked for."""
        now, asked, policy = self.now(), request.asked, request.policy
        if answer is not None:
            if asked.accepts(answer, now):
                self._serve(request, answer, b"hit; ttl=%d" % -answer.staleness_s(now), b"hit")
                return True
            may_wait_for_news = not (asked.no_cache or asked.max_age_s is not None or asked.min_fresh_s)
            if may_wait_for_news and 0 <= answer.staleness_s(now) <= answer.while_revalidate_s:
                self._serve(
                    request, answer, b"hit; ttl=%d; detail=stale-while-revalidate" % -answer.staleness_s(now), b"stale"
                )
                if not answer.is_revalidating:
                    self._revalidate(request, answer)
                return True
        if asked.only_if_cached:
            self.count(request.match, b"miss")
            request.exchange.measured = None  # its 504 says nothing of the version
            raise InternalFault("not_cached", "The request wants a stored answer alone, and none can be used.")
        return self._fetch(request, answer, may_wait=may_wait and policy.collapse)

    def _serve(self, request: Follower, answer: StoredAnswer, status: bytes, result: bytes) -> None:
        exchange = request.exchange
        said = [b"age: %d\r\n" % answer.age_s(self.now()), b"cache-status: portcullis; " + status + b"\r\n"]
        self.count(request.match, result)
        head, body = serve(answer, request.asked, exchange.method, said)
        deliver(exchange, through_filters(exchange, self.via), head, body)

    # --- towards the upstream ---
    def _fetch(self, request: Follower, answer: StoredAnswer | None, *, may_wait: bool) -> bool:
        exchange, asked, resource = request.exchange, request.asked, request.resource
        if answer is None and (
            asked.range is not None or exchange.method == b"HEAD" or self._is_private(resource, request.policy)
        ):
            # The whole may be large, and a part of it or its head alone are not kept. Where nothing can be kept, the
            # client's own conditions spare the upstream work.
            self.count(request.match, b"miss")
            exchange.filters += (partial(Noting, line=b"cache-status: portcullis; fwd=uri-miss\r\n"),)
            return False
        fetch = Fetch(
            self,
            exchange,
            request.match,
            request.policy,
            resource,
            asked,
            answer,
            self._reason(exchange, resource, asked, answer),
            request.forward,
        )
        if may_wait and exchange.method == b"GET" and not (asked.no_store or asked.no_cache):
            key = self._flight_key(exchange, resource)
            if key is not None:
                flight = self._flights.get(key)
                if flight is not None and len(flight.followers) < _MAX_FOLLOWERS:
                    self._follow(flight, request)
                    return True
                self._lead(fetch, key)
        exchange.left = fetch.failed
        if not asked.no_cache and (tier := self._tier_for(request.policy)) is not None:
            self._spawn(self._ask_tier(fetch, request, tier))
        else:
            self._send(fetch)
        return True

    def _tier_of(self, policy: Caching) -> Tier | None:
        if not policy.shared or self._make_tier is None:
            return None
        if self.tier is None:
            self.tier = self._make_tier(self.purges)
        return self.tier

    def _tier_for(self, policy: Caching) -> Tier | None:
        """Where it can be asked now."""
        tier = self._tier_of(policy)
        return tier if tier is not None and tier.is_usable else None

    def _reason(self, exchange: Exchange, resource: Resource, asked: Asked, answer: StoredAnswer | None) -> bytes:
        """RFC 9211 section 2.2."""
        if answer is not None:
            return b"request" if answer.staleness_s(self.now()) < 0 else b"stale"
        owner = owner_of(exchange)
        is_known = self.store.variants((EVERYBODY, resource)) or (
            owner is not None and self.store.variants((owner, resource))
        )
        return b"vary-miss" if is_known else b"uri-miss"

    def _send(self, fetch: Fetch) -> None:
        try:
            fetch.send()
        except Exception:  # whatever it is, nobody shall wait for it
            self.land(fetch, None)
            raise
        if fetch.exchange.fault_code:  # refused before anything was sent
            self.land(fetch, None)

    def guarded(self, exchange: Exchange, act: Callable[[], Any]) -> None:
        """Do what the pipeline is not there to answer for."""
        try:
            act()
        except GatewayFault as fault:
            self._host.refuse(exchange, fault)
        except Exception as error:
            self._host.refuse(exchange, self._host.unexpected(error))

    async def _ask_tier(self, fetch: Fetch, request: Follower, tier: Tier) -> None:
        """First the tier, then the upstream."""
        try:
            answer = await tier.find(fetch)
        except Exception as error:  # a mistake of ours must not leave anybody waiting
            self._host.unexpected(error)
            answer = None
        if fetch.is_gone:
            return
        now = self.now()
        if answer is None or not request.asked.accepts(answer, now) or not self.store.put(answer, fetch.since):
            self.guarded(fetch.exchange, lambda: self._send(fetch))
            return
        if fetch.is_background:
            fetch.exchange.cancel()  # type: ignore[attr-defined]  # an InnerExchange
        else:
            status = b"hit; ttl=%d; detail=shared" % -answer.staleness_s(now)
            self.guarded(fetch.exchange, lambda: self._serve(request, answer, status, b"hit"))
        self.land(fetch, answer)

    def _revalidate(self, request: Follower, answer: StoredAnswer) -> None:
        """RFC 5861 section 3: whoever asked has been answered; this one is for those who come later."""
        of = request.exchange

        def done(_: InnerExchange) -> None:
            answer.is_revalidating = False
            self.land(fetch, None)

        answer.is_revalidating = True
        inner = InnerExchange(
            of,
            done,
            method=b"GET",
            raw_path=of.raw_path,
            query=of.query,
            passed=of.passed,
            limit=request.policy.max_object_bytes,
            started=self.now(),
        )
        inner.noted = of.noted  # what it varies by, and what Connection names
        fetch = Fetch(
            self,
            inner,
            request.match,
            request.policy,
            request.resource,
            PLAIN,
            answer,
            b"stale",
            request.forward,
        )
        fetch.is_background = True
        key = self._flight_key(of, request.resource)
        if request.policy.collapse and key is not None and key not in self._flights:
            self._lead(fetch, key)
        tier = self._tier_for(request.policy)
        if tier is None:
            self._host.loop.call_soon(self.guarded, inner, lambda: self._send(fetch))
        else:
            self._spawn(self._ask_tier(fetch, request, tier))

    # --- collapsed requests ---
    def _flight_key(self, exchange: Exchange, resource: Resource) -> Key | None:
        """Whom the same answer may serve, as far as is known; None: nobody else."""
        known = self._not_shared.get(resource)
        if known is None:
            return EVERYBODY, resource
        is_owners, until, _ = known
        if until <= self.now():
            del self._not_shared[resource]
            return EVERYBODY, resource
        if is_owners and (owner := owner_of(exchange)) is not None:
            return owner, resource
        return None

    def _is_private(self, resource: Resource, policy: Caching) -> bool:
        """Whether the answer to another request, a moment ago, could be kept for nobody. With the policy's help it may
        be found in the tier all the same."""
        known = self._not_shared.get(resource)
        if known is None or policy.shared:
            return False
        is_owners, until, varies = known
        return not is_owners and not varies and until > self.now()

    def _lead(self, fetch: Fetch, key: Key) -> None:
        if key not in self._flights:
            fetch.flight = self._flights[key] = Flight(key, fetch)

    def _follow(self, flight: Flight, request: Follower) -> None:
        flight.followers[request] = None
        flight.fetch.is_awaited_now()
        request.exchange.left = lambda: flight.followers.pop(request, None)
        if flight.timer is None:
            flight.timer = self._host.loop.call_later(COLLAPSE_WAIT_S, self._wait_no_longer, flight)

    def _wait_no_longer(self, flight: Flight) -> None:
        if self._flights.get(flight.key) is flight:
            del self._flights[flight.key]
        self._release(flight, self._go_alone)

    def keep(self, fetch: Fetch, answer: StoredAnswer) -> None:
        """An answer is whole and may be kept."""
        if self.store.put(answer, fetch.since) and (tier := self._tier_for(fetch.policy)) is not None:
            tier.keep(fetch, answer)
        if answer.key[0] != EVERYBODY:
            self._remember_not_shared(fetch.resource, is_owners=True)
        self.land(fetch, answer)

    def land(
        self, fetch: Fetch, answer: StoredAnswer | None, *, is_private: bool = False, varies: bool = False
    ) -> None:
        """What comes of the fetch is known: this answer, or none that another request could be given. ``is_private``:
        because of what it says, so that it will be the same with the next one, unless it ``varies``."""
        if is_private:
            self._remember_not_shared(fetch.resource, is_owners=False, varies=varies)
        flight = self._take_off_list(fetch)
        if flight is None:
            return
        if answer is None:
            self._release(flight, self._go_alone)
        else:
            self._release(flight, partial(self._go_on, answer=answer))

    def land_for_another(self, fetch: Fetch) -> None:
        """Whoever asked has gone: the next one asks in its place."""
        flight = self._take_off_list(fetch)
        if flight is not None:
            self._release(flight, partial(self._go_on, answer=None))

    def _take_off_list(self, fetch: Fetch) -> Flight | None:
        flight: Flight | None = fetch.flight
        fetch.flight = None
        if flight is not None and self._flights.get(flight.key) is flight:
            del self._flights[flight.key]
        return flight

    def _remember_not_shared(self, resource: Resource, *, is_owners: bool, varies: bool = False) -> None:
        if len(self._not_shared) >= _MAX_REMEMBERED:
            self._not_shared.clear()
        self._not_shared[resource] = is_owners, self.now() + _NOT_SHARED_S, varies

    def _release(self, flight: Flight, go: Callable[[Follower], None]) -> None:
        """In slices, and after whoever led: they may be thousands."""
        if flight.timer is not None:
            flight.timer.cancel()
        if flight.followers:
            self._host.loop.call_soon(self._release_some, flight, go)

    def _release_some(self, flight: Flight, go: Callable[[Follower], None]) -> None:
        for request in list(flight.followers)[:_SLICE]:
            if flight.followers.pop(request, request) is None:  # else it has left meanwhile
                request.exchange.left = None
                self.guarded(request.exchange, partial(go, request))
        if flight.followers:
            self._host.loop.call_soon(self._release_some, flight, go)

    def _go_alone(self, request: Follower) -> None:
        if not self._fetch(request, self._find(request.exchange, request.resource), may_wait=False):
            request.forward(request.exchange)

    def _go_on(self, request: Follower, answer: StoredAnswer | None) -> None:
        """``answer`` is what the one that was waited for has got; None: it has left."""
        found = self._find(request.exchange, request.resource)
        if found is not None and request.asked.accepts(found, self.now()):
            self._serve(request, found, b"fwd=uri-miss; collapsed", b"collapsed")
            return
        is_anothers = answer is not None and answer.key[0] != EVERYBODY and found is None
        may_wait = (answer is None or is_anothers) and self.now() - request.arrived < COLLAPSE_WAIT_S
        if not self._answers_otherwise(request, found, may_wait=may_wait):
            request.forward(request.exchange)

    # --- what the cache has no part in ---
    def _bypass(self, exchange: Exchange, match: CachedMatch) -> None:
        self.count(match, b"bypass")
        exchange.filters += (partial(Noting, line=_FWD_BYPASS),)

    def _pass_by(self, exchange: Exchange, match: CachedMatch, policy: Caching) -> None:
        exchange.filters += (partial(Noting, line=_FWD_METHOD),)
        if exchange.method not in SAFE:
            exchange.filters += (partial(Invalidating, succeeded=partial(self._succeeded, exchange, match, policy)),)

    def voiding_step(self, read: CachedMatch) -> Callable[[Exchange, CachedMatch], bool]:
        """For unsafe requests that lead elsewhere than ``read``, which is what a GET of the same URL leads to."""
        policy = read.caching
        assert policy is not None

        def step(exchange: Exchange, match: CachedMatch) -> bool:
            exchange.filters += (partial(Invalidating, succeeded=partial(self._succeeded, exchange, read, policy)),)
            return False  # it answers nothing itself

        return step

    def _succeeded(self, exchange: Exchange, match: CachedMatch, policy: Caching, head: AnswerHead) -> None:
        """RFC 9111 section 4.4: of the request's own URL, and of those that the answer names on the same host."""
        service = match.service
        if service is None:
            return
        places = {(exchange.path, exchange.query)}
        for name in (b"location", b"content-location"):
            for value in head.values(name):
                place = _same_host(value, exchange)
                if place is not None:
                    places.add(place)
        tier = self._tier_of(policy)
        for place in places:
            self.drop_place(place, service.name)
            if self.tell is not None:
                self._tell_soon(place, service.name)
            if tier is not None:
                tier.drop_place(place, service.name)

    # --- dropping ---
    def take_purges(self, message: Mapping[str, Any]) -> None:
        """The agent's ``purges`` (`core.wire`)."""
        for rule in self.purges.take(message):
            self.purge(rule)

    def drop_place(self, place: Place, service: str) -> None:
        self.store.drop_place(place, service)

    def take_dropped(self, message: Mapping[str, Any]) -> None:
        """What another worker says (`core.wire`)."""
        for service, path, query in message["places"]:
            place = path.encode("latin-1"), None if query is None else query.encode("latin-1")
            self.drop_place(place, service)

    def _tell_soon(self, place: Place, service: str) -> None:
        if not self._untold:
            self._host.loop.call_later(_TELL_S, self._tell_now)
        self._untold[service, place] = None

    def _tell_now(self) -> None:
        untold, self._untold = self._untold, {}
        places = [
            [service, path.decode("latin-1"), None if query is None else query.decode("latin-1")]
            for service, (path, query) in untold
        ]
        if self.tell is not None:
            self.tell(places)

    def purge(self, rule: Rule) -> None:
        """In force at once; what it covers is taken out in slices."""
        self._step(self.store.drop_covered(rule))

    def _step(self, steps: Iterator[None]) -> None:
        if next(steps, self) is None:
            self._host.loop.call_soon(self._step, steps)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self.tier is not None:
            await self.tier.close()

    # --- numbers ---
    def count(self, match: CachedMatch, result: bytes) -> None:
        counted = match.service.name if match.service is not None else "", result
        self.counts[counted] = self.counts.get(counted, 0) + 1

    def counters(self) -> list[list[Any]]:
        """As `gateway_project.dataplane.metrics` sends them to the agent."""
        return [
            ["api_gateway_cache_requests_total", {"service": service, "result": result.decode("ascii")}, number]
            for (service, result), number in self.counts.items()
        ]

    def gauges(self) -> list[tuple[str, dict[str, str], float]]:
        return [
            ("api_gateway_cache_bytes", {}, float(self.store.size)),
            ("api_gateway_cache_entries", {}, float(self.store.count)),
        ]

    def _spawn(self, coroutine: Any) -> None:
        task = self._host.loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _same_host(reference: bytes, exchange: Exchange) -> Place | None:
    """What a Location names, if it is on the host that was asked."""
    host = exchange.identity.host.decode("latin-1")
    base = f"http://{host}{exchange.raw_path.decode('latin-1')}"
    try:
        parts = urlsplit(urljoin(base, reference.decode("ascii")))
        if parts.hostname is None or parts.hostname.rstrip(".") != host:
            return None
        path = canonical_path(parts.path.encode("ascii") or b"/")
    except ValueError:  # UnicodeDecodeError is one
        return None
    return path, parts.query.encode("ascii") or None

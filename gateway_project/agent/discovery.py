"""Targets that are found rather than configured (R14): registered by HTTP or in Redis, or looked up in DNS.

What is found is no configuration. It is laid over the records of the services in the store (`ConfigStore.lay_over`), so
workers and the prober see ordinary services, in a full load and in deltas. What cannot be asked at the moment (the
database, Redis, the name servers) keeps its last answer.
"""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import orjson
from django.db.models.functions import Now

from core.policies import PolicyError, read
from gateway_project.agent.database import DatabaseAway, DatabaseThread
from gateway_project.agent.name_lookup import RETRY_S, LookupFailed, NameLookup, Place
from gateway_project.agent.redis_registry import Asked, RedisAway, RedisRegistry
from gateway_project.agent.store import ConfigStore
from routing.health import is_address, url_of
from routing.models import DiscoveredTarget, RegistrationToken, TargetSource
from routing.policies import Discovery as Policy
from routing.policies import DnsLookup, Registration
from routing.records import TargetRecord
from routing.registration import forget_expired

logger = logging.getLogger("portcullis.agent")

LOOK_S = 0.4  # registrations are in force on every host within a second
_CLEAN_S = 60.0
_JITTER = 0.1
_MARK = b'"discovery":'  # in the record of a service that has the policy

RowKey = tuple[str, str, str]  # service id, version, the target's URL


@dataclass(frozen=True, slots=True)
class Found:
    """One target. ``version`` empty: the one that answers where nobody names one. ``host`` is the name behind which an
    address was found."""

    version: str
    url: str
    weight: int
    source: str
    host: str = ""


@dataclass(frozen=True, slots=True)
class _Service:
    """What of a service's record is needed."""

    id: str
    name: str
    policy: Policy
    default_version: str
    urls: tuple[tuple[str, str], ...]  # of the versions, by name

    @classmethod
    def of(cls, wire: dict[str, Any]) -> "_Service":
        """Raises PolicyError and KeyError for what workers skip too."""
        urls = {version["name"]: version["url"] for version in wire["versions"]}
        current = wire["current_version"]
        if current not in urls and wire["default_url"]:
            current = current or "default"
            urls[current] = wire["default_url"]
        if current not in urls:
            current = next(iter(urls)) if len(urls) == 1 else ""
        policy = read(Policy, wire["policies"]["discovery"])
        return cls(wire["id"], wire["name"], policy, current, tuple(urls.items()))

    def url(self, version: str) -> str:
        return dict(self.urls).get(version or self.default_version, "")

    def scheme(self, version: str) -> str:
        return self.url(version).partition(":")[0]


class Discovery:
    """``permits`` judges addresses; ``on_change`` is called when the store has other records than before."""

    def __init__(
        self, store: ConfigStore, permits: Callable[[str], bool], redis_url: str, on_change: Callable[[], None]
    ) -> None:
        self._store = store
        self._permits = permits
        self._on_change = on_change
        self._names = NameLookup(permits)
        self._redis = RedisRegistry(redis_url) if redis_url else None
        self._database = DatabaseThread("discovery")
        self._serial: int | None = None
        self._services: dict[str, _Service] = {}
        self._lookups: dict[str, tuple[tuple[Any, ...], asyncio.Task[None]]] = {}
        self._registered: dict[str, list[Found]] | None = None  # None: never read
        self._in_redis: dict[str, list[Found]] | None = None
        self._in_dns: dict[str, list[Found]] = {}
        self._keys: dict[str, str] = {}  # with which registrations in Redis are signed, by service id
        self._laid: dict[str, tuple[Any, ...]] = {}  # what is laid over each service, so that nothing is made twice
        self._is_redis_away = False
        self._next_clean = 0.0
        store.lay_over = self.lay_over

    async def run(self) -> None:
        """Until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._again_and_again(self._look), name="discovery")
                if self._redis is not None:
                    group.create_task(self._again_and_again(self._read_redis), name="discovery in Redis")
        finally:
            for _, task in self._lookups.values():
                task.cancel()
            await asyncio.gather(*(task for _, task in self._lookups.values()), return_exceptions=True)
            if self._redis is not None:
                await self._redis.aclose()
            await self._database.close()

    async def _again_and_again(self, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            began = time.monotonic()
            try:
                await work()
            except Exception:
                logger.exception("discovery failed inside the gateway")
            await asyncio.sleep(max(LOOK_S, time.monotonic() - began))  # of very many, half of the time at most

    async def _look(self) -> None:
        if not self._store.is_ready:
            return
        is_first = self._serial is None
        self._follow()
        await self._read_registrations()
        if is_first:  # workers may have been told other things by the agent before this one
            self._store.send_again(self._services)
            self._on_change()
        self._lay_over_what_has_changed()

    def _lay_over_what_has_changed(self) -> None:
        laid = {each.id: (self._is_known(each), *self._found(each)) for each in self._services.values()}
        changed = [service_id for service_id, found in laid.items() if found != self._laid.get(service_id)]
        self._laid = laid
        if self._store.lay_over_again(changed):
            self._on_change()

    # --- which services ---

    def _follow(self) -> None:
        """Take over what has changed in the store."""
        serial, present = self._store.serial, self._store.records["service"]
        if serial == self._serial:
            return
        changed = None if self._serial is None else self._store.changed_since(self._serial)
        everything = {*present, *self._services}
        ids = everything if changed is None else {ref_id for kind, ref_id in changed if kind == "service"}
        for service_id in ids:
            self._set(service_id, _parsed(present.get(service_id)))
        self._serial = serial

    def _set(self, service_id: str, service: _Service | None) -> None:
        lookup = service.policy.dns if service is not None else None
        if service is None:
            self._services.pop(service_id, None)
        else:
            self._services[service_id] = service
        terms = (lookup, service.urls, service.default_version) if service is not None and lookup is not None else ()
        former = self._lookups.get(service_id)
        if former is not None and former[0] != terms:
            former[1].cancel()
            del self._lookups[service_id]
        if service is not None and lookup is not None and service_id not in self._lookups:
            task = asyncio.create_task(self._look_up_forever(service, lookup), name=f"look up {lookup.name}")
            self._lookups[service_id] = terms, task
        if lookup is None:
            self._in_dns.pop(service_id, None)

    # --- what is laid over ---

    def lay_over(self, service_id: str, record: bytes) -> bytes:
        """The record with what is found. Where a source was never heard, with what was found before: in the last good
        snapshot, by the agent before this one."""
        if _MARK not in record:
            return record
        wire = orjson.loads(record)
        try:
            service = _Service.of(wire)
        except (PolicyError, LookupError, TypeError):
            return record
        former = wire.get("discovered")
        if self._is_known(service):
            discovered = _by_version(service, self._found(service))
        else:
            held = self._store.records["service"].get(service_id)
            discovered = orjson.loads(held).get("discovered", {}) if held is not None and _MARK in held else {}
        if discovered == (former or {}):
            return record
        return orjson.dumps({**wire, "discovered": discovered})

    def _is_known(self, service: _Service) -> bool:
        policy = service.policy
        if policy.dns is not None and service.id not in self._in_dns:
            return False
        if policy.registration is None:
            return True
        uses_redis = policy.registration.redis and self._redis is not None
        return self._registered is not None and (not uses_redis or self._in_redis is not None)

    def _found(self, service: _Service) -> list[Found]:
        found = list(self._in_dns.get(service.id, ()) if service.policy.dns is not None else ())
        if service.policy.registration is not None:
            found += (self._registered or {}).get(service.id, ())
            if service.policy.registration.redis:
                found += (self._in_redis or {}).get(service.id, ())
        return found

    def sources(self) -> dict[RowKey, tuple[str, str]]:
        """The service's name and the source of each target that is found."""
        return {
            (service.id, each.version or service.default_version, each.url): (service.name, each.source)
            for service in self._services.values()
            for each in self._found(service)
        }

    # --- registrations ---

    def _registering(self) -> list[tuple[_Service, Registration]]:
        services = self._services.values()
        return [(each, each.policy.registration) for each in services if each.policy.registration is not None]

    async def _read_registrations(self) -> None:
        """Those in the database, if any service asks for them."""
        registering = self._registering()
        if not registering:
            self._registered = None
            return
        with_keys = [service.id for service, policy in registering if policy.redis]
        try:
            rows, self._keys = await self._database.run(_read_database, with_keys)
            if time.monotonic() >= self._next_clean:
                self._next_clean = time.monotonic() + _CLEAN_S
                await self._database.run(forget_expired)
        except DatabaseAway:
            return  # the follower says so, once
        registered: dict[str, list[Found]] = {}
        for service_id, version, url, weight in rows:
            if plain := _plain(url):
                registered.setdefault(service_id, []).append(Found(version, plain, weight, TargetSource.HTTP))
        self._registered = registered

    async def _read_redis(self) -> None:
        """Those in Redis. Apart from the others, which do not wait for a Redis that hangs."""
        asked = [
            Asked(service.id, service.name, policy.ttl_s, self._keys.get(service.id, ""), service.scheme)
            for service, policy in self._registering()
            if policy.redis
        ]
        if not asked or self._registered is None or self._redis is None:
            return
        try:
            entries = await self._redis.read(asked, time.time())
        except RedisAway as error:
            if not self._is_redis_away:
                logger.warning("Redis is away, keeping the instances that were registered in it: %s", error)
            self._is_redis_away = True
            return
        if self._is_redis_away:
            logger.info("Redis is back")
        self._is_redis_away = False
        self._in_redis = {
            service_id: [
                Found(each.version, plain, each.weight, TargetSource.REDIS)
                for each in found
                if (plain := _plain(each.url))
            ]
            for service_id, found in entries.items()
        }
        self._lay_over_what_has_changed()

    # --- names ---

    async def _look_up_forever(self, service: _Service, lookup: DnsLookup) -> None:
        is_failing = False
        while True:
            try:
                places, wait_s = await self._names.look_up(lookup)
            except LookupFailed as error:
                wait_s = min(RETRY_S, lookup.interval_s)
                if not is_failing:
                    logger.warning("%s of %s cannot be looked up: %s", lookup.name, service.name, error)
                is_failing = True
            else:
                if is_failing:
                    logger.info("%s of %s is found again", lookup.name, service.name)
                is_failing = False
                self._in_dns[service.id] = self._placed(service, lookup, places)
                self._lay_over_what_has_changed()
            await asyncio.sleep(wait_s * random.uniform(1 - _JITTER, 1))

    def _placed(self, service: _Service, lookup: DnsLookup, places: Iterable[Place]) -> list[Found]:
        url = service.url(lookup.version)
        if not url:
            return []
        scheme, _, port = TargetRecord.from_url(url)[0].origin
        found = []
        for place in places:
            if is_address(place.host) and not self._permits(place.host):
                continue  # the data plane would refuse it, request by request
            literal = f"[{place.host}]" if ":" in place.host else place.host
            host = lookup.name.rstrip(".") if lookup.type != "SRV" else ""
            if target := _plain(f"{scheme}://{literal}:{place.port or port}"):
                found.append(Found(lookup.version, target, place.weight, TargetSource.DNS, host))
        return found


def _read_database(with_keys: list[str]) -> tuple[list[tuple[str, str, str, int]], dict[str, str]]:
    """What counts now, by the database's clock; and the signing keys of these services."""
    counting = DiscoveredTarget.objects.filter(expires_at__gt=Now())
    rows = list(counting.values_list("service_id", "version", "url", "weight"))
    tokens = (
        RegistrationToken.objects.filter(service_id__in=with_keys) if with_keys else RegistrationToken.objects.none()
    )
    return rows, dict(tokens.values_list("service_id", "signing_key"))


def _parsed(record: bytes | None) -> _Service | None:
    if record is None or _MARK not in record:
        return None
    try:
        return _Service.of(orjson.loads(record))
    except (PolicyError, LookupError, TypeError):
        return None  # workers skip it too, and say so


def _by_version(service: _Service, found: Iterable[Found]) -> dict[str, list[list[Any]]]:
    """As `ServiceRecord.from_wire` reads it; the same whatever the order in which they were found."""
    by_version: dict[str, dict[str, list[Any]]] = {}
    for each in sorted(found, key=lambda each: (each.url, each.source)):
        version = each.version or service.default_version
        by_version.setdefault(version, {})[each.url] = [each.url, each.weight, each.host]
    return {version: list(entries.values()) for version, entries in by_version.items()}


@lru_cache(maxsize=65_536)  # the same ones are read again and again
def _plain(url: str) -> str:
    """As the gateway calls a target; empty for what is none, which nobody should be able to register."""
    try:
        return url_of(TargetRecord.from_url(url)[0])
    except ValueError:
        return ""

"""Reads what services register of themselves in Redis: ``HSET portcullis:discovery:{service} {instance} {JSON}``.

One hash for each service, so that reading costs what is registered and not what else Redis holds (a scan of all keys
would). Each entry says itself until when it counts, and is signed with a key made of the service's registration token:
whoever can only write to Redis registers nothing.
"""

import hmac
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import orjson
import redis.asyncio
import redis.exceptions

from routing.registration import INSTANCE, MOST_INSTANCES, instance_url, signature

logger = logging.getLogger("portcullis.agent")

KEY = "portcullis:discovery:"
_SKEW_S = 10.0  # that clocks may differ
_DROPPED_S = 60.0  # after it has expired
_TIMEOUT_S = 2.0
_MOST_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Asked:
    """A service whose instances may register in Redis. ``signing_key`` is empty while it has no token."""

    service_id: str
    name: str
    ttl_s: int
    signing_key: str
    scheme: Callable[[str], str]  # of a version's URL


@dataclass(frozen=True, slots=True)
class Entry:
    instance: str
    version: str
    url: str
    weight: int


class RedisAway(Exception):
    """Redis cannot be asked now; what was registered is unknown, not gone."""


class RedisRegistry:
    def __init__(self, url: str) -> None:
        self._redis = redis.asyncio.from_url(url, socket_timeout=_TIMEOUT_S, socket_connect_timeout=_TIMEOUT_S)
        self._crowded: dict[str, int] = {}  # services with too many entries, and how far these were looked through

    async def aclose(self) -> None:
        await self._redis.aclose()

    async def read(self, services: Iterable[Asked], now: float) -> dict[str, list[Entry]]:
        """What counts at ``now`` (epoch seconds), by service id. Raises RedisAway."""
        services = list(services)
        try:
            sizes = await self._all(services, lambda pipe, key: pipe.hlen(key), 0)
            small = [each for each, size in zip(services, sizes, strict=True) if 0 < size <= MOST_INSTANCES]
            hashes = await self._all(small, lambda pipe, key: pipe.hgetall(key), {})
            found: dict[str, list[Entry]] = {each.service_id: [] for each in services}
            for each, fields in zip(small, hashes, strict=True):
                found[each.service_id] = _counting(each, fields, now)
                await self._drop_expired(each, fields, now)
            await self._thin([each for each, size in zip(services, sizes, strict=True) if size > MOST_INSTANCES], now)
        except (redis.exceptions.RedisError, OSError) as error:
            raise RedisAway(type(error).__name__) from None
        return found

    async def _drop_expired(self, asked: Asked, fields: dict[bytes, bytes], now: float) -> None:
        if expired := [name for name, value in fields.items() if _expires(value) < now - _DROPPED_S]:
            await self._redis.hdel(KEY + asked.name, *expired)

    async def _thin(self, crowded: list[Asked], now: float) -> None:
        """Of these too, what has expired goes, some of it with each look: else they could never count again."""
        self._crowded = {each.service_id: self._crowded.get(each.service_id, -1) for each in crowded}
        for each in crowded:
            cursor = self._crowded[each.service_id]
            if cursor < 0:
                logger.warning("over %d entries in %s%s: none of them counts", MOST_INSTANCES, KEY, each.name)
            page: Any = await self._redis.hscan(KEY + each.name, max(cursor, 0), count=MOST_INSTANCES)
            self._crowded[each.service_id], fields = int(page[0]), page[1]
            await self._drop_expired(each, fields, now)

    async def _all(self, services: list[Asked], ask: Callable[[Any, str], Any], nothing: Any) -> list[Any]:
        """The answers; ``nothing`` where the key holds something else, which is no matter of the other services."""
        if not services:
            return []
        async with self._redis.pipeline(transaction=False) as pipe:
            for each in services:
                ask(pipe, KEY + each.name)
            answers = await pipe.execute(raise_on_error=False)
        for place, answer in enumerate(answers):
            if isinstance(answer, Exception):
                if "WRONGTYPE" not in str(answer):
                    raise answer
                answers[place] = nothing
        return list(answers)


def _counting(asked: Asked, fields: dict[bytes, bytes], now: float) -> list[Entry]:
    entries = []
    for name, value in fields.items():
        try:
            entries.append(_entry(asked, name.decode("ascii"), value, now))
        except (ValueError, TypeError, KeyError):
            continue  # of no form that counts, expired, or not signed by the service: anybody may have written it
    return entries


def _entry(asked: Asked, instance: str, value: bytes, now: float) -> Entry:
    """Raises ValueError, TypeError or KeyError for what does not count."""
    if len(value) > _MOST_BYTES or not asked.signing_key or not INSTANCE.fullmatch(instance):
        raise ValueError
    document = orjson.loads(value)
    url, version, weight = document["url"], document.get("version", ""), document.get("weight", 100)
    expires = document["expires"]
    if not (isinstance(url, str) and isinstance(version, str) and type(weight) is int and type(expires) is int):
        raise TypeError
    if not now < expires <= now + asked.ttl_s + _SKEW_S or not 0 <= weight <= 10_000:
        raise ValueError
    expected = signature(
        asked.signing_key,
        service=asked.name,
        instance=instance,
        url=url,
        version=version,
        weight=weight,
        expires=expires,
    )
    if not hmac.compare_digest(expected.encode(), str(document["signature"]).encode()):
        raise ValueError
    instance_url(url, asked.scheme(version))
    return Entry(instance, version, url, weight)


def _expires(value: bytes) -> float:
    """When an entry that says so expires; what does not is left to whoever wrote it."""
    try:
        return float(orjson.loads(value)["expires"])
    except (ValueError, TypeError, KeyError, IndexError):
        return float("inf")

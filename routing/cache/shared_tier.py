"""Stored answers that the workers of all hosts share, in Redis.

It is asked when a worker's own memory has nothing fresh, for a moment only; a Redis that is slow or away is left alone
for a moment and costs no request more than that once. Values have a version and are no pickles; what does not fit is
no answer. They leave by themselves, at the latest after `REMEMBERED_S`.

What was dropped must not come back from here. An answer therefore carries the number of the latest purge that its
worker knew before asking the upstream, and the count of invalidations of its URL, which is kept in Redis itself; it is
given out only while neither says otherwise.
"""

from __future__ import annotations

import asyncio
import logging
import struct
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from typing import Any

import orjson
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import OutOfMemoryError, ReadOnlyError, RedisError

from core.context import Exchange
from routing.cache.asking import owner_of, request_value, varies_alike
from routing.cache.dropping import Place
from routing.cache.fetching import Fetch
from routing.cache.purges import REMEMBERED_S, PurgeBook
from routing.cache.store import EVERYBODY, Key, StoredAnswer

logger = logging.getLogger("portcullis.cache")

_PATIENCE_S = 1.0  # for what nobody waits for
_REST_S = 1.0  # after a failure
_SAY_AGAIN_S = 60.0
_MAX_PENDING = 200  # writes under way
_MAX_PENDING_BYTES = 32 * 1024 * 1024
_MAX_VALUE = 2 * 1024 * 1024  # what is larger takes too long to fetch, and stays in the workers' own memory
_MAX_UNDROPPED = 10_000
_CONNECTIONS = 32
_DOWN_S = 3600  # how long an answer is of use to `Caching.serve_stale_when_down`
_FORMAT = b"pc1:"
_POINTER = b"pc1v"  # what stands here varies by these fields
_NAMES = "portcullis:cache:"
_WRITES_NOTHING = (OutOfMemoryError, ReadOnlyError)  # it reads as well as ever
_FAILURES = (RedisError, OSError, TimeoutError)  # asyncio's TimeoutError is the builtin one


@dataclass(frozen=True, slots=True)
class Generation:
    """What had been dropped before an answer was asked for."""

    purge: int
    dropped: int


class SharedTier:
    """One for each worker that needs it. ``now`` is the worker's monotonic clock; a request waits for ``wait_s``."""

    def __init__(self, url: str, purges: PurgeBook, now: Callable[[], float], wait_s: float) -> None:
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=_CONNECTIONS,
            timeout=wait_s,
            socket_timeout=_PATIENCE_S,
            socket_connect_timeout=_PATIENCE_S,
            retry=Retry(NoBackoff(), 0),
        )
        self._redis: Redis = Redis(connection_pool=pool)
        self._purges = purges
        self._wait_s = wait_s
        self._now = now
        self._rests_until = 0.0
        self._said_at = float("-inf")
        self._tasks: set[asyncio.Task[None]] = set()
        self._pending_bytes = 0
        self._undropped: dict[str, int] = {}  # places whose count has yet to be raised, and how often that was wanted
        self._dropping: asyncio.Task[None] | None = None

    @property
    def is_usable(self) -> bool:
        return self._purges.number is not None and self._now() >= self._rests_until

    async def close(self) -> None:
        for task in (*self._tasks, *([self._dropping] if self._dropping else [])):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._redis.aclose()

    # --- out ---
    async def find(self, fetch: Fetch) -> StoredAnswer | None:
        """An answer that nothing has dropped; whether it is fresh is for the caller to judge. From here on, what the
        fetch brings may be kept here too."""
        purge = self._purges.number
        if purge is None:
            return None
        try:
            async with asyncio.timeout(self._wait_s):
                return await self._find(fetch, purge)
        except _FAILURES as error:
            self._rest(error)
            return None

    async def _find(self, fetch: Fetch, purge: int) -> StoredAnswer | None:
        exchange = fetch.exchange
        place = (exchange.path, exchange.query)
        service = fetch.match.service
        assert service is not None
        owners = [EVERYBODY]
        if (owner := owner_of(exchange)) is not None:
            owners.insert(0, owner)
        keys: list[Key] = [(owner, fetch.resource) for owner in owners]
        counter = _place_name(place, service.name)
        if counter in self._undropped:  # Redis has not been told yet that all of this is void
            return None
        count, *values = await self._redis.mget([counter, *map(_name, keys)])
        dropped = int(count or 0)
        fetch.generation = Generation(purge, dropped)
        for key, found in zip(keys, values, strict=True):
            value: Any = found  # bytes or None: replies are not decoded
            if value is not None and value.startswith(_POINTER):
                names = _names_of(value)
                value = await self._redis.get(_variant_name(key, exchange, names)) if names else None
            answer = self._read(value, key, dropped) if value is not None else None
            if answer is not None and varies_alike(exchange, answer.vary):
                return answer
        return None

    def _read(self, value: bytes, key: Key, dropped: int) -> StoredAnswer | None:
        try:
            answer, generation = decoded(value, key, self._now(), time.time())
        except (ValueError, LookupError, TypeError, AttributeError, struct.error):  # of another version
            return None
        if generation.dropped != dropped or self._purges.covers_since(generation.purge, answer):
            return None
        return answer

    # --- in ---
    def keep(self, fetch: Fetch, answer: StoredAnswer) -> None:
        """In the background, unless too much of that is under way."""
        generation = fetch.generation
        seconds = int(min(REMEMBERED_S, self._useful_s(fetch, answer)))
        if generation is None or seconds < 1 or not self.is_usable:
            return
        if (
            answer.size > _MAX_VALUE
            or len(self._tasks) >= _MAX_PENDING
            or self._pending_bytes + answer.size > _MAX_PENDING_BYTES
        ):
            return
        value = encoded(answer, generation, self._now(), time.time())
        values = {_name(answer.key): value}
        if answer.vary:
            names = [name for name, _ in answer.vary]
            pointer = _POINTER + orjson.dumps([name.decode("latin-1") for name in names])
            values = {_name(answer.key): pointer, _variant_name(answer.key, fetch.exchange, names): value}
        self._pending_bytes += len(value)
        self._spawn(self._write(values, seconds, len(value)))

    def _useful_s(self, fetch: Fetch, answer: StoredAnswer) -> float:
        stale_s = max(answer.while_revalidate_s, answer.if_error_s)
        if fetch.policy.serve_stale_when_down and not answer.forbids_stale:
            stale_s = max(stale_s, _DOWN_S)
        return stale_s - answer.staleness_s(self._now())

    async def _write(self, values: dict[str, bytes], seconds: int, size: int) -> None:
        try:
            async with asyncio.timeout(_PATIENCE_S), self._redis.pipeline(transaction=False) as pipeline:
                for name, value in values.items():
                    pipeline.set(name, value, ex=seconds)
                await pipeline.execute()
        except _FAILURES as error:
            self._rest(error)
        finally:
            self._pending_bytes -= size

    def drop_place(self, place: Place, service: str) -> None:
        """For all workers. While Redis is away it is tried again and again."""
        name = _place_name(place, service)
        if name in self._undropped or len(self._undropped) < _MAX_UNDROPPED:
            self._undropped[name] = self._undropped.get(name, 0) + 1
        if self._dropping is None or self._dropping.done():
            self._dropping = asyncio.get_running_loop().create_task(self._drop_places())

    async def _drop_places(self) -> None:
        while self._undropped:
            raised = dict(islice(self._undropped.items(), 100))
            try:
                async with asyncio.timeout(_PATIENCE_S), self._redis.pipeline(transaction=False) as pipeline:
                    for name in raised:
                        pipeline.incr(name)
                        pipeline.expire(name, 2 * REMEMBERED_S)
                    await pipeline.execute()
            except _FAILURES as error:
                self._rest(error)
                await asyncio.sleep(_REST_S)
            else:
                for name, wanted in raised.items():
                    if self._undropped[name] == wanted:  # else once more: something may have been asked for in between
                        del self._undropped[name]

    def _rest(self, error: BaseException) -> None:
        now = self._now()
        may_read = isinstance(error, _WRITES_NOTHING)
        if now >= self._said_at + _SAY_AGAIN_S:
            self._said_at = now
            said = str(error).partition("\n")[0] or type(error).__name__
            what = "is only read, Redis takes nothing" if may_read else "is left alone, Redis does not answer"
            logger.warning("the shared cache %s: %s", what, said)
        if not may_read:
            self._rests_until = now + _REST_S

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


# --- names ---
def _digest(*parts: bytes | None) -> str:
    hashed = blake2b(digest_size=16)
    for part in parts:
        hashed.update(b"-" if part is None else b"%d:" % len(part) + part)
    return hashed.hexdigest()


def _key_parts(key: Key) -> tuple[bytes | None, ...]:
    owner, (scope, version, origin, path, query) = key
    return owner.encode(), scope.encode(), version.encode(), origin, path, query


def _name(key: Key) -> str:
    return f"{_NAMES}a:{_digest(*_key_parts(key))}"


def _variant_name(key: Key, exchange: Exchange, names: list[bytes]) -> str:
    values = [part for name in names for part in (name, request_value(exchange, name))]
    return f"{_NAMES}a:{_digest(*_key_parts(key), b'varies', *values)}"


def _place_name(place: Place, service: str) -> str:
    return f"{_NAMES}d:{_digest(service.encode(), *place)}"


# --- values ---
_NUMBERS = ("initial_age_s", "lifetime_s", "while_revalidate_s", "if_error_s", "date")


def encoded(answer: StoredAnswer, generation: Generation, now: float, epoch: float) -> bytes:
    """``now`` is monotonic, as `StoredAnswer.at` is; ``epoch`` is the same moment for others."""
    meta = {
        "key": [_text(part) for part in _key_parts(answer.key)],
        "status": answer.status,
        "lines": [_text(line) for line in answer.lines],
        "vary": [[_text(name), _text(value)] for name, value in answer.vary],
        "service": answer.service,
        "host": _text(answer.host),
        "place": [_text(part) for part in answer.place],
        "tags": [_text(tag) for tag in answer.tags],
        "at": epoch - (now - answer.at),
        "forbids_stale": answer.forbids_stale,
        "etag": _text(answer.etag),
        "last_modified": _text(answer.last_modified),
        "purge": generation.purge,
        "dropped": generation.dropped,
        **{name: getattr(answer, name) for name in _NUMBERS},
    }
    head = orjson.dumps(meta)
    return b"".join((_FORMAT, struct.pack(">I", len(head)), head, answer.body))


def decoded(value: bytes, key: Key, now: float, epoch: float) -> tuple[StoredAnswer, Generation]:
    """Raises ValueError, LookupError, TypeError, AttributeError or struct.error for what is none, or another key's."""
    start = len(_FORMAT) + 4
    if value[: len(_FORMAT)] != _FORMAT:
        raise ValueError("another format")
    (size,) = struct.unpack(">I", value[len(_FORMAT) : start])
    meta = orjson.loads(value[start : start + size])
    if meta["key"] != [_text(part) for part in _key_parts(key)]:
        raise ValueError("another key's")
    path, query = meta["place"]
    answer = StoredAnswer(
        key=key,
        status=int(meta["status"]),
        lines=[_bytes(line) for line in meta["lines"]],
        body=value[start + size :],
        vary=tuple((_bytes(name), None if said is None else _bytes(said)) for name, said in meta["vary"]),
        service=meta["service"],
        host=_bytes(meta["host"]),
        place=(_bytes(path), None if query is None else _bytes(query)),
        tags=frozenset(map(_bytes, meta["tags"])),
        at=now - max(0.0, epoch - meta["at"]),
        date=float(meta["date"]),
        initial_age_s=float(meta["initial_age_s"]),
        lifetime_s=float(meta["lifetime_s"]),
        while_revalidate_s=float(meta["while_revalidate_s"]),
        if_error_s=float(meta["if_error_s"]),
        forbids_stale=bool(meta["forbids_stale"]),
        etag=None if meta["etag"] is None else _bytes(meta["etag"]),
        last_modified=None if meta["last_modified"] is None else _bytes(meta["last_modified"]),
    )
    return answer, Generation(int(meta["purge"]), int(meta["dropped"]))


def _names_of(pointer: bytes) -> list[bytes]:
    """Empty for what is none."""
    try:
        return [name.encode("latin-1") for name in orjson.loads(pointer[len(_POINTER) :])]
    except (ValueError, TypeError, AttributeError):
        return []


def _text(part: bytes | None) -> str | None:
    return None if part is None else part.decode("latin-1")


def _bytes(text: str) -> bytes:
    return text.encode("latin-1")

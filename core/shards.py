"""An immutable mapping over byte strings whose changes cost as much as the change, not as the whole.

100,000 keys in one dict cost milliseconds to copy, on the event loop, for every key that is made or revoked. Spread
over 1,024 small dicts, a change copies one of them and the tuple that holds them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Generic, TypeVar

V = TypeVar("V")
_SHARDS = 1024


class ShardMap(Generic[V]):
    """Keys are byte strings whose first two bytes are evenly spread, such as digests."""

    __slots__ = ("_shards",)

    def __init__(self, shards: tuple[dict[bytes, V], ...] | None = None) -> None:
        self._shards = shards if shards is not None else tuple({} for _ in range(_SHARDS))

    def get(self, key: bytes) -> V | None:
        return self._shards[(key[0] << 8 | key[1]) & 1023].get(key)

    def changed(self, put: Mapping[bytes, V], drop: Iterator[bytes] | list[bytes]) -> ShardMap[V]:
        """A map with ``drop`` taken out and ``put`` laid in; this one stays as it is."""
        shards = list(self._shards)
        fresh: dict[int, dict[bytes, V]] = {}

        def own(key: bytes) -> dict[bytes, V]:
            index = (key[0] << 8 | key[1]) & 1023
            if index not in fresh:
                shards[index] = fresh[index] = dict(shards[index])
            return fresh[index]

        for key in drop:
            own(key).pop(key, None)
        for key, value in put.items():
            own(key)[key] = value
        return ShardMap(tuple(shards))

    def load(self, key: bytes, value: V) -> None:
        """Lay in a value in place: only while a full load builds a map that nobody else sees yet."""
        self._shards[(key[0] << 8 | key[1]) & 1023][key] = value

    def __len__(self) -> int:
        return sum(map(len, self._shards))

    def values(self) -> Iterator[V]:
        for shard in self._shards:
            yield from shard.values()

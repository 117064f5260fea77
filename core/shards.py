"""An immutable mapping over byte strings whose changes cost as much as the change, not as the whole.

100,000 keys in one dict cost milliseconds to copy, on the event loop, for every key that is made or revoked. Spread
over 1,024 small dicts, a change copies one of them and the tuple that holds them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Generic, TypeVar

V = TypeVar("V")
_SHARDS = 1024


class ShardMap(Generic[V]):
    """Values by bytes."""

    __slots__ = ("_shards",)

    def __init__(self, shards: tuple[dict[bytes, V], ...] | None = None) -> None:
        self._shards = shards if shards is not None else tuple({} for _ in range(_SHARDS))

    # The shard is chosen by bits of the hash that the dict within it does not begin to search at.

    def get(self, key: bytes) -> V | None:
        return self._shards[hash(key) >> 20 & 1023].get(key)

    def changed(self, put: Mapping[bytes, V], drop: Iterable[bytes]) -> ShardMap[V]:
        """A map with ``drop`` taken out and ``put`` laid in; this one stays as it is."""
        shards = list(self._shards)
        fresh: set[int] = set()

        def own(key: bytes) -> dict[bytes, V]:
            index = hash(key) >> 20 & 1023
            if index not in fresh:
                fresh.add(index)
                shards[index] = dict(shards[index])
            return shards[index]

        for key in drop:
            own(key).pop(key, None)
        for key, value in put.items():
            own(key)[key] = value
        return ShardMap(tuple(shards))

    def load(self, key: bytes, value: V) -> None:
        """Lay in a value in place: only while a full load builds a map that nobody else sees yet."""
        self._shards[hash(key) >> 20 & 1023][key] = value

    def __len__(self) -> int:
        return sum(map(len, self._shards))

    def values(self) -> Iterator[V]:
        for shard in self._shards:
            yield from shard.values()

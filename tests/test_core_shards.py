"""The sharded map."""

from hypothesis import given
from hypothesis import strategies as st

from core.shards import ShardMap

KEYS = st.binary(max_size=3)
CHANGES = st.lists(st.tuples(st.dictionaries(KEYS, st.integers(), max_size=8), st.lists(KEYS, max_size=8)), max_size=8)


@given(CHANGES)
def test_a_shard_map_equals_a_dict(changes: list[tuple[dict[bytes, int], list[bytes]]]) -> None:
    shards: ShardMap[int] = ShardMap()
    plain: dict[bytes, int] = {}
    for put, drop in changes:
        former, before = shards, dict(plain)
        shards = shards.changed(put, drop)
        plain = {key: value for key, value in plain.items() if key not in drop} | put
        assert {key: former.get(key) for key in before} == before, "the former map stays as it was"
        assert len(former) == len(before)
    assert {key: shards.get(key) for key in plain} == plain
    assert sorted(shards.values()) == sorted(plain.values())
    assert len(shards) == len(plain)
    assert shards.get(b"no such key") is None


@given(st.dictionaries(st.binary(max_size=40), st.integers(), max_size=50))
def test_loading_in_place_equals_a_change(values: dict[bytes, int]) -> None:
    loaded: ShardMap[int] = ShardMap()
    for key, value in values.items():
        loaded.load(key, value)
    changed = ShardMap[int]().changed(values, [])
    for key, value in values.items():
        assert loaded.get(key) == changed.get(key) == value


def test_a_change_copies_only_the_shards_that_it_touches() -> None:
    former: ShardMap[int] = ShardMap()
    for number in range(50_000):
        former.load(number.to_bytes(4), number)
    later = former.changed({b"one": 1}, [(7).to_bytes(4)])
    copied = [shard for shard, before in zip(later._shards, former._shards, strict=True) if shard is not before]
    assert len(copied) <= 2
    assert max(map(len, former._shards)) < 200, "keys spread over the shards"

"""The store: never over its bytes, and always in agreement with itself."""

from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from routing.cache.dropping import Dropped, Rule, read_rule
from routing.cache.store import MAX_VARIANTS, SLICE, Key, Store, StoredAnswer


def answer(path: bytes = b"/a", *, size: int = 0, owner: str = "", host: bytes = b"h", **values: Any) -> StoredAnswer:
    fields: dict[str, Any] = {
        "key": (owner, ("svc", "v1", host, path, None)),
        "status": 200,
        "lines": [b"content-type: text/plain\r\n"],
        "body": b"x" * size,
        "vary": (),
        "service": "svc",
        "host": host,
        "place": (path, None),
        "tags": frozenset(),
        "at": 0.0,
        "date": 0.0,
        "initial_age_s": 0.0,
        "lifetime_s": 60.0,
        "forbids_stale": False,
        "while_revalidate_s": 0.0,
        "if_error_s": 0.0,
        "etag": None,
        "last_modified": None,
    }
    return StoredAnswer(**(fields | values))


def drop(store: Store, rule: Rule) -> None:
    for _ in store.drop_covered(rule):
        pass


def paths(store: Store) -> list[bytes]:
    return [key[1][3] for key in store._buckets]


class Stores(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.store = Store(40_000)

    paths = st.sampled_from([b"/%d" % number for number in range(12)])

    @rule(
        path=paths,
        size=st.integers(0, 20_000),
        owner=st.sampled_from(["", "app"]),
        vary=st.sampled_from([(), ((b"accept", b"a"),), ((b"accept", None),)]),
        tag=st.sampled_from([b"t", b"u"]),
    )
    def put(self, path: bytes, size: int, owner: str, vary: Any, tag: bytes) -> None:
        kept = answer(path, size=size, owner=owner, vary=vary, tags=frozenset((tag,)))
        assert self.store.put(kept, self.store.dropped.number)
        found = self.store.variants(kept.key)
        assert found is not None and found[0] is kept

    @rule(path=paths)
    def look(self, path: bytes) -> None:
        self.store.variants(("", ("svc", "v1", b"h", path, None)))

    @rule(path=paths)
    def drop_place(self, path: bytes) -> None:
        self.store.drop_place((path, None), "svc")
        assert path not in paths(self.store)

    @rule(path=paths)
    def drop_one(self, path: bytes) -> None:
        for each in list(self.store.variants(("", ("svc", "v1", b"h", path, None))) or ())[:1]:
            self.store.drop(each)

    @rule(
        purge=st.sampled_from(
            [Rule("all"), Rule("tag", "t"), Rule("service", "svc"), read_rule("prefix", "/1"), read_rule("url", "/1")]
        )
    )
    def purge(self, purge: Rule) -> None:
        drop(self.store, purge)
        assert not any(purge.covers(each) for bucket in self.store._buckets.values() for each in bucket.answers)

    @invariant()
    def it_agrees_with_itself(self) -> None:
        kept = [each for bucket in self.store._buckets.values() for each in bucket.answers]
        assert sum(each.size for each in kept) == self.store.size <= self.store.limit
        assert len(kept) == self.store.count
        assert all(bucket.answers for bucket in self.store._buckets.values())
        by_place: dict[Any, set[Key]] = {}
        for key, bucket in self.store._buckets.items():
            by_place.setdefault(bucket.place, set()).add(key)
        assert by_place == self.store._keys_by_place


TestStores = Stores.TestCase


def test_the_least_recently_used_answer_leaves_first() -> None:
    store = Store(3 * answer().size)
    for path in (b"/a", b"/b", b"/c"):
        store.put(answer(path), 0)
    store.variants(answer(b"/a").key)
    store.put(answer(b"/d"), 0)
    assert paths(store) == [b"/c", b"/a", b"/d"]


def test_what_is_larger_than_the_store_is_not_kept_and_drives_nobody_out() -> None:
    store = Store(10_000)
    store.put(answer(b"/a"), 0)
    assert not store.put(answer(b"/b", size=10_000), 0)
    assert paths(store) == [b"/a"]


def test_one_url_has_so_many_variants_and_no_more() -> None:
    store = Store(10**7)
    for number in range(MAX_VARIANTS + 5):
        store.put(answer(vary=((b"accept", b"%d" % number),)), 0)
    kept = store.variants(answer().key) or []
    assert [each.vary[0][1] for each in kept] == [b"%d" % number for number in range(MAX_VARIANTS + 4, 4, -1)]


def test_a_long_purge_is_in_force_from_its_beginning() -> None:
    store = Store(10**8)
    for number in range(3 * SLICE):
        store.put(answer(b"/%d" % number), 0)
    steps = store.drop_covered(Rule("service", "svc"))
    next(steps)
    assert store.count == 2 * SLICE
    assert store.variants(answer(b"/%d" % (3 * SLICE - 1)).key) == []
    assert not store.put(answer(b"/new"), 0)
    assert len(list(steps)) == 2
    assert (store.count, store.size) == (0, 0)


def test_what_was_forgotten_of_purges_counts_as_everything() -> None:
    dropped = Dropped()
    for number in range(5000):
        dropped.add_place((b"/%d" % number, None))
    assert dropped.has_since(0, answer(b"/other"))
    assert not dropped.has_since(4000, answer(b"/other"))
    assert dropped.has_since(4000, answer(b"/4000"))
    assert not dropped.has_since(5000, answer(b"/4999"))


def test_bytes_are_counted_honestly() -> None:
    """What the store believes to hold is what the process pays, give or take a fifth."""
    import tracemalloc

    tracemalloc.start()
    try:
        store = Store(10**9)
        before = tracemalloc.get_traced_memory()[0]
        for number in range(2000):
            lines = [b"x-field-%d: %d\r\n" % (each, number) for each in range(8)]
            path = b"/api/v1/orders/%d" % number
            store.put(answer(path, size=300, lines=lines, tags=frozenset((b"tag-%d" % number,))), 0)
        paid = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert 0.8 < store.size / paid < 1.5, store.size / paid

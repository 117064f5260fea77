"""A bounded memory of buckets, out of which those fall that say nothing any more."""

from __future__ import annotations

from typing import Generic, TypeVar

from access.limits.algorithms import Log, Windows

V = TypeVar("V", bound=int | Windows | Log)
Bucket = tuple[str, str]  # the policy's key, and whose it is


class Buckets(Generic[V]):
    """States by bucket. A state is of account until a time: itself, where it is a number, else its ``until``.

    They live in two generations. `sweep` empties the old one in slices, dropping what is of no account and moving the
    others; when it is empty, the young one takes its place. Past ``most`` in the young one the old one is forgotten at
    once, which bounds memory whatever clients do.
    """

    __slots__ = ("_most", "_old", "young")

    def __init__(self, most: int) -> None:
        self._most = most
        self.young: dict[Bucket, V] = {}
        self._old: dict[Bucket, V] = {}

    def adopt(self, bucket: Bucket) -> V | None:
        """The state of a bucket that is not among the young, about to be laid in there."""
        if len(self.young) >= self._most:
            self._old, self.young = self.young, {}
        return self._old.pop(bucket, None)

    def peek(self, bucket: Bucket) -> V | None:
        state = self.young.get(bucket)
        return self._old.get(bucket) if state is None else state

    def keep(self, bucket: Bucket, state: V) -> None:
        if bucket not in self.young:
            self.adopt(bucket)
        self.young[bucket] = state

    def sweep(self, now_ns: int, budget: int) -> None:
        """Look at up to ``budget`` buckets. A timer calls this often, so that no call takes long."""
        if not self._old:
            self._old, self.young = self.young, {}  # a new one: an emptied dict keeps the room of its best days
        for _ in range(min(budget, len(self._old))):
            bucket, state = self._old.popitem()
            if (state if isinstance(state, int) else state.until) > now_ns:
                self.young.setdefault(bucket, state)

    def __len__(self) -> int:
        return len(self.young) + len(self._old)

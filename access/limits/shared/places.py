"""Places of concurrency limits that a worker holds in Redis, which it must renew: a killed worker's come back."""

from __future__ import annotations

from access.limits.charges import Charge


class Places:
    """How many are held of each bucket, by this worker.

    Redis may believe otherwise after a failure. It is told when it is back, and whenever it hears that the worker
    lives, unless a call is under way that it may count before or after that."""

    __slots__ = ("_asked", "_doubted", "_held")

    def __init__(self) -> None:
        self._held: dict[tuple[str, str], Charge] = {}  # the cost is what is held
        self._asked: dict[tuple[str, str], int] = {}  # calls under way
        self._doubted: dict[tuple[str, str], Charge] = {}

    def asking(self, charge: Charge) -> None:
        """Whoever says so says how it ended, by `answered` or `missed`."""
        name = (charge.policy.key, charge.bucket)
        self._asked[name] = self._asked.get(name, 0) + 1

    def answered(self, charge: Charge, *, is_held: bool) -> None:
        name = (charge.policy.key, charge.bucket)
        self._end(name)
        if is_held:
            held = self._held.get(name)
            self._held[name] = charge if held is None else charge._replace(cost=held.cost + charge.cost)

    def missed(self, charge: Charge) -> None:
        """Whether Redis has counted it is unknown."""
        self._end((charge.policy.key, charge.bucket))
        self.doubt(charge)

    def _end(self, name: tuple[str, str]) -> None:
        left = self._asked.pop(name, 1) - 1
        if left:
            self._asked[name] = left

    def left(self, charge: Charge) -> bool:
        """False: none was held."""
        name = (charge.policy.key, charge.bucket)
        held = self._held.pop(name, None)
        if held is None:
            return False
        if held.cost > charge.cost:
            self._held[name] = held._replace(cost=held.cost - charge.cost)
        return True

    def doubt(self, charge: Charge) -> None:
        self._doubted[charge.policy.key, charge.bucket] = charge._replace(cost=0)

    def held(self) -> tuple[list[Charge], list[Charge]]:
        """Those that are certain, and those of which a call is under way."""
        certain = [charge for name, charge in self._held.items() if name not in self._asked]
        return certain, [charge for name, charge in self._held.items() if name in self._asked]

    def after_absence(self) -> list[Charge]:
        """All that is held, and nothing where that is unknown: what Redis must hear when it is back."""
        doubted, self._doubted = self._doubted, {}
        return list((doubted | self._held).values())

    def all(self) -> list[Charge]:
        """Takes all out."""
        held, self._held = self._held, {}
        return list(held.values())

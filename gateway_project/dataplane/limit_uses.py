"""Who uses limits how much, and who is refused: gathered for a second, and told to the agent (A11, A27)."""

from __future__ import annotations

from collections.abc import Callable
from heapq import nlargest

from access.limits.charges import Charge
from access.limits.records import storable
from core.context import Exchange
from core.wire import Message

MOST = 5_000  # subjects of all limits within a second
MOST_TOLD = 20  # subjects of one limit
MOST_ROWS = 1_000
MOST_NAMES = 200  # of limits, as labels of metrics
_OTHER = "other"
_LONGEST = 300  # of a subject


class _Use:
    __slots__ = ("address", "admitted", "application_id", "charge", "is_shared", "refused", "remaining", "tenant_id")

    def __init__(self, charge: Charge, tenant_id: str, application_id: str) -> None:
        self.charge = charge
        self.tenant_id, self.application_id = tenant_id, application_id
        self.admitted = self.refused = self.remaining = 0
        self.address = ""
        self.is_shared = False  # all workers see the same remainder


class LimitUses:
    """``refusals`` counts by the limit's name since the worker started."""

    def __init__(self) -> None:
        self._uses: dict[tuple[str, str], _Use] = {}
        self.refusals: dict[str, int] = {}

    def note(
        self, exchange: Exchange, charge: Charge, remaining: int, *, is_refused: bool, is_shared: bool = False
    ) -> None:
        """One charge that was made, or refused by its own limit."""
        policy = charge.policy
        if is_refused:
            name = policy.name if policy.name in self.refusals or len(self.refusals) < MOST_NAMES else _OTHER
            self.refusals[name] = self.refusals.get(name, 0) + 1
        elif not policy.id:
            return  # the limits that every application has: only who is refused
        use = self._uses.get((policy.key, charge.bucket))
        if use is None:
            if len(self._uses) >= MOST:
                return
            application = exchange.application
            tenant, id = (application.tenant_id, application.id) if application is not None else ("", "")
            use = self._uses[policy.key, charge.bucket] = _Use(charge, tenant, id)
        use.charge, use.remaining, use.is_shared = charge, remaining, is_shared
        if is_refused:
            use.refused += 1
            use.address = exchange.identity.client
        else:
            use.admitted += charge.cost

    def report(self, send: Callable[[Message], bool]) -> None:
        """The busiest subjects of each limit since the last time, and who was refused: what the agent does not take is
        forgotten."""
        uses, self._uses = self._uses, {}
        if not uses:
            return
        by_limit: dict[str, list[_Use]] = {}
        for use in uses.values():
            if use.charge.policy.id:
                by_limit.setdefault(use.charge.policy.id, []).append(use)
        rows = [
            [use.charge.policy.id, _named(use), use.admitted, use.refused, _used(use), use.is_shared]
            for group in by_limit.values()
            for use in nlargest(MOST_TOLD, group, key=lambda use: use.admitted + use.refused)
        ]
        if rows:
            send({"type": "limit_uses", "rows": rows[:MOST_ROWS]})
        refused = nlargest(
            MOST_ROWS,
            (use for use in uses.values() if use.refused),
            key=lambda use: (use.charge.policy.alert, use.refused),
        )
        if refused:
            send({"type": "violations", "rows": [_violation(use) for use in refused]})


def _named(use: _Use) -> str:
    bucket = use.charge.bucket
    return bucket if len(bucket) <= _LONGEST and bucket.isprintable() else storable(bucket)


def _used(use: _Use) -> int:
    return max(use.charge.policy.most - use.remaining, 0)


def _violation(use: _Use) -> list[object]:
    policy = use.charge.policy
    return [
        use.tenant_id,
        policy.id or policy.key,
        policy.name,
        _named(use),
        use.application_id,
        use.address,
        use.refused,
        policy.alert,
    ]

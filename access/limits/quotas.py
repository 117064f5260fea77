"""Quotas as one worker counts them: budgets of calendar days and months that outlive processes.

What has been used stands in the database, which the agent adds to. A worker asks once for each bucket and period,
counts on from there, and tells every second what it has admitted since; the answer is what all workers of all hosts
have told until then. Between two tellings a worker takes no more than its share of what was left, so that workers that
do not hear of each other meanwhile overshoot by less than what was left. A worker that is killed loses what it has not
told: at most a second's requests.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from access.limits.charges import SECOND_NS, Charge
from access.limits.local import Look
from access.limits.periods import period_of

MOST = 50_000  # buckets of one worker
MOST_TOLD = 1_000  # in one message
_RETRY_S = 2.0  # after nobody answered
_RETRY_NS = int(_RETRY_S * SECOND_NS)

Place = tuple[str, str, str]  # the policy's key, the bucket, the period's name
Row = tuple[str, str, str, str, int]  # tenant, policy, bucket, period, how much


class _Use:
    """``known``: what all have told; ``told``: of that what is on its way and not answered; ``untold``: since then.
    ``alone_until`` (epoch seconds): nobody answers, and until then nobody is asked again."""

    __slots__ = ("alone_until", "is_asked", "is_known", "known", "tenant_id", "told", "untold")

    def __init__(self, tenant_id: str) -> None:
        self.tenant_id = tenant_id
        self.known = self.told = self.untold = 0
        self.is_known = self.is_asked = False
        self.alone_until = 0.0

    @property
    def used(self) -> int:
        return self.known + self.told + self.untold


class QuotaBook:
    """``workers``: how many of this host count the same quotas."""

    def __init__(self, workers: int = 1) -> None:
        self._workers = workers
        self._uses: dict[Place, _Use] = {}
        self._wanted: set[Place] = set()  # somebody waits for these
        self._dirty: set[Place] = set()  # untold

    def look(self, charge: Charge, epoch: float) -> Look | None:
        """What would become of a charge at ``epoch`` (seconds). None: that must be asked first (`rows`)."""
        policy, bucket, cost = charge
        period = period_of(policy.period, epoch)
        use = self._uses.get((policy.key, bucket, period.name))
        if use is None:
            return None
        is_alone = epoch < use.alone_until
        if not use.is_known and not is_alone:
            return None
        left, wait_ns = policy.limit - use.used, int(max(period.end - epoch, 0.0) * SECOND_NS)
        if cost > left:
            return Look(False, max(left, 0), wait_ns, wait_ns, None)
        if self._workers > 1 and use.told + use.untold + cost > max((policy.limit - use.known) // self._workers, cost):
            if not is_alone:
                return None  # our share is used up: what others have left of theirs must be asked
            if policy.outage == "share":
                return Look(False, 0, _RETRY_NS, _RETRY_NS, None)
        return Look(True, left - cost, 0, wait_ns, None)

    def is_alone(self, charge: Charge, epoch: float) -> bool:
        """Whether nobody answers for this bucket at the moment."""
        use = self._uses.get((charge.policy.key, charge.bucket, period_of(charge.policy.period, epoch).name))
        return use is not None and epoch < use.alone_until

    def want(self, charge: Charge, epoch: float, tenant_id: str) -> Place:
        """Ask for a bucket with the next message."""
        policy, bucket, _ = charge
        period = period_of(policy.period, epoch)
        place = (policy.key, bucket, period.name)
        if place not in self._uses:
            if len(self._uses) >= MOST:
                self._forget()
            self._uses[place] = _Use(tenant_id)
        self._wanted.add(place)
        return place

    def make(self, charge: Charge, epoch: float) -> None:
        """Make a charge that `look` allowed."""
        self._add(charge, epoch, charge.cost)

    def give_back(self, charge: Charge, epoch: float) -> None:
        self._add(charge, epoch, -charge.cost)

    def _add(self, charge: Charge, epoch: float, cost: int) -> None:
        place = (charge.policy.key, charge.bucket, period_of(charge.policy.period, epoch).name)
        use = self._uses.get(place)
        if use is not None:
            use.untold += cost
            self._dirty.add(place)

    # --- what the agent is told and asked ---
    def rows(self, *, is_urgent: bool = False) -> list[Row]:
        """What to tell and to ask now: the buckets that somebody waits for first, and nothing else if it is urgent.
        None of them is in another message that is on its way."""
        rows: list[Row] = []
        for place in self._wanted if is_urgent else [*self._wanted, *(self._dirty - self._wanted)]:
            use = self._uses[place]
            if use.is_asked:
                continue
            use.is_asked, use.told, use.untold = True, use.untold, 0
            self._dirty.discard(place)
            rows.append((use.tenant_id, *place, use.told))
            if len(rows) >= MOST_TOLD:
                break
        return rows

    def answered(self, rows: Sequence[Row], used: Sequence[int]) -> None:
        """``used``: what has been used of each of ``rows``, ours among it."""
        for (_, policy, bucket, period, _), total in zip(rows, used, strict=True):
            use = self._uses.get((policy, bucket, period))
            if use is not None:
                use.known, use.told, use.is_asked, use.is_known, use.alone_until = total, 0, False, True, 0.0
                self._wanted.discard((policy, bucket, period))

    def unanswered(self, rows: Sequence[Row], epoch: float) -> None:
        """Nobody has taken ``rows``: they are told again, and meanwhile our own count goes on."""
        for _, policy, bucket, period, _ in rows:
            place = (policy, bucket, period)
            use = self._uses.get(place)
            if use is not None:
                use.untold, use.told, use.is_asked = use.untold + use.told, 0, False
                use.alone_until = epoch + _RETRY_S
                self._wanted.discard(place)
                if use.untold:
                    self._dirty.add(place)

    def is_waiting(self, places: Iterable[Place]) -> bool:
        return any(place in self._wanted for place in places)

    def _forget(self) -> None:
        """Everything that is told: it can be asked for again."""
        self._uses = {
            place: use
            for place, use in self._uses.items()
            if use.untold or use.told or use.is_asked or place in self._wanted
        }
        self._dirty &= self._uses.keys()  # one that was charged and given back

    def __len__(self) -> int:
        return len(self._uses)

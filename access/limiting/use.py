"""Who uses a limit most: what the agents of all hosts have said lately, and what the database keeps of quotas."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from access.limits.charges import compiled
from access.limits.periods import Period, period_of
from access.models import LimitUse, QuotaUse, RateLimit
from access.policies import LimitRule
from core.policies import read

MOST = 20
_PRESENT = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class SubjectUse:
    """``subject`` is the bucket's name, such as ``key:key_…`` or ``ip:192.0.2.1``; empty: everybody's. ``admitted`` and
    ``refused`` are of the last minute, on all hosts."""

    subject: str
    used: int
    remaining: int
    admitted: int = 0
    refused: int = 0
    seen_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Use:
    """``period``: of a quota, the present one."""

    limit: int
    subjects: list[SubjectUse]
    period: Period | None


def use_of(limit: RateLimit, now: datetime) -> Use:
    """The busiest subjects first. Of limits that each worker counts for itself, ``remaining`` is what all of them would
    admit together, as far as they have heard of the subject."""
    rule = read(LimitRule, limit.rule)
    most = compiled(limit.pk, limit.name, rule).most
    found = _joined(LimitUse.objects.filter(limit_id=limit.pk, seen_at__gte=now - _PRESENT), most)
    period = None
    if rule.algorithm == "quota":
        period = period_of(rule.period, now.timestamp())
        found = _with_quotas(limit.pk, rule.limit, period, found)
    busiest = sorted(found.values(), key=lambda each: (-(each.admitted + each.refused), -each.used, each.subject))
    return Use(rule.limit, busiest[:MOST], period)


def _joined(rows: Iterable[LimitUse], limit: int) -> dict[str, SubjectUse]:
    """What hosts say of the same subject."""
    found: dict[str, SubjectUse] = {}
    for row in rows:
        known = found.get(row.subject, SubjectUse(row.subject, 0, 0))
        used = max(known.used, row.used) if row.is_shared else known.used + row.used
        found[row.subject] = SubjectUse(
            row.subject,
            used,
            max(limit - used, 0),
            known.admitted + row.admitted,
            known.refused + row.refused,
            row.seen_at if known.seen_at is None else max(known.seen_at, row.seen_at),
        )
    return found


def _with_quotas(limit_id: str, limit: int, period: Period, found: dict[str, SubjectUse]) -> dict[str, SubjectUse]:
    """The database knows who has used most until now, and hosts who does at the moment."""
    rows = QuotaUse.objects.filter(policy=limit_id, period=period.name)
    known = {row.subject: row for row in rows.order_by("-used")[:MOST]}
    known.update({row.subject: row for row in rows.filter(subject__in=found.keys() - known.keys())})
    for subject, row in known.items():
        present = found.get(subject)
        used = max(row.used, present.used if present is not None else 0)
        found[subject] = SubjectUse(
            subject,
            used,
            max(limit - used, 0),
            present.admitted if present is not None else 0,
            present.refused if present is not None else 0,
            row.updated_at if present is None else present.seen_at,
        )
    return found

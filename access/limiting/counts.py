"""What workers have counted, in the database: quotas, the busiest subjects of limits, and who was refused."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, TypeVar

from django.conf import settings
from django.db import connection
from django.utils import timezone

from access.models import LimitUse, LimitViolation, QuotaUse
from core.ids import new_id
from core.models import DEFAULT_TENANT

T = TypeVar("T")
_CHUNK = 200  # rows of one statement
_USES_KEPT = timedelta(minutes=10)

_ADD_QUOTAS = """
    INSERT INTO gateway_quota_use (tenant_id, policy, subject, period, used, updated_at) VALUES {rows}
    ON CONFLICT (policy, subject, period) DO UPDATE
    SET used = gateway_quota_use.used + excluded.used, updated_at = excluded.updated_at
    RETURNING policy, subject, period, used
"""
_ADD_VIOLATIONS = """
    INSERT INTO gateway_limit_violation
        (tenant_id, id, minute, limit_id, limit_name, subject, application_id, refused, last_at, address) VALUES {rows}
    ON CONFLICT (limit_id, subject, minute) DO UPDATE
    SET refused = gateway_limit_violation.refused + excluded.refused, last_at = excluded.last_at,
        address = excluded.address
"""


class QuotaPlace(NamedTuple):
    policy: str
    subject: str
    period: str


class Refused(NamedTuple):
    """Refusals of one subject by one limit within a second or so."""

    tenant_id: str
    limit_id: str
    limit_name: str
    subject: str
    application_id: str
    address: str
    requests: int


class Busy(NamedTuple):
    """A subject of a limit as one host sees it; ``admitted`` and ``refused`` of the last minute. ``is_shared``:
    ``used`` is what all hosts have used together."""

    limit_id: str
    subject: str
    used: int
    admitted: int
    refused: int
    is_shared: bool


def add_quotas(uses: Sequence[tuple[str, QuotaPlace, int]]) -> dict[QuotaPlace, int]:
    """Add what has been used (tenant, place, how much), and return what has been used of each place until now, by all
    hosts. 0 only asks."""
    used: dict[QuotaPlace, int] = {}
    now = timezone.now()
    for chunk in _chunks(sorted((use for use in uses if use[2]), key=lambda use: use[1])):  # one order: no deadlock
        rows = ", ".join(["(%s, %s, %s, %s, %s, %s)"] * len(chunk))
        values = [value for tenant, place, cost in chunk for value in (tenant or DEFAULT_TENANT, *place, cost, now)]
        with connection.cursor() as cursor:
            cursor.execute(_ADD_QUOTAS.format(rows=rows), values)
            used.update({QuotaPlace(*place): total for *place, total in cursor.fetchall()})
    for chunk in _chunks([use for use in uses if not use[2]]):
        subjects = {place.subject for _, place, _ in chunk}
        known = QuotaUse.objects.filter(subject__in=subjects, policy__in={place.policy for _, place, _ in chunk})
        for *place, total in known.values_list("policy", "subject", "period", "used"):
            used.setdefault(QuotaPlace(*place), total)
    return {place: used.get(place, 0) for _, place, _ in uses}


def add_violations(refusals: Sequence[Refused], now: datetime) -> None:
    """``refusals`` hold each limit and subject once."""
    minute = now.replace(second=0, microsecond=0)
    for chunk in _chunks(sorted(refusals, key=lambda each: (each.limit_id, each.subject))):
        rows = ", ".join(["(%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)"] * len(chunk))
        values: list[Any] = [value for each in chunk for value in _violation(each, minute, now)]
        with connection.cursor() as cursor:
            cursor.execute(_ADD_VIOLATIONS.format(rows=rows), values)


def _violation(refused: Refused, minute: datetime, now: datetime) -> tuple[object, ...]:
    return (
        refused.tenant_id or DEFAULT_TENANT,
        new_id("vio"),
        minute,
        refused.limit_id,
        refused.limit_name,
        refused.subject,
        refused.application_id,
        refused.requests,
        now,
        refused.address,
    )


def store_uses(node: str, uses: Collection[Busy], now: datetime) -> None:
    """The busiest subjects as a host sees them take the place of what it said of them before."""
    rows = [
        LimitUse(
            limit_id=each.limit_id,
            subject=each.subject,
            node=node,
            used=each.used,
            admitted=each.admitted,
            refused=each.refused,
            is_shared=each.is_shared,
            seen_at=now,
        )
        for each in uses
    ]
    fields = ["used", "admitted", "refused", "is_shared", "seen_at"]
    LimitUse.objects.bulk_create(
        rows,
        batch_size=_CHUNK,
        update_conflicts=True,
        update_fields=fields,
        unique_fields=["limit_id", "subject", "node"],
    )


def prune(now: datetime) -> None:
    """Forget what is long past: nobody else would."""
    LimitUse.objects.filter(seen_at__lt=now - _USES_KEPT).delete()
    if settings.VIOLATION_DAYS:
        LimitViolation.objects.filter(minute__lt=now - timedelta(days=settings.VIOLATION_DAYS)).delete()
    QuotaUse.objects.filter(updated_at__lt=now - timedelta(days=settings.QUOTA_DAYS)).delete()


def epoch(at: float) -> datetime:
    return datetime.fromtimestamp(at, UTC)


def _chunks(rows: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(rows), _CHUNK):
        yield rows[start : start + _CHUNK]

"""What agents write of versions: who calls the deprecated ones, and how measured ones fare; and what is read of it.

Nothing here is a change of the configuration, so nothing makes a revision.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from django.db import transaction
from django.db.models import Case, F, QuerySet, Value, When
from django.utils import timezone

from routing.judging import LATENCY_S, Numbers, total
from routing.models import Rollout, VersionTraffic, VersionUse

BUCKET_S = 10
PHASE_BUCKET_S = 60  # of a rollout's steps, which are only ever summed from their beginning on, every few seconds
_TRAFFIC_KEPT = timedelta(days=1)
_USES_KEPT = timedelta(days=90)
_CHUNK = 500


@dataclass(frozen=True, slots=True)
class Use:
    """Requests of one caller to one version; ``last`` is epoch seconds."""

    service_id: str
    version: str
    application_id: str
    key_id: str
    requests: int
    last: float
    address: str


@dataclass(frozen=True, slots=True)
class Traffic:
    """A version's numbers in the bucket that began at ``began`` (epoch seconds)."""

    service_id: str
    version: str
    phase: str
    began: int
    numbers: Numbers


def add_uses(uses: Collection[Use]) -> None:
    """Several hosts add to the same rows, in the same order."""
    listed = sorted(uses, key=_caller)
    with transaction.atomic():
        for start in range(0, len(listed), _CHUNK):
            rows = [_new_use(use) for use in listed[start : start + _CHUNK]]
            VersionUse.objects.bulk_create(rows, ignore_conflicts=True)
        for use in listed:
            _add_use(use)


def _caller(use: Use) -> tuple[str, str, str, str]:
    return use.service_id, use.version, use.application_id, use.key_id


def _new_use(use: Use) -> VersionUse:
    moment = datetime.fromtimestamp(use.last, UTC)
    return VersionUse(
        service_id=use.service_id,
        version=use.version,
        application_id=use.application_id,
        key_id=use.key_id,
        first_used_at=moment,
        last_used_at=moment,
    )


def _add_use(use: Use) -> None:
    """What hosts say arrives in any order: the latest use decides when and from where."""
    moment = datetime.fromtimestamp(use.last, UTC)
    is_latest = When(last_used_at__lte=moment, then=Value(moment))
    VersionUse.objects.filter(
        service_id=use.service_id, version=use.version, application_id=use.application_id, key_id=use.key_id
    ).update(
        requests=F("requests") + use.requests,
        address=Case(When(last_used_at__lte=moment, then=Value(use.address)), default=F("address")),
        last_used_at=Case(is_latest, default=F("last_used_at")),
    )


def store_traffic(agent: str, traffic: Collection[Traffic]) -> None:
    """The present sums of these buckets; ``agent`` alone writes them."""
    rows = [
        VersionTraffic(
            agent=agent,
            service_id=each.service_id,
            version=each.version,
            phase=each.phase,
            began_at=datetime.fromtimestamp(each.began, UTC),
            requests=each.numbers.requests,
            errors=each.numbers.errors,
            latency=list(each.numbers.latency),
        )
        for each in traffic
    ]
    VersionTraffic.objects.bulk_create(
        rows,
        batch_size=_CHUNK,
        update_conflicts=True,
        unique_fields=["service_id", "phase", "version", "began_at", "agent"],
        update_fields=["requests", "errors", "latency"],
    )


def numbers_of(service_id: str, phases: Iterable[str]) -> dict[str, Numbers]:
    """By version, of all hosts together, while the service was in one of the phases."""
    return _sums(VersionTraffic.objects.filter(service_id=service_id, phase__in=list(phases)))


def numbers_since(service_id: str, since: datetime) -> dict[str, Numbers]:
    """By version, of all hosts together, in the buckets that began at or after ``since``."""
    return _sums(VersionTraffic.objects.filter(service_id=service_id, began_at__gte=since))


def _sums(rows: QuerySet[VersionTraffic]) -> dict[str, Numbers]:
    found: dict[str, list[Numbers]] = defaultdict(list)
    for version, requests, errors, latency in rows.order_by().values_list("version", "requests", "errors", "latency"):
        if len(latency) == len(LATENCY_S) + 1:  # else of another version of the gateway
            found[version].append(Numbers(requests, errors, tuple(latency)))
    return {version: total(parts) for version, parts in found.items()}


def prune() -> None:
    """What an open rollout was measured by before its present step is kept: it may have nothing else to compare with
    (`routing.rollouts.compared`), and does not grow any more."""
    now = timezone.now()
    open_ones = Rollout.objects.filter(status__in=Rollout.OPEN).values_list("pk", "step")
    before = [f"{rollout}/{step}" for rollout, present in open_ones for step in range(present)]
    VersionTraffic.objects.filter(began_at__lt=now - _TRAFFIC_KEPT).exclude(phase__in=before).delete()
    VersionUse.objects.filter(last_used_at__lt=now - _USES_KEPT).delete()

"""Tokens of our own that hold no longer: rows that every agent follows, and its workers obey within a second."""

from datetime import UTC, datetime, timedelta

from django.conf import settings
from django.db import connection
from django.db.models import Max
from django.db.models.functions import Now

from access.models import TokenRevocation
from access.signing.keys import LEEWAY_S

Told = tuple[str, str, float, float]  # what, value, before, until: epoch seconds
_LOCK = 0x7265766F  # any number of ours: "revo"


def database_now() -> datetime:
    """The one clock by which tokens are dated and ended, so that no two hosts disagree about which came first."""
    if connection.vendor != "postgresql":
        return datetime.now(UTC)
    with connection.cursor() as cursor:
        cursor.execute("SELECT clock_timestamp()")
        now: datetime = cursor.fetchone()[0]
    return now


def whole_second_after(moment: datetime) -> datetime:
    """Tokens tell their time in whole seconds: what is from before this one is from before ``moment``, and what comes
    after ``moment`` is dated no earlier."""
    return moment.replace(microsecond=0) + timedelta(seconds=1)


def revoke(what: str, value: str, before: datetime, tenant_id: str) -> None:
    """Within a transaction, as its last lock: numbers become visible in their order."""
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(%s)", [_LOCK])
    until = before + timedelta(seconds=settings.ACCESS_TOKEN_S + 2 * LEEWAY_S)
    TokenRevocation.objects.create(tenant_id=tenant_id, what=what, value=value, before=before, until=until)


def latest_number() -> int:
    return int(TokenRevocation.objects.aggregate(latest=Max("number"))["latest"] or 0)


def revocations_after(number: int) -> tuple[int, list[Told]]:
    """The latest number, and what has been revoked after ``number`` and is not forgotten."""
    latest = max(number, latest_number())  # before the rows: one that comes meanwhile is told, now or the next time
    rows = TokenRevocation.objects.filter(number__gt=number, until__gt=Now()).order_by("number")
    told = [
        (at, (what, value, before.timestamp(), until.timestamp()))
        for at, what, value, before, until in rows.values_list("number", "what", "value", "before", "until")
    ]
    return max(latest, told[-1][0] if told else 0), [each for _, each in told]


def forget_revocations() -> None:
    """Those all of whose tokens have expired."""
    TokenRevocation.objects.filter(until__lt=Now() - timedelta(minutes=5)).delete()

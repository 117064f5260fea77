"""Purging what the gateways have stored. A purge is no configuration: its row is the audit of it, and what agents
follow (rule 23)."""

from datetime import timedelta

from django.db import connection, transaction
from django.db.models import Max
from django.db.models.functions import Now

from core import audit
from core.revisions import Actor
from core.validation import invalid
from routing.cache.dropping import read_rule
from routing.cache.purges import REMEMBERED_S
from routing.models import CachePurge

_LOCK = 0x70757267  # any number of ours: "purg"
Told = tuple[int, str, str]  # number, kind, value
MOST_TOLD = 2000


def purge_cache(*, kind: str, value: str, actor: Actor, source: str, reason: str = "") -> CachePurge:
    """Have every worker drop what ``kind`` (`routing.cache.dropping.KINDS`) and ``value`` name. In force everywhere
    within a second. Raises ClientFault: ``invalid_field``."""
    try:
        read_rule(kind, value)
    except ValueError as error:
        raise invalid(kind, f"{str(error).rstrip('.')}.") from None
    with transaction.atomic():
        if connection.vendor == "postgresql":  # numbers become visible in their order
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_advisory_xact_lock(%s)", [_LOCK])
        audit.record(
            "cache.purge", actor=actor, source=source, object_kind="cache", details={kind: value, "reason": reason}
        )
        return CachePurge.objects.create(
            number=latest_number() + 1,
            kind=kind,
            value=value,
            actor_kind=actor.kind,
            actor_id=actor.id,
            actor_name=actor.name,
            source=source,
            reason=reason,
        )


def latest_number() -> int:
    return int(CachePurge.objects.aggregate(latest=Max("number"))["latest"] or 0)


def purges_after(number: int) -> tuple[int, list[Told]]:
    """The latest number, and the purges after ``number``, of the last day; each place once, with its latest. Of very
    many, the oldest count as one of everything."""
    latest = latest_number()
    since = Now() - timedelta(seconds=REMEMBERED_S + 3600)
    rows = CachePurge.objects.filter(number__gt=number, at__gt=since).order_by("-number")
    places: dict[tuple[str, str], int] = {}
    for at, kind, value in rows.values_list("number", "kind", "value")[: 10 * MOST_TOLD]:
        if len(places) >= MOST_TOLD:
            places.setdefault(("all", ""), at)
            break
        places.setdefault((kind, value), at)
    return latest, sorted((at, kind, value) for (kind, value), at in places.items())

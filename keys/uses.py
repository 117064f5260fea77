"""How often keys are used, when last and from where, as agents write it; and who uses a key.

Nothing here is a change of the configuration, so nothing makes a revision. Several hosts add to the same rows, so all
is added in the database, in one transaction, with a few statements for thousands of keys.
"""

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from django.db import connection, transaction
from django.utils import timezone

from core.locks import hold_lock
from keys.models import KeyCaller

MOST_CALLERS = 200  # of a key that are kept
_KEPT = timedelta(days=90)
_CHUNK = 200  # rows in a statement

# VALUES names its columns column1, column2, … in PostgreSQL and SQLite alike.
_ADD_TO_KEYS = """
UPDATE gateway_api_key SET
    use_count = use_count + v.column2,
    last_used_address = CASE WHEN last_used_at IS NULL OR last_used_at <= v.column3
        THEN v.column4 ELSE last_used_address END,
    last_used_at = CASE WHEN last_used_at IS NULL OR last_used_at < v.column3 THEN v.column3 ELSE last_used_at END
FROM (VALUES {rows}) AS v WHERE gateway_api_key.id = v.column1
"""
_ADD_TO_CALLERS = """
INSERT INTO gateway_key_caller (key_id, address, requests, last_at)
SELECT v.column1, v.column2, v.column3, v.column4 FROM (VALUES {rows}) AS v
WHERE EXISTS (SELECT 1 FROM gateway_api_key WHERE gateway_api_key.id = v.column1)
ON CONFLICT (key_id, address) DO UPDATE SET
    requests = gateway_key_caller.requests + excluded.requests,
    last_at = CASE WHEN excluded.last_at > gateway_key_caller.last_at
        THEN excluded.last_at ELSE gateway_key_caller.last_at END
"""
_DROP_BEYOND = """
DELETE FROM gateway_key_caller WHERE id IN (
    SELECT id FROM (
        SELECT id, ROW_NUMBER() OVER (PARTITION BY key_id ORDER BY last_at DESC, id DESC) AS place
        FROM gateway_key_caller
    ) AS ranked WHERE place > %s
)
"""


@dataclass(frozen=True, slots=True)
class KeyUse:
    """Requests with one key from one address; ``last`` is epoch seconds. An empty address: from several."""

    key_id: str
    address: str
    requests: int
    last: float


def store_uses(uses: Collection[KeyUse]) -> None:
    """What hosts say arrives in any order: the latest use decides when and from where."""
    by_key: dict[str, list[KeyUse]] = defaultdict(list)
    for use in uses:
        by_key[use.key_id].append(use)
    totals = []
    for key_id in sorted(by_key):
        latest = max(by_key[key_id], key=lambda use: use.last)
        totals.append((key_id, sum(use.requests for use in by_key[key_id]), _moment(latest), latest.address))
    callers = [
        (use.key_id, use.address, use.requests, _moment(use)) for key_id in sorted(by_key) for use in by_key[key_id]
    ]
    with transaction.atomic():
        hold_lock("key uses")  # two hosts that take the same rows in another order would wait for each other
        _execute(_ADD_TO_KEYS, totals)
        _execute(_ADD_TO_CALLERS, callers)


def _moment(use: KeyUse) -> Any:
    return connection.ops.adapt_datetimefield_value(datetime.fromtimestamp(use.last, UTC))


def _execute(statement: str, rows: Sequence[tuple[Any, ...]]) -> None:
    with connection.cursor() as cursor:
        for chunk in _chunks(rows):
            places = ", ".join(["(%s, %s, %s, %s)"] * len(chunk))
            cursor.execute(statement.format(rows=places), [value for row in chunk for value in row])


def _chunks(rows: Sequence[tuple[Any, ...]]) -> Iterator[Sequence[tuple[Any, ...]]]:
    for start in range(0, len(rows), _CHUNK):
        yield rows[start : start + _CHUNK]


def prune_callers() -> None:
    """Forget who has not come for long, and of each key all but the latest callers."""
    KeyCaller.objects.filter(last_at__lt=timezone.now() - _KEPT).delete()
    with connection.cursor() as cursor:
        cursor.execute(_DROP_BEYOND, [MOST_CALLERS])

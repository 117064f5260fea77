"""Every change of the configuration is one database transaction and one revision.

    with revision(actor=actor, source="api", reason="…") as change:
        before = row.recorded()
        row.weight = 5
        change.save(row, before)

The number is taken under an advisory lock taken first in the transaction, so that revisions become visible in the
order of their numbers and a follower that has seen N has seen everything below it.
"""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

from django.db import connection, transaction
from django.db.models import Max
from django.utils import timezone

from core.faults import ClientFault
from core.managed_secrets import check_references
from core.models import DEFAULT_TENANT, ConfigChange, ConfigRevision, ConfigRow

NOTIFY_CHANNEL = "portcullis_config"
_LOCK = 0x706F7274  # any number of ours: "port"


@dataclass(frozen=True, slots=True)
class Actor:
    """Who does something: ``kind`` is user, key, end_user, setup, command, demo or anonymous. ``request_id`` and
    ``address`` say with which request, and from where."""

    kind: str
    id: str = ""
    name: str = ""
    tenant_id: str = DEFAULT_TENANT
    request_id: str = ""
    address: str = ""


@dataclass(slots=True)
class RevisionWriter:
    """Collects what one revision changes. ``number`` is stamped on every row it saves."""

    number: int
    changes: list[ConfigChange] = field(default_factory=list)
    tenants: set[str] = field(default_factory=set)  # of the rows

    def save_new(self, row: ConfigRow) -> None:
        row.revision = self.number
        row.save(force_insert=True)
        self._add(row, ConfigChange.Operation.CREATE, None, row.recorded())

    def save(self, row: ConfigRow, before: dict[str, Any]) -> bool:
        """Store a changed row; ``before`` is its `recorded()` from before the change. False when nothing differs."""
        after = row.recorded()
        if after == before:
            return False
        self._update(row)
        self._add(row, ConfigChange.Operation.UPDATE, before, after)
        return True

    def touch(self, row: ConfigRow) -> None:
        """Send a row to the gateways anew although nothing that the history keeps has changed (a rebuilt digest)."""
        self._update(row)
        recorded = row.recorded()
        self._add(row, ConfigChange.Operation.UPDATE, recorded, recorded)

    def delete(self, row: ConfigRow) -> None:
        """Delete a row; rows that hang on it are deleted first by the caller, each recorded."""
        before = row.recorded()
        row_id = str(row.pk)
        self._add(row, ConfigChange.Operation.DELETE, before, None)
        row.delete()
        row.pk = row_id

    def _update(self, row: ConfigRow) -> None:
        row.revision = self.number
        row.updated_at = timezone.now()
        # Not the columns that others write meanwhile, such as a key's last use.
        kept = {"created_at", row._meta.pk.name, *row.unrecorded_fields} - {"revision", "updated_at"}
        row.save(update_fields=[field.name for field in row._meta.concrete_fields if field.name not in kept])

    def _add(self, row: ConfigRow, operation: str, before: dict[str, Any] | None, after: dict[str, Any] | None) -> None:
        self.tenants.add(str(row.tenant_id))
        if after is not None:
            check_references(before, after, str(row.tenant_id))
        self.changes.append(
            ConfigChange(
                revision_id=self.number,
                kind=row.kind,
                object_id=str(row.pk),
                object_name=str(row)[:200],
                operation=operation,
                before=before,
                after=after,
            )
        )


_Row = TypeVar("_Row", bound=ConfigRow)


def locked(row: _Row, if_revision: int | None = None) -> _Row:
    """The row as it stands now, locked until the revision ends; call it inside one.

    Raises ClientFault: ``not_found`` when somebody deleted it, ``stale_revision`` (with ``current``, the row's present
    revision) when it is no longer at ``if_revision``.
    """
    current = cast("_Row | None", type(row)._default_manager.select_for_update().filter(pk=row.pk).first())
    if current is None:
        raise ClientFault("not_found", f"{str(row)!r} does not exist any more.")
    if if_revision is not None and current.revision != if_revision:
        raise stale(current, if_revision)
    return current


def stale(row: ConfigRow, if_revision: int, present: int | None = None) -> ClientFault:
    present = row.revision if present is None else present
    return ClientFault(
        "stale_revision",
        f"{str(row)!r} was changed in revision {present}; you began with revision {if_revision}.",
        headers=((b"etag", b'"%d"' % present),),
        members={"current": present},
    )


_current: ContextVar[RevisionWriter | None] = ContextVar("revision_writer", default=None)
_observed: ContextVar[list[int] | None] = ContextVar("observed_revisions", default=None)


@contextmanager
def observed() -> Iterator[list[int]]:
    """Collects the numbers of the revisions committed inside, for whoever waits until the gateways have them."""
    numbers: list[int] = []
    reset = _observed.set(numbers)
    try:
        yield numbers
    finally:
        _observed.reset(reset)


@contextmanager
def revision(*, actor: Actor, source: str, reason: str = "") -> Iterator[RevisionWriter]:
    """One transaction, one revision. Inside another one it joins that. Nothing changed: no revision is made."""
    outer = _current.get()
    if outer is not None:
        yield outer
        return
    with transaction.atomic():
        writer = RevisionWriter(_next_number())
        reset = _current.set(writer)
        try:
            yield writer
        finally:
            _current.reset(reset)
        if writer.changes:
            _commit(writer, actor, source, reason)
    numbers = _observed.get()
    if writer.changes and numbers is not None:
        numbers.append(writer.number)


def _next_number() -> int:
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(%s)", [_LOCK])
    # SQLite: every transaction is IMMEDIATE (settings), which is the lock.
    latest = ConfigRevision.objects.aggregate(latest=Max("number"))["latest"]
    return int(latest or 0) + 1


def _commit(writer: RevisionWriter, actor: Actor, source: str, reason: str) -> None:
    ConfigRevision.objects.create(
        number=writer.number,
        tenant_id=next(iter(writer.tenants)) if len(writer.tenants) == 1 else DEFAULT_TENANT,
        token=secrets.token_hex(8),
        actor_kind=actor.kind,
        actor_id=actor.id,
        actor_name=actor.name,
        source=source,
        reason=reason,
        request_id=actor.request_id,
        address=actor.address,
    )
    ConfigChange.objects.bulk_create(writer.changes)
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_notify(%s, %s)", [NOTIFY_CHANNEL, str(writer.number)])

"""The whole audit trail in one list: changes of the configuration (`ConfigChange`) and whatever else was done
(`AuditEvent`), newest first.

Both tables are append-only, and neither repeats what the other holds, so a page of the trail is a page of each, merged.
A position in it is a time and an id; at one time changes come before events.
"""

import base64
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

import orjson
from django.db.models import Q, QuerySet, Value
from django.db.models.functions import Concat

from core.faults import ClientFault
from core.models import DEFAULT_TENANT, AuditEvent, ConfigChange

_CHANGE = "chg_"
_NOUNS = {"api_key": "key"}  # as requirement 000 calls them; every other kind is its own noun
_KINDS = {noun: kind for kind, noun in _NOUNS.items()}
_ACTION = Concat("kind", Value("."), "operation")  # holds a key's noun too
_CHUNK = 500


class Position(NamedTuple):
    at: datetime
    id: str


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing that somebody did to one object. ``changes``: {field: (before, after)}, only what differs."""

    id: str
    at: datetime
    action: str
    outcome: str
    actor_kind: str
    actor_id: str
    actor_name: str
    source: str
    object_kind: str
    object_id: str
    object_name: str
    reason: str
    request_id: str
    address: str
    revision: int | None
    changes: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def position(self) -> Position:
        return Position(self.at, self.id)


@dataclass(frozen=True, slots=True)
class Search:
    """What to look for; what is empty does not narrow. ``action`` may end with ``*``; ``text`` is looked for in names,
    reasons, actions, addresses and request ids."""

    tenant_id: str = DEFAULT_TENANT
    text: str = ""
    action: str = ""
    actor: str = ""  # id or name
    object_kind: str = ""
    object_id: str = ""
    outcome: str = ""
    source: str = ""
    address: str = ""
    request_id: str = ""
    since: datetime | None = None
    until: datetime | None = None


def entries(search: Search, after: Position | None = None, limit: int = 50) -> list[Entry]:
    """The next ``limit`` entries, older than ``after``."""
    events = _events(search, after).order_by("-at", "-id")[:limit]
    changes = _changes(search, after).select_related("revision").order_by("-revision__created_at", "-pk")[:limit]
    found = [*map(_entry_of_change, changes), *map(_entry_of_event, events)]
    found.sort(key=lambda entry: (entry.at, entry.id.startswith(_CHANGE), _age(entry.id)), reverse=True)
    return found[:limit]


def every(search: Search) -> Iterator[Entry]:
    """All of them, read in pages: for exports."""
    after: Position | None = None
    while page := entries(search, after, _CHUNK):
        yield from page
        after = page[-1].position


def entry(entry_id: str, tenant_id: str = DEFAULT_TENANT) -> Entry | None:
    search = Search(tenant_id=tenant_id)
    if entry_id.startswith(_CHANGE):
        number = entry_id.removeprefix(_CHANGE)
        rows = _changes(search, None).select_related("revision") if _is_number(number) else ConfigChange.objects.none()
        change = rows.filter(pk=int(number)).first() if _is_number(number) else None
        return None if change is None else _entry_of_change(change)
    event = _events(search, None).filter(pk=entry_id).first()
    return None if event is None else _entry_of_event(event)


# --- positions in URLs ---------------------------------------------------------------------------------------------
def cursor(position: Position) -> str:
    return base64.urlsafe_b64encode(orjson.dumps([position.at.isoformat(), position.id])).decode().rstrip("=")


def position(text: str) -> Position:
    """Raises ClientFault for what `cursor` has not made."""
    try:
        at, entry_id = orjson.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
        found = Position(datetime.fromisoformat(at).astimezone(UTC), str(entry_id))
        if found.id.startswith(_CHANGE) and not _is_number(found.id.removeprefix(_CHANGE)):
            raise ValueError("no such change")
        if "\x00" in found.id:
            raise ValueError("no such event")
    except (ValueError, TypeError, OverflowError) as error:
        raise ClientFault("bad_request", "The cursor is not one that this list gave.") from error
    return found


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 18


def _age(entry_id: str) -> tuple[int, str]:
    """Numbers of changes sort as numbers."""
    return (int(entry_id.removeprefix(_CHANGE)), "") if entry_id.startswith(_CHANGE) else (0, entry_id)


# --- the two tables ------------------------------------------------------------------------------------------------
def _events(search: Search, after: Position | None) -> QuerySet[AuditEvent]:
    rows = AuditEvent.objects.filter(tenant_id=search.tenant_id)
    if after is not None:
        older = Q(at__lt=after.at)
        rows = rows.filter(
            older | (Q(at=after.at) if after.id.startswith(_CHANGE) else Q(at=after.at, id__lt=after.id))
        )
    if search.action:
        rows = rows.filter(_matches("action", search.action))
    for name in ("object_kind", "object_id", "outcome"):
        if value := getattr(search, name):
            rows = rows.filter(**{name: value})
    return _common(rows, search, "", "at", ("action", "object_name", "object_id"))


def _changes(search: Search, after: Position | None) -> QuerySet[ConfigChange]:
    rows = ConfigChange.objects.filter(revision__tenant_id=search.tenant_id)
    if search.outcome and search.outcome != AuditEvent.Outcome.SUCCESS:
        return rows.none()  # what was refused has changed nothing
    if after is not None:
        older = Q(revision__created_at__lt=after.at)
        if after.id.startswith(_CHANGE):
            older |= Q(revision__created_at=after.at, pk__lt=int(after.id.removeprefix(_CHANGE)))
        rows = rows.filter(older)
    if search.action:
        noun, _, operation = search.action.partition(".")
        rows = rows.filter(_matches("kind", _KINDS.get(noun, noun)))
        if operation:
            rows = rows.filter(_matches("operation", operation))
    if search.object_kind:
        rows = rows.filter(kind=_KINDS.get(search.object_kind, search.object_kind))
    if search.object_id:
        rows = rows.filter(object_id=search.object_id)
    texts = ("action", "object_name", "object_id", "revision__reason")
    return _common(rows.annotate(action=_ACTION), search, "revision__", "revision__created_at", texts)


def _common(rows: QuerySet[Any], search: Search, prefix: str, at: str, texts: tuple[str, ...]) -> QuerySet[Any]:
    if search.actor:
        rows = rows.filter(Q(**{f"{prefix}actor_id": search.actor}) | Q(**{f"{prefix}actor_name": search.actor}))
    for name in ("source", "address", "request_id"):
        if value := getattr(search, name):
            rows = rows.filter(**{prefix + name: value})
    if search.since is not None:
        rows = rows.filter(**{f"{at}__gte": search.since})
    if search.until is not None:
        rows = rows.filter(**{f"{at}__lt": search.until})
    if search.text:
        wanted = Q()
        for name in (*texts, f"{prefix}actor_name", f"{prefix}address", f"{prefix}request_id"):
            wanted |= Q(**{f"{name}__icontains": search.text})
        rows = rows.filter(wanted)
    return rows


def _matches(name: str, wanted: str) -> Q:
    if wanted.endswith("*"):
        return Q(**{f"{name}__startswith": wanted[:-1]})
    return Q(**{name: wanted})


def _entry_of_event(event: AuditEvent) -> Entry:
    return Entry(
        id=event.id,
        at=event.at,
        action=event.action,
        outcome=event.outcome,
        actor_kind=event.actor_kind,
        actor_id=event.actor_id,
        actor_name=event.actor_name,
        source=event.source,
        object_kind=event.object_kind,
        object_id=event.object_id,
        object_name=event.object_name,
        reason="",
        request_id=event.request_id,
        address=event.address,
        revision=None,
        details=event.details,
    )


def _entry_of_change(change: ConfigChange) -> Entry:
    revision = change.revision
    before, after = change.before or {}, change.after or {}
    differing = [name for name in dict.fromkeys((*before, *after)) if before.get(name) != after.get(name)]
    return Entry(
        id=f"{_CHANGE}{change.pk}",
        at=revision.created_at,
        action=f"{_NOUNS.get(change.kind, change.kind)}.{change.operation}",
        outcome=AuditEvent.Outcome.SUCCESS,
        actor_kind=revision.actor_kind,
        actor_id=revision.actor_id,
        actor_name=revision.actor_name,
        source=revision.source,
        object_kind=change.kind,
        object_id=change.object_id,
        object_name=change.object_name,
        reason=revision.reason,
        request_id=revision.request_id,
        address=revision.address,
        revision=revision.number,
        changes={name: (before.get(name), after.get(name)) for name in differing},
    )

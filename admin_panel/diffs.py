"""What a revision changed, field by field."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from django.apps import apps
from django.contrib.auth.models import User
from django.db import models

from access.models import Application
from admin_panel.wording import kind_name, label, member_words, readable
from core.models import ConfigChange, ConfigRow
from queues.models import QueueRoute
from routing.models import ServiceConfig, ServiceVersion

_REFERENCES: dict[str, type[models.Model]] = {
    "service_id": ServiceConfig,
    "version_id": ServiceVersion,
    "queue_route_id": QueueRoute,
    "application_id": Application,
    "user_id": User,
}
_UNINTERESTING = ("id", "tenant_id")


@dataclass(frozen=True, slots=True)
class FieldChange:
    """One field before and after, in words; None where there is no before or no after."""

    label: str
    before: str | None
    after: str | None


@dataclass(frozen=True, slots=True)
class ObjectChange:
    change: ConfigChange
    kind: str
    fields: list[FieldChange]


def object_changes(changes: Iterable[ConfigChange]) -> list[ObjectChange]:
    """References are shown by name where the object they point to still exists, documents member by member."""
    listed = list(changes)
    names = _names(listed)
    return [ObjectChange(change, kind_name(change.kind), field_changes(change, names)) for change in listed]


def field_changes(change: ConfigChange, names: Mapping[str, str]) -> list[FieldChange]:
    before, after = change.before or {}, change.after or {}
    model = _model(change.kind)
    found = []
    for name in dict.fromkeys((*before, *after)):
        old, new = before.get(name), after.get(name)
        if name in _UNINTERESTING or old == new or (not before and _is_empty(new)) or (not after and _is_empty(old)):
            continue
        if name in _REFERENCES:
            old, new = names.get(str(old), old), names.get(str(new), new)
        for member, was, becomes in _members(old, new):
            title = f"{label(model, name)}: {member}" if member else label(model, name)
            found.append(FieldChange(title, readable(was) if before else None, readable(becomes) if after else None))
    return found


def _members(old: Any, new: Any) -> Iterator[tuple[str, Any, Any]]:
    """What differs within a document, by the path to it; a plain value is one member without a path."""
    was, becomes = dict(_leaves(old)), dict(_leaves(new))
    for path in dict.fromkeys((*was, *becomes)):
        if was.get(path) != becomes.get(path):
            yield path, was.get(path), becomes.get(path)


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """``active path``, ``headers 2 name``: the members of a document with the words that lead there."""
    entries: Iterable[tuple[str, Any]] = ()
    if isinstance(value, list) and any(isinstance(each, Mapping) for each in value):
        entries = ((str(place), each) for place, each in enumerate(value, 1))
    elif isinstance(value, Mapping) and value:
        entries = ((member_words(name), each) for name, each in value.items())
    else:
        yield path, "on" if value == {} else value  # what is switched on and says no more
    for name, each in entries:
        yield from _leaves(each, f"{path} {name}".strip())


def _is_empty(value: object) -> bool:
    return value is None or value in ("", [], {})


def _model(kind: str) -> type[models.Model] | None:
    return next((m for m in apps.get_models() if issubclass(m, ConfigRow) and m.kind == kind), None)


def _names(changes: Iterable[ConfigChange]) -> dict[str, str]:
    """What referred objects are called, by id."""
    wanted: dict[type[models.Model], set[str]] = defaultdict(set)
    for change in changes:
        for values in (change.before or {}, change.after or {}):
            for name, model in _REFERENCES.items():
                if values.get(name):
                    wanted[model].add(values[name])
    return {str(row.pk): str(row) for model, ids in wanted.items() for row in model._default_manager.filter(pk__in=ids)}

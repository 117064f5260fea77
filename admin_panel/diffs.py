"""What a revision changed, field by field."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from django.apps import apps
from django.contrib.auth.models import User
from django.db import models

from access.models import Application
from admin_panel.wording import kind_name, label, readable
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
    """References are shown by name where the object they point to still exists."""
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
        shown = [readable(names.get(str(value), value) if name in _REFERENCES else value) for value in (old, new)]
        found.append(FieldChange(label(model, name), shown[0] if before else None, shown[1] if after else None))
    return found


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

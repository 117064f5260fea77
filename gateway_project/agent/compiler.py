"""Rows → encoded wire records, by kind. What does not compile is reported and left out; the rest goes on."""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

from django.conf import settings
from django.db import Error
from django.db.models import QuerySet

from access.compile import applications_to_compile, compile_application
from gateway_project.agent.store import Problem, Records, Ref, encoded_record, no_records
from gateway_project.dataplane.snapshot import RecordCompiler, problem
from keys.compile import compile_api_key, keys_to_compile
from queues.compile import compile_queue_route, queue_routes_to_compile
from routing.compile import compile_route, compile_service, routes_to_compile, services_to_compile

_CHUNK = 1_000


@dataclass(frozen=True, slots=True)
class _Kind:
    rows: Callable[[], QuerySet[Any, Any]]  # those that belong into the configuration, with all that compiling reads
    compile: Callable[[Any], dict[str, Any]]


_KINDS = {
    "service": _Kind(services_to_compile, compile_service),
    "route": _Kind(routes_to_compile, compile_route),
    "queue_route": _Kind(queue_routes_to_compile, compile_queue_route),
    "application": _Kind(applications_to_compile, compile_application),
    "api_key": _Kind(keys_to_compile, compile_api_key),
}


@dataclass(slots=True)
class Compiled:
    """What was asked for and exists is in ``records`` or, when it does not compile, in ``problems``."""

    records: Records = field(default_factory=no_records)
    problems: dict[Ref, Problem] = field(default_factory=dict)


def compile_everything() -> Compiled:
    compiled = Compiled()
    for kind in _KINDS:
        _compile_rows(kind, _all_rows(kind, compiled), compiled)
    return compiled


def compile_refs(refs: Collection[Ref]) -> Compiled:
    compiled = Compiled()
    for kind in _KINDS:
        ids = sorted(ref_id for ref_kind, ref_id in refs if ref_kind == kind)
        for start in range(0, len(ids), _CHUNK):
            _compile_rows(kind, _some_rows(kind, ids[start : start + _CHUNK], compiled), compiled)
    return compiled


def _all_rows(kind: str, compiled: Compiled) -> Iterator[Any]:
    rows = _KINDS[kind].rows
    try:
        yield from rows().iterator(chunk_size=_CHUNK)
    except Error:
        raise
    except Exception:
        # A value that cannot even be read: SQLite holds text in any column. Whose it is, smaller queries tell.
        ids = list(rows().values_list("pk", flat=True))
        for start in range(0, len(ids), _CHUNK):
            yield from _some_rows(kind, ids[start : start + _CHUNK], compiled)


def _some_rows(kind: str, ids: list[str], compiled: Compiled) -> Iterator[Any]:
    try:
        yield from list(_KINDS[kind].rows().filter(pk__in=ids))
    except Error:
        raise
    except Exception as error:
        if len(ids) == 1:
            compiled.problems[kind, ids[0]] = problem(kind, {"id": ids[0]}, error)
            return
        middle = len(ids) // 2
        yield from _some_rows(kind, ids[:middle], compiled)
        yield from _some_rows(kind, ids[middle:], compiled)


def _compile_rows(kind: str, rows: Iterator[Any], compiled: Compiled) -> None:
    """Each record must pass what workers put it through, so that what the agent accepts they run."""
    check = RecordCompiler((settings.RATE_LIMIT_REQUESTS, settings.RATE_LIMIT_WINDOW))
    compile_row = _KINDS[kind].compile
    records = compiled.records[kind]
    for row in rows:
        try:
            wire = compile_row(row)
            encoded = encoded_record(wire)
        except Error:
            raise
        except Exception as error:
            named = {"id": row.id, "name": getattr(row, "name", "")}
            compiled.problems[kind, row.id] = problem(kind, named, error)
            continue
        if check.compile(kind, [wire]):
            records[row.id] = encoded
        else:
            compiled.problems[kind, row.id] = check.problems.pop()

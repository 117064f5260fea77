"""Rows → encoded wire records, by kind. What does not compile is reported and left out; the rest goes on."""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

from django.conf import settings
from django.db import Error
from django.db.models import QuerySet

from access.bundles import one_look
from access.compile import (
    applications_to_compile,
    compile_application,
    compile_issuer,
    compile_limit,
    issuers_to_compile,
    issuers_without_row,
    limits_to_compile,
)
from access.end_users.compile import own_issuers, role_limits
from gateway_project.agent.store import Problem, Records, Ref, encoded_record, no_records
from gateway_project.dataplane.snapshot import RecordCompiler, problem
from keys.compile import compile_api_key, keys_to_compile
from queues.compile import compile_queue_route, queue_routes_to_compile
from routing.compile import (
    compile_gateway,
    compile_route,
    compile_service,
    gateway_to_compile,
    routes_to_compile,
    services_to_compile,
)

_CHUNK = 1_000


@dataclass(frozen=True, slots=True)
class _Kind:
    rows: Callable[[], QuerySet[Any, Any]]  # those that belong into the configuration, with all that compiling reads
    compile: Callable[[Any], dict[str, Any]]
    without_row: Callable[[], list[dict[str, Any]]] = list  # further records, compiled


_KINDS = {
    "service": _Kind(services_to_compile, compile_service),
    "route": _Kind(routes_to_compile, compile_route),
    "queue_route": _Kind(queue_routes_to_compile, compile_queue_route),
    "application": _Kind(applications_to_compile, compile_application),
    "gateway": _Kind(gateway_to_compile, compile_gateway),
    "api_key": _Kind(keys_to_compile, compile_api_key),
    "issuer": _Kind(issuers_to_compile, compile_issuer, lambda: [*issuers_without_row(), *own_issuers()]),
    "limit": _Kind(limits_to_compile, compile_limit, role_limits),
}


@dataclass(slots=True)
class Compiled:
    """What was asked for and exists is in ``records`` or, when it does not compile, in ``problems``."""

    records: Records = field(default_factory=no_records)
    problems: dict[Ref, Problem] = field(default_factory=dict)


def compile_everything() -> Compiled:
    compiled = Compiled()
    with one_look():
        for kind in _KINDS:
            _compile_rows(kind, _all_rows(kind, compiled), compiled)
            _take_wires(kind, _KINDS[kind].without_row(), compiled)
    return compiled


def compile_refs(refs: Collection[Ref]) -> Compiled:
    compiled = Compiled()
    with one_look():
        _compile_refs(refs, compiled)
    return compiled


def _compile_refs(refs: Collection[Ref], compiled: Compiled) -> None:
    for kind in _KINDS:
        ids = sorted(ref_id for ref_kind, ref_id in refs if ref_kind == kind)
        for start in range(0, len(ids), _CHUNK):
            _compile_rows(kind, _some_rows(kind, ids[start : start + _CHUNK], compiled), compiled)
        if ids:
            wanted = set(ids)
            _take_wires(kind, [wire for wire in _KINDS[kind].without_row() if wire["id"] in wanted], compiled)


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


def _take_wires(kind: str, wires: list[dict[str, Any]], compiled: Compiled) -> None:
    check = RecordCompiler((settings.RATE_LIMIT_REQUESTS, settings.RATE_LIMIT_WINDOW))
    for wire in wires:
        if check.compile(kind, [wire]):
            compiled.records[kind][wire["id"]] = encoded_record(wire)
        else:
            compiled.problems[kind, wire["id"]] = check.problems.pop()

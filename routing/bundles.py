"""Use-cases: bundles of policies (A23), for services, routes and applications."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from django.conf import settings

from access.bundles import one_look
from access.compile import compile_application
from access.models import Application, PolicyBundle, RateLimit
from access.policies import APPLICATION_POLICIES
from access.records import ApplicationRecord
from core.api_problems import camel
from core.faults import ClientFault
from core.policies import Policy
from core.revisions import Actor, locked, revision
from core.validation import NAME, FieldErrors, as_sentence, assign, check_document, invalid, taken
from routing.compile import compile_route, compile_service
from routing.models import Route, ServiceConfig
from routing.policies import ROUTE_POLICIES, SERVICE_POLICIES
from routing.records import RouteRecord, ServiceRecord

BUNDLE_FIELDS = ("name", "description", "policies", "limits")
# What says which requests a row takes, whose it is, or where it leads belongs to the row alone.
_OF_ROWS = frozenset(("conditions", "rewrite", "aggregation", "mirroring", "discovery", "client_certificates"))
BUNDLE_POLICIES: dict[str, type[Policy]] = {
    name: kind
    for name, kind in (ROUTE_POLICIES | SERVICE_POLICIES | APPLICATION_POLICIES).items()
    if name not in _OF_ROWS
}
MOST_LIMITS = 50
_Row = ServiceConfig | Route | Application


def create_bundle(*, actor: Actor, source: str, reason: str = "", **fields: Any) -> PolicyBundle:
    """``fields``: BUNDLE_FIELDS; ``name`` is required."""
    with revision(actor=actor, source=source, reason=reason) as change:
        bundle = PolicyBundle()
        assign(bundle, fields, BUNDLE_FIELDS)
        _validate(bundle)
        change.save_new(bundle)
    return bundle


def update_bundle(
    *,
    bundle: PolicyBundle,
    changes: Mapping[str, Any],
    if_revision: int | None = None,
    actor: Actor,
    source: str,
    reason: str = "",
) -> PolicyBundle:
    """``changes``: BUNDLE_FIELDS. It reaches all that have the bundle; what would not compile there refuses it."""
    with revision(actor=actor, source=source, reason=reason) as change:
        current = locked(bundle, if_revision)
        before = current.recorded()
        assign(current, changes, BUNDLE_FIELDS)
        if current.name != before["name"]:
            _refuse_while_used(str(before["tenant_id"]), str(before["name"]), "cannot be renamed")
        _validate(current)
        change.save(current, before)
        _refuse_what_does_not_compile(current)
    return current


def delete_bundle(
    *, bundle: PolicyBundle, if_revision: int | None = None, actor: Actor, source: str, reason: str = ""
) -> None:
    """Refused (``conflict``, ``usedBy``) while something has it."""
    with revision(actor=actor, source=source, reason=reason) as change:
        current = locked(bundle, if_revision)
        _refuse_while_used(str(current.tenant_id), current.name, "cannot be deleted")
        change.delete(current)


def users_of(tenant_id: str, name: str) -> Iterator[_Row]:
    """What has the bundle: services, routes, applications."""
    for rows in (ServiceConfig.objects, Route.objects.select_related("service"), Application.objects):
        having: Any = rows.filter(tenant_id=tenant_id).exclude(bundles=[]).order_by("name")
        yield from (row for row in having if name in row.bundles)


def used_by(tenant_id: str, name: str) -> dict[str, list[str]]:
    """Their names, by kind."""
    used: dict[str, list[str]] = {"services": [], "routes": [], "applications": []}
    for row in users_of(tenant_id, name):
        used[f"{row.kind}s"].append(row.name)
    return used


def _refuse_while_used(tenant_id: str, name: str, cannot: str) -> None:
    used = used_by(tenant_id, name)
    named = [f"the {kind[:-1]} {each}" for kind, names in used.items() for each in names]
    if named:
        more = f" and {len(named) - 1} more" if len(named) > 1 else ""
        detail = f"The bundle {name} {cannot} while something has it: {named[0]}{more}."
        raise ClientFault("conflict", detail, members={"usedBy": used})


def _validate(bundle: PolicyBundle) -> None:
    errors = FieldErrors()
    errors.check_columns(bundle)
    if not errors.has("name") and not NAME.fullmatch(bundle.name):
        errors.add("name", "A name has 1 to 63 lower-case letters, digits and hyphens.")
    if not isinstance(bundle.policies, dict):
        errors.add("policies", "This is a JSON object of policies by name.")
        bundle.policies = {}
    for name, document in bundle.policies.items():
        kind = BUNDLE_POLICIES.get(name)
        if kind is None:
            why = "belongs to a row itself" if name in _OF_ROWS else "is no policy"
            errors.add(f"policies.{str(name)[:80]}", f"{str(name)[:80]!r} {why}, so no bundle can hold it.")
        elif document is not None:
            check_document(f"policies.{camel(name)}", kind, document, errors)
    _check_limits(bundle, errors)
    errors.raise_any()
    bundle.policies = {name: document for name, document in bundle.policies.items() if document is not None}
    same = PolicyBundle.objects.filter(tenant_id=bundle.tenant_id, name=bundle.name)
    if same.exclude(pk=bundle.pk).exists():
        raise taken("name", f"A bundle named {bundle.name!r} exists already.")


def _check_limits(bundle: PolicyBundle, errors: FieldErrors) -> None:
    names = bundle.limits
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or len(names) > MOST_LIMITS:
        errors.add("limits", f"This is a list of at most {MOST_LIMITS} names of limits.")
        return
    known = set(RateLimit.objects.filter(tenant_id=bundle.tenant_id, name__in=names).values_list("name", flat=True))
    for name in names:
        if name not in known:
            errors.add("limits", f"There is no limit named {name[:80]!r}.")


def _refuse_what_does_not_compile(bundle: PolicyBundle) -> None:
    with one_look():
        for row in users_of(str(bundle.tenant_id), bundle.name):
            try:
                _compile(row)
            except ValueError as error:
                sentence = as_sentence(f"The {row.kind} {row.name} could not have it: {error}")
                raise invalid("policies", sentence) from None


def _compile(row: _Row) -> None:
    if isinstance(row, ServiceConfig):
        ServiceRecord.from_wire(compile_service(row))
    elif isinstance(row, Route):
        RouteRecord.from_wire(compile_route(row))
    else:
        default = (settings.RATE_LIMIT_REQUESTS, settings.RATE_LIMIT_WINDOW)
        ApplicationRecord.from_wire(compile_application(row), default)

"""Use-cases: applications and the endpoints they may call.

Each is one revision (`core.revisions`): keyword-only, ``actor`` who, ``source`` panel, api or command, ``reason`` why.
``changes`` and ``fields`` go by the models' attribute names. They raise ClientFault: ``invalid_field`` with ``errors``
{field: [sentence, …]}, ``conflict``, ``not_found``, and ``stale_revision`` when ``if_revision`` is not the row's.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.db.models import TextField
from django.db.models.functions import Cast

from access.bundles import check_bundles
from access.compile import compile_application
from access.models import Application, EndpointWhitelist
from access.policies import APPLICATION_POLICIES
from access.records import ApplicationRecord
from core.faults import ClientFault
from core.path_trie import compile_pattern
from core.revisions import Actor, RevisionWriter, locked, revision
from core.validation import METHOD, NAME, VERSION, FieldErrors, as_sentence, assign, check_policies, invalid, taken

APPLICATION_FIELDS = (
    "name", "description", "allowed_services", "allowed_versions", "endpoint_mode", "rate_limit", "priority",
    *APPLICATION_POLICIES, "bundles", "is_active",
)  # fmt: skip
MAX_PRIORITY = 9
ENTRY_FIELDS = ("endpoint_path", "allowed_methods", "allowed_versions", "rate_limit", "is_public")


@dataclass(frozen=True, slots=True)
class StoredEntry:
    """A whitelist entry as stored. ``became_listed``: it was the first that made the whitelist binding (rule 5)."""

    entry: EndpointWhitelist
    became_listed: bool


# --- applications --------------------------------------------------------------------------------------------------
def create_application(*, actor: Actor, source: str, reason: str = "", **fields: Any) -> Application:
    """``fields``: APPLICATION_FIELDS; ``name`` is required. Unless told otherwise nothing is allowed."""
    with revision(actor=actor, source=source, reason=reason) as change:
        application = Application()
        assign(application, fields, APPLICATION_FIELDS)
        _validate_application(application)
        change.save_new(application)
        _refuse_what_does_not_compile(application)
    return application


def update_application(
    *,
    application: Application,
    changes: Mapping[str, Any],
    if_revision: int | None = None,
    actor: Actor,
    source: str,
    reason: str = "",
) -> Application:
    """``changes``: APPLICATION_FIELDS."""
    with revision(actor=actor, source=source, reason=reason) as change:
        current = locked(application, if_revision)
        before = current.recorded()
        assign(current, changes, APPLICATION_FIELDS)
        _validate_application(current)
        change.save(current, before)
        _refuse_what_does_not_compile(current)
    return current


def delete_application(
    *, application: Application, if_revision: int | None = None, actor: Actor, source: str, reason: str = ""
) -> None:
    """With its whitelist and its keys, which stop working."""
    with revision(actor=actor, source=source, reason=reason) as change:
        current = locked(application, if_revision)
        issuer = current.token_issuers.first()
        if issuer is not None:
            detail = f"The tokens of the issuer {issuer.name!r} are those of this application: change that first."
            raise ClientFault("conflict", detail)
        for entry in current.whitelist.all():
            change.delete(entry)
        for key in current.keys.all():
            change.delete(key)
        change.delete(current)


def _validate_application(application: Application) -> None:
    errors = FieldErrors()
    errors.check_columns(application)
    errors.check_list("allowed_services", application.allowed_services, NAME, 'orders, or "*" for all')
    errors.check_list("allowed_versions", application.allowed_versions, VERSION, 'v2, or "*" for all')
    _check_rate_limit(application, errors)
    if not errors.has("priority") and application.priority > MAX_PRIORITY:
        errors.add("priority", "A priority is from 0 (refused first under overload) to 9.")
    check_policies(application, APPLICATION_POLICIES, errors)
    check_bundles(application, errors)
    errors.raise_any()
    same = Application.objects.filter(tenant_id=application.tenant_id, name=application.name)
    if same.exclude(pk=application.pk).exists():
        raise taken("name", f"An application named {application.name!r} exists already.")


def _refuse_what_does_not_compile(application: Application) -> None:
    """The gateways' own judgement, so that nothing is stored that they would have to skip."""
    try:
        ApplicationRecord.from_wire(
            compile_application(application), (settings.RATE_LIMIT_REQUESTS, settings.RATE_LIMIT_WINDOW)
        )
    except ValueError as error:
        raise invalid("body", as_sentence(error)) from None


def _check_rate_limit(row: Application | EndpointWhitelist, errors: FieldErrors) -> None:
    if row.rate_limit is not None and not errors.has("rate_limit") and row.rate_limit < 1:
        errors.add("rate_limit", "A rate limit is at least 1 request per minute; none means the default.")


# --- whitelist entries ---------------------------------------------------------------------------------------------
def create_entry(
    *, application: Application, actor: Actor, source: str, reason: str = "", **fields: Any
) -> StoredEntry:
    """``fields``: ENTRY_FIELDS; ``endpoint_path`` is required. Any method and version unless told otherwise."""
    with revision(actor=actor, source=source, reason=reason) as change:
        owner = locked(application)
        entry = EndpointWhitelist(application=owner)
        assign(entry, fields, ENTRY_FIELDS)
        _validate_entry(entry)
        change.save_new(entry)
        became_listed = _bind_whitelist(change, owner, entry)
        _refuse_what_does_not_compile(owner)
    return StoredEntry(entry, became_listed)


def update_entry(
    *,
    entry: EndpointWhitelist,
    changes: Mapping[str, Any],
    if_revision: int | None = None,
    actor: Actor,
    source: str,
    reason: str = "",
) -> StoredEntry:
    """``changes``: ENTRY_FIELDS."""
    with revision(actor=actor, source=source, reason=reason) as change:
        current = locked(entry, if_revision)
        before = current.recorded()
        assign(current, changes, ENTRY_FIELDS)
        _validate_entry(current)
        change.save(current, before)
        owner = locked(current.application)
        became_listed = before["is_public"] and _bind_whitelist(change, owner, current)
        _refuse_what_does_not_compile(owner)
    return StoredEntry(current, became_listed)


def delete_entry(
    *, entry: EndpointWhitelist, if_revision: int | None = None, actor: Actor, source: str, reason: str = ""
) -> None:
    """The application stays ``listed`` when its last entry goes: then it may call nothing (rule 5)."""
    with revision(actor=actor, source=source, reason=reason) as change:
        change.delete(locked(entry, if_revision))


def _bind_whitelist(change: RevisionWriter, application: Application, entry: EndpointWhitelist) -> bool:
    """The first non-public entry turns ``all`` into ``listed``. Later ones respect what an admin has chosen since."""
    if entry.is_public or application.endpoint_mode == Application.EndpointMode.LISTED:
        return False
    if application.whitelist.filter(is_public=False).exclude(pk=entry.pk).exists():
        return False
    before = application.recorded()
    application.endpoint_mode = Application.EndpointMode.LISTED
    return change.save(application, before)


def _validate_entry(entry: EndpointWhitelist) -> None:
    errors = FieldErrors()
    errors.check_columns(entry)
    errors.check("endpoint_path", lambda: compile_pattern(entry.endpoint_path))
    errors.check_list("allowed_methods", entry.allowed_methods, METHOD, 'GET, or "*" for all')
    errors.check_list("allowed_versions", entry.allowed_versions, VERSION, 'v2, or "*" for all')
    _check_rate_limit(entry, errors)
    errors.raise_any()
    if entry.application.whitelist.filter(endpoint_path=entry.endpoint_path).exclude(pk=entry.pk).exists():
        raise taken("endpoint_path", f"The whitelist holds {entry.endpoint_path} already.")


def forget_destination(change: RevisionWriter, name: str) -> None:
    """A service or queue route is gone, in the same revision: no application shall be allowed the next one that is
    given its name. An empty list allows nothing (rule 5)."""
    named = Application.objects.annotate(services_text=Cast("allowed_services", TextField()))
    for application in named.filter(services_text__contains=f'"{name}"').select_for_update():
        if name in application.allowed_services:
            before = application.recorded()
            application.allowed_services = [each for each in application.allowed_services if each != name]
            change.save(application, before)

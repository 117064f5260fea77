"""Use-cases: limits beside those of applications and whitelist entries.

Each is one revision, as in `access.services`. ``rule`` is an `access.policies.LimitRule`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from access.bundles import refuse_limit_in_bundles
from access.compile import compile_limit
from access.limits.records import NAME, NAME_RULE, LimitRecord
from access.models import RateLimit
from access.policies import LimitRule
from core.policies import plain
from core.revisions import Actor, locked, revision
from core.validation import FieldErrors, as_sentence, assign, check_document, invalid, taken

LIMIT_FIELDS = ("name", "description", "rule", "is_active")


def create_limit(*, actor: Actor, source: str, reason: str = "", **fields: Any) -> RateLimit:
    """``fields``: LIMIT_FIELDS; ``name`` and ``rule`` are required."""
    with revision(actor=actor, source=source, reason=reason) as change:
        limit = RateLimit()
        assign(limit, fields, LIMIT_FIELDS)
        _validate(limit)
        change.save_new(limit)
    return limit


def update_limit(
    *,
    limit: RateLimit,
    changes: Mapping[str, Any],
    if_revision: int | None = None,
    actor: Actor,
    source: str,
    reason: str = "",
) -> RateLimit:
    """``changes``: LIMIT_FIELDS. What has been used stays used, as far as the new rule counts the same way."""
    with revision(actor=actor, source=source, reason=reason) as change:
        current = locked(limit, if_revision)
        before = current.recorded()
        assign(current, changes, LIMIT_FIELDS)
        if current.name != before["name"]:
            refuse_limit_in_bundles(str(current.tenant_id), before["name"])
        _validate(current)
        change.save(current, before)
    return current


def delete_limit(
    *, limit: RateLimit, if_revision: int | None = None, actor: Actor, source: str, reason: str = ""
) -> None:
    with revision(actor=actor, source=source, reason=reason) as change:
        current = locked(limit, if_revision)
        refuse_limit_in_bundles(str(current.tenant_id), current.name)
        change.delete(current)


def _validate(limit: RateLimit) -> None:
    errors = FieldErrors()
    errors.check_columns(limit)
    if not errors.has("name") and not NAME.fullmatch(limit.name):
        errors.add("name", as_sentence(NAME_RULE))
    rule = check_document("rule", LimitRule, limit.rule, errors)
    errors.raise_any()
    limit.rule = plain(rule)
    try:
        LimitRecord.from_wire(compile_limit(limit))
    except ValueError as error:
        raise invalid("rule", as_sentence(error)) from None
    same = RateLimit.objects.filter(tenant_id=limit.tenant_id, name=limit.name)
    if same.exclude(pk=limit.pk).exists():
        raise taken("name", f"A limit named {limit.name!r} exists already.")

"""Use-cases: whose tokens clients may bring (A4, A7).

Like those of `access.services`: keyword-only, one revision each, and ClientFault for what is wrong.
"""

from collections.abc import Mapping
from typing import Any

from django.conf import settings

from access.compile import compile_issuer
from access.models import Application, TokenIssuer
from access.outgoing import check_url
from access.policies import TokenRules
from access.tokens.keys import published_keys
from access.tokens.records import IssuerRecord
from core.policies import plain, read
from core.revisions import Actor, locked, revision
from core.validation import FieldErrors, as_sentence, assign, check_document, taken

ISSUER_FIELDS = ("name", "issuer", "application_id", "rules", "is_active")


def create_issuer(*, actor: Actor, source: str, reason: str = "", **fields: Any) -> TokenIssuer:
    """``fields``: ISSUER_FIELDS; ``name``, ``issuer`` and ``rules`` are required."""
    with revision(actor=actor, source=source, reason=reason) as change:
        issuer = TokenIssuer(tenant_id=actor.tenant_id)
        assign(issuer, fields, ISSUER_FIELDS)
        _validate(issuer)
        change.save_new(issuer)
    return issuer


def update_issuer(
    *,
    issuer: TokenIssuer,
    changes: Mapping[str, Any],
    if_revision: int | None = None,
    actor: Actor,
    source: str,
    reason: str = "",
) -> TokenIssuer:
    """``changes``: ISSUER_FIELDS."""
    with revision(actor=actor, source=source, reason=reason) as change:
        current = locked(issuer, if_revision)
        before = current.recorded()
        assign(current, changes, ISSUER_FIELDS)
        _validate(current)
        change.save(current, before)
    return current


def delete_issuer(
    *, issuer: TokenIssuer, if_revision: int | None = None, actor: Actor, source: str, reason: str = ""
) -> None:
    """Its tokens open nothing any more."""
    with revision(actor=actor, source=source, reason=reason) as change:
        change.delete(locked(issuer, if_revision))


def _validate(issuer: TokenIssuer) -> None:
    errors = FieldErrors()
    errors.check_columns(issuer)
    if not errors.has("issuer") and (not issuer.issuer.isprintable() or issuer.issuer != issuer.issuer.strip()):
        errors.add("issuer", "This is the claim iss, octet for octet: printable, without spaces around it.")
    if issuer.application_id is not None and not _is_ours(issuer):
        errors.add("application_id", "There is no such application.")
    rules = check_document("rules", TokenRules, issuer.rules, errors)
    if rules is not None:
        _check_rules(issuer, rules, errors)
    errors.raise_any()
    if rules is not None:
        issuer.rules = plain(rules)
        _check_prefix(issuer, rules)
    _check_unique(issuer)


def _is_ours(issuer: TokenIssuer) -> bool:
    return Application.objects.filter(pk=issuer.application_id, tenant_id=issuer.tenant_id).exists()


def _check_rules(issuer: TokenIssuer, rules: TokenRules, errors: FieldErrors) -> None:
    if rules.jwks_url:
        errors.check("rules.jwksUrl", lambda: _check_url(rules.jwks_url))
    introspection = rules.introspection
    if introspection is not None:
        errors.check("rules.introspection.url", lambda: _check_url(introspection.url))
    if rules.jwks is not None:
        errors.check("rules.jwks", lambda: _check_keys(rules))
    if issuer.application_id is None and not rules.application_claim:
        errors.add("application_id", "Say whose requests these are: here, or by rules.applicationClaim.")
    try:
        IssuerRecord.from_wire(compile_issuer(issuer))
    except ValueError as error:
        if not errors.has("rules.jwks"):
            errors.add("rules", as_sentence(error))


def _check_url(url: str) -> None:
    if not url.isascii() or not url.isprintable():
        raise ValueError("write an http or https URL")
    check_url(url)


def _check_keys(rules: TokenRules) -> None:
    if not published_keys(rules.jwks, rules.algorithms):
        raise ValueError("none of these keys fits the algorithms")


def _check_prefix(issuer: TokenIssuer, rules: TokenRules) -> None:
    """No token may be shown to an issuer that another one may have made."""
    if rules.introspection is None or not issuer.is_active:
        return
    others = TokenIssuer.objects.exclude(pk=issuer.pk).filter(tenant_id=issuer.tenant_id, is_active=True)
    for other in others:
        introspection = read(TokenRules, other.rules).introspection
        if introspection is not None and introspection.token_prefix == rules.introspection.token_prefix:
            detail = f"The same opaque tokens are shown to the issuer {other.name!r}: say what this one's begin with."
            raise taken("rules.introspection.tokenPrefix", detail)


def _check_unique(issuer: TokenIssuer) -> None:
    others = TokenIssuer.objects.exclude(pk=issuer.pk)
    if others.filter(tenant_id=issuer.tenant_id, name=issuer.name).exists():
        raise taken("name", f"An issuer named {issuer.name!r} exists already.")
    if others.filter(issuer=issuer.issuer).exists() or issuer.issuer in (settings.JWT_ISSUER, settings.OWN_ISSUER):
        raise taken("issuer", "The tokens of this issuer are taken already.")

"""Rows of applications, their whitelists, issuers of tokens and limits → the wire records that workers run on
(`access.records`, `access.tokens.records`, `access.limits.records`)."""

from typing import Any

from django.conf import settings
from django.db.models import Prefetch, QuerySet

from access.bundles import bundles_with_limit, with_bundles
from access.models import Application, EndpointWhitelist, RateLimit, TokenIssuer
from access.policies import APPLICATION_POLICIES
from core.models import DEFAULT_TENANT


def applications_to_compile() -> QuerySet[Application]:
    """The active ones, with their entries, oldest first (rule 6). Keys of the others open nothing."""
    entries = Prefetch("whitelist", EndpointWhitelist.objects.order_by("id"))
    return Application.objects.filter(is_active=True).order_by("pk").prefetch_related(entries)


def compile_application(application: Application) -> dict[str, Any]:
    """What `ApplicationRecord.from_wire` reads. Limits are requests per minute, None where the default applies."""
    own = {name: document for name in APPLICATION_POLICIES if (document := getattr(application, name)) is not None}
    return {
        "id": application.pk,
        "tenant": application.tenant_id,
        "name": application.name,
        "services": application.allowed_services,
        "versions": application.allowed_versions,
        "endpoint_mode": application.endpoint_mode,
        "rate_limit": application.rate_limit,
        "priority": application.priority,
        "policies": with_bundles(application, own, APPLICATION_POLICIES),
        "bundles": application.bundles,
        "entries": [_entry(entry) for entry in application.whitelist.all()],
    }


def _entry(entry: EndpointWhitelist) -> dict[str, Any]:
    return {
        "id": entry.pk,
        "path": entry.endpoint_path,
        "methods": entry.allowed_methods,
        "versions": entry.allowed_versions,
        "rate_limit": entry.rate_limit,
        "is_public": entry.is_public,
    }


def limits_to_compile() -> QuerySet[RateLimit]:
    return RateLimit.objects.filter(is_active=True).order_by("pk")


def compile_limit(limit: RateLimit) -> dict[str, Any]:
    """What `LimitRecord.from_wire` reads."""
    tenant = str(limit.tenant_id)
    bundles = bundles_with_limit(tenant, limit.name)
    return {"id": limit.pk, "tenant": tenant, "name": limit.name, "rule": limit.rule, "bundles": bundles}


def issuers_to_compile() -> QuerySet[TokenIssuer]:
    return TokenIssuer.objects.filter(is_active=True).order_by("pk")


def compile_issuer(issuer: TokenIssuer) -> dict[str, Any]:
    """What `IssuerRecord.from_wire` reads."""
    return {
        "id": issuer.pk,
        "tenant": issuer.tenant_id,
        "name": issuer.name,
        "issuer": issuer.issuer,
        "application": issuer.application_id,
        "rules": issuer.rules,
    }


ENVIRONMENT_ISSUER = "iss_environment"


def issuers_without_row() -> list[dict[str, Any]]:
    """Those that no admin has made: what `compile_issuer` returns for the others."""
    return [_issuer_of_environment()] if settings.JWKS_ENDPOINT else []


def _issuer_of_environment() -> dict[str, Any]:
    """The issuer that the settings name."""
    rules = {
        "algorithms": settings.JWT_ALGORITHMS,
        "audiences": [settings.JWT_AUDIENCE] if settings.JWT_AUDIENCE else [],
        "jwksUrl": settings.JWKS_ENDPOINT,
        "applicationClaim": "" if settings.JWT_APPLICATION else "client_id",
    }
    return {
        "id": ENVIRONMENT_ISSUER,
        "tenant": DEFAULT_TENANT,
        "name": "environment",
        "issuer": settings.JWT_ISSUER,
        "application": settings.JWT_APPLICATION or None,
        "rules": rules,
    }

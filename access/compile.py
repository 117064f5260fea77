"""Rows of applications and their whitelists → the wire records that workers run on (`access.records`)."""

from typing import Any

from django.db.models import Prefetch, QuerySet

from access.models import Application, EndpointWhitelist


def applications_to_compile() -> QuerySet[Application]:
    """The active ones, with their entries, oldest first (rule 6). Keys of the others open nothing."""
    entries = Prefetch("whitelist", EndpointWhitelist.objects.order_by("id"))
    return Application.objects.filter(is_active=True).order_by("pk").prefetch_related(entries)


def compile_application(application: Application) -> dict[str, Any]:
    """What `ApplicationRecord.from_wire` reads. Limits are requests per minute, None where the default applies."""
    return {
        "id": application.pk,
        "tenant": application.tenant_id,
        "name": application.name,
        "services": application.allowed_services,
        "versions": application.allowed_versions,
        "endpoint_mode": application.endpoint_mode,
        "rate_limit": application.rate_limit,
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

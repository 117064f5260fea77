"""Rows of API keys → the wire records that workers run on (`keys.records`): the keyed digest, never the argon2 hash."""

from datetime import datetime
from typing import Any, Protocol

from django.db.models import Q, QuerySet
from django.utils import timezone

from keys.models import ApiKey


class KeyRow(Protocol):
    """An `ApiKey`, or as much of one as `keys_to_compile` fetches."""

    @property
    def id(self) -> str: ...
    @property
    def tenant_id(self) -> str: ...
    @property
    def digest(self) -> str: ...
    @property
    def application_id(self) -> str | None: ...
    @property
    def expires_at(self) -> datetime | None: ...
    @property
    def scopes(self) -> list[str]: ...


def keys_to_compile() -> QuerySet[ApiKey, Any]:
    """The live keys, as bare rows: there may be 100,000 of them."""
    live = Q(status__in=(ApiKey.Status.ACTIVE, ApiKey.Status.DEPRECATED)) & (
        Q(expires_at__isnull=True) | Q(expires_at__gt=timezone.now())
    )
    return (
        ApiKey.objects.filter(live)
        .order_by("pk")
        .values_list("id", "tenant_id", "digest", "application_id", "expires_at", "scopes", named=True)
    )


def compile_api_key(key: KeyRow) -> dict[str, Any]:
    """What `KeyRecord.from_wire` reads. Workers see for themselves when a key expires."""
    return {
        "id": key.id,
        "tenant": key.tenant_id,
        "digest": key.digest,
        "application": key.application_id,
        "expires_at": None if key.expires_at is None else key.expires_at.timestamp(),
        "scopes": key.scopes,
    }

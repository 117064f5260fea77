"""Rows of API keys → the wire records that workers run on (`keys.records`): the keyed digest, never the argon2 hash."""

from datetime import datetime
from typing import Any, Protocol

from django.db.models import Q, QuerySet
from django.utils import timezone

from keys.models import ApiKey

_COLUMNS = (
    "id", "tenant_id", "digest", "application_id", "expires_at", "scopes", "bucket", "status", "restrictions"
)  # fmt: skip


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
    @property
    def bucket(self) -> str: ...
    @property
    def status(self) -> str: ...
    @property
    def restrictions(self) -> dict[str, Any] | None: ...


def keys_to_compile() -> QuerySet[ApiKey, Any]:
    """The live keys, as bare rows: there may be 100,000 of them."""
    live = Q(status__in=(ApiKey.Status.ACTIVE, ApiKey.Status.DEPRECATED)) & (
        Q(expires_at__isnull=True) | Q(expires_at__gt=timezone.now())
    )
    return ApiKey.objects.filter(live).order_by("pk").values_list(*_COLUMNS, named=True)


def compile_api_key(key: KeyRow) -> dict[str, Any]:
    """What `KeyRecord.from_wire` reads. Workers see for themselves when a key expires."""
    wire: dict[str, Any] = {
        "id": key.id,
        "tenant": key.tenant_id,
        "digest": key.digest,
        "application": key.application_id,
        "expires_at": None if key.expires_at is None else key.expires_at.timestamp(),
        "scopes": key.scopes,
    }
    # What few keys have is left out of the others' records: there are many of them.
    if key.bucket:
        wire["bucket"] = key.bucket
    if key.status == ApiKey.Status.DEPRECATED:
        wire["deprecated"] = True
    if key.restrictions is not None:
        wire["restrictions"] = key.restrictions
    return wire

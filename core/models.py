"""Tenants, revisions and nodes; the abstract row that every piece of configuration is."""

from copy import deepcopy
from functools import partial
from typing import Any, ClassVar

from django.db import models
from django.utils import timezone

from core.ids import new_id
from core.tenants import DEFAULT_TENANT as DEFAULT_TENANT  # many know it from here
from core.tenants import TenantKey, TenantManager


class Tenant(models.Model):
    id = models.CharField(primary_key=True, max_length=40)
    name = models.CharField(max_length=100, unique=True)
    created_at = models.DateTimeField(default=timezone.now)

    class Meta:
        db_table = "gateway_tenant"

    def __str__(self) -> str:
        return self.name


class TenantRow(models.Model):
    """A row that belongs to a tenant: to the present one (`core.tenants`), and no other sees it."""

    tenant = TenantKey(Tenant, on_delete=models.PROTECT, default=DEFAULT_TENANT, related_name="+")

    objects = TenantManager()

    class Meta:
        abstract = True


class ConfigRow(TenantRow):
    """A row of configuration. ``revision`` is the number of the revision that last changed it: its ETag."""

    kind: ClassVar[str]
    secret_fields: ClassVar[tuple[str, ...]] = ()
    unrecorded_fields: ClassVar[tuple[str, ...]] = ("revision", "created_at", "updated_at")

    revision = models.BigIntegerField(default=0)
    created_at = models.DateTimeField(default=timezone.now)
    updated_at = models.DateTimeField(default=timezone.now)

    class Meta:
        abstract = True

    def recorded(self) -> dict[str, Any]:
        """What the history keeps of the row: JSON values by attribute name, secrets left out (rule 13)."""
        hidden = {*self.secret_fields, *self.unrecorded_fields}
        values: dict[str, Any] = {}
        for field in self._meta.concrete_fields:
            if field.name in hidden:
                continue
            value = field.value_from_object(self)
            values[field.attname] = value.isoformat() if hasattr(value, "isoformat") else deepcopy(value)
        return values


class ConfigRevision(models.Model):
    """One committed change of the configuration: audit trail, history and feed in one append-only table.

    ``token`` tells this history from another one with the same numbers (a restored backup, a failover). ``tenant`` is
    that of the objects; queries must ask for it themselves (`core.tenants.of_tenant`), for numbers are everybody's.
    """

    number = models.BigIntegerField(primary_key=True)
    tenant = TenantKey(Tenant, on_delete=models.PROTECT, default=DEFAULT_TENANT, related_name="+")
    token = models.CharField(max_length=32)
    actor_kind = models.CharField(max_length=16)  # user, key, setup, command, demo
    actor_id = models.CharField(max_length=64, blank=True)
    actor_name = models.CharField(max_length=150, blank=True)
    source = models.CharField(max_length=16)  # panel, api, command
    reason = models.TextField(blank=True)
    request_id = models.CharField(max_length=64, blank=True)
    address = models.CharField(max_length=64, blank=True)
    created_at = models.DateTimeField(default=timezone.now)

    class Meta:
        db_table = "gateway_config_revision"
        ordering = ("-number",)

    def __str__(self) -> str:
        return f"revision {self.number}"


class ConfigChange(models.Model):
    """One object in a revision, before and after. ``object_name`` is what people call it."""

    class Operation(models.TextChoices):
        CREATE = "create"
        UPDATE = "update"
        DELETE = "delete"

    revision = models.ForeignKey(ConfigRevision, on_delete=models.CASCADE, related_name="changes")
    kind = models.CharField(max_length=32)
    object_id = models.CharField(max_length=40)
    object_name = models.CharField(max_length=200, blank=True)
    operation = models.CharField(max_length=8, choices=Operation.choices)
    before = models.JSONField(null=True)
    after = models.JSONField(null=True)

    class Meta:
        db_table = "gateway_config_change"
        ordering = ("id",)
        indexes = [models.Index(fields=["kind", "object_id"], name="config_change_object")]

    def __str__(self) -> str:
        return f"{self.operation} {self.kind} {self.object_name or self.object_id}"


class AuditEvent(TenantRow):
    """What somebody did that is no change of the configuration: logins, failures, exports, purges, replays (rule 23).
    Append-only. ``details`` holds no secret."""

    class Outcome(models.TextChoices):
        SUCCESS = "success"
        FAILURE = "failure"
        DENIED = "denied"

    id = models.CharField(primary_key=True, max_length=40, default=partial(new_id, "aud"), editable=False)
    at = models.DateTimeField(default=timezone.now)
    action = models.CharField(max_length=64)  # session.login, key.validate, audit.export, cache.purge, …
    outcome = models.CharField(max_length=7, choices=Outcome.choices, default=Outcome.SUCCESS)
    actor_kind = models.CharField(max_length=16, blank=True)
    actor_id = models.CharField(max_length=64, blank=True)
    actor_name = models.CharField(max_length=150, blank=True)
    source = models.CharField(max_length=16, blank=True)  # panel, api, command, gateway
    object_kind = models.CharField(max_length=32, blank=True)
    object_id = models.CharField(max_length=64, blank=True)
    object_name = models.CharField(max_length=200, blank=True)
    details = models.JSONField(default=dict, blank=True)
    request_id = models.CharField(max_length=64, blank=True)
    address = models.CharField(max_length=64, blank=True)

    class Meta:
        db_table = "gateway_audit_event"
        ordering = ("-at", "-id")
        indexes = [
            models.Index(fields=["at"], name="audit_event_at"),
            models.Index(fields=["action", "at"], name="audit_event_action"),
        ]

    def __str__(self) -> str:
        return f"{self.action} {self.object_name}".strip()


class GatewayNode(models.Model):
    """One worker of one host, as admins see it. Live while ``seen_at`` is recent."""

    id = models.CharField(primary_key=True, max_length=200)  # host/slot
    host = models.CharField(max_length=180)
    slot = models.IntegerField()
    pid = models.IntegerField(null=True)
    applied_revision = models.BigIntegerField(default=0)
    problems = models.JSONField(default=list)  # rows that did not compile: [{"kind", "id", "name", "error"}]
    started_at = models.DateTimeField(default=timezone.now)
    seen_at = models.DateTimeField(default=timezone.now)

    class Meta:
        db_table = "gateway_node"
        ordering = ("host", "slot")

    def __str__(self) -> str:
        return self.id


def prefixed_id(prefix: str) -> Any:
    """The primary key field of a configuration row: ``svc_…``, sortable by time."""
    return models.CharField(primary_key=True, max_length=40, default=partial(new_id, prefix), editable=False)

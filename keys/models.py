"""API keys. The key itself is never stored: an argon2id hash and a keyed digest are."""

from datetime import timedelta

from django.conf import settings
from django.db import models
from django.db.models import Q
from django.utils import timezone

from access.models import Application
from core.models import ConfigRow, prefixed_id
from core.tenants import TenantManager

EXPIRES_SOON = timedelta(days=30)  # from when on the panel points at a key


class KeyQuerySet(models.QuerySet["ApiKey"]):
    def expiring(self, within: timedelta) -> "KeyQuerySet":
        """Keys that work and will not in this time, though nobody has seen to a successor: the soonest first."""
        now = timezone.now()
        return self.filter(status="active", expires_at__gt=now, expires_at__lte=now + within).order_by("expires_at")

    def live(self) -> "KeyQuerySet":
        """Keys that work, the rotated ones among them."""
        is_past = Q(expires_at__lte=timezone.now())
        return self.filter(status__in=("active", "deprecated")).exclude(is_past)

    def in_transition(self) -> "KeyQuerySet":
        """Keys that were rotated and still work: the soonest to end first."""
        return self.filter(status="deprecated", expires_at__gt=timezone.now()).order_by("expires_at")

    def of_another_pepper(self, pepper_id: str) -> "KeyQuerySet":
        """Those whose digests must be made anew before the gateway knows them (`keys.recognition`)."""
        ended = models.Q(status="revoked") | models.Q(expires_at__lte=timezone.now())
        return self.exclude(ended).exclude(pepper_id__in=("", pepper_id))


class ApiKey(ConfigRow):
    """A credential of an application, or an *admin key*: no application, ``admin:`` scopes, owned by a user."""

    kind = "api_key"
    secret_fields = ("hash", "digest")
    unrecorded_fields = (*ConfigRow.unrecorded_fields, "last_used_at", "last_used_address", "use_count", "pepper_id")

    class Status(models.TextChoices):
        ACTIVE = "active"
        SUSPENDED = "suspended"
        DEPRECATED = "deprecated"
        REVOKED = "revoked"

    id = prefixed_id("key")
    application = models.ForeignKey(Application, null=True, blank=True, on_delete=models.CASCADE, related_name="keys")
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.CASCADE, related_name="admin_keys"
    )
    name = models.CharField(max_length=100)
    owner = models.CharField(max_length=100)
    lookup_id = models.CharField(max_length=10, unique=True)
    hash = models.CharField(max_length=200, db_column="api_key_hash")
    digest = models.CharField(max_length=64, unique=True)  # hexadecimal HMAC-SHA-256
    scopes = models.JSONField(default=list, blank=True)
    status = models.CharField(max_length=10, choices=Status.choices, default=Status.ACTIVE)
    expires_at = models.DateTimeField(null=True, blank=True)
    revoked_at = models.DateTimeField(null=True, blank=True)
    last_used_at = models.DateTimeField(null=True, blank=True)
    use_count = models.BigIntegerField(default=0)
    last_used_address = models.CharField(max_length=64, blank=True)
    created_by = models.CharField(max_length=150, blank=True)
    restrictions = models.JSONField(null=True, blank=True)  # an `access.policies.Restrictions`
    replaces = models.ForeignKey("self", null=True, blank=True, on_delete=models.SET_NULL, related_name="successors")
    bucket = models.CharField(max_length=40, blank=True)  # id of the first key of its line; empty: this one is it
    pepper_id = models.CharField(max_length=16, blank=True)  # of the pepper under which the digest was made

    objects = TenantManager.from_queryset(KeyQuerySet)()  # type: ignore[misc]

    class Meta:
        db_table = "gateway_api_key"
        ordering = ("id",)
        constraints = [
            models.CheckConstraint(
                condition=Q(application__isnull=True, user__isnull=False)
                | Q(application__isnull=False, user__isnull=True),
                name="api_key_of_application_or_user",
            )
        ]

    def __str__(self) -> str:
        return self.name

    @property
    def is_admin(self) -> bool:
        return self.user_id is not None

    @property
    def is_active(self) -> bool:
        expired = self.expires_at is not None and self.expires_at <= timezone.now()
        return self.status in (self.Status.ACTIVE, self.Status.DEPRECATED) and not expired


class KeyCaller(models.Model):
    """From which address a key was used, when last and how often: who still uses one that is to go."""

    key = models.ForeignKey(ApiKey, on_delete=models.CASCADE, related_name="callers")
    address = models.CharField(max_length=64)
    requests = models.BigIntegerField(default=0)
    last_at = models.DateTimeField(default=timezone.now)

    class Meta:
        db_table = "gateway_key_caller"
        constraints = [models.UniqueConstraint(fields=["key", "address"], name="key_caller_unique")]

    def __str__(self) -> str:
        return f"{self.key_id} {self.address}"

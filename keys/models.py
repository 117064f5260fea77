"""API keys. The key itself is never stored: an argon2id hash and a keyed digest are."""

from django.conf import settings
from django.db import models
from django.db.models import Q
from django.utils import timezone

from access.models import Application
from core.models import ConfigRow, prefixed_id


class ApiKey(ConfigRow):
    """A credential of an application, or an *admin key*: no application, ``admin:`` scopes, owned by a user."""

    kind = "api_key"
    secret_fields = ("hash", "digest")
    unrecorded_fields = (*ConfigRow.unrecorded_fields, "last_used_at", "use_count")

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
    created_by = models.CharField(max_length=150, blank=True)

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

"""Applications, what they may call, and the one-time setup."""

from django.db import models
from django.db.models import Q
from django.utils import timezone

from core.models import ConfigRow, prefixed_id


def everything() -> list[str]:
    return ["*"]


class Application(ConfigRow):
    """A client of the gateway. ``allowed_services`` names services and queue routes: empty = none, ["*"] = all."""

    kind = "application"

    class EndpointMode(models.TextChoices):
        ALL = "all"
        LISTED = "listed"

    id = prefixed_id("app")
    name = models.CharField(max_length=100)
    description = models.TextField(blank=True)
    allowed_services = models.JSONField(default=list, blank=True)
    allowed_versions = models.JSONField(default=everything, blank=True)
    endpoint_mode = models.CharField(max_length=6, choices=EndpointMode.choices, default=EndpointMode.ALL)
    rate_limit = models.PositiveIntegerField(null=True, blank=True)  # requests per minute for each key
    is_active = models.BooleanField(default=True)

    class Meta:
        db_table = "gateway_application"
        ordering = ("name",)
        constraints = [models.UniqueConstraint(fields=["tenant", "name"], name="application_name_unique")]

    def __str__(self) -> str:
        return self.name


class EndpointWhitelist(ConfigRow):
    """An endpoint that an application may call. A public one needs no key."""

    kind = "whitelist_entry"

    id = prefixed_id("wle")
    application = models.ForeignKey(Application, on_delete=models.CASCADE, related_name="whitelist")
    endpoint_path = models.CharField(max_length=500)
    allowed_methods = models.JSONField(default=everything)
    allowed_versions = models.JSONField(default=everything, blank=True)
    rate_limit = models.PositiveIntegerField(null=True, blank=True)  # per minute: each key, or each address if public
    is_public = models.BooleanField(default=False)

    class Meta:
        db_table = "gateway_endpoint_whitelist"
        ordering = ("id",)
        constraints = [
            models.UniqueConstraint(fields=["application", "endpoint_path"], name="whitelist_entry_unique"),
            models.CheckConstraint(
                condition=Q(rate_limit__isnull=True) | Q(rate_limit__gt=0), name="whitelist_rate_limit"
            ),
        ]

    def __str__(self) -> str:
        return self.endpoint_path


class SetupCompletion(models.Model):
    """The one row that says that setup is done (rule 16)."""

    id = models.PositiveSmallIntegerField(primary_key=True, default=1)
    completed_at = models.DateTimeField(default=timezone.now)

    class Meta:
        db_table = "gateway_setup"
        constraints = [models.CheckConstraint(condition=Q(id=1), name="setup_only_once")]

    def __str__(self) -> str:
        return f"set up at {self.completed_at}"

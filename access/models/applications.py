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
    priority = models.PositiveSmallIntegerField(default=5)  # 0 to 9: under overload the lowest is refused first
    # Policies: documents of `access.policies`.
    ip_access = models.JSONField(null=True, blank=True)
    client_certificates = models.JSONField(null=True, blank=True)
    bundles = models.JSONField(default=list, blank=True)  # names of PolicyBundle
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


class PolicyBundle(ConfigRow):
    """A23: policies under a name, which services, routes and applications may take over. ``policies`` holds, by name,
    documents of the kinds that those know; what a row says itself comes before what its bundles say. ``limits`` names
    limits that hold for whatever has the bundle."""

    kind = "bundle"

    id = prefixed_id("bdl")
    name = models.CharField(max_length=63)
    description = models.CharField(max_length=300, blank=True)
    policies = models.JSONField(default=dict, blank=True)
    limits = models.JSONField(default=list, blank=True)

    class Meta:
        db_table = "gateway_policy_bundle"
        ordering = ("name",)
        constraints = [models.UniqueConstraint(fields=["tenant", "name"], name="policy_bundle_name_unique")]

    def __str__(self) -> str:
        return self.name


class SetupCompletion(models.Model):
    """The one row that says that setup is done (rule 16)."""

    id = models.PositiveSmallIntegerField(primary_key=True, default=1)
    completed_at = models.DateTimeField(default=timezone.now)

    class Meta:
        db_table = "gateway_setup"
        constraints = [models.CheckConstraint(condition=Q(id=1), name="setup_only_once")]

    def __str__(self) -> str:
        return f"set up at {self.completed_at}"

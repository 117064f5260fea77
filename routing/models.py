"""Services, their versions and targets, and the routes that lead to them."""

from django.db import models
from django.db.models import Q

from core.models import ConfigRow, prefixed_id
from queues.models import QueueRoute


class ServiceConfig(ConfigRow):
    """An upstream HTTP API. ``current_version`` names the version that answers when no weight decides;
    ``default_url`` serves where there is no such version."""

    kind = "service"

    id = prefixed_id("svc")
    name = models.CharField(max_length=63)
    description = models.TextField(blank=True)
    default_url = models.CharField(max_length=500, blank=True)
    current_version = models.CharField(max_length=32, blank=True)
    fallback_url = models.CharField(max_length=500, blank=True)
    path_prefix = models.CharField(max_length=200, blank=True)
    health_endpoint = models.CharField(max_length=200, blank=True)
    implicit_route = models.BooleanField(default=False)
    request_timeout_ms = models.PositiveIntegerField(null=True, blank=True)
    is_active = models.BooleanField(default=True)

    class Meta:
        db_table = "gateway_service_config"
        ordering = ("name",)
        constraints = [models.UniqueConstraint(fields=["tenant", "name"], name="service_name_unique")]

    def __str__(self) -> str:
        return self.name


class ServiceVersion(ConfigRow):
    """One deployed version. Among active versions a request that names none falls by ``weight``."""

    kind = "version"

    id = prefixed_id("ver")
    service = models.ForeignKey(ServiceConfig, on_delete=models.CASCADE, related_name="versions")
    version = models.CharField(max_length=32)
    url = models.CharField(max_length=500)
    weight = models.PositiveIntegerField(default=0)
    is_active = models.BooleanField(default=True)

    class Meta:
        db_table = "gateway_service_version"
        ordering = ("version",)
        constraints = [
            models.UniqueConstraint(fields=["service", "version"], name="service_version_unique"),
            models.CheckConstraint(condition=Q(weight__lte=10_000), name="service_version_weight_range"),
        ]

    def __str__(self) -> str:
        return f"{self.service.name} {self.version}"


class ServiceTarget(ConfigRow):
    """One address that serves a version: ``url`` is scheme, host and port only."""

    kind = "target"

    id = prefixed_id("tgt")
    version = models.ForeignKey(ServiceVersion, on_delete=models.CASCADE, related_name="targets")
    url = models.CharField(max_length=300)
    weight = models.PositiveIntegerField(default=100)
    is_active = models.BooleanField(default=True)

    class Meta:
        db_table = "gateway_service_target"
        ordering = ("id",)
        constraints = [
            models.UniqueConstraint(fields=["version", "url"], name="service_target_unique"),
            models.CheckConstraint(condition=Q(weight__lte=10_000), name="service_target_weight_range"),
        ]

    def __str__(self) -> str:
        return self.url


class Route(ConfigRow):
    """Maps a request (host, path, method) to a service or a queue route; exactly one of the two."""

    kind = "route"

    id = prefixed_id("rte")
    name = models.CharField(max_length=100)
    description = models.TextField(blank=True)
    hosts = models.JSONField(default=list, blank=True)  # empty: any host; "*.example.com" covers one label or more
    path = models.CharField(max_length=500)
    methods = models.JSONField(default=list, blank=True)  # empty: any method
    priority = models.IntegerField(default=0)
    service = models.ForeignKey(ServiceConfig, null=True, blank=True, on_delete=models.PROTECT, related_name="routes")
    queue_route = models.ForeignKey(QueueRoute, null=True, blank=True, on_delete=models.PROTECT, related_name="routes")
    version = models.CharField(max_length=32, blank=True)  # pins the version; empty: by request or weight
    strip_prefix = models.CharField(max_length=500, blank=True)
    replace_prefix = models.CharField(max_length=500, blank=True)  # what the stripped prefix becomes
    request_timeout_ms = models.PositiveIntegerField(null=True, blank=True)
    total_timeout_ms = models.PositiveIntegerField(null=True, blank=True)
    max_body_bytes = models.PositiveBigIntegerField(null=True, blank=True)
    allow_empty_segments = models.BooleanField(default=False)
    retry_unsafe_methods = models.BooleanField(default=False)
    pass_credentials = models.BooleanField(default=False)
    is_active = models.BooleanField(default=True)

    class Meta:
        db_table = "gateway_route"
        ordering = ("name",)
        constraints = [
            models.UniqueConstraint(fields=["tenant", "name"], name="route_name_unique"),
            models.CheckConstraint(
                condition=Q(service__isnull=False, queue_route__isnull=True)
                | Q(service__isnull=True, queue_route__isnull=False),
                name="route_leads_to_one",
            ),
            models.CheckConstraint(condition=Q(path__startswith="/api/"), name="route_path_under_api"),
        ]

    def __str__(self) -> str:
        return self.name

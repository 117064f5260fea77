"""Services, their versions and targets, and the routes that lead to them."""

from django.db import models
from django.db.models import Q
from django.utils import timezone

from core.models import ConfigRow, TenantRow, prefixed_id
from queues.models import QueueRoute


class GatewayPolicies(ConfigRow):
    """What holds for everything that is routed, whatever its service: one row at most. Without it nothing does."""

    kind = "gateway"
    ONLY_ID = "gateway"

    id = models.CharField(primary_key=True, max_length=40, default=ONLY_ID, editable=False)
    maintenance = models.JSONField(null=True, blank=True)
    ip_access = models.JSONField(null=True, blank=True)

    class Meta:
        db_table = "gateway_policies"
        constraints = [models.CheckConstraint(condition=Q(id="gateway"), name="gateway_policies_only_one")]

    def __str__(self) -> str:
        return "the gateway"


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
    connect_timeout_ms = models.PositiveIntegerField(null=True, blank=True)
    idle_timeout_ms = models.PositiveIntegerField(null=True, blank=True)
    total_timeout_ms = models.PositiveIntegerField(null=True, blank=True)
    # Policies: documents of `routing.policies`, as the admin wrote them. None: what the policy's absence means.
    access = models.JSONField(null=True, blank=True)
    ip_access = models.JSONField(null=True, blank=True)
    cors = models.JSONField(null=True, blank=True)
    load_balancing = models.JSONField(null=True, blank=True)
    health_checks = models.JSONField(null=True, blank=True)
    discovery = models.JSONField(null=True, blank=True)
    circuit_breaker = models.JSONField(null=True, blank=True)
    retries = models.JSONField(null=True, blank=True)
    concurrency = models.JSONField(null=True, blank=True)
    mirroring = models.JSONField(null=True, blank=True)
    maintenance = models.JSONField(null=True, blank=True)
    caching = models.JSONField(null=True, blank=True)
    compression = models.JSONField(null=True, blank=True)
    upstream_tls = models.JSONField(null=True, blank=True)
    websockets = models.JSONField(null=True, blank=True)
    upstream_credentials = models.JSONField(default=list, blank=True)  # of UpstreamCredential
    bundles = models.JSONField(default=list, blank=True)  # names of `access.models.PolicyBundle`
    circuit_resets = models.PositiveIntegerField(default=0, editable=False)  # each reset is one more
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

    class Lifecycle(models.TextChoices):
        SUPPORTED = "supported"
        DEPRECATED = "deprecated"  # answers, and says so
        RETIRED = "retired"  # answers 410

    id = prefixed_id("ver")
    service = models.ForeignKey(ServiceConfig, on_delete=models.CASCADE, related_name="versions")
    version = models.CharField(max_length=32)
    url = models.CharField(max_length=500)
    weight = models.PositiveIntegerField(default=0)
    lifecycle = models.CharField(max_length=10, choices=Lifecycle.choices, default=Lifecycle.SUPPORTED)
    deprecated_at = models.DateTimeField(null=True, blank=True)  # told as Deprecation (RFC 9745)
    sunset_at = models.DateTimeField(null=True, blank=True)  # told as Sunset (RFC 8594)
    deprecation_link = models.CharField(max_length=500, blank=True)  # what callers should read
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

    @property
    def takes_traffic(self) -> bool:
        """Requests that name no version may come here, if it has a weight."""
        return self.is_active and self.lifecycle != self.Lifecycle.RETIRED


class Rollout(ConfigRow):
    """A service's traffic on its way to ``version``, step by step (`routing.rollouts`). ``plan`` is a `RolloutPlan`.

    ``before`` are the weights of all versions at the start, to which it is rolled back; ``weights`` what the present
    step has made of them: where the versions have others, an admin has taken over.
    """

    kind = "rollout"
    unrecorded_fields = (*ConfigRow.unrecorded_fields, "judged_at", "judgement")

    class Status(models.TextChoices):
        RUNNING = "running"
        PAUSED = "paused"
        COMPLETED = "completed"
        ROLLED_BACK = "rolled_back"
        ABORTED = "aborted"
        SUPERSEDED = "superseded"

    OPEN = (Status.RUNNING, Status.PAUSED)

    id = prefixed_id("rol")
    service = models.ForeignKey(ServiceConfig, on_delete=models.CASCADE, related_name="rollouts")
    version = models.CharField(max_length=32)
    plan = models.JSONField()
    status = models.CharField(max_length=12, choices=Status.choices, default=Status.RUNNING)
    step = models.PositiveIntegerField(default=0)  # of the plan's, from 0
    step_began_at = models.DateTimeField(default=timezone.now)
    before = models.JSONField(default=dict)
    weights = models.JSONField(default=dict)
    outcome = models.TextField(blank=True)  # why it is as it is: a sentence with the numbers that decided
    ended_at = models.DateTimeField(null=True, blank=True)
    judged_at = models.DateTimeField(null=True, blank=True)  # the last time, whatever came of it
    judgement = models.TextField(blank=True)

    class Meta:
        db_table = "gateway_rollout"
        ordering = ("-created_at",)
        constraints = [
            models.UniqueConstraint(
                fields=["service"], condition=Q(status__in=("running", "paused")), name="rollout_one_open"
            )
        ]

    def __str__(self) -> str:
        return f"{self.service.name} to {self.version}"

    @property
    def is_open(self) -> bool:
        return self.status in self.OPEN


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


class TargetSource(models.TextChoices):
    """How the gateway came to know a target."""

    STATIC = "static"  # it is configured
    HTTP = "http"  # it has registered itself
    REDIS = "redis"
    DNS = "dns"


class RegistrationToken(models.Model):
    """With which the instances of a service register themselves. The token itself is shown once and kept nowhere."""

    service = models.OneToOneField(
        ServiceConfig, on_delete=models.CASCADE, related_name="registration_token", primary_key=True
    )
    digest = models.CharField(max_length=64)  # of the token: `routing.registration`
    signing_key = models.CharField(max_length=64)  # made of it, for what is registered in Redis
    created_at = models.DateTimeField(default=timezone.now)

    class Meta:
        db_table = "gateway_registration_token"

    def __str__(self) -> str:
        return f"the registration token of {self.service_id}"


class DiscoveredTarget(models.Model):
    """An instance that has registered itself by HTTP. It counts until ``expires_at``, by the database's clock; no
    configuration, so neither a revision nor in the history."""

    service = models.ForeignKey(ServiceConfig, on_delete=models.CASCADE, related_name="discovered_targets")
    instance = models.CharField(max_length=100)
    version = models.CharField(max_length=32)
    url = models.CharField(max_length=300)
    weight = models.PositiveIntegerField(default=100)
    registered_at = models.DateTimeField(default=timezone.now)
    expires_at = models.DateTimeField(db_index=True)

    class Meta:
        db_table = "gateway_discovered_target"
        ordering = ("id",)
        constraints = [models.UniqueConstraint(fields=["service", "instance"], name="discovered_target_unique")]

    def __str__(self) -> str:
        return self.instance


class TargetStatus(models.Model):
    """What one host holds of one target: what its probes have found, and the worst of its workers' circuits. Written by
    the host's agent; no configuration, so neither a revision nor in the history."""

    class Circuit(models.TextChoices):
        CLOSED = "closed"
        OPEN = "open"
        HALF_OPEN = "half_open"

    host = models.CharField(max_length=180)
    # Without a constraint: an agent may write of a service that is being deleted.
    service = models.ForeignKey(
        ServiceConfig, on_delete=models.CASCADE, related_name="target_statuses", db_constraint=False
    )
    version = models.CharField(max_length=32)
    url = models.CharField(max_length=300)  # scheme, host and port
    source = models.CharField(max_length=6, choices=TargetSource.choices, default=TargetSource.STATIC)
    is_probed = models.BooleanField(default=False)
    is_healthy = models.BooleanField(default=True)
    health_since = models.DateTimeField(null=True)
    checked_at = models.DateTimeField(null=True)
    last_status = models.PositiveSmallIntegerField(null=True)  # of the latest answer to a probe
    last_ms = models.PositiveIntegerField(null=True)
    last_error = models.CharField(max_length=300, blank=True)
    circuit = models.CharField(max_length=9, choices=Circuit.choices, default=Circuit.CLOSED)
    circuit_since = models.DateTimeField(null=True)
    is_ejected = models.BooleanField(default=False)
    seen_at = models.DateTimeField()

    class Meta:
        db_table = "gateway_target_status"
        ordering = ("id",)
        constraints = [
            models.UniqueConstraint(fields=["host", "service", "version", "url"], name="target_status_unique")
        ]

    def __str__(self) -> str:
        return f"{self.url} at {self.host}"


class Route(ConfigRow):
    """Maps a request (host, path, method, conditions) to a service, a queue route or an aggregate of several calls;
    exactly one of the three."""

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
    connect_timeout_ms = models.PositiveIntegerField(null=True, blank=True)
    idle_timeout_ms = models.PositiveIntegerField(null=True, blank=True)
    access = models.JSONField(null=True, blank=True)
    ip_access = models.JSONField(null=True, blank=True)
    cors = models.JSONField(null=True, blank=True)
    charging = models.JSONField(null=True, blank=True)
    conditions = models.JSONField(null=True, blank=True)
    rewrite = models.JSONField(null=True, blank=True)
    transformation = models.JSONField(null=True, blank=True)
    aggregation = models.JSONField(null=True, blank=True)
    retries = models.JSONField(null=True, blank=True)
    caching = models.JSONField(null=True, blank=True)
    compression = models.JSONField(null=True, blank=True)
    websockets = models.JSONField(null=True, blank=True)
    bundles = models.JSONField(default=list, blank=True)  # names of `access.models.PolicyBundle`
    requires_key = models.BooleanField(default=True)
    # Of routes that were made as one object (`routing.managed_routes`): its id, and which of its conditions this is.
    group = models.CharField(max_length=100, blank=True, db_index=True)
    group_position = models.PositiveSmallIntegerField(default=0)
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
                condition=Q(service__isnull=False, queue_route__isnull=True, aggregation__isnull=True)
                | Q(service__isnull=True, queue_route__isnull=False, aggregation__isnull=True)
                | Q(service__isnull=True, queue_route__isnull=True, aggregation__isnull=False),
                name="route_leads_to_one",
            ),
            models.CheckConstraint(condition=Q(path__startswith="/api/"), name="route_path_under_api"),
        ]

    def __str__(self) -> str:
        return self.name


class VersionUse(TenantRow):
    """Who has called a deprecated version, and how often since it is deprecated. Written by agents, so without foreign
    keys: what it names may be gone when it is written. ``key_id`` empty: without a key, on a public entry."""

    service_id = models.CharField(max_length=40)
    version = models.CharField(max_length=32)
    application_id = models.CharField(max_length=40)
    key_id = models.CharField(max_length=40, blank=True)
    address = models.CharField(max_length=64, blank=True)  # of the last request
    requests = models.BigIntegerField(default=0)
    first_used_at = models.DateTimeField()
    last_used_at = models.DateTimeField()

    class Meta:
        db_table = "gateway_version_use"
        ordering = ("-last_used_at",)
        constraints = [
            models.UniqueConstraint(
                fields=["service_id", "version", "application_id", "key_id"], name="version_use_unique"
            )
        ]

    def __str__(self) -> str:
        return f"{self.application_id} {self.version}"


class VersionTraffic(TenantRow):
    """What a version did in ten seconds, or in a minute of a rollout, as one agent's workers counted it: several hosts
    add up.

    ``phase`` names the step of a rollout that the requests were sent under, so that a judge never mixes two; empty
    outside of any. ``agent`` is the host and a word that each start of its agent makes up.
    """

    agent = models.CharField(max_length=200)
    service_id = models.CharField(max_length=40)
    version = models.CharField(max_length=32)
    phase = models.CharField(max_length=60, blank=True)
    began_at = models.DateTimeField()
    requests = models.BigIntegerField(default=0)
    errors = models.BigIntegerField(default=0)  # 5xx, cut off, or answered by the fallback
    latency = models.JSONField(default=list)  # observations by bucket of `routing.judging.LATENCY_S`

    class Meta:
        db_table = "gateway_version_traffic"
        ordering = ("began_at",)
        constraints = [
            models.UniqueConstraint(
                fields=["service_id", "phase", "version", "began_at", "agent"], name="version_traffic_unique"
            )
        ]
        indexes = [models.Index(fields=["began_at"], name="version_traffic_age")]

    def __str__(self) -> str:
        return f"{self.service_id} {self.version} {self.began_at}"


class CachePurge(TenantRow):
    """What an admin had dropped from the gateways' caches: an append-only table that agents follow, and the audit of
    purges (rule 23). ``number`` grows in the order of commits."""

    class Kind(models.TextChoices):
        URL = "url"
        PREFIX = "prefix"
        SERVICE = "service"
        TAG = "tag"
        ALL = "all"

    number = models.BigIntegerField(primary_key=True)
    kind = models.CharField(max_length=8, choices=Kind.choices)
    value = models.TextField(blank=True)
    actor_kind = models.CharField(max_length=16)
    actor_id = models.CharField(max_length=64, blank=True)
    actor_name = models.CharField(max_length=150, blank=True)
    source = models.CharField(max_length=16)
    reason = models.TextField(blank=True)
    at = models.DateTimeField(default=timezone.now)

    class Meta:
        db_table = "gateway_cache_purge"
        ordering = ("-number",)
        indexes = [models.Index(fields=["at"], name="cache_purge_at")]

    def __str__(self) -> str:
        return f"purge {self.number}: {self.kind} {self.value}".rstrip()

"""How often: limits by rule, what has been used of quotas, and who is told of violations."""

from django.db import models
from django.utils import timezone

from core.models import ConfigRow, TenantRow, prefixed_id


class RateLimit(ConfigRow):
    """A named limit beside those of applications and whitelist entries. ``rule`` is an `access.policies.LimitRule`."""

    kind = "limit"

    id = prefixed_id("lim")
    name = models.CharField(max_length=63)  # what clients read in RateLimit-Policy
    description = models.CharField(max_length=300, blank=True)
    rule = models.JSONField(default=dict)
    is_active = models.BooleanField(default=True)

    class Meta:
        db_table = "gateway_rate_limit"
        ordering = ("name",)
        constraints = [models.UniqueConstraint(fields=["tenant", "name"], name="rate_limit_name_unique")]

    def __str__(self) -> str:
        return self.name


class QuotaUse(TenantRow):
    """What has been used of a quota by a subject within a period; ``policy`` is the quota's key."""

    policy = models.CharField(max_length=60)
    subject = models.CharField(max_length=300)
    period = models.CharField(max_length=10)  # 2026-11-20 or 2026-11
    used = models.BigIntegerField(default=0)
    updated_at = models.DateTimeField(default=timezone.now)

    class Meta:
        db_table = "gateway_quota_use"
        constraints = [models.UniqueConstraint(fields=["policy", "subject", "period"], name="quota_use_unique")]
        indexes = [models.Index(fields=["updated_at"], name="quota_use_updated")]

    def __str__(self) -> str:
        return f"{self.policy} {self.subject} {self.period}"


class LimitUse(models.Model):
    """One of the busiest subjects of a limit, as one host sees it. ``admitted`` and ``refused`` are of the minute
    before ``seen_at``; ``is_shared``: ``used`` counts all hosts together."""

    limit_id = models.CharField(max_length=60)
    subject = models.CharField(max_length=300)
    node = models.CharField(max_length=180)
    used = models.BigIntegerField(default=0)
    admitted = models.BigIntegerField(default=0)
    refused = models.BigIntegerField(default=0)
    is_shared = models.BooleanField(default=False)
    seen_at = models.DateTimeField(default=timezone.now)

    class Meta:
        db_table = "gateway_limit_use"
        constraints = [models.UniqueConstraint(fields=["limit_id", "subject", "node"], name="limit_use_unique")]
        indexes = [models.Index(fields=["seen_at"], name="limit_use_seen")]

    def __str__(self) -> str:
        return f"{self.limit_id} {self.subject}"


class AlertChannel(ConfigRow):
    """A27: who is told. ``secret`` is a ``secret://`` reference to the key that signs webhooks."""

    kind = "alert_channel"

    class Medium(models.TextChoices):
        WEBHOOK = "webhook"
        EMAIL = "email"

    id = prefixed_id("alc")
    name = models.CharField(max_length=100)
    medium = models.CharField(max_length=7, choices=Medium.choices)
    url = models.CharField(max_length=500, blank=True)
    secret = models.CharField(max_length=520, blank=True)
    recipients = models.JSONField(default=list, blank=True)
    events = models.JSONField(default=list, blank=True)  # kinds of events; empty: all
    min_interval_s = models.PositiveIntegerField(default=300)  # between two messages about the same thing
    is_active = models.BooleanField(default=True)

    class Meta:
        db_table = "gateway_alert_channel"
        ordering = ("name",)
        constraints = [models.UniqueConstraint(fields=["tenant", "name"], name="alert_channel_name_unique")]

    def __str__(self) -> str:
        return self.name


class LimitViolation(TenantRow):
    """Refusals by one limit of one subject within a minute. ``limit_name`` is what the client read."""

    id = prefixed_id("vio")
    minute = models.DateTimeField()
    limit_id = models.CharField(max_length=60)
    limit_name = models.CharField(max_length=100)
    subject = models.CharField(max_length=300)
    application_id = models.CharField(max_length=40, blank=True)
    refused = models.BigIntegerField(default=0)
    last_at = models.DateTimeField(default=timezone.now)
    address = models.CharField(max_length=64, blank=True)
    told_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        db_table = "gateway_limit_violation"
        ordering = ("-minute",)
        constraints = [models.UniqueConstraint(fields=["limit_id", "subject", "minute"], name="limit_violation_unique")]

    def __str__(self) -> str:
        return f"{self.limit_name} {self.subject}"


class AlertMessage(models.Model):
    """What a channel is owed. Neither sent nor failed: it is on its way."""

    id = prefixed_id("alm")
    channel = models.ForeignKey(AlertChannel, on_delete=models.CASCADE, related_name="messages")
    event = models.CharField(max_length=40)
    subject = models.CharField(max_length=100)  # what the event is about: messages about the same thing are kept apart
    body = models.JSONField(default=dict)
    created_at = models.DateTimeField(default=timezone.now)
    published_at = models.DateTimeField(null=True, blank=True)  # handed to the events worker
    tries = models.PositiveIntegerField(default=0)
    sent_at = models.DateTimeField(null=True, blank=True)
    failed_at = models.DateTimeField(null=True, blank=True)  # given up
    error = models.CharField(max_length=300, blank=True)

    class Meta:
        db_table = "gateway_alert_message"
        ordering = ("-created_at",)
        indexes = [models.Index(fields=["channel", "event", "subject", "created_at"], name="alert_message_told")]

    def __str__(self) -> str:
        return f"{self.event} {self.subject}"

"""Queue routes (configuration) and tasks (the outbox)."""

from functools import partial

from django.core.validators import MaxValueValidator
from django.db import models
from django.db.models import Q
from django.utils import timezone

from core.ids import new_id
from core.models import ConfigRow, TenantRow, prefixed_id

# Message headers that Celery's protocol (version 2) or the gateway itself sets; a queue route may not name them.
RESERVED_HEADERS = frozenset(
    {
        *("lang", "task", "id", "shadow", "eta", "expires", "group", "group_index", "retries", "timelimit"),
        *("root_id", "parent_id", "argsrepr", "kwargsrepr", "origin", "ignore_result"),
        *("replaced_task_nesting", "stamped_headers", "stamps", "traceparent", "request_id"),
    }
)


class QueueRoute(ConfigRow):
    """What a route that leads to a queue names: the task, the queue, the options. It has no matcher of its own."""

    kind = "queue_route"

    class Arguments(models.TextChoices):
        MEMBERS = "members", "The body's members become keyword arguments"
        BODY = "body", "The whole body is the one argument"

    id = prefixed_id("que")
    name = models.CharField(max_length=63)
    description = models.TextField(blank=True)
    task_name = models.CharField(max_length=200)
    queue = models.CharField(max_length=120)
    arguments = models.CharField(max_length=8, choices=Arguments.choices, default=Arguments.MEMBERS)
    priority = models.PositiveSmallIntegerField(null=True, blank=True, validators=[MaxValueValidator(9)])
    delay_s = models.PositiveIntegerField(default=0)
    expires_s = models.PositiveIntegerField(null=True, blank=True)
    headers = models.JSONField(default=dict, blank=True)  # further message headers, strings by name
    is_active = models.BooleanField(default=True)

    class Meta:
        db_table = "gateway_queue_route"
        ordering = ("name",)
        constraints = [
            models.UniqueConstraint(fields=["tenant", "name"], name="queue_route_name_unique"),
            models.CheckConstraint(
                condition=Q(priority__isnull=True) | Q(priority__lte=9), name="queue_route_priority"
            ),
        ]

    def __str__(self) -> str:
        return self.name


class QueuedTask(TenantRow):
    """One accepted queue request, from the 202 to its end. ``sequence`` is the order of acceptance."""

    class State(models.TextChoices):
        QUEUED = "queued"
        PUBLISHED = "published"
        STARTED = "started"
        SUCCEEDED = "succeeded"
        FAILED = "failed"

    sequence = models.BigAutoField(primary_key=True)
    id = models.CharField(max_length=40, unique=True, default=partial(new_id, "task"), editable=False)
    queue_route_id = models.CharField(max_length=40)
    queue_route_name = models.CharField(max_length=63)
    task_name = models.CharField(max_length=200)
    queue = models.CharField(max_length=120)
    application_id = models.CharField(max_length=40, blank=True)  # empty: an anonymous sender
    user_id = models.CharField(max_length=100, blank=True)
    key_id = models.CharField(max_length=40, blank=True)
    request_id = models.CharField(max_length=64, blank=True)
    traceparent = models.CharField(max_length=64, blank=True)
    arguments = models.CharField(max_length=8, choices=QueueRoute.Arguments.choices)
    body = models.JSONField()  # the request's JSON body
    headers = models.JSONField(default=dict)
    priority = models.PositiveSmallIntegerField(null=True)
    state = models.CharField(max_length=10, choices=State.choices, default=State.QUEUED)
    attempts = models.PositiveIntegerField(default=0)  # to publish
    accepted_at = models.DateTimeField(default=timezone.now)
    available_at = models.DateTimeField(default=timezone.now)  # not published before
    expires_at = models.DateTimeField(null=True)
    published_at = models.DateTimeField(null=True)
    started_at = models.DateTimeField(null=True)
    finished_at = models.DateTimeField(null=True)
    result = models.JSONField(null=True)
    error = models.TextField(blank=True)

    class Meta:
        db_table = "gateway_queued_task"
        ordering = ("-sequence",)
        indexes = [
            models.Index(fields=["queue", "sequence"], name="queued_task_outbox", condition=Q(state="queued")),
            models.Index(fields=["application_id", "sequence"], name="queued_task_application"),
        ]

    def __str__(self) -> str:
        return self.id

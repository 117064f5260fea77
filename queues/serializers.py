"""JSON of queue routes and tasks."""

from typing import ClassVar

from drf_spectacular.utils import OpenApiExample, extend_schema_serializer
from rest_framework import serializers

from core.serializers import ConfigSerializer, EpochMillis, Text, config_meta, whole
from core.validation import NAME
from queues.models import QueuedTask, QueueRoute
from queues.services import LONGEST_S, QUEUE, QUEUE_ROUTE_FIELDS, TASK


@extend_schema_serializer(
    examples=[
        OpenApiExample(
            "A queue route", {"name": "email", "taskName": "email.send", "queue": "email_queue"}, request_only=True
        )
    ]
)
class QueueRouteSerializer(ConfigSerializer[QueueRoute]):
    """A way to a queue: requests on routes that lead to it become tasks."""

    identity = "name"
    words: ClassVar = {
        "name": "What applications are allowed, beside services; it cannot change",
        "task_name": "The Celery task, such as `email.send`",
        "queue": "The broker's queue",
        "arguments": "The body's `members` become keyword arguments, or the whole `body` is the one argument",
        "priority": "0 to 9, the higher first; null: none",
        "delay_s": "How long a task waits before it is published",
        "expires_s": "From then on: whoever finds the task later does not run it; null: never",
        "headers": "Further message headers",
    }
    bounds: ClassVar = {
        "name": whole(NAME),
        "task_name": whole(TASK),
        "queue": whole(QUEUE),
        "delay_s": {"maximum": LONGEST_S},
        "expires_s": {"minimum": 1, "maximum": LONGEST_S},
    }
    headers = serializers.DictField(child=Text(allow_blank=True), required=False)
    Meta = config_meta(QueueRoute, *QUEUE_ROUTE_FIELDS)


class TaskSerializer(serializers.ModelSerializer[QueuedTask]):
    """A task without its payload, which may hold what an admin has no business to read."""

    queueRoute = serializers.CharField(source="queue_route_name")
    taskName = serializers.CharField(source="task_name")
    applicationId = serializers.SerializerMethodField()
    requestId = serializers.CharField(source="request_id")
    acceptedAt = EpochMillis(source="accepted_at")
    availableAt = EpochMillis(source="available_at")
    expiresAt = EpochMillis(source="expires_at", allow_null=True)
    publishedAt = EpochMillis(source="published_at", allow_null=True)
    startedAt = EpochMillis(source="started_at", allow_null=True)
    finishedAt = EpochMillis(source="finished_at", allow_null=True)

    class Meta:
        model = QueuedTask
        fields = (
            *("id", "queueRoute", "taskName", "queue", "applicationId", "requestId", "priority", "state", "attempts"),
            *("acceptedAt", "availableAt", "expiresAt", "publishedAt", "startedAt", "finishedAt", "result", "error"),
        )
        read_only_fields = fields

    def get_applicationId(self, task: QueuedTask) -> str | None:
        return task.application_id or None

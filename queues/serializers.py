"""JSON of queue routes and tasks."""

from drf_spectacular.utils import OpenApiExample, extend_schema_serializer
from rest_framework import serializers

from core.serializers import ConfigSerializer, EpochMillis, Text, config_meta
from queues.models import QueuedTask, QueueRoute
from queues.services import QUEUE_ROUTE_FIELDS


@extend_schema_serializer(
    examples=[
        OpenApiExample(
            "A queue route", {"name": "email", "taskName": "email.send", "queue": "email_queue"}, request_only=True
        )
    ]
)
class QueueRouteSerializer(ConfigSerializer[QueueRoute]):
    """``delayS`` and ``expiresS`` are seconds; ``priority`` 0 to 9."""

    identity = "name"
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

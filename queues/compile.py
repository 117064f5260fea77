"""Rows of queue routes → the wire records that workers run on (`queues.records`)."""

from typing import Any

from django.db.models import QuerySet

from queues.models import QueueRoute


def queue_routes_to_compile() -> QuerySet[QueueRoute]:
    """The active ones: where the others are missing, the routes that lead to them answer 404."""
    return QueueRoute.objects.filter(is_active=True).order_by("pk")


def compile_queue_route(queue_route: QueueRoute) -> dict[str, Any]:
    """What `QueueRouteRecord.from_wire` reads; the agent looks up the rest when a task is accepted."""
    return {
        "id": queue_route.pk,
        "tenant": queue_route.tenant_id,
        "name": queue_route.name,
        "arguments": queue_route.arguments,
    }

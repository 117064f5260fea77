"""Queue routes, ``/admin/routing/queue-routes[/{id}]``, and tasks, ``/admin/queues/tasks[/{id}]``."""

from typing import Any, ClassVar

import django_filters

from core.api import Author, ConfigViewSet, ListViewSet
from core.listing import Filters, flag_filter
from queues import services as use_cases
from queues.models import QueuedTask, QueueRoute
from queues.serializers import QueueRouteSerializer, TaskSerializer


class QueueRouteFilters(Filters):
    search_in = ("name", "description", "task_name", "queue")
    name = django_filters.CharFilter()
    queue = django_filters.CharFilter()
    taskName = django_filters.CharFilter(field_name="task_name")
    isActive = flag_filter("is_active")


class QueueRouteViewSet(ConfigViewSet[QueueRoute]):
    queryset = QueueRoute.objects.all()
    serializer_class = QueueRouteSerializer
    filterset_class = QueueRouteFilters
    lookup_field = "id"
    resource, plural = "routes", "queueRoutes"

    def store(self, values: dict[str, Any], author: Author) -> tuple[QueueRoute, dict[str, Any]]:
        return use_cases.create_queue_route(**values, **author), {}

    def change(
        self, row: QueueRoute, changes: dict[str, Any], if_revision: int | None, author: Author
    ) -> tuple[QueueRoute, dict[str, Any]]:
        return use_cases.update_queue_route(queue_route=row, changes=changes, if_revision=if_revision, **author), {}

    def remove(self, row: QueueRoute, if_revision: int | None, author: Author) -> None:
        use_cases.delete_queue_route(queue_route=row, if_revision=if_revision, **author)


class TaskFilters(Filters):
    search_in = ("id", "request_id", "error")
    state = django_filters.ChoiceFilter(choices=QueuedTask.State.choices, empty_label=None)
    queue = django_filters.CharFilter()
    taskName = django_filters.CharFilter(field_name="task_name")
    queueRoute = django_filters.CharFilter(field_name="queue_route_name")
    application = django_filters.CharFilter(field_name="application_id")


class TaskViewSet(ListViewSet[QueuedTask]):
    queryset = QueuedTask.objects.all()
    serializer_class = TaskSerializer
    filterset_class = TaskFilters
    lookup_field = "id"
    resource, plural = "tasks", "tasks"
    orderings: ClassVar = {"acceptedAt": "pk"}
    default_ordering = "-acceptedAt"

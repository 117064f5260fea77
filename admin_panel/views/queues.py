"""Queue routes and tasks, to look at."""

from django.db.models import Count, Q
from django.http import HttpResponse
from django.views.decorators.http import require_safe

from access.models import Application
from admin_panel.listing import listing, newest_first, wants_rows_only
from admin_panel.pages import PanelRequest, fragment, not_found, page
from admin_panel.samples import curl, example_path
from core.models import ConfigChange
from queues.models import QueuedTask, QueueRoute
from routing.models import Route

_STATES = {"active": Q(is_active=True), "inactive": Q(is_active=False)}
_SORTS = {"name": "name", "queue": "queue", "task": "task_name", "changed": "updated_at"}
_RECENT = 6
_MOST_QUEUES = 100


@require_safe
def queue_routes(request: PanelRequest) -> HttpResponse:
    rows = QueueRoute.objects.annotate(route_count=Count("routes"))
    found = listing(request, rows, search=("name", "queue", "task_name"), states=_STATES, sorts=_SORTS)
    if wants_rows_only(request):
        return fragment(request, "admin_panel/queues/rows.html", {"listing": found})
    return page(request, "admin_panel/queues/list.html", {"listing": found})


@require_safe
def queue_route(request: PanelRequest, pk: str) -> HttpResponse:
    row = QueueRoute.objects.filter(pk=pk).first()
    if row is None:
        return not_found(request, "queue route")
    routes = list(Route.objects.filter(queue_route=row).order_by("name"))
    recent = ConfigChange.objects.filter(kind=QueueRoute.kind, object_id=pk).select_related("revision").order_by("-pk")
    context = {
        "row": row,
        "routes": routes,
        "tasks": QueuedTask.objects.filter(queue_route_id=pk).defer("body", "result")[:_RECENT],
        "sample": curl(request, example_path(routes[0].path), "POST", body="{}") if routes else "",
        "recent": recent[:_RECENT],
    }
    return page(request, "admin_panel/queues/detail.html", context)


@require_safe
def tasks(request: PanelRequest) -> HttpResponse:
    rows = QueuedTask.objects.defer("body", "result", "headers")
    chosen = {name: request.GET.get(name, "").replace("\x00", "").strip()[:200] for name in ("q", "state", "queue")}
    if chosen["q"]:
        rows = rows.filter(
            Q(id=chosen["q"]) | Q(task_name__icontains=chosen["q"]) | Q(queue_route_name__icontains=chosen["q"])
        )
    if chosen["state"] in QueuedTask.State.values:
        rows = rows.filter(state=chosen["state"])
    if chosen["queue"]:
        rows = rows.filter(queue=chosen["queue"])
    shown = newest_first(request, rows, "sequence")
    context = {"slice": shown, "chosen": chosen, "states": QueuedTask.State.choices, "names": _names(shown.rows)}
    if wants_rows_only(request):
        return fragment(request, "admin_panel/queues/task_rows.html", context)
    context["queues"] = list(
        QueueRoute.objects.order_by("queue").values_list("queue", flat=True).distinct()[:_MOST_QUEUES]
    )
    return page(request, "admin_panel/queues/tasks.html", context)


@require_safe
def task(request: PanelRequest, pk: str) -> HttpResponse:
    row = QueuedTask.objects.defer("body", "result").filter(id=pk).first()
    if row is None:
        return not_found(request, "task")
    context = {
        "row": row,
        "application": Application.objects.filter(pk=row.application_id).first(),
        "route_exists": QueueRoute.objects.filter(pk=row.queue_route_id).exists(),
        "is_over": row.finished_at is not None,
    }
    if request.htmx and request.htmx.target == "task":
        return fragment(request, "admin_panel/queues/task_body.html", context)
    return page(request, "admin_panel/queues/task.html", context)


def _names(rows: list[QueuedTask]) -> dict[str, str]:
    """Applications' names by id."""
    ids = {row.application_id for row in rows if row.application_id}
    return dict(Application.objects.filter(pk__in=ids).values_list("pk", "name"))

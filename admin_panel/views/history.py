"""History: who changed what, when and why, field by field."""

from django.db.models import Q
from django.http import HttpResponse
from django.views.decorators.http import require_safe

from admin_panel.diffs import object_changes
from admin_panel.listing import newest_first, wants_rows_only
from admin_panel.pages import PanelRequest, fragment, not_found, page
from admin_panel.status import live_nodes
from admin_panel.wording import kind_name
from core.models import ConfigChange, ConfigRevision
from core.tenants import of_tenant

_KINDS = (
    "gateway",
    "service",
    "version",
    "target",
    "rollout",
    "route",
    "queue_route",
    "application",
    "whitelist_entry",
    "api_key",
    "admin",
    "role",
)


@require_safe
def history(request: PanelRequest) -> HttpResponse:
    chosen = {name: request.GET.get(name, "").replace("\x00", "").strip()[:200] for name in ("q", "kind", "object")}
    changes = of_tenant(ConfigChange.objects.all(), "revision__tenant")
    if chosen["kind"] in _KINDS:
        changes = changes.filter(kind=chosen["kind"])
    if chosen["object"]:
        changes = changes.filter(object_id=chosen["object"])
    rows = of_tenant(ConfigRevision.objects.all())
    if chosen["q"]:
        named = changes.filter(object_name__icontains=chosen["q"]).values("revision_id")
        text = Q(actor_name__icontains=chosen["q"]) | Q(reason__icontains=chosen["q"]) | Q(pk__in=named)
        rows = rows.filter(text)
    if chosen["kind"] in _KINDS or chosen["object"]:
        rows = rows.filter(pk__in=changes.values("revision_id"))
    shown = newest_first(request, rows.prefetch_related("changes"), "number")
    context = {
        "slice": shown,
        "chosen": chosen,
        "kinds": [(kind, kind_name(kind)) for kind in _KINDS],
        "object_name": _object_name(chosen["object"]),
    }
    template = "admin_panel/history/rows.html" if wants_rows_only(request) else "admin_panel/history/list.html"
    return (fragment if wants_rows_only(request) else page)(request, template, context)


@require_safe
def revision(request: PanelRequest, number: int) -> HttpResponse:
    row = of_tenant(ConfigRevision.objects.filter(pk=number)).first()
    if row is None:
        return not_found(request, "revision")
    nodes = live_nodes()
    neighbours = of_tenant(ConfigRevision.objects.all()).values_list("number", flat=True)
    context = {
        "row": row,
        "changes": object_changes(row.changes.all()),
        "nodes": len(nodes),
        "behind": [node.id for node in nodes if node.applied_revision < number],
        "newer": neighbours.filter(number__gt=number).order_by("number").first(),
        "older": neighbours.filter(number__lt=number).order_by("-number").first(),
    }
    return page(request, "admin_panel/history/detail.html", context)


def _object_name(object_id: str) -> str:
    changes = of_tenant(ConfigChange.objects.filter(object_id=object_id), "revision__tenant")
    change = changes.order_by("-pk").first() if object_id else None
    return f"{kind_name(change.kind)} {change.object_name}" if change else ""

"""Routes: in the order in which they match, with a live preview of what a request's path becomes."""

from typing import Any

from django.core.paginator import Paginator
from django.db.models import Q
from django.http import HttpResponse
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from admin_panel.forms import RouteForm
from admin_panel.listing import ROWS_PER_PAGE, Listing, wants_rows_only
from admin_panel.pages import PanelRequest, fragment, go_to, not_found, page
from admin_panel.route_order import matching_order, overlaps
from admin_panel.samples import curl, example_method, example_path
from admin_panel.saving import Signature, confirm, edit
from admin_panel.views.policies import policies_of
from core.models import ConfigChange
from routing import services as use_cases
from routing.compile import compile_route
from routing.models import Route, ServiceConfig
from routing.records import RouteRecord, TargetRecord
from routing.rewriting import upstream_target

_FORM = "admin_panel/routes/form.html"
_RECENT = 6
_MOST_COMPARED = 2000  # routes that a preview looks at for overlaps


@require_safe
def routes(request: PanelRequest) -> HttpResponse:
    query = request.GET.get("q", "").replace("\x00", "").strip()[:200]
    state = request.GET.get("state", "")
    rows = Route.objects.select_related("service", "queue_route")
    if query:
        rows = rows.filter(
            Q(name__icontains=query)
            | Q(path__icontains=query)
            | Q(service__name__icontains=query)
            | Q(queue_route__name__icontains=query)
        )
    if state in ("active", "inactive"):
        rows = rows.filter(is_active=state == "active")
    shown = Paginator(matching_order(rows), ROWS_PER_PAGE).get_page(request.GET.get("page"))
    found: Listing[Route] = Listing(shown, query, state, "", bool(query or state))
    if wants_rows_only(request):
        return fragment(request, "admin_panel/routes/rows.html", {"listing": found})
    return page(request, "admin_panel/routes/list.html", {"listing": found})


@require_safe
def route(request: PanelRequest, pk: str) -> HttpResponse:
    row = _route(pk)
    if row is None:
        return not_found(request, "route")
    path = example_path(row.path)
    body = "{}" if row.queue_route_id else ""
    recent = ConfigChange.objects.filter(kind=Route.kind, object_id=pk).select_related("revision").order_by("-pk")
    context = {
        "row": row,
        "path": path,
        "policies": policies_of(row),
        "becomes": _becomes(row, path),
        "overlaps": overlaps(row, Route.objects.only(*_COMPARED)[:_MOST_COMPARED]),
        "sample": curl(request, path, example_method(row.methods) if not body else "POST", body=body),
        "recent": recent[:_RECENT],
    }
    return page(request, "admin_panel/routes/detail.html", context)


@require_http_methods(["GET", "HEAD", "POST"])
def route_new(request: PanelRequest) -> HttpResponse:
    initial = {"service": request.GET.get("service", ""), "leads_to": "service", "is_active": True, "priority": 0}
    if request.GET.get("queue_route"):
        initial |= {"queue_route": request.GET["queue_route"], "leads_to": "queue"}

    def save(changes: dict[str, Any], _: int | None, signed: Signature) -> Route:
        return use_cases.create_route(**changes, **signed)

    return edit(request, RouteForm, _FORM, initial=initial, save=save, done=lambda made: go_to("route", made.pk))


@require_http_methods(["GET", "HEAD", "POST"])
def route_edit(request: PanelRequest, pk: str) -> HttpResponse:
    row = _route(pk)
    if row is None:
        return not_found(request, "route")

    def save(changes: dict[str, Any], began: int | None, signed: Signature) -> Route:
        return use_cases.update_route(route=row, changes=changes, if_revision=began, **signed)

    return edit(request, RouteForm, _FORM, row=row, save=save, done=lambda _: go_to("route", pk))


@require_POST
def route_preview(request: PanelRequest) -> HttpResponse:
    """What the form, as typed so far, would do with a request; what is half typed shows nothing rather than errors."""
    form = RouteForm(request.POST)
    form.is_valid()
    values = form.cleaned_data
    draft = Route(pk=request.POST.get("route", "") or "~", name=values.get("name", ""), path=values.get("path", ""))
    for name in ("hosts", "methods", "strip_prefix", "replace_prefix", "service", "queue_route"):
        setattr(draft, name, values.get(name) or getattr(draft, name))
    draft.priority = values.get("priority") or 0
    path = example_path(draft.path)
    is_ready = draft.path.startswith("/api/") and draft.path.isascii()
    context = {
        "path": path if is_ready else "",
        "becomes": _becomes(draft, path) if is_ready and not draft.queue_route else "",
        "queue_route": draft.queue_route,
        "calls": _calls(values.get("aggregation")) if values.get("leads_to") == "aggregate" else None,
        "overlaps": overlaps(draft, Route.objects.only(*_COMPARED)[:_MOST_COMPARED]) if is_ready else [],
    }
    return fragment(request, "admin_panel/routes/preview.html", context)


def _calls(aggregation: Any) -> list[str]:
    """``users /users/${path.id}`` of each call, as far as they are typed."""
    parts = aggregation.get("parts") if isinstance(aggregation, dict) else None
    found = [part for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []
    return [f"{part.get('service', '')} {part.get('path', '')}".strip() for part in found]


@require_http_methods(["GET", "HEAD", "POST"])
def route_switch(request: PanelRequest, pk: str) -> HttpResponse:
    row = _route(pk)
    if row is None:
        return not_found(request, "route")
    changes = {"is_active": request.POST.get("active") == "true"}
    effect = f"Requests to {row.path} are answered 404: an inactive route keeps its place before others."
    return confirm(
        request,
        "admin_panel/includes/deactivate.html",
        act=lambda signed: use_cases.update_route(route=row, changes=changes, **signed),
        done=lambda: go_to("route", pk),
        context={"row": row, "url": request.path, "effect": effect},
    )


@require_http_methods(["GET", "HEAD", "POST"])
def route_delete(request: PanelRequest, pk: str) -> HttpResponse:
    row = _route(pk)
    if row is None:
        return not_found(request, "route")
    siblings = Route.objects.filter(service=row.service).exclude(pk=pk).count() if row.service else 0
    return confirm(
        request,
        "admin_panel/routes/delete.html",
        act=lambda signed: use_cases.delete_route(route=row, **signed),
        done=lambda: go_to("routes"),
        context={"row": row, "becomes_implicit": row.service is not None and not siblings},
    )


_COMPARED = ("pk", "name", "path", "hosts", "methods", "priority")


def _route(pk: str) -> Route | None:
    return Route.objects.select_related("service", "queue_route").filter(pk=pk).first()


def _becomes(row: Route, path: str) -> str:
    """The request target at the upstream, by the data plane's own function; empty when it cannot be told."""
    if row.service is None:
        return ""
    try:
        record = RouteRecord.from_wire(compile_route(row))
        base = _base_path(row.service, row.version)
        return upstream_target(record, base, path.encode("ascii"), None).decode("ascii")
    except (ValueError, UnicodeError):
        return ""


def _base_path(service: ServiceConfig, pinned: str) -> bytes:
    """What stands before the path at the upstream: of the pinned version, else of the one that answers by default."""
    version = service.versions.filter(version=pinned or service.current_version).first() or service.versions.first()
    url = version.url if version else service.default_url
    own = TargetRecord.from_url(url)[1] if url else b""
    return own + service.path_prefix.rstrip("/").encode("ascii")

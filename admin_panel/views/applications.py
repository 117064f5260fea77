"""Applications and their whitelists."""

from typing import Any

from django.contrib import messages
from django.db.models import Count, Q
from django.http import HttpResponse
from django.views.decorators.http import require_http_methods, require_safe

from access import services as use_cases
from access.models import Application, EndpointWhitelist
from access.services import StoredEntry
from admin_panel.forms import ApplicationForm, EntryForm
from admin_panel.listing import listing, wants_rows_only
from admin_panel.pages import PanelRequest, fragment, go_to, not_found, page
from admin_panel.samples import curl, example_method, example_path, first_call
from admin_panel.saving import Signature, confirm, edit
from admin_panel.views.policies import policies_of
from admin_panel.wording import count_of
from core.models import ConfigChange
from core.permissions import may
from queues.models import QueueRoute
from routing.models import ServiceConfig

_STATES = {"active": Q(is_active=True), "inactive": Q(is_active=False)}
_SORTS = {"name": "name", "changed": "updated_at", "keys": "key_count"}
_FORM = "admin_panel/applications/form.html"
_ENTRY_FORM = "admin_panel/applications/entry_form.html"
_RECENT = 6


@require_safe
def applications(request: PanelRequest) -> HttpResponse:
    rows = Application.objects.annotate(
        key_count=Count("keys", distinct=True), entry_count=Count("whitelist", distinct=True)
    )
    found = listing(request, rows, search=("name", "description"), states=_STATES, sorts=_SORTS)
    if wants_rows_only(request):
        return fragment(request, "admin_panel/applications/rows.html", {"listing": found})
    return page(request, "admin_panel/applications/list.html", {"listing": found})


@require_safe
def application(request: PanelRequest, pk: str) -> HttpResponse:
    row = _application(pk)
    if row is None:
        return not_found(request, "application")
    entries = list(row.whitelist.order_by("id"))
    parts = [pk, *(entry.pk for entry in entries)]
    named = row.allowed_services
    context = {
        "row": row,
        "entries": entries,
        "any": ["*"],
        "keys": row.keys.order_by("-id") if may(request, "admin:keys:read") else [],
        "services": ServiceConfig.objects.filter(name__in=named),
        "queue_routes": QueueRoute.objects.filter(name__in=named),
        "sample": _sample(request, row, entries),
        "recent": ConfigChange.objects.filter(object_id__in=parts).select_related("revision").order_by("-pk")[:_RECENT],
    }
    context["unknown"] = _unknown(named, context)
    context["policies"] = policies_of(row)
    return page(request, "admin_panel/applications/detail.html", context)


@require_http_methods(["GET", "HEAD", "POST"])
def application_new(request: PanelRequest) -> HttpResponse:
    def save(changes: dict[str, Any], _: int | None, signed: Signature) -> Application:
        return use_cases.create_application(**changes, **signed)

    initial = {"allowed_versions": ["*"], "endpoint_mode": "all", "is_active": True}
    return edit(
        request, ApplicationForm, _FORM, initial=initial, save=save, done=lambda made: go_to("application", made.pk)
    )


@require_http_methods(["GET", "HEAD", "POST"])
def application_edit(request: PanelRequest, pk: str) -> HttpResponse:
    row = _application(pk)
    if row is None:
        return not_found(request, "application")

    def save(changes: dict[str, Any], began: int | None, signed: Signature) -> Application:
        return use_cases.update_application(application=row, changes=changes, if_revision=began, **signed)

    return edit(request, ApplicationForm, _FORM, row=row, save=save, done=lambda _: go_to("application", pk))


@require_http_methods(["GET", "HEAD", "POST"])
def application_switch(request: PanelRequest, pk: str) -> HttpResponse:
    row = _application(pk)
    if row is None:
        return not_found(request, "application")
    changes = {"is_active": request.POST.get("active") == "true"}
    live = count_of(row.keys.filter(status__in=("active", "deprecated")).count(), "live key")
    return confirm(
        request,
        "admin_panel/includes/deactivate.html",
        act=lambda signed: use_cases.update_application(application=row, changes=changes, **signed),
        done=lambda: go_to("application", pk),
        context={
            "row": row,
            "url": request.path,
            "effect": f"Its {live} and its public endpoints are refused within a second, until it is activated again.",
        },
    )


@require_http_methods(["GET", "HEAD", "POST"])
def application_delete(request: PanelRequest, pk: str) -> HttpResponse:
    row = _application(pk)
    if row is None:
        return not_found(request, "application")
    live = row.keys.filter(status__in=("active", "deprecated"))
    return confirm(
        request,
        "admin_panel/applications/delete.html",
        act=lambda signed: use_cases.delete_application(application=row, **signed),
        done=lambda: go_to("applications"),
        context={"row": row, "keys": row.keys.count(), "live": live.count(), "entries": row.whitelist.count()},
    )


@require_http_methods(["GET", "HEAD", "POST"])
def entry_new(request: PanelRequest, pk: str) -> HttpResponse:
    row = _application(pk)
    if row is None:
        return not_found(request, "application")

    def save(changes: dict[str, Any], _: int | None, signed: Signature) -> StoredEntry:
        return use_cases.create_entry(application=row, **changes, **signed)

    return edit(
        request,
        EntryForm,
        _ENTRY_FORM,
        save=save,
        done=lambda stored: _entry_stored(request, stored),
        context={"application": row, "will_bind": row.endpoint_mode == "all"},
    )


@require_http_methods(["GET", "HEAD", "POST"])
def entry_edit(request: PanelRequest, pk: str) -> HttpResponse:
    entry = _entry(pk)
    if entry is None:
        return not_found(request, "whitelist entry")

    def save(changes: dict[str, Any], began: int | None, signed: Signature) -> StoredEntry:
        return use_cases.update_entry(entry=entry, changes=changes, if_revision=began, **signed)

    return edit(
        request,
        EntryForm,
        _ENTRY_FORM,
        row=entry,
        save=save,
        done=lambda stored: _entry_stored(request, stored),
        context={"application": entry.application},
    )


@require_http_methods(["GET", "HEAD", "POST"])
def entry_delete(request: PanelRequest, pk: str) -> HttpResponse:
    entry = _entry(pk)
    if entry is None:
        return not_found(request, "whitelist entry")
    owner = entry.application
    is_last = owner.endpoint_mode == "listed" and owner.whitelist.count() == 1
    return confirm(
        request,
        "admin_panel/applications/entry_delete.html",
        act=lambda signed: use_cases.delete_entry(entry=entry, **signed),
        done=lambda: go_to("application", owner.pk),
        context={"entry": entry, "is_last": is_last},
    )


def _entry_stored(request: PanelRequest, stored: StoredEntry) -> HttpResponse:
    if stored.became_listed:
        messages.info(request, "The whitelist is binding from now on: only the endpoints on it may be called.")
    return go_to("application", stored.entry.application_id)


def _application(pk: str) -> Application | None:
    return Application.objects.filter(pk=pk).first()


def _entry(pk: str) -> EndpointWhitelist | None:
    return EndpointWhitelist.objects.select_related("application").filter(pk=pk).first()


def _unknown(named: list[str], context: dict[str, Any]) -> list[str]:
    """Names in ``allowedServices`` that nothing has."""
    known = {row.name for row in (*context["services"], *context["queue_routes"])}
    return [name for name in named if name != "*" and name not in known]


def _sample(request: PanelRequest, row: Application, entries: list[EndpointWhitelist]) -> str:
    """A call that this application may make."""
    if entries and row.endpoint_mode == "listed":
        entry = entries[0]
        key = {"key": ""} if entry.is_public else {}
        return curl(request, example_path(entry.endpoint_path), example_method(entry.allowed_methods), **key)
    call = first_call(row.allowed_services)
    return curl(request, call.path, call.method) if call else ""

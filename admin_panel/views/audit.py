"""The audit log: who did what, refused or not, with the fields that changed; searched, and taken along as a file."""

from datetime import timedelta
from typing import Any

from django.http import HttpResponse, StreamingHttpResponse
from django.utils import timezone
from django.views.decorators.http import require_safe

from admin_panel.diffs import object_changes
from admin_panel.listing import ROWS_PER_PAGE, wants_rows_only
from admin_panel.pages import PanelRequest, fragment, not_found, page
from admin_panel.wording import label, readable
from core import audit_trail
from core.audit_api import export
from core.audit_trail import Entry, Search
from core.faults import ClientFault
from core.models import AuditEvent, ConfigChange

_PERIODS = {"1": "Last 24 hours", "7": "Last 7 days", "30": "Last 30 days", "90": "Last 90 days"}
_NAMES = ("q", "action", "actor", "outcome", "source", "ip", "object", "request", "days")
_ACTIONS = (
    ("session.*", "Signing in and out"),
    ("end_user.*", "End users"),
    ("mfa.*", "Second factors"),
    ("password.*", "Passwords"),
    ("invitation.*", "Invitations"),
    ("key.*", "API keys"),
    ("admin.*", "Administrators"),
    ("role.*", "Roles"),
    ("application.*", "Applications"),
    ("service.*", "Services"),
    ("route.*", "Routes"),
    ("limit.*", "Limits"),
    ("alert_channel.*", "Alerts"),
    ("cache.*", "Cache"),
    ("audit.*", "This log"),
)


@require_safe
def audit_log(request: PanelRequest) -> HttpResponse:
    chosen = _chosen(request)
    before = request.GET.get("before", "")
    try:
        after = audit_trail.position(before) if before else None
    except ClientFault:
        after = None
    found = audit_trail.entries(_search(request, chosen), after, ROWS_PER_PAGE + 1)
    shown = found[:ROWS_PER_PAGE]
    context = {
        "entries": shown,
        "older": audit_trail.cursor(shown[-1].position) if len(found) > ROWS_PER_PAGE else "",
        "is_first": after is None,
        "chosen": chosen,
        "is_filtered": any(chosen.values()),
        "actions": _ACTIONS,
        "outcomes": AuditEvent.Outcome.choices,
        "periods": _PERIODS.items(),
    }
    if wants_rows_only(request):
        return fragment(request, "admin_panel/audit/rows.html", context)
    return page(request, "admin_panel/audit/list.html", context)


@require_safe
def audit_entry(request: PanelRequest, pk: str) -> HttpResponse:
    entry = audit_trail.entry(pk, request.caller.tenant_id)
    if entry is None:
        return not_found(request, "line of the audit log")
    context: dict[str, Any] = {"entry": entry, "details": _details(entry)}
    if entry.revision is not None:
        changes = ConfigChange.objects.filter(revision_id=entry.revision, object_id=entry.object_id)
        context["changes"] = object_changes(changes.filter(kind=entry.object_kind))
    return page(request, "admin_panel/audit/detail.html", context)


@require_safe
def audit_export(request: PanelRequest, kind: str) -> HttpResponse | StreamingHttpResponse:
    chosen = _chosen(request)
    if kind not in ("csv", "json"):
        return not_found(request, "file")
    filters = {name: value for name, value in chosen.items() if value}
    return export(_search(request, chosen), kind, actor=request.caller.actor, source="panel", filters=filters)


def _chosen(request: PanelRequest) -> dict[str, str]:
    chosen = {name: request.GET.get(name, "").replace("\x00", "").strip()[:200] for name in _NAMES}
    if chosen["days"] not in _PERIODS:
        chosen["days"] = ""
    if chosen["outcome"] not in AuditEvent.Outcome.values:
        chosen["outcome"] = ""
    return chosen


def _search(request: PanelRequest, chosen: dict[str, str]) -> Search:
    since = timezone.now() - timedelta(days=int(chosen["days"])) if chosen["days"] else None
    return Search(
        request.caller.tenant_id,
        text=chosen["q"],
        action=chosen["action"],
        actor=chosen["actor"],
        object_id=chosen["object"],
        outcome=chosen["outcome"],
        source=chosen["source"],
        address=chosen["ip"],
        request_id=chosen["request"],
        since=since,
    )


def _details(entry: Entry) -> list[tuple[str, str]]:
    return [(label(None, name), readable(value)) for name, value in entry.details.items()]

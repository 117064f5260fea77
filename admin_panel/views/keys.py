"""API keys: whose they are, making them with the key shown once, and stopping them."""

from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any

from django.conf import settings
from django.db.models import Q
from django.http import HttpResponse, HttpResponseRedirect
from django.urls import reverse
from django.utils import timezone
from django.views.decorators.debug import sensitive_variables
from django.views.decorators.http import require_http_methods, require_safe

from access.policies import Restrictions
from admin_panel.forms import KeyForm
from admin_panel.listing import listing, wants_rows_only
from admin_panel.pages import PanelRequest, fragment, go_to, not_found, page
from admin_panel.policies import summary
from admin_panel.samples import Call, curl, first_call
from admin_panel.saving import Signature, announce, confirm, edit, signature
from admin_panel.subject_forms import KeyEditForm
from core.faults import ClientFault, PolicyDenied
from core.models import ConfigChange
from core.permissions import may
from keys import services as use_cases
from keys.making import IssuedKey
from keys.models import EXPIRES_SOON, ApiKey
from keys.rotation import rotate_key

_FORM, _EDIT = "admin_panel/keys/form.html", "admin_panel/keys/edit.html"
_LOOKUP_LENGTH = 10
_RECENT = 6
_FILTERS = (
    ("", "All"),
    ("live", "Live"),
    ("expiring", "Expiring"),
    ("deprecated", "Rotated"),
    ("suspended", "Suspended"),
    ("ended", "Ended"),
)
_MOST_CALLERS = 50
_TRANSITIONS = ((0, "now"), (1, "in a day"), (7, "in 7 days"), (30, "in 30 days"), (90, "in 90 days"))


@require_safe
def keys(request: PanelRequest) -> HttpResponse:
    now = timezone.now()
    expired = Q(expires_at__lte=now)
    live = Q(status__in=("active", "deprecated"))
    states = {
        "live": live & ~expired,
        "expiring": live & ~expired & Q(expires_at__lte=now + EXPIRES_SOON),
        "deprecated": Q(status="deprecated") & ~expired,
        "suspended": Q(status="suspended"),
        "ended": Q(status="revoked") | (live & expired),
    }
    sorts = {"newest": "id", "name": "name", "used": "last_used_at", "expiry": "expires_at"}
    rows = ApiKey.objects.select_related("application", "user")
    search = ("name", "owner", "lookup_id", "application__name")
    found = listing(request, rows, search=search, states=states, sorts=sorts, default_sort="-newest")
    if wants_rows_only(request):
        return fragment(request, "admin_panel/keys/rows.html", {"listing": found})
    return page(request, "admin_panel/keys/list.html", {"listing": found, "filters": _FILTERS})


@require_safe
def key(request: PanelRequest, pk: str) -> HttpResponse:
    row = _key(pk)
    if row is None:
        return not_found(request, "API key")
    recent = ConfigChange.objects.filter(kind=ApiKey.kind, object_id=pk).select_related("revision").order_by("-pk")
    callers = row.callers.order_by("-last_at")
    context = {
        "row": row,
        "recent": recent[:_RECENT],
        "callers": callers[:_MOST_CALLERS],
        "caller_count": callers.count(),
        "successor": row.successors.order_by("-pk").first(),
        "restrictions": summary(Restrictions, row.restrictions),
    }
    return page(request, "admin_panel/keys/detail.html", context)


@require_http_methods(["GET", "HEAD", "POST"])
def key_edit(request: PanelRequest, pk: str) -> HttpResponse:
    row = _key(pk)
    if row is None:
        return not_found(request, "API key")

    def save(changes: dict[str, Any], began: int | None, signed: Signature) -> ApiKey:
        own = request.caller.permissions
        return use_cases.update_key(key=row, changes=changes, if_revision=began, own_scopes=own, **signed)

    context = {"title": row.name, "back": reverse("panel:key", args=[pk]), "action": request.path}
    return edit(request, KeyEditForm, _EDIT, row=row, save=save, done=lambda _: go_to("key", pk), context=context)


@sensitive_variables("rotation")
@require_http_methods(["GET", "HEAD", "POST"])
def key_rotate(request: PanelRequest, pk: str) -> HttpResponse:
    """The successor is in the one answer to this POST and nowhere else."""
    row = _key(pk)
    if row is None:
        return not_found(request, "API key")
    if not may(request, "admin:keys:create"):  # what a rotation does beside changing the old one
        raise PolicyDenied("insufficient_scope", "This needs the permission admin:keys:create too.")
    callers = row.callers.filter(last_at__gt=timezone.now() - timedelta(days=7))
    context: dict[str, Any] = {"row": row, "url": request.path, "transitions": _TRANSITIONS, "callers": callers.count()}
    if request.method != "POST":
        return fragment(request, "admin_panel/keys/rotate.html", context)
    chosen = request.POST.get("transition", "")
    signed = signature(request, request.POST.get("reason", ""))
    try:
        days = int(chosen) if chosen.isdecimal() and len(chosen) < 6 else -1
        rotation = rotate_key(key=row, transition_days=days, own_scopes=request.caller.permissions, **signed)
    except (ClientFault, PolicyDenied) as fault:
        response = fragment(request, "admin_panel/keys/rotate.html", context | {"fault": fault}, status=fault.status)
        response.headers["HX-Retarget"] = "#dialog-slot"
        response.headers["HX-Reswap"] = "innerHTML"
        response.headers["HX-Push-Url"] = "false"
        return response
    announce(request, rotation.issued.row.revision)
    return _shown_once(request, rotation.issued, old=rotation.old)


@require_http_methods(["GET", "HEAD", "POST"])
def key_whose(request: PanelRequest) -> HttpResponse:
    """Whose key is this? By POST, so that a whole key pasted here stands in no URL; only its lookup id is used."""
    length = len(settings.API_KEY_PREFIX) + _LOOKUP_LENGTH
    if request.method != "POST":
        return fragment(request, "admin_panel/keys/whose.html", {"length": length})
    pasted = request.POST.get("key", "").strip()
    lookup = pasted.removeprefix(settings.API_KEY_PREFIX)[:_LOOKUP_LENGTH]
    is_whole = len(lookup) == _LOOKUP_LENGTH and lookup.isascii() and lookup.isalnum()
    row = ApiKey.objects.select_related("application", "user").filter(lookup_id=lookup).first() if is_whole else None
    context = {"row": row, "lookup": lookup if is_whole else "", "length": length, "is_answer": True}
    return fragment(request, "admin_panel/keys/whose.html", context)


@sensitive_variables("issued")
@require_http_methods(["GET", "HEAD", "POST"])
def key_new(request: PanelRequest) -> HttpResponse:
    """The key itself is in the one answer to this POST and nowhere else: no redirect, session, message or storage."""
    if request.method != "POST":
        return page(request, _FORM, {"form": KeyForm(initial={"application": request.GET.get("application", "")})})
    form = KeyForm(request.POST)
    if not form.is_valid():
        return page(request, _FORM, {"form": form}, status=422)
    try:
        issued = use_cases.create_key(**form.changes(), **signature(request, form.cleaned_data["reason"]))
    except (ClientFault, PolicyDenied) as fault:
        form.take(fault)
        return page(request, _FORM, {"form": form}, status=fault.status)
    announce(request, issued.row.revision)
    return _shown_once(request, issued)


@sensitive_variables("issued")
def _shown_once(request: PanelRequest, issued: IssuedKey, old: ApiKey | None = None) -> HttpResponse:
    owner = issued.row.application
    call = first_call(owner.allowed_services if owner else []) or Call("/api/v1/SERVICE/")
    context = {"row": issued.row, "key": issued.key, "warning": issued.warning, "old": old}
    context["sample"] = curl(request, call.path, call.method, key=issued.key)
    response = page(request, "admin_panel/keys/created.html", context)
    response.headers["Cache-Control"] = "no-store"
    response.headers["HX-Push-Url"] = "false"
    return response


@require_http_methods(["GET", "HEAD", "POST"])
def key_suspend(request: PanelRequest, pk: str) -> HttpResponse:
    return _confirmed(request, pk, "suspend", use_cases.suspend_key)


@require_http_methods(["GET", "HEAD", "POST"])
def key_activate(request: PanelRequest, pk: str) -> HttpResponse:
    own = request.caller.permissions
    return _confirmed(request, pk, "activate", partial(use_cases.activate_key, own_scopes=own))


@require_http_methods(["GET", "HEAD", "POST"])
def key_revoke(request: PanelRequest, pk: str) -> HttpResponse:
    return _confirmed(request, pk, "revoke", use_cases.revoke_key)


def _confirmed(request: PanelRequest, pk: str, action: str, use_case: Callable[..., Any]) -> HttpResponse:
    row = _key(pk)
    if row is None:
        return not_found(request, "API key")

    def act(signed: Signature) -> None:
        use_case(key=row, **signed)

    def done() -> HttpResponseRedirect:
        return go_to("key", pk)

    context = {"row": row, "action": action, "url": reverse(f"panel:key_{action}", args=[pk])}
    return confirm(request, "admin_panel/keys/confirm.html", act=act, done=done, context=context)


def _key(pk: str) -> ApiKey | None:
    return ApiKey.objects.select_related("application", "user").filter(pk=pk).first()

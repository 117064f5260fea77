"""Administrators: who they are, what they may do, where they are signed in."""

from typing import Any

from allauth.mfa.models import Authenticator
from django.contrib import messages
from django.db.models import Q
from django.http import HttpResponse, HttpResponseRedirect
from django.urls import reverse
from django.views.decorators.http import require_http_methods, require_safe

from access.administration import sessions as session_use_cases
from access.administration import users as use_cases
from access.administration.rights import permissions_of, roles_of_tenant, tenant_of
from access.models import AdminAccount, Invitation
from admin_panel.devices import device_name
from admin_panel.listing import listing, wants_rows_only
from admin_panel.pages import PanelRequest, fragment, go_to, not_found, page
from admin_panel.people_forms import UserForm, is_everything, permission_table
from admin_panel.saving import Signature, confirm, edit, signature
from admin_panel.views.account import ask_to_end
from core.models import ConfigChange
from keys.models import ApiKey

_FORM = "admin_panel/users/form.html"
_RECENT = 6
_FILTERS = (("", "All"), ("active", "Active"), ("inactive", "Inactive"))
_FACTORS = (Authenticator.Type.TOTP, Authenticator.Type.WEBAUTHN)


@require_safe
def users(request: PanelRequest) -> HttpResponse:
    rows = AdminAccount.objects.select_related("user")
    states = {"active": Q(is_active=True), "inactive": Q(is_active=False)}
    sorts = {"name": "user__username", "seen": "user__last_login", "newest": "created_at"}
    search = ("user__username", "user__email", "name")
    found = listing(request, rows, search=search, states=states, sorts=sorts)
    ids = [row.user_id for row in found.page]
    with_factor = set(Authenticator.objects.filter(user__in=ids, type__in=_FACTORS).values_list("user_id", flat=True))
    context: dict[str, Any] = {"listing": found, "filters": _FILTERS, "with_factor": with_factor}
    if wants_rows_only(request):
        return fragment(request, "admin_panel/users/rows.html", context)
    context["invitations"] = Invitation.objects.filter(accepted_at=None, withdrawn_at=None)
    return page(request, "admin_panel/users/list.html", context)


@require_safe
def user(request: PanelRequest, pk: str) -> HttpResponse:
    row = _account(pk)
    if row is None:
        return not_found(request, "user")
    permissions = permissions_of(row.user, row)
    recent = ConfigChange.objects.filter(kind=AdminAccount.kind, object_id=pk).select_related("revision")
    context = {
        "row": row,
        "roles": [roles_of_tenant(tenant_of(row)).get(name) or {"name": name} for name in row.roles],
        "rights": permission_table(permissions),
        "may_everything": is_everything(permissions),
        "factors": Authenticator.objects.filter(user=row.user, type__in=_FACTORS),
        "sessions": [
            {"row": each, "device": device_name(each.user_agent)} for each in session_use_cases.live_sessions(row.user)
        ],
        "keys": ApiKey.objects.filter(user=row.user).exclude(status="revoked").order_by("-pk"),
        "recent": recent.order_by("-pk")[:_RECENT],
        "is_me": row.user_id == request.user.pk,
    }
    return page(request, "admin_panel/users/detail.html", context)


@require_http_methods(["GET", "HEAD", "POST"])
def user_edit(request: PanelRequest, pk: str) -> HttpResponse:
    row = _account(pk)
    if row is None:
        return not_found(request, "user")

    def save(changes: dict[str, Any], began: int | None, signed: Signature) -> AdminAccount:
        own = request.caller.permissions
        return use_cases.update_admin(account=row, changes=changes, if_revision=began, own_permissions=own, **signed)

    def done(_: AdminAccount) -> HttpResponseRedirect:
        return go_to("user", pk)

    context = {"rights": permission_table(permissions_of(row.user, row)), "may_everything": row.user.is_superuser}
    return edit(request, UserForm, _FORM, row=row, save=save, done=done, context=context)


@require_http_methods(["GET", "HEAD", "POST"])
def user_switch(request: PanelRequest, pk: str) -> HttpResponse:
    row = _account(pk)
    if row is None:
        return not_found(request, "user")

    def act(signed: Signature) -> None:
        changes = {"is_active": not row.is_active}
        use_cases.update_admin(account=row, changes=changes, own_permissions=request.caller.permissions, **signed)
        if row.is_active:
            session_use_cases.end_all_sessions(row.user)

    return _confirmed(request, row, "deactivate" if row.is_active else "activate", "user_switch", act)


@require_http_methods(["GET", "HEAD", "POST"])
def user_delete(request: PanelRequest, pk: str) -> HttpResponse:
    row = _account(pk)
    if row is None:
        return not_found(request, "user")

    def act(signed: Signature) -> None:
        session_use_cases.end_all_sessions(row.user)
        use_cases.delete_admin(account=row, own_permissions=request.caller.permissions, **signed)

    return _confirmed(request, row, "delete", "user_delete", act, after="users")


@require_http_methods(["GET", "HEAD", "POST"])
def user_factors_reset(request: PanelRequest, pk: str) -> HttpResponse:
    row = _account(pk)
    if row is None:
        return not_found(request, "user")
    if request.method != "POST":
        context = _dialog(row, "reset", "user_factors_reset")
        return fragment(request, "admin_panel/users/confirm.html", context)
    signed = signature(request)
    session_use_cases.reset_factors(
        account=row, own_permissions=request.caller.permissions, actor=signed["actor"], source=signed["source"]
    )
    messages.success(request, f"{row.user.get_username()} signs in by password alone now, and should add a new factor.")
    return go_to("user", pk)


@require_http_methods(["GET", "HEAD", "POST"])
def user_session_end(request: PanelRequest, pk: str, session: int) -> HttpResponse:
    return _end_sessions(request, pk, session)


@require_http_methods(["GET", "HEAD", "POST"])
def user_sessions_end(request: PanelRequest, pk: str) -> HttpResponse:
    return _end_sessions(request, pk, None)


def _end_sessions(request: PanelRequest, pk: str, only: int | None) -> HttpResponse:
    row = _account(pk)
    if row is None:
        return not_found(request, "user")
    chosen = [each for each in session_use_cases.live_sessions(row.user) if only in (None, each.pk)]
    if request.method != "POST":
        return ask_to_end(request, chosen, only=only, whose=row.user.get_username())
    signed = signature(request)
    session_use_cases.end_sessions(
        account=row,
        sessions=chosen,
        own_permissions=request.caller.permissions,
        actor=signed["actor"],
        source=signed["source"],
    )
    messages.success(request, "The session has ended." if len(chosen) == 1 else "The sessions have ended.")
    return go_to("user", pk)


def _confirmed(
    request: PanelRequest, row: AdminAccount, action: str, name: str, act: Any, after: str = ""
) -> HttpResponse:
    def done() -> HttpResponseRedirect:
        return go_to(after) if after else go_to("user", row.pk)

    return confirm(request, "admin_panel/users/confirm.html", act=act, done=done, context=_dialog(row, action, name))


def _dialog(row: AdminAccount, action: str, name: str) -> dict[str, Any]:
    keys = ApiKey.objects.filter(user=row.user, status__in=("active", "deprecated")).count()
    return {"row": row, "action": action, "url": reverse(f"panel:{name}", args=[row.pk]), "keys": keys}


def _account(pk: str) -> AdminAccount | None:
    return AdminAccount.objects.select_related("user").filter(pk=pk).first()

"""Roles of administrators: what each gives, and who has it."""

from typing import Any

from django.http import HttpResponse, HttpResponseRedirect
from django.urls import reverse
from django.views.decorators.http import require_http_methods, require_safe

from access.administration import roles as use_cases
from access.administration.rights import permissions_of_roles, roles_of_tenant
from access.models import AdminAccount, AdminRole
from admin_panel.pages import PanelRequest, fragment, go_to, not_found, page
from admin_panel.people_forms import RoleForm, is_everything, permission_table
from admin_panel.saving import Signature, confirm, edit
from core.models import ConfigChange
from core.tenants import own_tenant

_FORM = "admin_panel/roles/form.html"
_RECENT = 6


@require_safe
def roles(request: PanelRequest) -> HttpResponse:
    holders: dict[str, int] = {}
    for names in AdminAccount.objects.values_list("roles", flat=True):
        for name in names:
            holders[name] = holders.get(name, 0) + 1
    rows = [(row, holders.get(row.name, 0)) for row in use_cases.visible_roles().order_by("-is_builtin", "name")]
    return page(request, "admin_panel/roles/list.html", {"rows": rows})


@require_safe
def role(request: PanelRequest, pk: str) -> HttpResponse:
    row = _role(pk)
    if row is None:
        return not_found(request, "role")
    recent = ConfigChange.objects.filter(kind=AdminRole.kind, object_id=pk).select_related("revision").order_by("-pk")
    context = {
        "row": row,
        "rights": permission_table(row.permissions),
        "may_everything": is_everything(row.permissions),
        "holders": use_cases.holders_of(row),
        "recent": recent[:_RECENT],
    }
    return page(request, "admin_panel/roles/detail.html", context)


@require_safe
def rights(request: PanelRequest) -> HttpResponse:
    """What roles give together, while somebody chooses them."""
    permissions = permissions_of_roles(request.GET.getlist("roles"), roles_of_tenant(own_tenant()))
    context = {"rights": permission_table(permissions), "may_everything": is_everything(permissions)}
    return fragment(request, "admin_panel/roles/rights.html", context)


@require_http_methods(["GET", "HEAD", "POST"])
def role_new(request: PanelRequest) -> HttpResponse:
    def save(changes: dict[str, Any], _: int | None, signed: Signature) -> AdminRole:
        return use_cases.create_role(**changes, own_permissions=request.caller.permissions, **signed)

    return edit(request, RoleForm, _FORM, save=save, done=_shown)


@require_http_methods(["GET", "HEAD", "POST"])
def role_edit(request: PanelRequest, pk: str) -> HttpResponse:
    row = _role(pk)
    if row is None or row.is_builtin:
        return not_found(request, "role of your own")

    def save(changes: dict[str, Any], began: int | None, signed: Signature) -> AdminRole:
        own = request.caller.permissions
        return use_cases.update_role(role=row, changes=changes, if_revision=began, own_permissions=own, **signed)

    return edit(request, RoleForm, _FORM, row=row, save=save, done=_shown)


@require_http_methods(["GET", "HEAD", "POST"])
def role_delete(request: PanelRequest, pk: str) -> HttpResponse:
    row = _role(pk)
    if row is None or row.is_builtin:
        return not_found(request, "role of your own")

    def act(signed: Signature) -> None:
        use_cases.delete_role(role=row, own_permissions=request.caller.permissions, **signed)

    context = {"row": row, "url": reverse("panel:role_delete", args=[pk]), "holders": use_cases.holders_of(row)}
    return confirm(request, "admin_panel/roles/delete.html", act=act, done=lambda: go_to("roles"), context=context)


def _shown(row: AdminRole) -> HttpResponseRedirect:
    return go_to("role", row.pk)


def _role(pk: str) -> AdminRole | None:
    return use_cases.visible_roles().filter(pk=pk).first()

"""Policies of services, routes, applications and bundles: each has a page of its own, made of the policy's class."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from django.http import HttpResponse, HttpResponseRedirect
from django.urls import reverse
from django.views.decorators.http import require_http_methods

from access.models import Application, PolicyBundle
from access.policies import APPLICATION_POLICIES
from access.services import update_application
from admin_panel.pages import PanelRequest, View, not_found
from admin_panel.policies import CredentialsForm, PolicyForm, policy_form, summary, without
from admin_panel.policy_words import GROUPS, TITLES
from admin_panel.saving import Signature, confirm, edit
from core.api_problems import camel
from core.faults import ClientFault
from routing import services as use_cases
from routing.bundles import BUNDLE_POLICIES, update_bundle
from routing.checks import NOT_OF_AGGREGATES
from routing.models import Route, ServiceConfig
from routing.policies import ROUTE_POLICIES, SERVICE_POLICIES, UpstreamCredential

_FORM = "admin_panel/policies/form.html"
_LISTS = ("upstream_credentials",)


class BundledPolicies:
    """A bundle whose policies are attributes, as those of other rows are."""

    def __init__(self, row: PolicyBundle) -> None:
        self._row = row

    def __getattr__(self, name: str) -> Any:
        return self._row.policies.get(name) if name in BUNDLE_POLICIES else getattr(self._row, name)


_Row = ServiceConfig | Route | Application | BundledPolicies


def policies_of(row: _Row) -> list[tuple[str, list[dict[str, Any]]]]:
    """The policies that the row can have, by group: name, title, purpose, what it says, what holds without it."""
    kinds: dict[str, Any] = dict(_kinds(row))
    if isinstance(row, ServiceConfig):
        kinds["upstream_credentials"] = UpstreamCredential
    kinds.pop("aggregation", None)  # stands in the route's own form
    if isinstance(row, Route) and row.aggregation is not None:
        kinds = {name: kind for name, kind in kinds.items() if name not in NOT_OF_AGGREGATES}
    placed = {name for _, names in GROUPS for name in names}
    groups = (*GROUPS, ("Others", tuple(name for name in kinds if name not in placed)))
    found = ((title, [_shown(row, name, kinds[name]) for name in names if name in kinds]) for title, names in groups)
    return [(title, policies) for title, policies in found if policies]


def _kinds(row: _Row) -> dict[str, Any]:
    if isinstance(row, BundledPolicies):
        return dict(BUNDLE_POLICIES)
    return dict(next(holder.kinds for holder in HOLDERS if isinstance(row, holder.model)))


def _shown(row: _Row, name: str, kind: Any) -> dict[str, Any]:
    title, purpose = TITLES[name]
    said = summary(kind, getattr(row, name))
    return {"name": name, "title": title, "purpose": purpose, "says": said, "without": without(row, name)}


@dataclass(frozen=True, slots=True)
class Holder:
    """What has policies. ``change`` is its use-case: the row, the changes, and the revision that they began with."""

    word: str
    title: str
    model: type[ServiceConfig | Route | Application | PolicyBundle]
    kinds: dict[str, Any]
    change: Callable[..., Any]
    list_url: str
    row_url: str
    after: str  # what counts when one is removed

    def row(self, pk: str) -> Any:
        row: Any = self.model._default_manager.filter(pk=pk).first()
        return BundledPolicies(row) if isinstance(row, PolicyBundle) else row


def _change_bundle(row: PolicyBundle, changes: dict[str, Any], if_revision: int | None, **signed: Any) -> Any:
    try:
        return update_bundle(
            bundle=row, changes={"policies": {**row.policies, **changes}}, if_revision=if_revision, **signed
        )
    except ClientFault as fault:
        errors = {_of_row(name): said for name, said in fault.members.get("errors", {}).items()}
        raise ClientFault(fault.code, fault.detail, members={**fault.members, "errors": errors}) from fault


def _of_row(field: str) -> str:
    """``policies.ipAccess.allow`` → ``ip_access.allow``, as it is called where the policy stands in a row."""
    name, dot, rest = field.removeprefix("policies.").partition(".")
    return next((each for each in BUNDLE_POLICIES if camel(each) == name), name) + dot + rest


HOLDERS = (
    Holder(
        "service",
        "Services",
        ServiceConfig,
        SERVICE_POLICIES,
        lambda row, changes, if_revision, **signed: use_cases.update_service(
            service=row, changes=changes, if_revision=if_revision, **signed
        ),
        "panel:services",
        "panel:service",
        "What its bundles say counts again, else the gateway's defaults.",
    ),
    Holder(
        "route",
        "Routes",
        Route,
        ROUTE_POLICIES,
        lambda row, changes, if_revision, **signed: use_cases.update_route(
            route=row, changes=changes, if_revision=if_revision, **signed
        ),
        "panel:routes",
        "panel:route",
        "What its bundles or its service say counts again.",
    ),
    Holder(
        "application",
        "Applications",
        Application,
        APPLICATION_POLICIES,
        lambda row, changes, if_revision, **signed: update_application(
            application=row, changes=changes, if_revision=if_revision, **signed
        ),
        "panel:applications",
        "panel:application",
        "What its bundles say counts again.",
    ),
    Holder(
        "bundle",
        "Bundles",
        PolicyBundle,
        BUNDLE_POLICIES,
        lambda row, changes, if_revision, **signed: _change_bundle(row._row, changes, if_revision, **signed),
        "panel:bundles",
        "panel:bundles_one",
        "Whatever has the bundle no longer has it.",
    ),
)


def policy_pages() -> Iterator[tuple[str, View, str, str]]:
    """Route, view, permission and name of each page."""
    for holder in HOLDERS:
        route = f"{holder.word}s/<slug:pk>/policies/<slug:name>"
        permission = f"{holder.word}s:update"
        yield route, _edit_page(holder), permission, f"{holder.word}_policy"
        yield f"{route}/remove", _remove_page(holder), permission, f"{holder.word}_policy_remove"


def _edit_page(holder: Holder) -> View:
    @require_http_methods(["GET", "HEAD", "POST"])
    def view(request: PanelRequest, pk: str, name: str) -> HttpResponse:
        row, form = holder.row(pk), _form(name, holder.kinds)
        if row is None or form is None:
            return not_found(request, holder.word if row is None else "policy")

        def save(changes: dict[str, Any], began: int | None, signed: Signature) -> Any:
            return holder.change(row, changes, began, **signed)

        done = _to(holder, pk)
        return edit(
            request, form, _FORM, row=row, save=save, done=lambda _: done(), context=_context(holder, row, name)
        )

    return view


def _remove_page(holder: Holder) -> View:
    @require_http_methods(["GET", "HEAD", "POST"])
    def view(request: PanelRequest, pk: str, name: str) -> HttpResponse:
        row = holder.row(pk)
        lists = _LISTS if holder.model is ServiceConfig else ()
        if row is None or name not in (*holder.kinds, *lists):
            return not_found(request, holder.word if row is None else "policy")
        none: Any = [] if name in lists else None
        return confirm(
            request,
            "admin_panel/policies/remove.html",
            act=lambda signed: holder.change(row, {name: none}, None, **signed),
            done=_to(holder, pk),
            context=_context(holder, row, name) | {"url": request.path},
        )

    return view


def _to(holder: Holder, pk: str) -> Callable[[], HttpResponse]:
    return lambda: HttpResponseRedirect(reverse(holder.row_url, args=[pk]))


def _form(name: str, kinds: dict[str, Any]) -> type[PolicyForm] | None:
    if name in kinds and name != "aggregation":  # that stands in the route's own form
        return policy_form(name, kinds[name])
    return CredentialsForm if name in _LISTS and kinds is SERVICE_POLICIES else None


def _context(holder: Holder, row: Any, name: str) -> dict[str, Any]:
    title, purpose = TITLES[name]
    return {
        "title": title,
        "purpose": purpose,
        "name": name,
        "list_title": holder.title,
        "after": holder.after,
        "without": without(row, name),
        "is_set": getattr(row, name) not in (None, []),
        "list_url": holder.list_url,
        "row_url": holder.row_url,
        "edit_url": f"panel:{holder.word}_policy",
        "remove_url": f"panel:{holder.word}_policy_remove",
    }

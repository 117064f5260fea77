"""Inviting somebody to administer the gateway, and what whoever is invited sees."""

from typing import Any

from allauth.account.internal.flows.login import perform_login, record_authentication
from allauth.account.models import Login
from django.conf import settings
from django.contrib import messages
from django.contrib.auth import logout
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import reverse
from django.views.decorators.cache import never_cache
from django.views.decorators.debug import sensitive_post_parameters, sensitive_variables
from django.views.decorators.http import require_http_methods

from access.administration import invitations as use_cases
from access.administration.mail import send_invitation
from access.administration.people_api import invitation_link
from access.models import Invitation
from admin_panel.pages import PanelRequest, fragment, go_to, not_found, page
from admin_panel.people_forms import AcceptForm, InviteForm
from admin_panel.saving import signature
from admin_panel.sign_in import trail
from admin_panel.sign_in.notices import gate_notice
from core.faults import ClientFault, GatewayFault, PolicyDenied
from core.revisions import Actor

_FORM = "admin_panel/users/invite.html"
_IN_SESSION = "invitation"  # the id of the one whose code was shown


@sensitive_variables("made", "link", "context")
@require_http_methods(["GET", "HEAD", "POST"])
def invite(request: PanelRequest) -> HttpResponse:
    """The link is in the one answer to this POST and nowhere else."""
    if request.method != "POST":
        return page(request, _FORM, {"form": InviteForm(initial={"email": request.GET.get("email", "")})})
    form = InviteForm(request.POST)
    if not form.is_valid():
        return page(request, _FORM, {"form": form}, status=422)
    signed = signature(request)
    try:
        made = use_cases.invite(
            email=form.cleaned_data["email"].strip(),
            roles=form.cleaned_data["roles"],
            own_permissions=request.caller.permissions,
            actor=signed["actor"],
            source=signed["source"],
        )
    except (ClientFault, PolicyDenied) as fault:
        take(form, fault)
        return page(request, _FORM, {"form": form}, status=fault.status)
    link = invitation_link(request, made.token)
    context = {"invitation": made.invitation, "link": link, "is_mailed": send_invitation(made.invitation, link)}
    response = page(request, "admin_panel/users/invited.html", context | {"mails": settings.MAILS})
    response.headers["Cache-Control"] = "no-store"
    response.headers["HX-Push-Url"] = "false"
    return response


@require_http_methods(["GET", "HEAD", "POST"])
def withdraw(request: PanelRequest, pk: str) -> HttpResponse:
    row = Invitation.objects.filter(pk=pk).first()
    if row is None:
        return not_found(request, "invitation")
    if request.method != "POST":
        context = {"row": row, "url": reverse("panel:withdraw", args=[pk])}
        return fragment(request, "admin_panel/users/withdraw.html", context)
    signed = signature(request)
    use_cases.withdraw(invitation=row, actor=signed["actor"], source=signed["source"])
    messages.success(request, f"The invitation of {row.email} opens nothing any more.")
    return go_to("users")


@never_cache
@sensitive_post_parameters("code", "password", "again")
@require_http_methods(["GET", "HEAD", "POST"])
def invitation(request: HttpRequest) -> HttpResponse:
    """First the code, which a script takes from behind the # of the link; then name and password."""
    if request.method == "POST" and "code" in request.POST:
        return _show_code(request, request.POST["code"])
    row = _invited(request)
    if row is None:
        return _render(request, "account/invitation_code.html", {})
    form = AcceptForm(request.POST) if request.method == "POST" else AcceptForm(initial={"username": _suggested(row)})
    context = {"form": form, "invitation": row}
    if request.method != "POST":
        return _render(request, "account/invitation.html", context)
    if form.is_valid():
        try:
            return _accept(request, row, form)
        except ClientFault as fault:
            if fault.code == "conflict" and not fault.members.get("errors"):
                return gate_notice(request, "This invitation is over", fault.detail, status=409)
            take(form, fault)
    return _render(request, "account/invitation.html", context, status=422)


def _show_code(request: HttpRequest, code: str) -> HttpResponse:
    try:
        found = use_cases.find(code)
    except ClientFault as fault:
        return gate_notice(request, "This invitation is over", fault.detail, status=404)
    if request.user.is_authenticated:  # it is for somebody who is nobody here yet
        logout(request)
    request.session[_IN_SESSION] = found.pk
    row: Invitation = found
    context = {"form": AcceptForm(initial={"username": _suggested(row)}), "invitation": row}
    return _render(request, "account/invitation.html", context)


def _accept(request: HttpRequest, row: Invitation, form: AcceptForm) -> HttpResponse:
    values = form.cleaned_data
    at = trail.actor_of(request)
    actor = Actor("user", "", row.email, request_id=at.request_id, address=at.address)
    account = use_cases.accept(
        invitation=row,
        username=values["username"].strip(),
        name=values["name"],
        password=values["password"],
        actor=actor,
        source="panel",
    )
    del request.session[_IN_SESSION]
    record_authentication(request, account.user, method="password", reauthenticated=True)
    response: HttpResponse = perform_login(request, Login(user=account.user, redirect_url="/"))
    return response


def _invited(request: HttpRequest) -> Invitation | None:
    pk = request.session.get(_IN_SESSION)
    return use_cases.open_ones().filter(pk=pk).first() if pk else None


def _suggested(row: Invitation) -> str:
    return row.email.partition("@")[0]


def _render(request: HttpRequest, template: str, context: dict[str, Any], status: int = 200) -> HttpResponse:
    return render(request, template, {**context, "environment": settings.SERVICE_NAME}, status=status)


def take(form: Any, fault: GatewayFault) -> None:
    """A refusal's sentences at the fields they speak of; others above the form."""
    errors = fault.members.get("errors", {})
    for name, sentences in errors.items():
        for sentence in sentences:
            form.add_error(name if name in form.fields else None, sentence)
    if not errors:
        form.add_error(None, fault.detail)

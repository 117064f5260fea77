"""What `admin_panel.subjects` shows, and what goes beyond lists and forms: passwords and sessions of end users."""

from collections.abc import Mapping
from typing import Any

from django.contrib import messages
from django.http import HttpResponse, HttpResponseRedirect
from django.urls import reverse
from django.utils import timezone
from django.views.decorators.debug import sensitive_variables
from django.views.decorators.http import require_http_methods

from access import alerts, issuers
from access.end_users import accounts, roles
from access.end_users.sessions import end_sessions
from access.limiting import services as limits
from access.limiting.use import use_of
from access.models import AlertChannel, EndUser, EndUserRole, LimitViolation, PolicyBundle, RateLimit, TokenIssuer
from access.policies import TokenRules
from admin_panel.limited import in_words
from admin_panel.pages import PanelRequest, fragment, not_found
from admin_panel.policies import summary
from admin_panel.policy_words import TITLES
from admin_panel.saving import Signature, confirm, signature
from admin_panel.subject_forms import (
    AlertChannelForm,
    BundleForm,
    EndUserForm,
    EndUserRoleForm,
    IssuerForm,
    LimitForm,
    NewEndUserForm,
)
from admin_panel.subjects import Column, Subject
from admin_panel.views.policies import BundledPolicies, policies_of
from core.audit import record
from core.revisions import locked
from routing import bundles
from routing.bundles import BUNDLE_POLICIES, users_of

_SHOWN = 20


def _channel_context(row: AlertChannel) -> Mapping[str, Any]:
    return {"told": row.messages.all()[:_SHOWN], "test_url": reverse("panel:alert_channel_test", args=[row.pk])}


def _user_context(row: EndUser) -> Mapping[str, Any]:
    live = row.sessions.filter(revoked_at__isnull=True, ends_at__gt=timezone.now())
    return {"sessions": live.order_by("-last_used_at")[:_SHOWN], "session_count": live.count()}


def _role_context(row: EndUserRole) -> Mapping[str, Any]:
    users = EndUser.objects.filter(role=row.name)
    return {"users": users.order_by("username")[:_SHOWN], "user_count": users.count()}


def _per_hour(row: EndUserRole) -> str:
    if row.requests_per_hour is None:
        return ""
    burst = f", {row.burst_limit:,} at once" if row.burst_limit else ""
    return f"{row.requests_per_hour:,} per hour{burst}"


def _where(row: AlertChannel) -> str:
    return row.url or ", ".join(row.recipients)


def _limit_context(row: RateLimit) -> Mapping[str, Any]:
    use = use_of(row, timezone.now())
    violations = list(LimitViolation.objects.filter(limit_id=row.pk).order_by("-minute")[:_SHOWN])
    whose = in_words({each.subject for each in use.subjects} | {each.subject for each in violations})
    return {"use": use, "violations": violations, "whose": whose}


def _limit_says(row: RateLimit) -> str:
    rule = row.rule
    what = str(rule.get("algorithm", "token_bucket")).replace("_", " ")
    if what == "concurrency":
        return f"{rule['limit']:,} at once"
    span = rule.get("period", "day") if what == "quota" else f"{rule.get('windowS', 60):,} s"
    return f"{rule['limit']:,} in each {span}, {what}"


def _limit_holds(row: RateLimit) -> list[str]:
    names = ("services", "routes", "applications", "roles", "methods", "paths")
    return [each for name in names for each in row.rule.get(name, ())] or ["everything"]


def _bundle_context(row: PolicyBundle) -> Mapping[str, Any]:
    return {"policies": policies_of(BundledPolicies(row)), "used": list(users_of(str(row.tenant_id), row.name))}


def _bundle_policies(row: PolicyBundle) -> list[str]:
    return [TITLES[name][0] for name in BUNDLE_POLICIES if name in row.policies]


SUBJECTS = (
    Subject(
        word="limits",
        noun="limit",
        plural="limits",
        icon="gauge",
        purpose="How often, beside the rate limits of applications and endpoints: by whom, for what, and counted how.",
        resource="limits",
        model=RateLimit,
        form=LimitForm,
        store=limits.create_limit,
        change=limits.update_limit,
        remove=limits.delete_limit,
        argument="limit",
        columns=(
            Column("Allows", _limit_says),
            Column("Of", _limit_holds, "chips"),
            Column("Each", lambda row: row.rule.get("per", ["key"]), "chips"),
        ),
        more="admin_panel/subjects/limit.html",
        more_context=_limit_context,
        warning=lambda row: "Requests that it held back pass within a second, as far as other limits let them.",
        hints=("Without one, applications and endpoints have the limits that they name, else the gateway's default.",),
    ),
    Subject(
        word="bundles",
        noun="bundle",
        plural="bundles",
        icon="shield-check",
        purpose="Policies under a name, which services, routes and applications share.",
        resource="bundles",
        model=PolicyBundle,
        form=BundleForm,
        store=bundles.create_bundle,
        change=bundles.update_bundle,
        remove=bundles.delete_bundle,
        argument="bundle",
        columns=(
            Column("Policies", _bundle_policies, "chips"),
            Column("Limits", lambda row: row.limits, "chips"),
            Column("Had by", lambda row: sum(1 for _ in users_of(str(row.tenant_id), row.name))),
        ),
        has_states=False,
        more="admin_panel/subjects/bundle.html",
        more_context=_bundle_context,
        warning=lambda row: "Only a bundle that nothing has can go.",
        hints=("A service, a route or an application that names a bundle has its policies, where it has none itself.",),
    ),
    Subject(
        word="token-issuers",
        noun="issuer",
        plural="issuers of tokens",
        icon="certificate",
        purpose="Whose tokens (JWT, or opaque ones) clients may bring in the place of API keys.",
        resource="issuers",
        model=TokenIssuer,
        form=IssuerForm,
        store=issuers.create_issuer,
        change=issuers.update_issuer,
        remove=issuers.delete_issuer,
        argument="issuer",
        columns=(
            Column("Issuer", lambda row: row.issuer, "mono"),
            Column("Application", lambda row: row.application.name if row.application else "by claim"),
            Column("Signed by", lambda row: row.rules.get("algorithms", ["RS256"]), "chips"),
            Column("Says", lambda row: summary(TokenRules, row.rules)),
        ),
        search=("name", "issuer"),
        warning=lambda row: "Its tokens open nothing any more, within a second.",
        hints=("An issuer is an identity provider: it signs tokens, and publishes the keys to verify them.",),
    ),
    Subject(
        word="end-users",
        noun="end user",
        plural="end users",
        icon="users-group",
        purpose="People who log in at /auth/login and call services with the token that they get there.",
        resource="end-users",
        model=EndUser,
        form=EndUserForm,
        store=accounts.create_user,
        change=accounts.update_user,
        remove=accounts.delete_user,
        argument="user",
        beside=(("Roles", "end-user-roles"),),
        new_form=NewEndUserForm,
        columns=(
            Column("Name", lambda row: row.name),
            Column("Role", lambda row: [row.role], "chips"),
            Column("Last login", lambda row: row.last_login_at, "moment"),
        ),
        search=("username", "name", "role"),
        order="username",
        title_label="User name",
        warning=lambda row: f"Their sessions end, and their tokens hold no longer. {row.username} cannot log in again.",
        more="admin_panel/subjects/end_user.html",
        more_context=_user_context,
        hints=("They are no administrators: they call services through the gateway, under the limits of their role.",),
    ),
    Subject(
        word="end-user-roles",
        noun="role",
        plural="roles of end users",
        icon="users",
        purpose="What the tokens of a role carry, and how often its users may call.",
        resource="end-users",
        model=EndUserRole,
        form=EndUserRoleForm,
        store=roles.create_role,
        change=roles.update_role,
        remove=roles.delete_role,
        argument="role",
        columns=(
            Column("Scopes", lambda row: row.scopes, "chips"),
            Column("Limit", _per_hour),
            Column("Users", lambda row: EndUser.objects.filter(role=row.name).count()),
        ),
        more="admin_panel/subjects/end_user_role.html",
        more_context=_role_context,
        has_states=False,
        warning=lambda row: "Only a role that nobody has can go.",
    ),
    Subject(
        word="alert-channels",
        noun="alert channel",
        plural="alert channels",
        icon="bell",
        purpose="Who is told, by webhook or e-mail, when a limit refuses requests.",
        resource="alerts",
        model=AlertChannel,
        form=AlertChannelForm,
        store=alerts.create_channel,
        change=alerts.update_channel,
        remove=alerts.delete_channel,
        argument="channel",
        columns=(
            Column("By", lambda row: row.get_medium_display()),
            Column("To", _where, "mono"),
            Column("Not more often than every", lambda row: row.min_interval_s, "span"),
        ),
        more="admin_panel/subjects/alert_channel.html",
        more_context=_channel_context,
        warning=lambda row: "Nobody is told by it any more, and what it was told is forgotten.",
        hints=("A limit with alerts on says so here: which limit, how many requests, and whose.",),
    ),
)


@require_http_methods(["POST"])
def alert_channel_test(request: PanelRequest, pk: str) -> HttpResponse:
    row = AlertChannel.objects.filter(pk=pk).first()
    if row is None:
        return not_found(request, "alert channel")
    signed = signature(request)
    alerts.send_test(channel=row, actor=signed["actor"], source=signed["source"])
    messages.info(request, "A test message is on its way; what becomes of it stands below.")
    return HttpResponseRedirect(reverse("panel:alert_channels_one", args=[pk]))


@require_http_methods(["GET", "HEAD", "POST"])
def end_user_sessions_end(request: PanelRequest, pk: str) -> HttpResponse:
    row = EndUser.objects.filter(pk=pk).first()
    if row is None:
        return not_found(request, "end user")

    def act(signed: Signature) -> None:
        count = end_sessions(user=locked(row), why="ended by admin")
        record(
            "end_user.sessions_ended",
            actor=signed["actor"],
            source=signed["source"],
            object_kind=row.kind,
            object_id=row.pk,
            object_name=row.username,
            details={"sessions": count},
        )

    return confirm(
        request,
        "admin_panel/subjects/end_sessions.html",
        act=act,
        done=lambda: HttpResponseRedirect(reverse("panel:end_users_one", args=[pk])),
        context={"row": row, "url": request.path},
        unchanged=f"All sessions of {row.username} have ended.",
    )


@sensitive_variables("made")
@require_http_methods(["GET", "HEAD", "POST"])
def end_user_password(request: PanelRequest, pk: str) -> HttpResponse:
    """A password that is made up, in the one answer to this POST and nowhere else."""
    row = EndUser.objects.filter(pk=pk).first()
    if row is None:
        return not_found(request, "end user")
    context: dict[str, Any] = {"row": row, "url": request.path}
    if request.method == "POST":
        made = accounts.reset_password(user=row, **signature(request, request.POST.get("reason", "")))
        context["password"] = made.password
    response = fragment(request, "admin_panel/subjects/password.html", context)
    response.headers["Cache-Control"] = "no-store"
    response.headers["HX-Push-Url"] = "false"
    response.headers["HX-Retarget"] = "#dialog-slot"
    response.headers["HX-Reswap"] = "innerHTML"
    return response

"""Whom an identity provider brings: somebody known, somebody invited, somebody whom the settings let in, or nobody."""

from dataclasses import replace
from typing import Any, NoReturn

from allauth.core.exceptions import ImmediateHttpResponse
from allauth.socialaccount.adapter import DefaultSocialAccountAdapter
from allauth.socialaccount.helpers import render_authentication_error
from allauth.socialaccount.providers.base.constants import AuthProcess
from django.conf import settings
from django.contrib.auth.models import User
from django.db import transaction
from django.http import HttpRequest
from django.utils.crypto import constant_time_compare

from access.administration import invitations
from access.administration.rights import account_of
from access.administration.users import create_admin, update_admin
from access.models import AdminAccount
from access.single_sign_on import admitted_roles, claim_values
from admin_panel.sign_in import trail
from admin_panel.sign_in.notices import gate_notice
from admin_panel.sign_in.outgoing import EgressSession
from core.faults import GatewayFault
from core.revisions import Actor

_TOLD = "The identity provider says who you are, but nobody has given you access to this gateway."


class SingleSignOnAdapter(DefaultSocialAccountAdapter):
    def get_requests_session(self) -> EgressSession:
        return EgressSession()

    def is_open_for_signup(self, request: HttpRequest, sociallogin: Any) -> bool:
        return False

    def on_authentication_error(self, request: HttpRequest, provider: Any, exception: Any = None, **_: Any) -> None:
        trail.refused(request, f"{provider.name}: {exception or 'the answer could not be used'}"[:300])

    def pre_social_login(self, request: HttpRequest, sociallogin: Any) -> None:
        """Finds or makes the user. Raises ImmediateHttpResponse when there is none to be."""
        sociallogin.state["process"] = AuthProcess.LOGIN  # whatever the asking page has said
        self._check_nonce(request, sociallogin)
        claims = getattr(sociallogin, "claims", sociallogin.account.extra_data)
        values = claim_values(claims, sociallogin.provider.app.settings["roles_claim"])
        email = next((each.email for each in sociallogin.email_addresses if each.verified), "")
        actor = _actor(request, sociallogin.provider.name, email)
        try:
            with transaction.atomic():
                user = self._user(request, sociallogin, email, values, actor)
        except GatewayFault as fault:
            self._turn_away(request, email, fault.detail)
        if user is None or not (user.is_active and user.is_staff):
            self._turn_away(request, email, _TOLD)
        sociallogin.user = user

    def _check_nonce(self, request: HttpRequest, sociallogin: Any) -> None:
        """The token answers this very request (OpenID Connect Core section 3.1.3.7); SAML has InResponseTo instead."""
        claims = getattr(sociallogin, "claims", None)
        if claims is None:
            return
        nonce = str(sociallogin.state.get("nonce", ""))
        if not nonce or not constant_time_compare(nonce, str(claims.get("nonce", ""))):
            error = ValueError("the ID token does not answer this sign-in")
            raise ImmediateHttpResponse(render_authentication_error(request, sociallogin.provider, exception=error))

    def _user(
        self, request: HttpRequest, sociallogin: Any, email: str, values: tuple[str, ...], actor: Actor
    ) -> User | None:
        if sociallogin.is_existing:
            known: User = sociallogin.user
            return known if self._takes_roles(known, email, values, actor) else None
        found = _staff_at(email) or _invited(sociallogin, email, actor)
        if found is None:
            roles = admitted_roles(email, values, settings.SSO_ADMISSION)
            found = _newcomer(sociallogin, email, roles, actor) if roles else None
        if found is not None:
            sociallogin.connect(request, found)
        return found

    def _takes_roles(self, user: User, email: str, values: tuple[str, ...], actor: Actor) -> bool:
        """Who has come in by claims alone has the roles of today's, and none without."""
        account = account_of(user)
        if account is None or not account.has_roles_by_claims:
            return True
        roles = list(admitted_roles(email, values, settings.SSO_ADMISSION))
        if not roles:
            return False
        if sorted(account.roles) != sorted(roles):
            reason = f"{actor.name} says so"
            actor = replace(actor, tenant_id=str(account.tenant_id))
            update_admin(account=account, changes={"roles": roles}, actor=actor, source="panel", reason=reason)
        return True

    def _turn_away(self, request: HttpRequest, email: str, why: str) -> NoReturn:
        trail.refused(request, "no access", name=email)
        raise ImmediateHttpResponse(gate_notice(request, "You have no access here", why))


def _actor(request: HttpRequest, provider: str, email: str) -> Actor:
    known = trail.actor_of(request)
    name = f"{provider} ({email})" if email else provider
    return Actor("provider", "", name[:150], request_id=known.request_id, address=known.address)


def _staff_at(email: str) -> User | None:
    """The one administrator of a verified address."""
    if not email:
        return None
    found = list(User.objects.filter(email__iexact=email, is_staff=True)[:2])
    return found[0] if len(found) == 1 else None


def _invited(sociallogin: Any, email: str, actor: Actor) -> User | None:
    invitation = invitations.open_for(email) if email else None
    if invitation is None:
        return None
    username = _free_username(sociallogin, email)
    account = invitations.accept(
        invitation=invitation, username=username, name=_name(sociallogin), password=None, actor=actor, source="panel"
    )
    return account.user


def _newcomer(sociallogin: Any, email: str, roles: tuple[str, ...], actor: Actor) -> User:
    account: AdminAccount = create_admin(
        username=_free_username(sociallogin, email),
        email=email,
        name=_name(sociallogin),
        roles=roles,
        actor=actor,
        source="panel",
        reason="Signed in for the first time",
    )
    AdminAccount.objects.filter(pk=account.pk).update(has_roles_by_claims=True)
    return account.user


def _free_username(sociallogin: Any, email: str) -> str:
    suggested = str(sociallogin.user.username or email or f"user-{sociallogin.account.uid[:12]}")[:140]
    for number in range(1, 100):
        name = suggested if number == 1 else f"{suggested}-{number}"
        if not User.objects.filter(username__iexact=name).exists():
            return name
    return f"user-{sociallogin.account.uid[:20]}"


def _name(sociallogin: Any) -> str:
    return f"{sociallogin.user.first_name} {sociallogin.user.last_name}".strip()[:150]

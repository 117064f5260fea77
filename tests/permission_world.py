"""One object of each kind in each of two tenants, and callers of every kind: what the matrix of permissions tries.

`Objects.at` knows which object stands at a parameter of an endpoint, by the word of the path before it. An endpoint at
a word that is not here fails the matrix: name its object in `_objects`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from http.cookies import SimpleCookie

from allauth.usersessions.models import UserSession as PanelSession
from django.conf import settings
from django.test import Client

from access.administration.builtin import BUILTIN_ROLES
from access.administration.roles import create_role
from access.administration.users import update_admin
from access.models import (
    AdminAccount,
    AlertChannel,
    EndUser,
    EndUserRole,
    Invitation,
    PolicyBundle,
    RateLimit,
    SigningKey,
    TokenIssuer,
    UserSession,
)
from access.services import create_application, create_entry
from core.audit import record
from core.models import ConfigRevision
from core.revisions import Actor
from core.tenants import own_tenant, within_tenant
from keys.services import create_key
from routing.rollouts import start_rollout
from routing.services import create_route, create_target
from tests.administrators import ROOT, key_of, make_account
from tests.panel_client import make_queue_route, make_service, make_task

HOME, ABROAD = "default", "acme"
_PARAMETER = re.compile(r"<(?:\w+:)?(\w+)>")
_WORDS = {"policies": "ip_access", "suggestions": "services", "export": "json"}  # parameters that name no object


@dataclass(frozen=True, slots=True)
class Caller:
    """Somebody who calls. ``key`` is sent to the API, ``cookies`` to the panel (None: they have no browser);
    ``permissions`` None: the credential is not valid."""

    name: str
    permissions: tuple[str, ...] | None
    key: str = ""
    cookies: str | None = None


@dataclass(frozen=True, slots=True)
class Objects:
    """The objects of a tenant, by the word of a path that they stand behind: what names them in the API, and in the
    panel."""

    tenant: str
    by_word: Mapping[str, tuple[str, str]]

    def path(self, route: str, *, is_page: bool) -> str:
        """The path of an endpoint. Raises KeyError for a word that nothing is known of."""
        parts: list[str] = []
        for part in route.split("/"):
            found = _PARAMETER.fullmatch(part)
            parts.append(self._at(parts, is_page=is_page, name=found[1]) if found else part)
        return "/" + "/".join(parts)

    def _at(self, parts: list[str], *, is_page: bool, name: str) -> str:
        word = parts[-1]
        if word in _WORDS:
            return _WORDS[word]
        if parts[0] == "rollouts" and name == "name":
            return "pause"
        if parts[:2] == ["admin", "discovery"] and name == "instance":
            return "instance-1"
        longer = ("/".join([*parts[-far:-1][:1], word]) for far in (3, 2))  # users/sessions, beside others' sessions
        return self.by_word[next((found for found in longer if found in self.by_word), word)][is_page]


def nowhere(objects: Objects) -> Objects:
    """The same words with names that nothing has."""
    names = {word: tuple(_none_such(name) for name in names) for word, names in objects.by_word.items()}
    return Objects("", names)  # type: ignore[arg-type]  # pairs stay pairs


def _none_such(name: str) -> str:
    return "999999" if name.isdigit() else f"{name[:4]}nonesuch"


def make_objects(tenant: str) -> Objects:
    """In the present tenant; names that stand in URLs differ from the other's."""
    service = make_service(f"billing-{tenant}", v1=75, v2=25)
    version = service.versions.get(version="v1")
    target = create_target(version=version, url="http://127.0.0.1:9", **ROOT)
    rollout = start_rollout(service=service, plan={"version": "v2", "steps": [{"percent": 30}]}, **ROOT)
    queue_route = make_queue_route(f"email-{tenant}")
    route = create_route(name="invoices", path=f"/api/v1/{tenant}/invoices", service=service, **ROOT)
    application = create_application(name="mobile", allowed_services=["*"], **ROOT)
    entry = create_entry(application=application, endpoint_path="/api/v1/billing/{id}", **ROOT).entry
    key = create_key(name="production", application=application, **ROOT).row
    account = make_account(f"kim-{tenant}", "USER_ADMIN", tenant=tenant)
    session_key = SimpleCookie(_cookies(account))[settings.SESSION_COOKIE_NAME].value
    at_desk = PanelSession.objects.create(user=account.user, ip="192.0.2.1", session_key=session_key)
    invitation = Invitation.objects.create(email="new@example.com", digest=tenant, expires_at="2999-01-01T00:00:00Z")
    role = create_role(name=f"READER-{tenant}", permissions=["admin:keys:read"], **ROOT)
    by_kind = {
        "services": (service.name, service.pk),
        "circuit-breaker": (service.name, service.pk),
        "discovery": (service.name, service.pk),
        "versions": (version.version, version.pk),
        "targets": (target.pk, target.pk),
        "rollouts": (rollout.pk,) * 2,
        "routes": (route.pk,) * 2,
        "queue-routes": (queue_route.pk,) * 2,
        "applications": (application.pk,) * 2,
        "whitelist": (entry.pk,) * 2,
        "keys": (key.pk,) * 2,
        "api-keys": (key.pk,) * 2,
        "tasks": (make_task(queue_route).id,) * 2,
        "users": (account.pk,) * 2,
        "roles": (role.name, role.pk),
        "users/sessions": (str(at_desk.pk),) * 2,
        "invitations": (invitation.pk,) * 2,
        **_people_and_channels(),
        **_trail(tenant),
    }
    return Objects(tenant, by_kind)


def _people_and_channels() -> dict[str, tuple[str, str]]:
    role = EndUserRole.objects.create(name="matrix-traveller")
    person = EndUser.objects.create(username="matrix-pat", role=role.name)
    session = UserSession.objects.create(user=person, ends_at="2999-01-01T00:00:00Z")
    signing = SigningKey.objects.create(algorithm="ES256", public_jwk={"kty": "EC"}, sealed="x")
    channel = AlertChannel.objects.create(name="night watch", medium="email", recipients=["ops@example.com"])
    limit = RateLimit.objects.create(name="matrix", rule={"limit": 5})
    issuer = TokenIssuer.objects.create(name="matrix", issuer=f"https://{own_tenant()}.example.com", rules={})
    bundle = PolicyBundle.objects.create(name=f"matrix-{own_tenant()}")
    return {
        "issuers": (issuer.pk,) * 2,
        "token-issuers": (issuer.pk,) * 2,
        "bundles": (bundle.name, bundle.pk),
        "limits": (limit.pk,) * 2,
        "end-user-roles": (role.pk,) * 2,
        "end-users": (person.pk,) * 2,
        "end-users/sessions": (session.pk,) * 2,
        "account/sessions": ("1", "1"),
        "passkeys": ("1", "1"),
        "signing-keys": (signing.pk,) * 2,
        "alert-channels": (channel.pk,) * 2,
    }


def _trail(tenant: str) -> dict[str, tuple[str, str]]:
    number = str(ConfigRevision.objects.latest("number").number)
    event = record("tests.made", actor=Actor("command", tenant_id=tenant), source="command")
    return {"revisions": (number, number), "history": (number, number), "audit": (event.pk, event.pk)}


def make_callers(objects: Objects) -> list[Caller]:
    """Nobody; an application; somebody who was deactivated; somebody without a role; and one of each built-in role."""
    application_key = create_key(name="shop", owner="shop", **ROOT).key
    callers = [Caller("anonymous", None, cookies=""), Caller("application key", (), application_key)]
    gone = make_account("gone", "SUPER_ADMIN")
    callers.append(Caller("suspended user", None, key_of(gone), _cookies(gone)))
    update_admin(account=gone, changes={"is_active": False}, **ROOT)
    plain = make_account("plain")
    callers.append(Caller("no role", (), key_of(plain), _cookies(plain)))
    for role, (_, permissions) in BUILTIN_ROLES.items():
        account = make_account(role.lower(), role)
        callers.append(Caller(role, permissions, key_of(account), _cookies(account)))
    return callers


def _cookies(account: AdminAccount) -> str:
    client = Client()
    client.force_login(account.user)
    return client.cookies.output(header="", sep=";").strip()


def make_world() -> tuple[Objects, Objects, list[Caller]]:
    """Home, abroad, and who calls (from home)."""
    make_account("first", "SUPER_ADMIN")
    make_account("first-abroad", "SUPER_ADMIN", tenant=ABROAD)
    found = []
    for tenant in (HOME, ABROAD):
        with within_tenant(tenant):
            found.append(make_objects(tenant))
    return found[0], found[1], make_callers(found[0])

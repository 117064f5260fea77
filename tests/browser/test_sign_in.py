"""Getting in, in a real browser: by password and code, by passkey, by a real OpenID provider, by SAML."""

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from allauth.mfa.models import Authenticator
from allauth.mfa.totp.internal.auth import format_hotp_value, hotp_value
from django.contrib.auth.models import User
from playwright.sync_api import Browser, BrowserContext, Page, Route, expect

from access.administration.invitations import invite
from access.administration.roles import create_role
from access.models import AdminAccount
from core.models import AuditEvent
from core.revisions import Actor
from tests.administrators import ROOT, make_account
from tests.browser.conftest import panel_server
from tests.browser.watch import Watch, accessibility_problems, overflow, set_theme
from tests.gateway_process import eventually
from tests.oidc_provider import OidcProvider
from tests.panel_client import PASSWORD, make_admin
from tests.saml_idp import SamlIdp

ACCOUNTS = [
    {"sub": "ada", "email": "ada@example.com", "email_verified": True, "name": "Ada L", "preferred_username": "ada"},
    {"sub": "eve", "email": "ann@example.com", "email_verified": False, "name": "Eve"},
    {"sub": "ops", "email": "ops@elsewhere.org", "email_verified": True, "groups": ["gateway-keys"]},
    {"sub": "dom", "email": "dom@staff.example.com", "email_verified": True},
]


@pytest.fixture(scope="module")
def saml() -> Iterator[SamlIdp]:
    idp = SamlIdp().start()
    yield idp
    idp.stop()


@pytest.fixture(scope="module")
def oidc() -> Iterator[OidcProvider]:
    """Its client's address is known once the panel has a port; so it starts with the panel."""
    provider = OidcProvider(accounts=ACCOUNTS)
    yield provider
    provider.destroy()


@pytest.fixture(scope="module")
def mails(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where what would be mailed is written."""
    return tmp_path_factory.mktemp("mails")


@pytest.fixture(scope="module")
def url(django_db_setup: None, static_root: Path, oidc: OidcProvider, saml: SamlIdp, mails: Path) -> Iterator[str]:
    with panel_server(
        static_root,
        EMAIL_URL=f"filemail://{mails}",
        EGRESS_ALLOW="127.0.0.0/8",
        OIDC_ISSUER=oidc.url,
        OIDC_CLIENT_ID="panel",
        OIDC_CLIENT_SECRET="a secret of the panel's own",
        OIDC_NAME="Example",
        SAML_IDP_ENTITY_ID=saml.entity_id,
        SAML_IDP_SSO_URL=f"{saml.url}/sso",
        SAML_IDP_CERTIFICATE=saml.certificate,
        SAML_VERIFIED_DOMAINS="example.com",
        SSO_ROLES="gateway-keys=KEY_ADMIN",
        SSO_DOMAINS="staff.example.com",
        SSO_DOMAIN_ROLES="SUPPORT",
    ) as port:
        panel = f"http://localhost:{port}"
        oidc.add_client(
            {
                "client_id": "panel",
                "client_secret": "a secret of the panel's own",
                "redirect_uris": [f"{panel}/login/oidc/callback"],
                "grant_types": ["authorization_code"],
                "response_types": ["code"],
                "token_endpoint_auth_method": "client_secret_post",
            }
        )
        oidc.start()
        yield panel


@pytest.fixture
def watch(url: str, oidc: OidcProvider, saml: SamlIdp) -> Iterator[Watch]:
    watch = Watch(url, oidc.url, saml.url)
    yield watch
    watch.check()


@pytest.fixture
def context(browser: Browser, transactional_db: None) -> Iterator[BrowserContext]:
    context = browser.new_context(viewport={"width": 1440, "height": 900}, reduced_motion="reduce")
    yield context
    context.close()


@pytest.fixture
def page(context: BrowserContext, watch: Watch, url: str) -> Page:
    page = context.new_page()
    page.set_default_timeout(10_000)
    watch.over(page)
    page.goto(f"{url}/login")
    return page


@pytest.fixture
def passkeys(page: Page) -> Any:
    """A device that keeps passkeys and always recognises its owner."""
    session = page.context.new_cdp_session(page)
    session.send("WebAuthn.enable")
    options = {
        "protocol": "ctap2",
        "transport": "internal",
        "hasResidentKey": True,
        "hasUserVerification": True,
        "isUserVerified": True,
        "automaticPresenceSimulation": True,
    }
    session.send("WebAuthn.addVirtualAuthenticator", {"options": options})
    return session


def sign_in(page: Page, username: str = "ann") -> None:
    page.get_by_label("User name or e-mail").fill(username)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign in", exact=True).click()


def sign_out(page: Page) -> None:
    page.get_by_role("button", name=re.compile("^Account of")).click()
    page.get_by_role("button", name="Sign out").click()
    page.wait_for_url("**/login")


def confirm(page: Page) -> None:
    page.get_by_role("heading", name="Confirm it is you").wait_for()
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Confirm").click()


def assert_usable(page: Page) -> None:
    """In both themes, on a desk and on a telephone."""
    assert accessibility_problems(page) == []
    set_theme(page, "dark")
    assert accessibility_problems(page, colours_only=True) == []
    set_theme(page, "light")
    page.set_viewport_size({"width": 390, "height": 844})
    assert overflow(page) == 0
    page.set_viewport_size({"width": 1440, "height": 900})


def code_of(secret: str, steps: int = 0) -> str:
    return str(format_hotp_value(hotp_value(secret, int(time.time()) // 30 + steps)))


def test_an_authenticator_app_is_added_asked_for_and_replaced_by_a_recovery_code(page: Page, watch: Watch) -> None:
    make_admin()
    assert_usable(page)
    sign_in(page)
    page.get_by_role("button", name="Account of ann").click()
    page.get_by_role("link", name="My account").click()
    page.get_by_role("heading", name="ann", exact=True).wait_for()
    assert_usable(page)
    page.get_by_role("link", name="Add app").click()
    page.get_by_role("heading", name="Confirm it is you").wait_for()
    assert_usable(page)
    confirm(page)
    secret = page.locator("#app-secret").inner_text()
    assert_usable(page)
    page.get_by_label("Authenticator code").fill("000000")
    page.get_by_role("button", name="Add app").click()
    page.get_by_text("This code is not right").wait_for()
    watch.expect_refusals(1)
    secret = page.locator("#app-secret").inner_text()
    page.get_by_label("Authenticator code").fill(code_of(secret))
    page.get_by_role("button", name="Add app").click()
    codes = page.get_by_label("Your recovery codes").inner_text().split()
    assert len(codes) == 10
    assert_usable(page)
    with page.expect_download() as saved:
        page.get_by_role("button", name="Download").click()
    assert Path(saved.value.path()).read_text().split() == codes
    page.get_by_role("link", name="Done").click()
    page.get_by_text("10 codes left").wait_for()
    sign_out(page)
    sign_in(page)
    page.wait_for_url("**/login/code")
    assert_usable(page)
    page.get_by_label("Code").fill(codes[3])
    page.get_by_role("button", name="Go on").click()
    page.get_by_role("heading", name="Get your first request through").or_(page.get_by_role("heading")).first.wait_for()
    actions = AuditEvent.objects.order_by("at").values_list("action", flat=True)
    assert list(actions) == ["session.login", "mfa.added", "mfa.added", "session.logout", "session.login"]


def test_a_passkey_is_added_renamed_used_alone_and_removed(page: Page, url: str, passkeys: Any) -> None:
    make_admin()
    sign_in(page)
    page.goto(f"{url}/account/passkeys/new")
    confirm(page)
    assert_usable(page)
    page.get_by_label("Name").fill("Laptop")
    page.get_by_role("button", name="Add passkey").click()
    page.get_by_role("heading", name="Recovery codes").wait_for()
    page.get_by_role("link", name="Done").click()
    page.get_by_text("Laptop").first.wait_for()
    assert_usable(page)
    page.get_by_role("link", name="Rename Laptop").click()
    assert_usable(page)
    page.get_by_label("Name").fill("Work laptop")
    page.get_by_role("button", name="Save").click()
    sign_out(page)
    page.get_by_role("button", name="Sign in with a passkey").click()
    page.get_by_role("button", name="Account of ann").wait_for()
    assert AuditEvent.objects.filter(action="session.login").first().details == {"methods": ["passkey"]}  # type: ignore[union-attr]
    sign_out(page)
    sign_in(page)
    page.wait_for_url("**/login/code")
    assert_usable(page)
    page.get_by_role("button", name="Use a passkey").click()
    page.get_by_role("button", name="Account of ann").wait_for()
    page.goto(f"{url}/account")
    page.get_by_role("link", name="Remove Work laptop").click()
    confirm(page)
    page.get_by_role("heading", name="Remove Work laptop?").wait_for()
    assert_usable(page)
    page.get_by_role("button", name="Remove passkey").click()
    page.get_by_role("heading", name="Where you are signed in").wait_for()
    assert not Authenticator.objects.exists()


def test_an_invitation_leads_from_its_link_into_the_panel(page: Page, url: str) -> None:
    made = invite(
        email="bob@example.com",
        roles=["KEY_ADMIN"],
        own_permissions=None,
        actor=Actor("user", "1", "ann"),
        source="panel",
    )
    page.goto(f"{url}/invitation#{made.token}")
    page.get_by_text("bob@example.com").wait_for()
    assert made.token not in page.url
    assert_usable(page)
    page.get_by_label("Your name").fill("Bob")
    page.get_by_label("Password", exact=True).fill(PASSWORD)
    page.get_by_label("Password, once more").fill(PASSWORD)
    page.get_by_role("button", name="Accept").click()
    page.get_by_role("button", name="Account of bob").wait_for()
    assert made.token not in str(page.evaluate("JSON.stringify([localStorage, sessionStorage, document.cookie])"))


def test_a_forgotten_password_is_replaced_by_a_link_that_is_mailed(page: Page, url: str, mails: Path) -> None:
    ann = make_admin()
    User.objects.filter(pk=ann.pk).update(email="ann@example.com")
    Authenticator.objects.create(user=ann, type="totp", data={"secret": "x"})
    page.get_by_role("link", name="Forgot your password?").click()
    assert_usable(page)
    page.get_by_label("E-mail").fill("ann@example.com")
    page.get_by_role("button", name="Send the link").click()
    page.get_by_role("heading", name="Look into your mail").wait_for()
    assert_usable(page)
    (mail,) = eventually(lambda: list(mails.iterdir()))
    code = eventually(lambda: re.findall(r"/login/password#(\S+)", mail.read_text()))[0]
    page.goto(f"{url}/login/password")
    assert_usable(page)
    page.goto("about:blank")
    page.goto(f"{url}/login/password#{code}")
    page.get_by_label("New password", exact=True).wait_for()
    assert code.partition("-")[2] not in page.url
    assert_usable(page)
    page.get_by_label("New password", exact=True).fill("fourteen white gulls")
    page.get_by_label("New password, once more").fill("fourteen white gulls")
    page.get_by_role("button", name="Set password").click()
    page.get_by_role("heading", name="Your password is new").wait_for()
    assert_usable(page)
    page.get_by_role("link", name="Back to signing in").click()
    page.get_by_label("User name or e-mail").fill("ann")
    page.get_by_label("Password").fill("fourteen white gulls")
    page.get_by_role("button", name="Sign in", exact=True).click()
    page.wait_for_url("**/login/code")
    actions = AuditEvent.objects.order_by("at").values_list("action", flat=True)
    assert list(actions) == ["password.reset_asked", "password.reset"]


# --- identity providers --------------------------------------------------------------------------------------------
def come_by_oidc(page: Page, url: str, sub: str = "ada") -> dict[str, list[str]]:
    """As ``sub`` of the provider; what the panel asked the provider for."""
    asked: list[str] = []

    def as_sub(route: Route) -> None:
        asked.append(route.request.url)
        route.continue_(url=f"{route.request.url}&login_hint={sub}")

    page.route("**/auth?*", as_sub)
    page.get_by_role("button", name="Sign in with Example").click()
    page.wait_for_url(re.compile(re.escape(url) + r"/(?!login/oidc(\?|$)).*"))
    return parse_qs(urlsplit(asked[0]).query)


def test_an_administrator_whom_the_provider_knows_by_a_verified_address_comes_in(page: Page, url: str) -> None:
    account = make_account("countess", "KEY_VIEWER", email="Ada@example.com")
    asked = come_by_oidc(page, url)
    page.get_by_role("button", name="Account of countess").wait_for()
    assert asked["code_challenge_method"] == ["S256"]
    assert all(len(asked[name][0]) >= 16 for name in ("state", "nonce", "code_challenge"))
    assert AdminAccount.objects.get().pk == account.pk
    page.goto(f"{url}/account")
    page.get_by_text("Example").first.wait_for()
    assert_usable(page)
    sign_out(page)
    come_by_oidc(page, url)
    page.get_by_role("button", name="Account of countess").wait_for()


def test_a_second_factor_is_asked_for_after_the_provider_too(page: Page, url: str) -> None:
    account = make_account("countess", "KEY_VIEWER", email="ada@example.com")
    Authenticator.objects.create(user=account.user, type="totp", data={"secret": "x"})
    come_by_oidc(page, url)
    page.wait_for_url("**/login/code")
    assert not AuditEvent.objects.filter(action="session.login").exists()


def test_a_role_asks_whoever_comes_by_the_provider_for_a_factor_of_ours(page: Page, url: str) -> None:
    create_role(name="CAREFUL", permissions=["admin:keys:read"], require_mfa=True, **ROOT)
    make_account("countess", "CAREFUL", email="ada@example.com")
    come_by_oidc(page, url)
    page.wait_for_url("**/account/second-factor")
    assert_usable(page)
    page.get_by_role("link", name="Authenticator app").click()
    secret = page.locator("#app-secret").inner_text()
    page.get_by_label("Authenticator code").fill(code_of(secret))
    page.get_by_role("button", name="Add app").click()
    page.get_by_role("heading", name="Confirm it is you").wait_for()  # without a password, the new factor is the proof
    page.get_by_label("Code", exact=True).fill(code_of(secret))
    page.get_by_role("button", name="Confirm").click()
    page.get_by_role("heading", name="Recovery codes").wait_for()
    page.goto(f"{url}/api-keys")
    page.get_by_role("heading", name="API keys", exact=True).wait_for()
    sign_out(page)
    come_by_oidc(page, url)
    page.wait_for_url("**/login/code")


@pytest.mark.parametrize(
    ("sub", "roles"),
    [
        pytest.param("ada", None, id="known to the provider alone"),
        pytest.param("eve", None, id="with an administrator's address that is not verified"),
        pytest.param("ops", ["KEY_ADMIN"], id="with a group that the settings name"),
        pytest.param("dom", ["SUPPORT"], id="with an address at a domain that the settings name"),
    ],
)
def test_who_comes_in_is_decided_here(page: Page, url: str, watch: Watch, sub: str, roles: list[str] | None) -> None:
    User.objects.create_superuser("ann", "ann@example.com", PASSWORD)
    come_by_oidc(page, url, sub)
    if roles is None:
        page.get_by_role("heading", name="You have no access here").wait_for()
        assert_usable(page)
        watch.expect_refusals(1)
        assert not AdminAccount.objects.exists()
        assert AuditEvent.objects.get().action == "session.login_failed"
        return
    page.get_by_role("button", name=re.compile("^Account of")).wait_for()
    account = AdminAccount.objects.get()
    assert (account.roles, account.has_roles_by_claims, account.user.has_usable_password()) == (roles, True, False)
    AdminAccount.objects.update(roles=["USER_ADMIN"])
    sign_out(page)
    come_by_oidc(page, url, sub)
    page.get_by_role("button", name=re.compile("^Account of")).wait_for()
    assert AdminAccount.objects.get().roles == roles, "those of today's claims"


def test_whoever_is_invited_may_come_by_the_provider(page: Page, url: str) -> None:
    by = Actor("user", "1", "ann")
    invite(email="ada@example.com", roles=["KEY_VIEWER"], own_permissions=None, actor=by, source="panel")
    come_by_oidc(page, url)
    page.get_by_role("button", name="Account of ada").wait_for()
    assert AdminAccount.objects.get().roles == ["KEY_VIEWER"]


def test_an_id_token_that_does_not_answer_our_question_lets_nobody_in(page: Page, watch: Watch) -> None:
    make_account("countess", "KEY_VIEWER", email="ada@example.com")

    def spoil(route: Route) -> None:
        route.continue_(url=re.sub(r"([?&]nonce=)[^&]*", r"\1another", route.request.url))

    page.route("**/auth?*", spoil)
    page.get_by_role("button", name="Sign in with Example").click()
    assert_refused(page, watch)


@pytest.mark.parametrize("answer", ["code=x&state=strange", "state=strange", "code=x&iss=https://evil.example", ""])
def test_an_answer_that_nobody_asked_for_lets_nobody_in(page: Page, url: str, watch: Watch, answer: str) -> None:
    page.goto(f"{url}/login/oidc/callback?{answer}")
    assert_refused(page, watch)


def assert_refused(page: Page, watch: Watch) -> None:
    page.get_by_role("heading", name="Sign-in failed").wait_for()
    assert_usable(page)
    watch.expect_refusals(1)
    assert list(AuditEvent.objects.values_list("action", flat=True)) == ["session.login_failed"]


def come_by_saml(page: Page) -> None:
    page.get_by_role("button", name="Sign in with SAML").click()
    page.get_by_role("button", name="Go on").click()


def test_an_administrator_comes_in_by_saml(page: Page, url: str, saml: SamlIdp) -> None:
    make_account("countess", "KEY_VIEWER", email="ada@example.com")
    saml.attributes, saml.spoil = {"email": ["ada@example.com"]}, None
    come_by_saml(page)
    page.get_by_role("button", name="Account of countess").wait_for()
    assert page.request.get(f"{url}/login/saml/metadata").text().count("AssertionConsumerService") == 1


def test_groups_of_saml_give_roles(page: Page, saml: SamlIdp) -> None:
    saml.attributes, saml.spoil = {"email": ["x@elsewhere.org"], "groups": ["gateway-keys", "others"]}, None
    come_by_saml(page)
    page.get_by_role("button", name=re.compile("^Account of")).wait_for()
    assert AdminAccount.objects.get().roles == ["KEY_ADMIN"]


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda xml: xml.replace("ada@example.com", "ann@example.com"), id="changed after signing"),
        pytest.param(lambda xml: re.sub(r"<ds:Signature.*</ds:Signature>", "", xml, flags=re.DOTALL), id="not signed"),
    ],
)
def test_an_assertion_that_does_not_verify_lets_nobody_in(page: Page, watch: Watch, saml: SamlIdp, spoil: Any) -> None:
    make_account("ann", "KEY_VIEWER", email="ann@example.com")
    saml.attributes, saml.spoil = {"email": ["ada@example.com"]}, spoil
    come_by_saml(page)
    page.get_by_role("heading", name="Sign-in failed").wait_for()
    watch.expect_refusals(1)
    expect(page.get_by_role("link", name="Back to signing in")).to_be_visible()

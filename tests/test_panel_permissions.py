"""The panel asks before it shows or does anything: pages refuse, and what leads to them is not there."""

import re
from typing import Any

import pytest
from django.test import Client
from django.urls import get_resolver, resolve

from access.administration.builtin import BUILTIN_ROLES, SUPER_ADMIN
from access.administration.roles import create_role
from admin_panel.hiding import hidden_from, needed_permission
from core.models import AuditEvent, ConfigChange
from core.permissions import Caller, check_permissions, covers
from core.revisions import Actor
from tests.administrators import PASSWORD, ROOT, make_account
from tests.panel_client import make_everything, pages_of, signed_in, text_of

pytestmark = pytest.mark.django_db

FOR_ANYBODY = {"login", "logout", "status", "invitation"}
_LEADS = re.compile(r'\s(?:href|hx-get|hx-post|action)="(/[^"#?]*)')


@pytest.fixture(autouse=True)
def plain_files(panel: Client) -> None:
    """With ann, the superuser, who is the last resort."""


def client_with(*roles: str, username: str = "uma", tenant: str = "default") -> Client:
    return signed_in(make_account(username, *roles, tenant=tenant).user)


def panel_pages() -> list[Any]:
    patterns: list[Any] = get_resolver("admin_panel.urls").url_patterns
    return [pattern for pattern in patterns if pattern.name not in FOR_ANYBODY]


@pytest.mark.parametrize("pattern", panel_pages(), ids=lambda pattern: pattern.name)
def test_every_page_says_which_permission_it_needs(pattern: Any) -> None:
    permission = pattern.callback.permission

    if permission:
        check_permissions([permission])


READER = ["admin:services:read", "admin:applications:*"]


def account_permissions(role: str) -> list[str]:
    return READER if role == "READER" else list(BUILTIN_ROLES[role][1]) if role else []


@pytest.mark.parametrize("role", [*BUILTIN_ROLES, "READER", ""], ids=lambda role: role or "none")
def test_no_page_leads_where_it_would_be_refused(role: str) -> None:
    """Whatever a page offers to somebody, they may open; whatever they may not, the page itself refuses."""
    everything = make_everything()
    create_role(name="READER", permissions=READER, **ROOT)
    account = make_account("uma", *filter(None, [role]))
    permissions = account_permissions(role)
    client = signed_in(account.user)
    for name, path in pages_of(everything).items():
        answer = client.get(path)
        needed = resolve(path).func.permission  # type: ignore[attr-defined]
        if needed and not covers(permissions, needed):
            assert answer.status_code == 403, name
            assert needed in text_of(answer)
            continue
        assert answer.status_code in (200, 404), name
        for url in _LEADS.findall(answer.content.decode()):
            wanted = needed_permission(url)
            assert not wanted or covers(permissions, wanted), f"{name} leads to {url}"


def test_the_navigation_shows_what_one_may_open() -> None:
    home = client_with("KEY_VIEWER").get("/").content.decode()

    assert 'href="/api-keys"' in home
    assert 'href="/services"' not in home and 'href="/history"' not in home and "Configure" not in home


def test_who_may_only_look_finds_no_buttons() -> None:
    everything = make_everything()
    page = client_with("KEY_VIEWER").get(f"/api-keys/{everything['key'].pk}").content.decode()

    assert "production" in page and "mobile" in page
    assert "Revoke" not in page and "Suspend" not in page
    assert "/applications/" not in page  # the name stays, its link does not


def test_what_is_hidden_is_refused_too() -> None:
    everything = make_everything()
    client = client_with("KEY_VIEWER")

    for path in (f"/api-keys/{everything['key'].pk}/revoke", "/services/new", "/gateway"):
        assert client.post(path, {}).status_code == 403
    everything["key"].refresh_from_db()
    assert everything["key"].status == "active"


def test_a_role_that_is_taken_away_counts_with_the_next_click() -> None:
    account = make_account("uma", "KEY_VIEWER")
    client = signed_in(account.user)
    assert client.get("/api-keys").status_code == 200

    account.roles = []
    account.save()

    assert client.get("/api-keys").status_code == 403
    assert client.get("/").status_code == 200


def test_another_tenants_objects_are_not_there() -> None:
    everything = make_everything()
    far = client_with(SUPER_ADMIN, username="far", tenant="acme")

    for kind, path in (("service", "/services"), ("application", "/applications"), ("key", "/api-keys")):
        assert far.get(f"{path}/{everything[kind].pk}").status_code == 404
        assert everything[kind].name not in text_of(far.get(path))
    assert far.get("/suggestions/services").json() == {"names": []}
    assert far.get("/gateway").status_code == 403  # it is everybody's, so the default tenant's
    far.post("/applications/new", {"name": "mobile", "allowed_versions": "*", "endpoint_mode": "all", "priority": 5})
    assert "mobile" in text_of(far.get("/applications"))


def test_the_audit_log_shows_and_exports_ones_own_tenant_alone() -> None:
    """And what somebody does there, from signing in on, stands in their own tenant's."""
    everything = make_everything()
    theirs = ConfigChange.objects.filter(object_id=everything["service"].pk).latest("pk")
    far = make_account("far", SUPER_ADMIN, tenant="acme", password=PASSWORD)
    client = Client()
    client.post("/login", {"username": "far", "password": PASSWORD})

    exported = [b"".join(client.get(f"/audit/export/{kind}").streaming_content) for kind in ("csv", "json")]  # type: ignore[attr-defined]
    page = text_of(client.get("/audit"))

    assert everything["service"].pk.encode() not in b"".join(exported)
    assert everything["service"].name not in page
    assert client.get(f"/audit/chg_{theirs.pk}").status_code == 404
    assert "session.login" in page and "audit.export" in page
    noted = AuditEvent.objects.filter(actor_id=str(far.user.pk))
    assert {event.tenant_id for event in noted} == {"acme"}
    assert all(event.address for event in noted)


def test_rotating_a_key_needs_the_right_to_make_one_too() -> None:
    key = make_everything()["key"]
    create_role(name="CHANGER", permissions=["admin:keys:read", "admin:keys:update"], **ROOT)

    answer = client_with("CHANGER").post(f"/api-keys/{key.pk}/rotate", {"transition": "7"})

    assert answer.status_code == 403
    assert not key.successors.exists()


KIM = Caller(Actor("user"), ("admin:keys:read",))


@pytest.mark.parametrize(
    ("html", "seen"),
    [
        ('<a href="/services/new" class="btn">New</a>!', "!"),
        ('<a href="/services/svc_1" class="row-name">orders</a>!', '<span class="row-name">orders</span>!'),
        ('<ul><li> <a class="dropdown-item" href="/services/new">New</a> </li><li>x</li></ul>', "<ul><li>x</li></ul>"),
        ('<form action="/api-keys/new"><p><button>Make</button></p></form>.', "."),
        ('<button hx-get="/api-keys/key_1/revoke"><b>Revoke</b></button>.', "."),
        ('<button hx-get="/api-keys/whose">Whose?</button>', '<button hx-get="/api-keys/whose">Whose?</button>'),
        ("<a href='https://example.com/services/new'>x</a>", "<a href='https://example.com/services/new'>x</a>"),
        ('<p>a &amp; b &#39; <!-- c --><br/>', '<p>a &amp; b &#39; <!-- c --><br/>'),
    ],
)  # fmt: skip
def test_what_leads_astray_is_taken_out_and_nothing_else(html: str, seen: str) -> None:
    assert hidden_from(KIM, html) == seen
    assert hidden_from(Caller(Actor("user"), ("admin:*",)), html) == html

"""Getting into the panel and out of it."""

from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.cache import cache
from django.http import Http404, HttpResponse
from django.test import Client, RequestFactory
from django.urls import resolve

from admin_panel.middleware import PanelMiddleware
from admin_panel.throttle import MOST_PER_ACCOUNT, MOST_PER_ADDRESS
from tests.panel_client import HTMX, PASSWORD, text_of

pytestmark = pytest.mark.usefixtures("panel")


@pytest.fixture(autouse=True)
def forget_failures() -> None:
    cache.clear()


def sign_in(client: Client, username: str = "ann", password: str = PASSWORD, **fields: str) -> Any:
    return client.post("/login", {"username": username, "password": password, **fields})


def test_a_page_leads_to_the_sign_in_page_and_back() -> None:
    client = Client()
    asked = client.get("/services?state=active")
    assert asked.status_code == 302
    assert asked["Location"] == "/login?next=%2Fservices%3Fstate%3Dactive"
    assert sign_in(client, next="/services?state=active")["Location"] == "/services?state=active"
    assert client.get("/services").status_code == 200


def test_an_htmx_request_without_a_session_leads_the_whole_page_to_the_sign_in_page() -> None:
    answer = Client().get("/services", headers=HTMX | {"HX-Current-URL": "http://testserver/routes?q=x"})
    assert answer["HX-Redirect"] == "/login?next=%2Froutes%3Fq%3Dx"
    assert answer.content == b""


@pytest.mark.parametrize(
    "wanted",
    ["https://evil.example/", "//evil.example", "/\\evil.example", "javascript:alert(1)", "", "\x00", "http:///x"],
)
def test_sign_in_leads_nowhere_but_into_the_panel(wanted: str) -> None:
    assert sign_in(Client(), next=wanted)["Location"] == "/"


def test_a_wrong_password_and_an_unknown_name_get_the_same_answer() -> None:
    wrong, unknown = sign_in(Client(), password="wrong"), sign_in(Client(), username="nobody")
    assert wrong.status_code == unknown.status_code == 422
    assert text_of(wrong) == text_of(unknown)
    assert "do not match" in text_of(wrong)


@pytest.mark.parametrize("flags", [{"is_staff": False}, {"is_active": False}])
def test_only_active_staff_gets_in(flags: dict[str, Any]) -> None:
    User.objects.create_user("guest", password=PASSWORD, **{"is_staff": True, **flags})
    assert sign_in(Client(), "guest").status_code == 422


def test_rights_that_are_taken_end_the_session(panel: Client) -> None:
    User.objects.filter(username="ann").update(is_staff=False)
    assert panel.get("/services").status_code == 302


def test_an_account_is_held_back_after_too_many_failures_and_says_how_long() -> None:
    for _ in range(MOST_PER_ACCOUNT):
        assert sign_in(Client(), password="wrong").status_code == 422
    held = sign_in(Client())
    assert held.status_code == 429
    assert held["Retry-After"] == "900"
    assert "Too many failed attempts" in text_of(held)


def test_an_address_is_held_back_whatever_names_it_tries() -> None:
    for number in range(MOST_PER_ADDRESS):
        sign_in(Client(), username=f"user{number}", password="wrong")
    assert sign_in(Client()).status_code == 429


def test_behind_a_trusted_proxy_the_client_is_held_back_and_not_the_proxy(settings: Any) -> None:
    settings.TRUSTED_PROXIES = ["127.0.0.1"]
    guesser, admin = ({"X-Forwarded-For": f"203.0.113.{last}"} for last in (7, 8))
    typed = {"username": "ann", "password": PASSWORD}
    for number in range(MOST_PER_ADDRESS):
        Client().post("/login", {"username": f"user{number}", "password": "wrong"}, headers=guesser)
    assert Client().post("/login", typed, headers=guesser).status_code == 429
    assert Client().post("/login", typed, headers=admin).status_code == 302


def test_a_success_forgives_the_account() -> None:
    for _ in range(MOST_PER_ACCOUNT - 1):
        sign_in(Client(), password="wrong")
    assert sign_in(Client()).status_code == 302
    assert sign_in(Client(), password="wrong").status_code == 422


def test_signing_out_takes_a_post_and_ends_the_session(panel: Client) -> None:
    assert panel.get("/logout").status_code == 405
    assert panel.post("/logout")["Location"] == "/login"
    assert panel.get("/services").status_code == 302


def test_session_and_token_cookies_stay_within_the_site() -> None:
    client = Client()
    client.get("/login")
    sign_in(client)
    assert client.cookies["portcullis_session"]["samesite"] == "Strict"
    assert client.cookies["portcullis_session"]["httponly"]


def test_a_form_without_its_token_is_refused() -> None:
    client = Client(enforce_csrf_checks=True)
    client.force_login(User.objects.get(username="ann"))
    assert client.post("/services/new", {"name": "orders"}).status_code == 403
    assert client.post("/logout").status_code == 403


def test_what_workers_hand_over_finds_no_panel() -> None:
    request = RequestFactory().get("/login")
    request.scope = {"server": ["/run/control.sock", None], "client": None}  # type: ignore[attr-defined]
    request.resolver_match = resolve("/login")
    with pytest.raises(Http404):
        PanelMiddleware(lambda _: HttpResponse()).process_view(request)

"""What holds of every page of the panel."""

import re
from datetime import timedelta
from html.parser import HTMLParser
from typing import Any

import pytest
from django.db import OperationalError, connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from access.models import Application
from access.services import create_application
from admin_panel.middleware import POLICY
from core.models import GatewayNode
from keys.models import ApiKey
from routing.services import create_route
from tests.panel_client import BOB, HTMX, make_everything, make_service, pages_of, text_of


class Markup(HTMLParser):
    """Collects what a strict policy would block, and ids that stand twice."""

    def __init__(self) -> None:
        super().__init__()
        self.blocked: list[str] = []
        self.ids: list[str] = []
        self._in_script = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = dict(attrs)
        self.blocked += [f"{tag} {name}" for name in names if name == "style" or name.startswith(("on", "hx-on"))]
        self.blocked += [
            f"{tag} {value}" for value in names.values() if value and value.startswith(("js:", "javascript:"))
        ]
        if tag == "style" or (tag == "script" and "src" not in names):
            self.blocked.append(tag)
        if names.get("id"):
            self.ids.append(str(names["id"]))


@pytest.fixture
def pages(panel: Client) -> dict[str, str]:
    return pages_of(make_everything())


def test_every_page_answers_with_the_strict_policy_and_nothing_inline(panel: Client, pages: dict[str, str]) -> None:
    for name, url in pages.items():
        answer = panel.get(url)
        assert answer.status_code == (404 if name == "nothing there" else 200), name
        assert answer["Content-Security-Policy"] == POLICY
        assert answer["Cache-Control"] == "no-store"
        markup = Markup()
        markup.feed(answer.content.decode())
        assert markup.blocked == [], name
        assert len(set(markup.ids)) == len(markup.ids), (name, markup.ids)


def test_htmx_gets_only_what_changes_with_its_title_and_the_current_place(panel: Client, pages: dict[str, str]) -> None:
    for name, url in pages.items():
        html = panel.get(url, headers=HTMX).content.decode()
        assert "<html" not in html, name
        assert "<title>" in html
        assert html.count("<h1") == 1, name
        assert len(re.findall('hx-swap-oob="true"', html)) == 4, name
    services = panel.get("/services", headers=HTMX).content.decode()
    assert re.search(r'href="/services"[^>]*aria-current="page"', services)


def test_going_back_in_history_gets_the_whole_page(panel: Client) -> None:
    assert b"<html" in panel.get("/services", headers={"HX-History-Restore-Request": "true"}).content


def test_an_empty_gateway_leads_on_at_every_list(panel: Client) -> None:
    assert "Bring the gateway to life" in text_of(panel.get("/"))
    for url, action in (
        ("/services", "/services/new"),
        ("/routes", "/routes/new"),
        ("/applications", "/applications/new"),
        ("/api-keys", "/api-keys/new"),
        ("/tasks", "/queue-routes"),
        ("/history", "/services/new"),
    ):
        answer = panel.get(url)
        assert " yet" in text_of(answer), url
        assert f'href="{action}"' in answer.content.decode(), url


def test_the_checklist_follows_what_is_there(panel: Client) -> None:
    def next_step() -> str:
        found = re.search(r'<li class="is-next">.*?<h2>(.*?)<', panel.get("/").content.decode(), re.DOTALL)
        return found[1] if found else "none"

    assert next_step() == "A service"
    make_service("orders")
    assert next_step() == "A version"
    make_service("billing", v1=100)
    assert next_step() == "An application"


def test_with_everything_in_place_home_shows_counts_changes_nodes_and_a_command(
    panel: Client, pages: dict[str, str]
) -> None:
    GatewayNode.objects.update(problems=[{"kind": "route", "id": "rte_1", "name": "odd", "error": "No such host."}])
    text = text_of(panel.get("/"))
    assert "Latest changes" in text
    assert "host/0" in text
    assert "route odd is skipped: No such host." in text
    assert "/api/v1/invoices/x" in text


def test_home_points_at_what_wants_attention(panel: Client) -> None:
    everything = make_everything()
    shown = text_of(panel.get("/"))
    assert "1 service with targets that fail" in shown
    assert "within a month" not in shown
    ApiKey.objects.filter(pk=everything["key"].pk).update(expires_at=timezone.now() + timedelta(days=3))
    page = panel.get("/")
    assert "1 key that ends within a month" in text_of(page)
    assert 'href="/api-keys?state=expiring"' in page.content.decode()


def test_header_and_home_say_that_limits_are_not_counted_together(panel: Client, pages: dict[str, str]) -> None:
    problem = {"kind": "limits", "id": "redis", "name": "", "error": "Redis does not answer."}
    GatewayNode.objects.update(problems=[problem])

    assert "limits are not counted together: Redis does not answer." in text_of(panel.get("/"))
    assert "Redis does not answer, so limits are not counted together: see Home." in panel.get("/status").text


@pytest.mark.parametrize("url", ["/services", "/routes", "/applications", "/api-keys", "/history"])
def test_a_list_asks_the_database_as_often_for_many_rows_as_for_one(panel: Client, url: str) -> None:
    def queries() -> int:
        with CaptureQueriesContext(
            connection,
        ) as captured:
            panel.get(url)
        return len(captured)

    make_everything()
    before = queries()
    for number in range(5):
        make_service(f"s{number}", v1=1, v2=2)
    assert queries() == before


def test_the_header_says_who_runs_the_configuration(panel: Client, pages: dict[str, str]) -> None:
    assert "1/1 node in sync" in text_of(panel.get("/status"))
    GatewayNode.objects.create(id="host/1", host="host", slot=1, applied_revision=0)
    assert "1/2 nodes in sync" in text_of(panel.get("/status"))
    GatewayNode.objects.all().delete()
    assert "no node running" in text_of(panel.get("/status"))


@pytest.mark.usefixtures("panel")
def test_the_polled_header_never_leads_away_from_a_page() -> None:
    answer = Client().get("/status", headers=HTMX)
    assert answer.status_code == 200
    assert "HX-Redirect" not in answer


@pytest.fixture
def database_away(panel: Client) -> Any:
    def refuse(*_: Any) -> None:
        raise OperationalError("connection refused to secret-host:5432")

    panel.get("/services")  # the session is known by now
    with connection.execute_wrapper(refuse):
        yield panel


def test_while_the_database_is_away_a_page_says_so(database_away: Client) -> None:
    answer = database_away.get("/services?q=x")
    assert answer.status_code == 503
    assert answer["Retry-After"] == "5"
    assert answer["Content-Security-Policy"] == POLICY
    assert "The database does not answer" in text_of(answer)
    assert b"secret-host" not in answer.content
    assert b'href="/services?q=x"' in answer.content


def test_while_the_database_is_away_a_form_keeps_what_was_typed(database_away: Client) -> None:
    answer = database_away.post("/services/new", {"name": "orders"}, headers=HTMX)
    assert answer.status_code == 503
    assert answer["HX-Retarget"] == "#notice"
    assert "Nothing was saved" in text_of(answer)


def test_while_the_database_is_away_the_header_says_so(database_away: Client) -> None:
    answer = database_away.get("/status", headers=HTMX)
    assert answer.status_code == 200
    assert "database away" in text_of(answer)


@pytest.fixture
def failing(panel: Client, monkeypatch: pytest.MonkeyPatch) -> Client:
    """The list of services fails as nobody expects it to."""

    def fail(*_: Any) -> None:
        raise RuntimeError("secret-detail")

    monkeypatch.setattr("admin_panel.views.services.health_of", fail)
    panel.raise_request_exception = False
    return panel


def test_a_page_that_fails_is_a_page_all_the_same(failing: Client) -> None:
    answer = failing.get("/services?q=x")
    assert answer.status_code == 500
    assert answer["Content-Security-Policy"] == POLICY
    assert "its log says why" in text_of(answer)
    assert b'href="/services?q=x"' in answer.content
    assert b"secret-detail" not in answer.content


def test_a_part_of_a_page_that_fails_leaves_the_page_as_it_is(failing: Client) -> None:
    answer = failing.get("/services", headers=HTMX)
    assert answer.status_code == 500
    assert answer["HX-Retarget"] == "#notice"


def test_a_form_of_a_page_that_is_too_old_says_so(panel: Client) -> None:
    strict = Client(enforce_csrf_checks=True)
    strict.cookies = panel.cookies
    answer = strict.post("/services/new", {"name": "orders"}, headers=HTMX)
    assert answer.status_code == 403
    assert answer["HX-Retarget"] == "#notice"
    assert "load it again. Nothing was saved" in text_of(answer)
    assert strict.post("/services/new", {"name": "orders"})["Content-Type"].startswith("text/html")


def test_the_command_to_try_is_one_that_can_succeed(panel: Client) -> None:
    """A service with explicit routes has no implicit one (rule 2)."""
    orders = make_service("orders", v1=100)
    create_route(name="a", path="/api/shop/*", hosts=["shop.example"], service=orders, **BOB)
    assert "/api/v1/orders/" not in text_of(panel.get("/"))
    create_route(name="b", path="/api/v1/orders/{id}", methods=["PUT"], service=orders, **BOB)
    create_application(name="web", allowed_services=["orders"], **BOB)
    for url in ("/", f"/services/{orders.pk}", f"/applications/{Application.objects.get().pk}"):
        assert "curl -i -X PUT" in text_of(panel.get(url)), url
        assert "/api/v1/orders/id" in text_of(panel.get(url)), url

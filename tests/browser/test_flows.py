"""What admins do, end to end, without one full page load."""

import re

from allauth.usersessions.models import UserSession
from playwright.sync_api import Page, expect

from access.administration.sessions import live_sessions
from access.services import create_application
from core.models import ConfigRevision
from keys.models import ApiKey
from keys.services import find_live_key
from routing.models import CachePurge, Route, ServiceConfig
from routing.services import create_route
from tests.administrators import make_account
from tests.browser.conftest import OpenPanel
from tests.browser.watch import Watch, accessibility_problems
from tests.panel_client import BOB, latest_revision, make_queue_route, make_service, make_task, signed_in


def stay_on(page: Page) -> None:
    """Mark the page: a full load would lose the mark."""
    page.evaluate("window.isStillHere = true")


def assert_never_reloaded(page: Page) -> None:
    assert page.evaluate("window.isStillHere") is True


def heading(page: Page, name: str) -> None:
    expect(page.get_by_role("heading", name=name, level=1, exact=True)).to_be_visible()


def save(page: Page, button: str) -> None:
    page.get_by_role("button", name=button, exact=True).click()


def test_a_newcomer_is_led_from_nothing_to_a_key_that_works(open_panel: OpenPanel) -> None:
    page = open_panel("/")
    stay_on(page)
    page.get_by_role("link", name="New service").click()
    page.get_by_label("Name", exact=True).fill("billing")
    save(page, "Create service")
    heading(page, "billing")
    expect(page.get_by_text("Saved as revision 1 · no node is running")).to_be_visible()
    expect(page.get_by_role("link", name="config v1")).to_be_visible()

    page.get_by_role("link", name="Home").click()
    page.get_by_role("link", name="Add version").click()
    page.get_by_label("Name").fill("v1")
    page.get_by_label("URL").fill("http://10.0.0.1:8000")
    save(page, "Add version")
    expect(page.get_by_label("Weight of v1, slider")).to_have_value("100")

    page.get_by_role("link", name="Home").click()
    page.get_by_role("link", name="New application").click()
    page.get_by_label("Name").fill("mobile")
    page.get_by_role("combobox", name="Allowed services").press_sequentially("billing")
    page.get_by_role("combobox", name="Allowed services").press("Enter")
    expect(page.get_by_role("button", name="Remove billing")).to_be_visible()
    save(page, "Create application")
    heading(page, "mobile")

    page.get_by_role("link", name="Home").click()
    page.get_by_role("link", name="New key").click()
    expect(page.get_by_label("Application")).to_have_value("mobile")
    page.get_by_label("Name").fill("production")
    save(page, "Create key")
    secret = page.get_by_role("textbox", name="production").input_value()
    assert find_live_key(secret, admin=False) is not None
    assert f"-H 'X-API-Key: {secret}'" in page.locator("#new-key-sample").inner_text()
    page.get_by_label("I have put it in a safe place").check()
    save(page, "I have stored it")
    heading(page, "production")

    page.get_by_role("link", name="Home", exact=True).first.click()
    expect(page.get_by_role("heading", name="Latest changes")).to_be_visible()
    assert_never_reloaded(page)


def test_a_key_is_shown_once_and_kept_nowhere(open_panel: OpenPanel) -> None:
    create_application(name="mobile", **BOB)
    page = open_panel("/api-keys/new?application=mobile")
    page.get_by_label("Name").fill("production")
    save(page, "Create key")
    dialog = page.get_by_role("dialog", name="Key created for mobile")
    expect(dialog).to_be_visible()
    assert accessibility_problems(page) == []
    secret = page.get_by_role("textbox", name="production").input_value()
    stored = page.get_by_role("button", name="I have stored it")
    expect(stored).to_be_disabled()
    for _ in range(3):
        page.keyboard.press("Escape")
    expect(dialog).to_be_visible()
    assert secret not in page.url
    assert secret not in page.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}, history.state])")

    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy").first.click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == secret
    expect(stored).to_be_enabled()
    stored.click()
    heading(page, "production")
    assert secret not in page.content()
    page.go_back()
    heading(page, "New API key")
    assert secret not in page.content()
    assert ApiKey.objects.count() == 1


def test_copying_works_on_plain_http_without_the_clipboard_api(open_panel: OpenPanel) -> None:
    make_service("billing", v1=100)
    page = open_panel("/services")
    page.evaluate("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    page.get_by_role("link", name="billing").click()
    page.evaluate("document.addEventListener('copy', () => { window.copied = getSelection().toString(); })")
    page.get_by_role("button", name="Copy").click()
    assert "curl -i" in page.evaluate("window.copied")


def test_the_split_moves_with_the_sliders_and_is_saved_as_one_revision(open_panel: OpenPanel) -> None:
    service = make_service("billing", v1=100, v2=0)
    page = open_panel(f"/services/{service.pk}")
    stay_on(page)
    save_split = page.get_by_role("button", name="Save split")
    expect(save_split).to_be_disabled()
    page.get_by_label("v1", exact=True).fill("60")
    page.get_by_label("Weight of v2, slider").fill("20")
    expect(page.get_by_label("v2", exact=True)).to_have_value("20")
    expect(page.locator("[data-total]")).to_have_text("80")
    assert page.locator("output").all_inner_texts() == ["75 %", "25 %"]
    assert page.locator("weight-split rect").nth(1).get_attribute("width") == "25%"
    before = ConfigRevision.objects.count()
    save_split.click()
    expect(page.get_by_text(f"Saved as revision {before + 1}")).to_be_visible()
    assert ConfigRevision.objects.count() == before + 1
    assert dict(service.versions.values_list("version", "weight")) == {"v1": 60, "v2": 20}
    page.get_by_role("link", name=f"revision {before + 1}").click()
    heading(page, f"Revision {before + 1}")
    expect(page.get_by_text("billing v2", exact=True)).to_be_visible()
    assert_never_reloaded(page)


def test_of_two_admins_the_second_decides_with_both_versions_in_view(open_panel: OpenPanel, watch: Watch) -> None:
    service = make_service("billing", v1=100)
    first, second = open_panel(f"/services/{service.pk}/edit"), open_panel(f"/services/{service.pk}/edit")
    for page, text in ((first, "Theirs"), (second, "Mine")):
        page.get_by_label("Description").fill(text)
    save(first, "Save changes")
    heading(first, "billing")
    save(second, "Save changes")
    expect(second.get_by_role("heading", name="Somebody saved this before you")).to_be_focused()
    assert accessibility_problems(second) == []
    cells = second.get_by_role("row", name=re.compile("^Description")).get_by_role("cell")
    assert cells.all_inner_texts() == ["All about billing", "Theirs", "Mine"]
    assert ServiceConfig.objects.get().description == "Theirs"
    watch.expect_refusals(1)

    second.get_by_role("link", name="Start from the saved one").click()
    expect(second.get_by_label("Description")).to_have_value("Theirs")
    second.get_by_label("Description").fill("Both")
    save(second, "Save changes")
    heading(second, "billing")
    assert ServiceConfig.objects.get().description == "Both"


def test_keeping_theirs_leads_back_to_the_object(open_panel: OpenPanel, watch: Watch) -> None:
    service = make_service("billing")
    page = open_panel(f"/services/{service.pk}/edit")
    other = open_panel(f"/services/{service.pk}/edit")
    for each, text in ((other, "Theirs"), (page, "Mine")):
        each.get_by_label("Description").fill(text)
        save(each, "Save changes")
    page.get_by_role("link", name="Keep theirs").click()
    heading(page, "billing")
    expect(page.get_by_text("Theirs", exact=True)).to_be_visible()
    watch.expect_refusals(1)


def test_a_wrong_field_gets_the_focus_and_says_what_is_wrong(open_panel: OpenPanel, watch: Watch) -> None:
    page = open_panel("/services/new")
    stay_on(page)
    page.get_by_label("Name", exact=True).fill("billing")
    page.get_by_label("Default URL").fill("ftp://x")
    save(page, "Create service")
    expect(page.get_by_label("Default URL")).to_be_focused()
    expect(page.get_by_label("Default URL")).to_have_accessible_description(re.compile("must begin with http://"))
    assert accessibility_problems(page) == []
    assert page.url.endswith("/services/new")
    page.get_by_label("Default URL").fill("http://10.0.0.1")
    save(page, "Create service")
    heading(page, "billing")
    assert_never_reloaded(page)
    watch.expect_refusals(1)


def test_a_list_keeps_search_filter_and_order_in_its_address(open_panel: OpenPanel) -> None:
    for name in ("alpha", "beta", "gamma"):
        make_service(name)
    ServiceConfig.objects.filter(name="alpha").update(is_active=False)
    page = open_panel("/services")
    stay_on(page)
    names = page.locator(".row-name")
    page.get_by_role("columnheader", name="Name").get_by_role("link").click()
    expect(names).to_have_text(["gamma", "beta", "alpha"])
    page.get_by_label("Search services").press_sequentially("a")
    page.get_by_role("radio", name="Active", exact=True).check()
    expect(names).to_have_text(["gamma", "beta"])
    page.get_by_label("Search services").press("End")
    page.get_by_label("Search services").press_sequentially("mm")
    expect(names).to_have_text(["gamma"])
    expect(page).to_have_url(re.compile(r"/services\?(?=.*q=amm)(?=.*state=active)(?=.*sort=-name)"))
    expect(page.get_by_label("Search services")).to_be_focused()

    names.first.click()
    heading(page, "gamma")
    expect(page.get_by_role("heading", name="gamma", level=1)).to_be_focused()
    page.go_back()
    expect(names).to_have_text(["gamma"])
    expect(page.get_by_label("Search services")).to_have_value("amm")
    page.go_forward()
    heading(page, "gamma")
    assert_never_reloaded(page)


def test_a_route_shows_what_becomes_of_a_path_while_it_is_typed(open_panel: OpenPanel) -> None:
    service = make_service("orders", v1=100)
    create_route(name="older", path="/api/v1/orders/{id}", service=service, **BOB)
    page = open_panel("/routes/new")
    page.get_by_label("Name").fill("orders-public")
    page.get_by_label("Path pattern").fill("/api/v1/orders/{id}")
    page.get_by_label("Service", exact=True).fill("orders")
    page.get_by_label("Strip prefix").fill("/api/v1")
    page.get_by_label("Put in its place").fill("/internal")
    preview = page.locator("#preview")
    expect(preview).to_contain_text("/internal/orders/id")
    expect(preview).to_contain_text("older /api/v1/orders/{id}, priority 0: it takes them before this one")
    page.get_by_label("Priority").fill("5")
    expect(preview).to_contain_text("this one takes them first")
    assert accessibility_problems(page) == []
    page.get_by_label("PATCH").check()
    save(page, "Create route")
    heading(page, "orders-public")
    assert Route.objects.get(name="orders-public").methods == ["PATCH"]


def test_a_route_leads_to_a_queue(open_panel: OpenPanel) -> None:
    make_queue_route()
    page = open_panel("/routes/new")
    page.get_by_label("Name").fill("mail")
    page.get_by_label("Path pattern").fill("/api/v1/mail")
    page.get_by_label("A queue").check()
    expect(page.get_by_label("Service", exact=True)).to_be_hidden()
    page.get_by_label("Queue route").fill("email-send")
    expect(page.locator("#preview")).to_contain_text("email.send")
    save(page, "Create route")
    heading(page, "mail")


def test_a_limit_asks_only_what_its_algorithm_needs(open_panel: OpenPanel) -> None:
    fields = ("Window", "Period", "At once", "May wait", "Wait at most")
    page = open_panel("/limits/new")

    def assert_asked(*labels: str) -> None:
        for label in fields:
            expect(page.get_by_label(label, exact=True)).to_be_visible(visible=label in labels)

    assert_asked("Window", "At once")
    page.get_by_label("At once", exact=True).fill("many")
    page.get_by_label("Counted by").select_option("leaky_bucket")
    assert_asked("Window", "May wait", "Wait at most")
    page.get_by_label("Counted by").select_option("concurrency")
    assert_asked()
    page.get_by_label("Counted by").select_option("quota")
    assert_asked("Period")
    page.get_by_label("Period").select_option("month")
    page.get_by_label("Name", exact=True).fill("monthly")
    page.get_by_label("Limit", exact=True).fill("1000")
    page.get_by_label("key", exact=True).check()
    assert accessibility_problems(page) == []
    save(page, "Create limit")
    heading(page, "monthly")
    expect(page.get_by_text("1,000 in each month, quota")).to_be_visible()
    page.get_by_role("link", name="Edit", exact=True).click()
    assert_asked("Period")


def test_without_scripts_a_limit_shows_every_field(open_panel: OpenPanel) -> None:
    page = open_panel("/limits/new")
    page.route("**/elements*.js", lambda route: route.fulfill(content_type="text/javascript", body=""))
    page.reload()
    for label in ("Window", "Period", "At once", "May wait", "Wait at most"):
        expect(page.get_by_label(label, exact=True)).to_be_visible()


def test_a_destructive_action_says_what_goes_with_it_and_escape_backs_out(open_panel: OpenPanel) -> None:
    service = make_service("billing", v1=100)
    create_application(name="mobile", allowed_services=["billing"], **BOB)
    page = open_panel(f"/services/{service.pk}")
    delete = page.get_by_role("button", name="Delete", exact=True)
    delete.click()
    dialog = page.get_by_role("dialog", name="Delete billing?")
    expect(dialog).to_contain_text("1 application may use it: mobile")
    assert accessibility_problems(page) == []
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(delete).to_be_focused()
    delete.click()
    dialog.get_by_role("button", name="Delete service").click()
    expect(page.get_by_role("heading", name="No services yet")).to_be_visible()
    expect(dialog).to_be_hidden()


def test_a_session_is_ended_after_a_question(open_panel: OpenPanel) -> None:
    bob = make_account("bob", "KEY_VIEWER")
    for _ in range(2):
        key, browser = signed_in(bob.user).session.session_key, "Mozilla/5.0 (Windows NT 10.0) Firefox/140.0"
        UserSession.objects.create(user=bob.user, session_key=key, ip="192.0.2.7", user_agent=browser)
    page = open_panel(f"/users/{bob.pk}")
    ends = page.get_by_role("button", name="End the session of Firefox on Windows")
    expect(ends).to_have_count(2)
    ends.first.click()
    dialog = page.get_by_role("dialog", name="End the session on Firefox on Windows?")
    expect(dialog).to_contain_text("bob is signed out there at once")
    assert accessibility_problems(page) == []
    dialog.get_by_role("button", name="Cancel").click()
    expect(ends).to_have_count(2)
    ends.first.click()
    dialog.get_by_role("button", name="End session").click()
    expect(ends).to_have_count(1)
    for session in live_sessions(bob.user):
        session.end()
    ends.click()
    expect(page.get_by_role("dialog", name="It has ended already")).to_be_visible()
    assert accessibility_problems(page) == []


def test_a_key_is_found_by_its_beginning_and_revoked(open_panel: OpenPanel) -> None:
    page = open_panel("/applications/new")
    page.get_by_label("Name").fill("mobile")
    save(page, "Create application")
    page.get_by_role("link", name="New key").click()
    page.get_by_label("Name").fill("production")
    save(page, "Create key")
    secret = page.get_by_role("textbox", name="production").input_value()
    page.get_by_label("I have put it in a safe place").check()
    save(page, "I have stored it")
    page.get_by_role("link", name="API keys").first.click()
    save(page, "Whose key is this?")
    page.get_by_label("The key, or its first").fill(secret)
    save(page, "Look up")
    dialog = page.get_by_role("dialog", name="Whose key is this?")
    dialog.get_by_role("link", name="production").click()
    heading(page, "production")
    expect(dialog).to_be_hidden()
    save(page, "Revoke")
    page.get_by_label("Reason").fill("Leaked")
    save(page, "Revoke key")
    expect(page.get_by_text("for good")).to_be_visible()
    assert find_live_key(secret, admin=False) is None
    assert latest_revision().reason == "Leaked"


def test_the_keyboard_searches_and_leads_about_and_can_be_switched_off(open_panel: OpenPanel) -> None:
    page = open_panel("/services")
    page.keyboard.press("/")
    search = page.get_by_label("Search services")
    expect(search).to_be_focused()
    page.keyboard.type("g r/")
    expect(search).to_have_value("g r/")
    page.get_by_role("heading", name="Services", level=1).click()
    page.keyboard.press("g")
    page.keyboard.press("r")
    heading(page, "Routes")
    page.keyboard.press("?")
    dialog = page.get_by_role("dialog", name="Keyboard shortcuts")
    expect(dialog).to_be_visible()
    assert accessibility_problems(page) == []
    dialog.get_by_label("Single keys act as shortcuts").uncheck()
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    page.keyboard.press("g")
    page.keyboard.press("s")
    page.keyboard.press("/")
    heading(page, "Routes")
    expect(page.get_by_label("Search routes")).not_to_be_focused()


def test_tasks_appear_by_themselves(open_panel: OpenPanel) -> None:
    queue_route = make_queue_route()
    page = open_panel("/tasks")
    expect(page.get_by_role("heading", name="No tasks yet")).to_be_visible()
    task = make_task(queue_route, "queued")
    expect(page.get_by_text(task.id)).to_be_visible(timeout=10_000)
    page.get_by_role("link", name="email.send").click()
    expect(page.locator("#task").get_by_text("Queued", exact=True)).to_be_visible()
    type(task).objects.filter(pk=task.pk).update(state="failed", error="SMTP 550", finished_at=task.accepted_at)
    expect(page.get_by_text("SMTP 550")).to_be_visible(timeout=10_000)


def test_a_versions_menu_opens_over_everything_and_leads_on(open_panel: OpenPanel) -> None:
    service = make_service("billing", v1=100)
    page = open_panel(f"/services/{service.pk}")
    page.get_by_role("button", name="Actions for v1").click()
    page.get_by_role("button", name="Deactivate").last.click()
    expect(page.get_by_role("cell", name="Inactive")).to_be_visible()
    page.get_by_role("button", name="Actions for v1").click()
    page.get_by_role("link", name="Add target").click()
    page.get_by_label("Address").fill("http://10.0.0.9:8000")
    save(page, "Add target")
    expect(page.get_by_text("http://10.0.0.9:8000", exact=True)).to_be_visible()


def test_links_within_what_renews_itself_lead_to_a_page_of_the_one_shell(open_panel: OpenPanel) -> None:
    make_service("billing")
    page = open_panel("/services")
    stay_on(page)
    page.locator("#config-status").get_by_role("link").click()
    heading(page, "History")
    expect(page.get_by_role("main")).to_have_count(1)
    page.locator("#list").get_by_role("link", name="1", exact=True).first.click()
    heading(page, "Revision 1")
    expect(page.get_by_role("main")).to_have_count(1)
    assert_never_reloaded(page)


def test_pressing_a_button_twice_saves_once(open_panel: OpenPanel) -> None:
    page = open_panel("/services/new")
    page.get_by_label("Name", exact=True).fill("billing")
    page.get_by_role("button", name="Create service").dblclick()
    heading(page, "billing")
    expect(page.get_by_text("Saved as revision 1")).to_be_visible()
    assert ConfigRevision.objects.count() == 1


def test_of_two_links_followed_in_haste_the_later_counts(open_panel: OpenPanel) -> None:
    make_service("billing")
    page = open_panel("/services")
    page.evaluate(
        "for (const path of ['/routes', '/applications', '/history'])"
        " document.querySelector(`#nav a[href='${path}']`).click()"
    )
    heading(page, "History")
    assert page.url.endswith("/history")


def test_a_policy_is_set_and_stands_in_the_list(open_panel: OpenPanel) -> None:
    service = make_service("billing", v1=100)
    page = open_panel(f"/services/{service.pk}")
    stay_on(page)
    row = page.get_by_role("row", name=re.compile("^Load balancing"))
    expect(row).to_contain_text("by weight")
    page.get_by_role("link", name="Load balancing").click()
    heading(page, "Load balancing of billing")
    page.get_by_label("Strategy").select_option("peak EWMA")
    expect(page.get_by_label("Cookie")).to_be_hidden()
    page.get_by_label("Sticky sessions").check()
    page.get_by_label("Lives for").fill("600")
    assert accessibility_problems(page) == []
    save(page, "Save policy")
    heading(page, "billing")
    expect(row).to_contain_text("peak EWMA, sticky (ttl 600 s)")
    assert_never_reloaded(page)
    service.refresh_from_db()
    assert service.load_balancing == {"strategy": "peak_ewma", "sticky": {"ttlS": 600}}

    page.get_by_role("link", name="Load balancing").click()
    save(page, "Remove")
    save(page, "Remove policy")
    expect(row).to_contain_text("by weight")


def test_conditions_are_added_and_taken_away_by_row(open_panel: OpenPanel) -> None:
    route = create_route(name="beta", path="/api/v1/beta", service=make_service("billing", v1=100), **BOB)
    page = open_panel(f"/routes/{route.pk}/policies/conditions")
    fields = page.get_by_role("group", name="Header fields")
    for name, how, value in (("x-beta", "begins with", "y"), ("x-old", "is not there", "")):
        fields.get_by_role("button", name="Add to header fields").click()
        expect(fields.get_by_label("Name").last).to_be_focused()
        page.keyboard.type(name)
        fields.get_by_label("How").last.select_option(how)
        if value:
            fields.get_by_label("Value").last.fill(value)
    expect(fields.get_by_label("Value").last).to_be_hidden()
    assert accessibility_problems(page) == []
    save(page, "Save policy")
    heading(page, "beta")
    route.refresh_from_db()
    headers = [{"name": "x-beta", "prefix": "y"}, {"name": "x-old", "present": False}]
    assert route.conditions == {"headers": headers}
    page.get_by_role("link", name="Conditions").click()
    fields.get_by_role("button", name="Remove this entry").first.click()
    expect(fields.get_by_role("button", name="Remove this entry")).to_be_focused()
    save(page, "Save policy")
    heading(page, "beta")
    route.refresh_from_db()
    assert route.conditions == {"headers": headers[1:]}


def test_a_rollout_is_started_paused_and_aborted(open_panel: OpenPanel) -> None:
    service = make_service("billing", v1=100, v2=0)
    page = open_panel(f"/services/{service.pk}")
    stay_on(page)
    page.get_by_role("link", name="Start a rollout").click()
    page.get_by_label("To version").select_option("v2")
    page.get_by_label("Steps").fill("5, 50, 100")
    save(page, "Start rollout")
    heading(page, "Rollout of billing to v2")
    expect(page.get_by_text("Running", exact=True)).to_be_visible()
    save(page, "Pause")
    page.get_by_role("dialog").get_by_role("button", name="Pause").click()
    expect(page.get_by_text("Paused", exact=True)).to_be_visible()
    page.get_by_role("link", name="Services").first.click()
    expect(page.get_by_role("link", name="rollout to v2, paused")).to_be_visible()
    page.get_by_role("link", name="rollout to v2, paused").click()
    save(page, "Abort")
    page.get_by_role("dialog").get_by_role("button", name="Abort").click()
    expect(page.get_by_text("Aborted", exact=True)).to_be_visible()
    assert dict(service.versions.values_list("version", "weight")) == {"v1": 100, "v2": 0}
    assert_never_reloaded(page)


def test_sliders_reach_as_far_as_the_weights_do(open_panel: OpenPanel) -> None:
    service = make_service("billing", v1=9500, v2=500)
    page = open_panel(f"/services/{service.pk}")
    slider = page.get_by_label("Weight of v1, slider")
    expect(slider).to_have_value("9500")
    expect(page.get_by_label("Weight of v2, slider")).to_have_value("500")
    page.get_by_label("v1", exact=True).fill("10000")
    expect(slider).to_have_value("10000")


def test_targets_are_asked_and_circuits_reset_from_the_services_page(open_panel: OpenPanel) -> None:
    service = make_service("billing", v1=100)
    page = open_panel(f"/services/{service.pk}")
    stay_on(page)
    save(page, "Test now")
    dialog = page.get_by_role("dialog", name="Targets of billing, asked just now")
    expect(dialog).to_contain_text("http://10.0.0.1:8000")
    assert accessibility_problems(page) == []
    dialog.get_by_role("button", name="Close").click()
    expect(dialog).to_be_hidden()
    save(page, "Reset circuits")
    before = ServiceConfig.objects.get().circuit_resets
    page.get_by_role("dialog").get_by_role("button", name="Reset circuits").click()
    expect(page.get_by_text(re.compile("Saved as revision"))).to_be_visible()
    assert ServiceConfig.objects.get().circuit_resets == before + 1
    assert_never_reloaded(page)


def test_stored_answers_are_dropped_by_tag(open_panel: OpenPanel, watch: Watch) -> None:
    service = make_service("billing", v1=100)
    page = open_panel(f"/services/{service.pk}")
    save(page, "More")
    save(page, "Drop stored answers")
    page.get_by_label("What", exact=True).select_option("A tag")
    save(page, "Drop them")
    expect(page.get_by_role("alert")).to_be_visible()
    watch.expect_refusals(1)
    page.get_by_label("URL, path or tag").fill("invoices")
    assert accessibility_problems(page) == []
    save(page, "Drop them")
    expect(page.get_by_role("dialog", name="Stored answers dropped")).to_contain_text("invoices")
    purge = CachePurge.objects.get()
    assert (purge.kind, purge.value) == ("tag", "invoices")


def test_a_registration_token_is_shown_once_and_can_be_copied(open_panel: OpenPanel) -> None:
    service = make_service("billing", v1=100)
    page = open_panel(f"/services/{service.pk}")
    save(page, "More")
    save(page, "Registration token")
    save(page, "Make a token")
    dialog = page.get_by_role("dialog", name="Registration token of billing")
    token = dialog.get_by_label("Registration token").input_value()
    assert accessibility_problems(page) == []
    for _ in range(3):
        page.keyboard.press("Escape")
    expect(dialog).to_be_visible()
    expect(dialog.get_by_role("button", name="I have stored it")).to_be_disabled()
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    dialog.get_by_role("button", name="Copy").click()
    expect(dialog.get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == token
    dialog.get_by_role("button", name="I have stored it").click()
    expect(dialog).to_be_hidden()
    assert token not in page.content()


def test_maintenance_of_everything_is_said_on_every_page_while_it_lasts(open_panel: OpenPanel) -> None:
    page = open_panel("/")
    stay_on(page)
    banner = page.get_by_text("Maintenance of the whole gateway")
    page.get_by_role("link", name="Gateway", exact=True).click()
    page.get_by_label("Message").fill("Back at noon.")
    save(page, "Start maintenance")
    expect(banner).to_be_visible()
    assert accessibility_problems(page) == []
    page.get_by_role("link", name="Routes", exact=True).first.click()
    heading(page, "Routes")
    expect(banner).to_be_visible()
    page.locator("#maintenance").get_by_role("link", name="Gateway").click()
    heading(page, "Gateway")
    save(page, "End maintenance")
    page.get_by_role("dialog").get_by_role("button", name="End maintenance").click()
    expect(banner).to_be_hidden()
    assert_never_reloaded(page)

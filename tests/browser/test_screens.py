"""Every screen, in both themes, on a desk and on a telephone."""

import os

import pytest
from playwright.sync_api import Page

from access.services import create_application
from routing.services import create_service, create_version
from tests.browser.conftest import OpenPanel
from tests.browser.watch import Watch, accessibility_problems, overflow, set_theme
from tests.panel_client import BOB, make_everything, pages_of


@pytest.mark.parametrize("width", [1440, 390])
def test_every_screen_is_accessible_and_fits_the_width(
    open_panel: OpenPanel, panel_url: str, watch: Watch, width: int
) -> None:
    """Everything that axe knows in one theme, colours in the other too; a telephone has the colours of the desk."""
    pages = pages_of(make_everything())
    make_long_names()
    page = open_panel("/", width=width)
    problems = {}
    for name, path in pages.items():
        page.goto(panel_url + path)
        keep_picture(page, name, width)
        if overflow(page):
            problems[f"{name}, too wide"] = [str(overflow(page))]
        if found := accessibility_problems(page):
            problems[name] = found
        if width == 390:
            continue
        set_theme(page, "dark")
        keep_picture(page, f"{name} dark", width)
        if found := accessibility_problems(page, colours_only=True):
            problems[f"{name}, dark"] = found
    assert problems == {}
    watch.expect_refusals(1)  # "nothing there"


def make_long_names() -> None:
    """Rows of lists with texts that a telephone has no room for."""
    words = "-".join(["customer", "notification", "preferences", "and", "consent", "registry"])
    service = create_service(name=words, description=f"All about {words}, day and night", **BOB)
    create_version(service=service, version="2026-10-15-canary", url=f"http://{words}.example.com", **BOB)
    create_application(name=f"Partner portal of {words}", allowed_services=[words], **BOB)


def keep_picture(page: Page, name: str, width: int) -> None:
    """For eyes: `PICTURES=1 make test ARGS=tests/browser/test_screens.py` fills tests/browser/screenshots."""
    if os.environ.get("PICTURES"):
        page.screenshot(path=f"tests/browser/screenshots/{name} {width}.png".replace(" ", "-"), full_page=True)


def test_empty_lists_and_the_first_steps_are_accessible(open_panel: OpenPanel, panel_url: str) -> None:
    page = open_panel("/", width=390)
    for path in ("/", "/services", "/routes", "/applications", "/api-keys", "/queue-routes", "/tasks", "/history"):
        page.goto(panel_url + path)
        assert overflow(page) == 0, path
        assert accessibility_problems(page) == [], path
        set_theme(page, "dark")
        assert accessibility_problems(page, colours_only=True) == [], path


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_sign_in_page_is_accessible_and_leads_in_and_out(open_panel: OpenPanel, watch: Watch, theme: str) -> None:
    page = open_panel("/services", theme=theme, signed_in=False)
    assert accessibility_problems(page) == []
    page.get_by_label("User name or e-mail").fill("ann")
    page.get_by_label("Password").fill("wrong")
    page.get_by_role("button", name="Sign in", exact=True).click()
    page.get_by_text("do not match").wait_for()
    assert accessibility_problems(page) == []
    watch.expect_refusals(1)
    page.get_by_label("Password").fill("correct horse battery")
    page.get_by_role("button", name="Sign in", exact=True).click()
    page.wait_for_url("**/services")
    page.get_by_role("button", name="Account of ann").click()
    assert accessibility_problems(page) == []
    page.get_by_role("button", name="Sign out").click()
    page.wait_for_url("**/login")


def test_the_chosen_theme_is_there_before_the_first_paint(open_panel: OpenPanel) -> None:
    page = open_panel("/", theme="light")
    page.get_by_role("button", name="Theme").click()
    page.get_by_role("button", name="Dark").click()
    assert page.locator("html").get_attribute("data-bs-theme") == "dark"
    page.add_init_script(
        "new MutationObserver(() => { if (document.body) window.atBody ??= document.documentElement.dataset.bsTheme; })"
        ".observe(document, { childList: true, subtree: true });"
    )
    page.reload()
    assert page.evaluate("window.atBody") == "dark"


def test_on_a_telephone_the_navigation_slides_in_and_leads_on(open_panel: OpenPanel) -> None:
    page = open_panel("/", width=390)
    services = page.get_by_role("link", name="Services", exact=True)
    assert not services.is_visible()
    page.get_by_role("button", name="Open navigation").click()
    services.wait_for()
    assert accessibility_problems(page) == []
    services.click()
    page.get_by_role("heading", name="Services", exact=True).wait_for()
    services.wait_for(state="hidden")

"""Every screen, in both themes, on a desk and on a telephone."""

import pytest

from tests.browser.conftest import OpenPanel
from tests.browser.watch import Watch, accessibility_problems, overflow, set_theme
from tests.panel_client import make_everything, pages_of


@pytest.mark.parametrize(("width", "themes"), [(1440, ["light", "dark"]), (390, ["dark"])])
def test_every_screen_is_accessible_and_fits_the_width(
    open_panel: OpenPanel, panel_url: str, watch: Watch, width: int, themes: list[str]
) -> None:
    pages = pages_of(make_everything())
    page = open_panel("/", width=width)
    problems = {}
    for name, path in pages.items():
        page.goto(panel_url + path)
        for theme in themes:
            set_theme(page, theme)
            if found := accessibility_problems(page):
                problems[f"{name}, {theme}"] = found
        if overflow(page):
            problems[f"{name}, too wide"] = [str(overflow(page))]
    assert problems == {}
    watch.expect_refusals(1)  # "nothing there"


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_empty_lists_and_the_first_steps_are_accessible(open_panel: OpenPanel, panel_url: str, theme: str) -> None:
    page = open_panel("/", theme=theme, width=390)
    for path in ("/", "/services", "/routes", "/applications", "/api-keys", "/queue-routes", "/tasks", "/history"):
        page.goto(panel_url + path)
        assert accessibility_problems(page) == [], path
        assert overflow(page) == 0, path


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_sign_in_page_is_accessible_and_leads_in_and_out(open_panel: OpenPanel, watch: Watch, theme: str) -> None:
    page = open_panel("/services", theme=theme, signed_in=False)
    assert accessibility_problems(page) == []
    page.get_by_label("User name").fill("ann")
    page.get_by_label("Password").fill("wrong")
    page.get_by_role("button", name="Sign in").click()
    page.get_by_text("do not match").wait_for()
    assert accessibility_problems(page) == []
    watch.expect_refusals(1)
    page.get_by_label("Password").fill("correct horse battery")
    page.get_by_role("button", name="Sign in").click()
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

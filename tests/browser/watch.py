"""What no page of the panel may do: complain, break its own policy, call another host, shut anybody out."""

from pathlib import Path
from typing import Any

from playwright.sync_api import ConsoleMessage, Page, Request

AXE = (Path(__file__).parent / "vendor" / "axe.min.js").read_text()
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
_REPORT_VIOLATIONS = """
document.addEventListener("securitypolicyviolation", (event) => {
  console.error(`CSP: ${event.violatedDirective} blocked ${event.blockedURI} ${event.sourceFile}:${event.lineNumber}`);
});
"""
COLOURS = ["color-contrast", "link-in-text-block"]  # rules of which a theme can break what another keeps
_RUN_AXE = """async ([type, values]) => {
  const found = await axe.run(document, { runOnly: { type, values }, resultTypes: ["violations"], preload: false });
  return found.violations.map((each) => `${each.id}: ${each.nodes.map((node) => node.html.slice(0, 200)).join(" | ")}`);
}"""


class Watch:
    """Collects complaints of all pages of a test."""

    def __init__(self, *origins: str) -> None:
        self.origins = origins
        self.complaints: list[str] = []
        self.refusals = 0  # answers with an error status that the test provokes on purpose

    def over(self, page: Page) -> None:
        page.add_init_script(_REPORT_VIOLATIONS)
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.complaints.append(f"uncaught: {error}"))
        page.on("request", self._request)

    def _console(self, message: ConsoleMessage) -> None:
        if message.type not in ("error", "warning"):
            return
        if "Failed to load resource: the server responded with a status of 4" in message.text:
            self.refusals += 1
            return
        self.complaints.append(f"{message.type}: {message.text}")

    def _request(self, request: Request) -> None:
        if not request.url.startswith((*(f"{origin}/" for origin in self.origins), "data:", "blob:")):
            self.complaints.append(f"asked another origin: {request.url}")

    def check(self) -> None:
        assert not self.complaints, self.complaints
        assert self.refusals == 0, "a request was refused; a test that means it says so with `expect_refusals`"

    def expect_refusals(self, count: int) -> None:
        assert self.refusals == count, f"{self.refusals} requests were refused"
        self.refusals = 0


def accessibility_problems(page: Page, *, colours_only: bool = False) -> list[str]:
    """What axe-core finds on the page as it stands."""
    if not page.evaluate("typeof axe === 'object'"):
        page.evaluate(AXE)
    found: Any = page.evaluate(_RUN_AXE, ["rule", COLOURS] if colours_only else ["tag", RULES])
    return list(found)


def set_theme(page: Page, theme: str) -> None:
    page.evaluate("theme => document.documentElement.setAttribute('data-bs-theme', theme)", theme)


def overflow(page: Page) -> int:
    """By how many pixels the page is wider than the screen, or a table than the card that cuts it off."""
    width: int = page.evaluate(
        "Math.max(...[document.documentElement, ...document.querySelectorAll('.table-card')]"
        ".map((each) => each.scrollWidth - each.clientWidth))"
    )
    return width

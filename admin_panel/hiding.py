"""What an administrator may not use is not on the page: links, buttons and forms that lead where they would be refused.

The rules stand in the URL configuration, each with its page (`admin_panel.urls`), so templates need not repeat them,
and none can forget one. A button or a form goes; of a link in a text or a table the text stays. Pages for those who
may do everything are left as they are.
"""

from html.parser import HTMLParser
from urllib.parse import urlsplit

from django.urls import Resolver404, resolve

from core.permissions import EVERYTHING, Caller

EVERY_ADMIN = ""  # the permission of pages that are for whoever is let in at all
_LEADS = ("href", "hx-get", "hx-post", "action", "formaction")
_CONTROLS = frozenset({"btn", "dropdown-item", "icon-button", "tile", "button"})  # links that are buttons to the eye


def needed_permission(path: str) -> str:
    """What the panel's page at ``path`` asks for; nothing where there is no such page."""
    try:
        view = resolve(path).func
    except Resolver404:
        return EVERY_ADMIN
    return str(getattr(view, "permission", EVERY_ADMIN))


def hidden_from(caller: Caller, html: str) -> str:
    """The page as this caller gets to see it."""
    if EVERYTHING in caller.permissions and caller.may("admin:gateway:read"):
        return html
    cleaner = _Cleaner(caller)
    cleaner.feed(html)
    cleaner.close()
    return "".join(cleaner.kept)


class _Cleaner(HTMLParser):
    """Copies a document as it is written, but for what leads astray."""

    def __init__(self, caller: Caller) -> None:
        super().__init__(convert_charrefs=False)
        self.kept: list[str] = []
        self._caller = caller
        self._leaving_out = ""  # the tag of what is being left out, and how deep we are in tags of its kind
        self._depth = 0
        self._links: list[bool] = []  # of each link that is open: does its end tag stay?

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if self._leaving_out:
            self._depth += tag == self._leaving_out
            return
        values = dict(attrs)
        if tag in ("a", "button", "form") and not self._may_go(values):
            is_control = tag != "a" or _CONTROLS.intersection((values.get("class") or "").split())
            if is_control:
                self._leaving_out, self._depth = tag, 1
                return
            self._links.append(False)
            self.kept.append(f'<span class="{values.get("class") or ""}">')
            return
        if tag == "a":
            self._links.append(True)
        self.kept.append(self.get_starttag_text() or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._keep(self.get_starttag_text() or "")

    def handle_endtag(self, tag: str) -> None:
        if self._leaving_out:
            self._depth -= tag == self._leaving_out
            if not self._depth:
                self._leaving_out = ""
                self._drop_empty_item()
            return
        stays = self._links.pop() if tag == "a" and self._links else True
        self.kept.append(f"</{tag}>" if stays else "</span>")

    def handle_data(self, data: str) -> None:
        self._keep(data)

    def handle_entityref(self, name: str) -> None:
        self._keep(f"&{name};")

    def handle_charref(self, name: str) -> None:
        self._keep(f"&#{name};")

    def handle_comment(self, data: str) -> None:
        self._keep(f"<!--{data}-->")

    def handle_decl(self, decl: str) -> None:
        self._keep(f"<!{decl}>")

    def _keep(self, text: str) -> None:
        if not self._leaving_out:
            self.kept.append(text)

    def _may_go(self, values: dict[str, str | None]) -> bool:
        return all(self._may_reach(values[name] or "") for name in _LEADS if name in values)

    def _may_reach(self, url: str) -> bool:
        parts = urlsplit(url)
        if parts.netloc or not parts.path.startswith("/"):
            return True
        permission = needed_permission(parts.path)
        return permission == EVERY_ADMIN or self._caller.may(permission)

    def _drop_empty_item(self) -> None:
        """A list item that held nothing else goes with it."""
        while self.kept and not self.kept[-1].strip():
            self.kept.pop()
        if self.kept and self.kept[-1].startswith("<li"):
            self.kept.pop()
            self._leaving_out, self._depth = "li", 1

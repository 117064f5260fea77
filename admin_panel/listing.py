"""Lists: their search, filter, order and page live in the URL, so that a link or the back button brings them back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from django.core.paginator import Page, Paginator
from django.db.models import Model, Q, QuerySet

from admin_panel.pages import PanelRequest

ROWS_PER_PAGE = 50
_Row = TypeVar("_Row", bound=Model)


@dataclass(frozen=True, slots=True)
class Listing(Generic[_Row]):
    """One page of a list, and how it came about."""

    page: Page[_Row]
    query: str
    state: str
    sort: str
    is_filtered: bool

    @property
    def count(self) -> int:
        return self.page.paginator.count


def listing(
    request: PanelRequest,
    rows: QuerySet[_Row],
    *,
    search: Sequence[str],
    states: Mapping[str, Q],
    sorts: Mapping[str, str],
    default_sort: str = "name",
) -> Listing[_Row]:
    """``search``: fields to look in; ``states``: conditions by name; ``sorts``: fields by name (``-name``: falling)."""
    query = request.GET.get("q", "").replace("\x00", "").strip()[:200]
    state = request.GET.get("state", "")
    if query:
        rows = rows.filter(_any_contains(search, query))
    if state in states:
        rows = rows.filter(states[state])
    sort = request.GET.get("sort", "")
    if sort.removeprefix("-") not in sorts:
        sort = default_sort
    field = sorts[sort.removeprefix("-")]
    ordered = rows.order_by(f"-{field}" if sort.startswith("-") else field, "pk")
    shown = Paginator(ordered, ROWS_PER_PAGE).get_page(request.GET.get("page"))
    return Listing(shown, query, state if state in states else "", sort, bool(query or state in states))


def _any_contains(fields: Sequence[str], text: str) -> Q:
    condition = Q()
    for field in fields:
        condition |= Q(**{f"{field}__icontains": text})
    return condition


@dataclass(frozen=True, slots=True)
class Slice(Generic[_Row]):
    """A page of an append-only list, by the number of its oldest row: pages do not shift while rows arrive."""

    rows: list[_Row]
    older: int | None  # the cursor of the next page
    is_first: bool


def newest_first(request: PanelRequest, rows: QuerySet[_Row], number: str) -> Slice[_Row]:
    """Rows by falling ``number``, below ``?before=``."""
    before = request.GET.get("before", "")
    is_first = not before.isdecimal() or len(before) > 18
    if not is_first:
        rows = rows.filter(**{f"{number}__lt": int(before)})
    found = list(rows.order_by(f"-{number}")[: ROWS_PER_PAGE + 1])
    shown = found[:ROWS_PER_PAGE]
    older: Any = getattr(shown[-1], number) if len(found) > ROWS_PER_PAGE else None
    return Slice(shown, older, is_first)


def wants_rows_only(request: PanelRequest) -> bool:
    """Whether htmx asks for the list alone, as searching, sorting and polling do."""
    return bool(request.htmx) and request.htmx.target == "list" and not request.htmx.history_restore_request

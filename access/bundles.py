"""Bundles of policies (A23) where rows that have them are stored and compiled.

What a row says itself comes first, then what its bundles say, in the order in which it names them. Which bundles exist
is asked once for each compilation of many rows (`one_look`).
"""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

from access.models import PolicyBundle
from core.faults import ClientFault
from core.validation import FieldErrors

MOST = 20  # for each row
_Book = dict[tuple[str, str], PolicyBundle]  # by tenant and name
_looks: ContextVar[list[_Book] | None] = ContextVar("looks", default=None)


class HasBundles(Protocol):
    tenant_id: Any
    bundles: Any


@contextmanager
def one_look() -> Iterator[None]:
    """Within it bundles are read once, when the first row needs one."""
    token = _looks.set([])
    try:
        yield
    finally:
        _looks.reset(token)


def _all_bundles() -> _Book:
    looks = _looks.get()
    if looks:
        return looks[0]
    book = {(str(each.tenant_id), each.name): each for each in PolicyBundle.objects.order_by("pk")}
    if looks is not None:
        looks.append(book)
    return book


def with_bundles(row: HasBundles, own: Mapping[str, Any], kinds: Collection[str]) -> dict[str, Any]:
    """The row's policies by name: its ``own``, and of the ``kinds`` that it has none of its bundles'."""
    policies = dict(own)
    if row.bundles:
        book = _all_bundles()
        for name in row.bundles:
            bundle = book.get((str(row.tenant_id), name))
            for kind, document in bundle.policies.items() if bundle is not None else ():
                if kind in kinds and document is not None:
                    policies.setdefault(kind, document)
    return policies


def bundles_with_limit(tenant_id: str, limit: str) -> list[str]:
    """The names of bundles that name the limit; none: it holds wherever its rule says."""
    book = _all_bundles()
    return sorted(each.name for (tenant, _), each in book.items() if tenant == tenant_id and limit in each.limits)


def check_bundles(row: HasBundles, errors: FieldErrors) -> None:
    """Of a row that is about to be stored."""
    names = row.bundles
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        errors.add("bundles", "This must be a list of names.")
        return
    if len(names) > MOST or len(set(names)) < len(names):
        errors.add("bundles", f"At most {MOST} bundles are allowed, each once.")
        return
    known = PolicyBundle.objects.filter(tenant_id=row.tenant_id, name__in=names).values_list("name", flat=True)
    for name in names:
        if name not in known:
            errors.add("bundles", f"There is no bundle named {name[:80]!r}.")


def refuse_limit_in_bundles(tenant_id: str, limit: str) -> None:
    """Raises ClientFault ``conflict`` while a bundle names the limit."""
    if names := bundles_with_limit(tenant_id, limit):
        detail = f"The bundle {names[0]} names the limit {limit}: take it from there first."
        raise ClientFault("conflict", detail, members={"bundles": names})

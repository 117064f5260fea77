"""Whose rows whoever acts may see and make (rule 26).

Authentication enters the caller's tenant; from then on, to the end of the request, every query by a model's manager
finds that tenant's rows alone, and new rows are that tenant's. So another tenant's object is not found, by whatever
view or use-case, and none can forget it. Outside of requests (agent, commands, migrations) nothing is left out.

What the managers do not filter: querysets made when a module is loaded (views take them through `of_tenant`), and
what leads from one row to another by foreign key, which never leaves a tenant.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from django.db import models

DEFAULT_TENANT = "default"
_Row = TypeVar("_Row", bound=models.Model)
_present: ContextVar[str | None] = ContextVar("tenant", default=None)


def present_tenant() -> str | None:
    """The tenant that was entered; None: nobody's in particular, all rows are seen."""
    return _present.get()


def own_tenant() -> str:
    """The tenant of what is made now."""
    return _present.get() or DEFAULT_TENANT


def enter_tenant(tenant_id: str | None) -> None:
    """From now on, to the end of the request. None: leave."""
    _present.set(tenant_id)


@contextmanager
def within_tenant(tenant_id: str | None) -> Iterator[None]:
    before = _present.get()
    _present.set(tenant_id)
    try:
        yield
    finally:
        _present.set(before)


def of_tenant(rows: models.QuerySet[_Row], path: str = "tenant") -> models.QuerySet[_Row]:
    """Those of the present tenant; ``path`` leads to it."""
    tenant_id = _present.get()
    return rows if tenant_id is None else rows.filter(**{f"{path}_id": tenant_id})


class TenantManager(models.Manager[_Row]):
    def get_queryset(self) -> models.QuerySet[_Row]:
        return of_tenant(super().get_queryset())


class TenantKey(models.ForeignKey[Any, Any]):
    """Leads to the tenant of a row: of a new one, to the tenant that makes it."""

    def get_default(self) -> Any:
        return own_tenant()

    def deconstruct(self) -> Any:
        """To migrations it is a foreign key like any other."""
        name, _, arguments, options = super().deconstruct()
        return name, "django.db.models.ForeignKey", arguments, options

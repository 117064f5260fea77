"""The base of the admin API's views.

A view names its rows and its use-cases; what is the same for all of them stands here: permission, ETag and If-Match,
waiting for the gateways, list pages. Subclass `ConfigViewSet` and give ``store``, ``change`` and ``remove``.

Answers of single objects carry ``ETag: "<revision>"``. Writes take ``If-Match`` (412 ``stale_revision`` with
``current``), ``Prefer: wait=<s>`` and ``X-Change-Reason``, and answer with ``X-Config-Revision``, and with
``X-Config-Pending: node,…`` when some node has not applied it within the time waited.
"""

import re
from typing import Any, ClassVar, Generic, TypedDict, TypeVar, cast
from urllib.parse import unquote

from django.db.models import Model, QuerySet
from django.http import HttpRequest
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.viewsets import GenericViewSet

from core.faults import ClientFault
from core.listing import CursorPages, StrictFilterBackend
from core.models import ConfigRow, TenantRow
from core.permissions import caller_of
from core.propagation import DEFAULT_WAIT_S, wait_for_nodes
from core.revisions import Actor, observed, stale
from core.schema import MAX_REASON
from core.serializers import ConfigSerializer
from core.tenants import of_tenant
from core.validation import is_storable

AnyRow = TypeVar("AnyRow", bound=Model)
Row = TypeVar("Row", bound=ConfigRow)
_ENTITY_TAG = re.compile(r'(W/)?"([\x21\x23-\x7e]*)"')  # which may hold commas
_ENTITY_TAGS = re.compile(rf"{_ENTITY_TAG.pattern}(?:[ \t]*,[ \t]*{_ENTITY_TAG.pattern})*")
_REVISION = re.compile(r"[0-9]{1,18}")
_WAIT = re.compile(r"(?:^|[,;])\s*wait\s*=\s*\"?([0-9]{1,6})\"?\s*(?=$|[,;])", re.IGNORECASE)
_MAX_WAIT_S = 10.0


class Author(TypedDict):
    """Who changes something: the arguments that every use-case takes."""

    actor: Actor
    source: str
    reason: str


def author(request: Request) -> Author:
    caller = caller_of(request)
    assert caller is not None
    return {"actor": caller.actor, "source": "api", "reason": _reason(request)}


def own_permissions(request: Request) -> tuple[str, ...]:
    """What the caller may give at most (rule 14)."""
    caller = caller_of(request)
    assert caller is not None
    return caller.permissions


def _reason(request: Request) -> str:
    reason = unquote(request.headers.get("X-Change-Reason", ""))
    if len(reason) > MAX_REASON or not is_storable(reason):
        raise ClientFault("bad_request", f"X-Change-Reason is text of at most {MAX_REASON} characters.")
    return reason


def entity_tag(revision: int) -> str:
    return f'"{revision}"'


def if_match(request: Request, present: int) -> int | None:
    """The revision that the object must still have: None when any will do (RFC 9110 section 13.1.1)."""
    header = request.headers.get("If-Match")
    if header is None or header.strip() == "*":
        return None
    wanted = _entity_tags(header, weak=False)
    if present in wanted:
        return present
    return next(iter(wanted), -1)


def is_unchanged(request: Request, present: int) -> bool:
    header = request.headers.get("If-None-Match")
    return header is not None and (header.strip() == "*" or present in _entity_tags(header, weak=True))


def _entity_tags(header: str, *, weak: bool) -> list[int]:
    """Revisions in a list of entity tags; weak ones count only where the weak comparison is meant."""
    if not _ENTITY_TAGS.fullmatch(header.strip()):
        raise ClientFault("bad_request", 'If-Match and If-None-Match hold entity tags in quotes, such as "42".')
    return [int(tag[2]) for tag in _ENTITY_TAG.finditer(header) if _REVISION.fullmatch(tag[2]) and (weak or not tag[1])]


def settle(request: HttpRequest | Request, response: Response, numbers: list[int]) -> Response:
    """Wait until the gateways have applied what was written, and say so in the answer's headers (rule 30)."""
    if numbers:
        match = _WAIT.search(request.headers.get("Prefer", ""))
        wait_s = min(float(match[1]), _MAX_WAIT_S) if match else DEFAULT_WAIT_S
        pending = wait_for_nodes(numbers[-1], wait_s)
        response["X-Config-Revision"] = str(numbers[-1])
        if pending:
            response["X-Config-Pending"] = ", ".join(pending)
        if match:
            response["Preference-Applied"] = f"wait={wait_s:.0f}"
    return response


class ListViewSet(GenericViewSet[AnyRow], Generic[AnyRow]):
    """GET on a list and on one of its objects. Rows are found in ``get_queryset`` by ``lookup_field``."""

    resource: ClassVar[str]  # permissions are admin:<resource>:<action>
    plural: ClassVar[str]  # the member of the answer that holds the list
    tenant_path: ClassVar[str] = ""  # of rows that have no tenant themselves: what leads to it (service__tenant)
    orderings: ClassVar[dict[str, str]] = {"name": "name", "createdAt": "created_at", "updatedAt": "updated_at"}
    default_ordering: ClassVar[str] = ""  # empty: the first of them
    filter_backends = [StrictFilterBackend]
    pagination_class = CursorPages

    def get_queryset(self) -> QuerySet[AnyRow]:
        """Those of the caller's tenant."""
        rows = super().get_queryset()
        path = self.tenant_path or ("tenant" if issubclass(rows.model, TenantRow) else "")
        return of_tenant(rows, path) if path else rows

    def get_object(self) -> AnyRow:
        name = self.kwargs[self.lookup_field]
        row: AnyRow | None = self.get_queryset().filter(**{self.lookup_field: name}).first()
        if row is None:
            raise ClientFault("not_found", f"There is nothing named {name!r} here.")
        return row

    def list(self, request: Request, **_: Any) -> Response:
        page = self.paginate_queryset(self.filter_queryset(self.get_queryset()))
        return self.get_paginated_response(self.get_serializer(page, many=True).data)

    def retrieve(self, request: Request, **_: Any) -> Response:
        return Response(self.get_serializer(self.get_object()).data)


class ConfigViewSet(ListViewSet[Row], Generic[Row]):
    """Beside GET: POST on the list; PUT, PATCH and DELETE on the object."""

    is_conditional: ClassVar[bool] = True  # for the OpenAPI document: If-Match and If-None-Match count
    has_news_between_revisions: ClassVar[bool] = False  # an object shows more than its revision says: never a 304

    # --- what a subclass gives ---
    def store(self, values: dict[str, Any], author: Author) -> tuple[Row, dict[str, Any]]:
        """Create. Returns the row and further members of the answer."""
        raise NotImplementedError

    def change(
        self, row: Row, changes: dict[str, Any], if_revision: int | None, author: Author
    ) -> tuple[Row, dict[str, Any]]:
        """Update. Returns the row and further members of the answer."""
        raise NotImplementedError

    def remove(self, row: Row, if_revision: int | None, author: Author) -> None:
        raise NotImplementedError

    # --- what all have in common ---
    def create(self, request: Request, **_: Any) -> Response:
        serializer = self._validated(request)
        with observed() as numbers:
            row, members = self.store(serializer.changes(), author(request))
        response = self.answer(row, members, status=201)
        response["Location"] = f"{request.path.rstrip('/')}/{getattr(row, self.lookup_field)}"
        return settle(request, response, numbers)

    def retrieve(self, request: Request, **_: Any) -> Response:
        row = self.get_object()
        headers = {"ETag": entity_tag(row.revision), "Cache-Control": "private, no-cache"}
        if not self.has_news_between_revisions and is_unchanged(request, row.revision):
            return Response(status=304, headers=headers)
        return Response(self.get_serializer(row).data, headers=headers)

    def update(self, request: Request, **_: Any) -> Response:
        return self._change(request, partial=False)

    def partial_update(self, request: Request, **_: Any) -> Response:
        return self._change(request, partial=True)

    def destroy(self, request: Request, **_: Any) -> Response:
        row = self.get_object()
        with observed() as numbers:
            self.remove(row, if_match(request, row.revision), author(request))
        return settle(request, Response(status=204), numbers)

    def answer(self, row: Row, members: dict[str, Any], status: int = 200) -> Response:
        return Response(
            {**self.get_serializer(row).data, **members}, status=status, headers={"ETag": entity_tag(row.revision)}
        )

    def _change(self, request: Request, *, partial: bool) -> Response:
        row, by = self.get_object(), author(request)
        expected = if_match(request, row.revision)
        if expected is not None and expected != row.revision:
            raise stale(row, expected)
        serializer = self._validated(request, row, partial=partial)
        with observed() as numbers:
            row, members = self.change(row, serializer.changes(), expected, by)
        return settle(request, self.answer(row, members), numbers)

    def _validated(self, request: Request, row: Row | None = None, *, partial: bool = False) -> ConfigSerializer[Row]:
        serializer = cast("ConfigSerializer[Row]", self.get_serializer(row, data=request.data, partial=partial))
        serializer.is_valid(raise_exception=True)
        return serializer

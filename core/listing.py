"""Lists: filters by field, search, ordering, and pages by cursor.

``?limit=&cursor=&ordering=&search=`` and each list's own filters. A parameter that a list does not know is an error,
never ignored. A cursor is a position (the last row's value and id), not an offset: rows that come or go meanwhile
neither repeat nor hide others.
"""

import base64
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, ClassVar

import django_filters
import orjson
from django.core.exceptions import ValidationError as InvalidValue
from django.db.models import Model, Q, QuerySet
from django_filters.rest_framework import DjangoFilterBackend
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema_field
from rest_framework.exceptions import ValidationError
from rest_framework.pagination import BasePagination
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from core.faults import ClientFault
from core.validation import is_storable

DEFAULT_LIMIT = 50
MAX_LIMIT = 500
_OWN_PARAMETERS = frozenset({"limit", "cursor", "ordering"})


class Filters(django_filters.FilterSet):  # type: ignore[misc]
    """``search`` looks for a text, in any case, in the columns named by ``search_in``."""

    search_in: ClassVar[tuple[str, ...]] = ("name",)
    search = django_filters.CharFilter(method="_search", label="Rows whose name (or so) holds this text")

    def _search(self, queryset: QuerySet[Any], name: str, value: str) -> QuerySet[Any]:
        wanted = Q()
        for column in self.search_in:
            wanted |= Q(**{f"{column}__icontains": value})
        return queryset.filter(wanted)


def flag_filter(column: str, method: str | None = None) -> django_filters.TypedChoiceFilter:
    """``true`` or ``false``, and no third thing that would silently filter nothing."""
    choices = (("true", "true"), ("false", "false"))
    described: Callable[[Any], django_filters.TypedChoiceFilter] = extend_schema_field(OpenApiTypes.BOOL)
    return described(
        django_filters.TypedChoiceFilter(
            field_name=column, choices=choices, coerce=lambda text: text == "true", method=method
        )
    )


def refuse_empty(request: Request, names: Iterable[str]) -> None:
    """Of parameters that are no free text an empty value says nothing, and would silently filter nothing."""
    empty = [name for name in names if request.query_params.get(name) == ""]
    if empty:
        raise ValidationError({name: ["Give a value, or leave the parameter out."] for name in empty})


class StrictFilterBackend(DjangoFilterBackend):  # type: ignore[misc]
    def filter_queryset(self, request: Request, queryset: QuerySet[Any], view: APIView) -> QuerySet[Any]:
        filterset = self.get_filterset_class(view, queryset)
        known = _OWN_PARAMETERS.union(filterset.base_filters if filterset else ())
        unknown = sorted(set(request.query_params) - known)
        if unknown:
            raise ValidationError({name[:100]: ["This list has no such parameter."] for name in unknown})
        filters = filterset.base_filters if filterset else {}
        refuse_empty(
            request, [name for name, each in filters.items() if not isinstance(each, django_filters.CharFilter)]
        )
        filtered: QuerySet[Any] = super().filter_queryset(request, queryset, view)
        return filtered


class CursorPages(BasePagination):
    """The view names its ``plural``, its ``orderings`` {name in the URL: column}, and its ``default_ordering``."""

    plural = "rows"

    def paginate_queryset(self, queryset: Any, request: Request, view: Any = None) -> list[Any]:
        self.plural = view.plural
        self._count = queryset.count()
        limit = _limit(request.query_params)
        name, column, descending = _ordering(request.query_params, view)
        queryset = queryset.order_by(*_columns(column, descending))
        cursor = request.query_params.get("cursor")
        if cursor:
            queryset = queryset.filter(_after(queryset.model, cursor, name, column, descending))
        rows = list(queryset[: limit + 1])
        self._cursor = _cursor(rows[limit - 1], name, column) if len(rows) > limit else None
        return rows[:limit]

    def get_paginated_response(self, data: Any) -> Response:
        return Response({self.plural: data, "count": self._count, "cursor": self._cursor})

    def get_schema_operation_parameters(self, view: Any) -> list[dict[str, Any]]:
        names = [sign + name for name in getattr(view, "orderings", ()) for sign in ("", "-")]
        return [
            _parameter(
                "limit",
                f"How many, up to {MAX_LIMIT}",
                {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT, "default": DEFAULT_LIMIT},
            ),
            _parameter("cursor", "The page after: the `cursor` of the page before", {"type": "string"}),
            _parameter("ordering", "By what; a minus turns it round", {"type": "string", "enum": names}),
        ]

    def get_paginated_response_schema(self, schema: dict[str, Any]) -> dict[str, Any]:
        return {
            "type": "object",
            "required": [self.plural, "count", "cursor"],
            "properties": {
                self.plural: schema,
                "count": {"type": "integer", "description": "How many there are on all pages together"},
                "cursor": {"type": ["string", "null"], "description": "Where the next page begins; null on the last"},
            },
        }


def _parameter(name: str, description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "description": description, "schema": schema}


def _limit(params: Mapping[str, str]) -> int:
    text = params.get("limit", str(DEFAULT_LIMIT))
    if not (text.isascii() and text.isdigit() and len(text) <= 4 and 1 <= int(text) <= MAX_LIMIT):
        raise ValidationError({"limit": [f"A whole number from 1 to {MAX_LIMIT}."]})
    return int(text)


def _ordering(params: Mapping[str, str], view: Any) -> tuple[str, str, bool]:
    """The name with its sign, the column, and whether it descends."""
    wanted = params.get("ordering", view.default_ordering or next(iter(view.orderings)))
    column = view.orderings.get(wanted.removeprefix("-"))
    if column is None:
        raise ValidationError({"ordering": [f"One of {', '.join(view.orderings)}; a minus before it turns it round."]})
    return wanted, column, wanted.startswith("-")


def _columns(column: str, descending: bool) -> Sequence[str]:
    sign = "-" if descending else ""
    return (sign + column,) if column == "pk" else (sign + column, sign + "pk")


def _cursor(row: Model, name: str, column: str) -> str:
    value = getattr(row, column)
    if isinstance(value, datetime):
        value = value.isoformat()
    return base64.urlsafe_b64encode(orjson.dumps([name, value, row.pk])).decode().rstrip("=")


def _after(model: type[Model], cursor: str, name: str, column: str, descending: bool) -> Q:
    """What comes after the cursor's row. Raises ClientFault for a cursor that this list has not made."""
    try:
        made_by, value, key = orjson.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        if made_by != name:
            raise ValueError("it belongs to another ordering")
        value, key = _position(model, column, value), _position(model, "pk", key)
    except (ValueError, TypeError, OverflowError, InvalidValue) as error:
        raise ClientFault("bad_request", "The cursor is not one that this list, in this ordering, gave.") from error
    beyond = "lt" if descending else "gt"
    if column == "pk":
        return Q(**{f"pk__{beyond}": key})
    return Q(**{f"{column}__{beyond}": value}) | Q(**{column: value, f"pk__{beyond}": key})


def _position(model: type[Model], name: str, value: Any) -> Any:
    column: Any = model._meta.pk if name == "pk" else model._meta.get_field(name)
    value = column.to_python(value)
    if value is None or (isinstance(value, str) and not is_storable(value)):
        raise ValueError("no row has this value")
    return value.astimezone(UTC) if isinstance(value, datetime) else value

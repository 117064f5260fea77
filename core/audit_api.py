"""The audit trail: ``/admin/audit``, ``/admin/audit/{id}`` and ``/admin/audit/export`` (rule 23)."""

import csv
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from io import StringIO
from typing import Any

import orjson
from django.http import StreamingHttpResponse
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiExample, OpenApiParameter, extend_schema, extend_schema_serializer
from rest_framework import serializers
from rest_framework.exceptions import ValidationError
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from core import audit, audit_trail
from core.api import author
from core.api_problems import camel
from core.audit_trail import Entry, Search
from core.faults import ClientFault
from core.listing import DEFAULT_LIMIT, MAX_LIMIT, refuse_empty
from core.models import AuditEvent
from core.serializers import epoch_ms
from core.validation import is_storable

_TEXTS = {
    "search": ("text", "In names, reasons, actions, addresses and request ids"),
    "action": ("action", "`key.create`, or with a final * `session.*`"),
    "actor": ("actor", "Its id or name"),
    "objectKind": ("object_kind", "`service`, `api_key`, …"),
    "objectId": ("object_id", "The object's id"),
    "outcome": ("outcome", "success, failure or denied"),
    "source": ("source", "panel, api, command or gateway"),
    "address": ("address", "The client's"),
    "requestId": ("request_id", "As X-Request-ID told it"),
}
_LONGEST = 200
_PIECE = 64 * 1024
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LAST_MS = 253_402_300_799_999  # the end of the year 9999
_TEXT = {"type": "string", "maxLength": _LONGEST}
_OUTCOME = {"type": "string", "enum": AuditEvent.Outcome.values}
_MOMENT = {"type": "integer", "format": "int64", "minimum": 0, "maximum": _LAST_MS}
FILTERS = [
    *(
        OpenApiParameter(name, _OUTCOME if name == "outcome" else _TEXT, description=description)
        for name, (_, description) in _TEXTS.items()
    ),
    OpenApiParameter("since", _MOMENT, description="Epoch milliseconds: from then on"),
    OpenApiParameter("until", _MOMENT, description="Epoch milliseconds: before then"),
]
COLUMNS = (
    "timestamp", "action", "outcome", "actorKind", "actorId", "actorName", "source", "resourceType", "resourceId",
    "resourceName", "reason", "requestId", "clientIp", "revision", "changes", "details", "id",
)  # fmt: skip


class AuditActorSerializer(serializers.Serializer[Any]):
    kind = serializers.CharField()
    id = serializers.CharField()
    name = serializers.CharField()


class AuditResourceSerializer(serializers.Serializer[Any]):
    type = serializers.CharField()
    id = serializers.CharField()
    name = serializers.CharField()


class AuditFieldSerializer(serializers.Serializer[Any]):
    before = serializers.JSONField(allow_null=True)
    after = serializers.JSONField(allow_null=True)


@extend_schema_serializer(
    examples=[
        OpenApiExample(
            "A key was made",
            {
                "id": "chg_1042",
                "timestamp": 1688052945123,
                "action": "key.create",
                "outcome": "success",
                "actor": {"kind": "user", "id": "7", "name": "admin@example.com"},
                "resource": {"type": "api_key", "id": "key_1a2b3c4d5e6f", "name": "Service API Key"},
                "source": "api",
                "reason": "for the new warehouse",
                "requestId": "req_xyz789",
                "clientIp": "192.168.1.1",
                "revision": 311,
                "changes": {"scopes": {"before": None, "after": ["read:data"]}},
                "details": {},
            },
            response_only=True,
        )
    ]
)
class AuditEntrySerializer(serializers.Serializer[Any]):
    """``changes`` hold the fields that differ, of changes of the configuration; ``details`` whatever else is known.
    Neither holds a secret."""

    id = serializers.CharField()
    timestamp = serializers.IntegerField()
    action = serializers.CharField()
    outcome = serializers.ChoiceField(choices=AuditEvent.Outcome.choices)
    actor = AuditActorSerializer()
    resource = AuditResourceSerializer()
    source = serializers.CharField()  # type: ignore[assignment]  # a member, not where it comes from
    reason = serializers.CharField()
    requestId = serializers.CharField()
    clientIp = serializers.CharField()
    revision = serializers.IntegerField(allow_null=True)
    changes = serializers.DictField(child=AuditFieldSerializer())
    details = serializers.DictField()


class AuditPageSerializer(serializers.Serializer[Any]):
    entries = AuditEntrySerializer(many=True)
    cursor = serializers.CharField(allow_null=True)


def document(entry: Entry) -> dict[str, Any]:
    return {
        "id": entry.id,
        "timestamp": epoch_ms(entry.at),
        "action": entry.action,
        "outcome": entry.outcome,
        "actor": {"kind": entry.actor_kind, "id": entry.actor_id, "name": entry.actor_name},
        "resource": {"type": entry.object_kind, "id": entry.object_id, "name": entry.object_name},
        "source": entry.source,
        "reason": entry.reason,
        "requestId": entry.request_id,
        "clientIp": entry.address,
        "revision": entry.revision,
        "changes": {camel(name): {"before": old, "after": new} for name, (old, new) in entry.changes.items()},
        "details": dict(entry.details),
    }


class AuditView(APIView):
    """Who did what to what, newest first."""

    resource = "logs"

    @extend_schema(
        operation_id="audit_list",
        summary="List audit entries",
        parameters=[
            *FILTERS,
            OpenApiParameter(
                "limit",
                {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT},
                description=f"How many, up to {MAX_LIMIT}",
            ),
            OpenApiParameter("cursor", str, description="The page after: the `cursor` of the page before"),
        ],
        responses=AuditPageSerializer,
    )
    def get(self, request: Request) -> Response:
        params = _params(request, {"limit", "cursor"})
        limit = _number(params, "limit", 1, MAX_LIMIT) or DEFAULT_LIMIT
        after = audit_trail.position(params["cursor"]) if params.get("cursor") else None
        found = audit_trail.entries(search_of(params, author(request)["actor"].tenant_id), after, limit + 1)
        shown = found[:limit]
        more = audit_trail.cursor(shown[-1].position) if len(found) > limit else None
        return Response({"entries": [document(entry) for entry in shown], "cursor": more})


class AuditEntryView(APIView):
    resource = "logs"

    @extend_schema(operation_id="audit_retrieve", summary="Read audit entry", responses=AuditEntrySerializer)
    def get(self, request: Request, id: str) -> Response:
        found = audit_trail.entry(id, author(request)["actor"].tenant_id)
        if found is None:
            raise ClientFault("not_found", f"There is nothing named {id!r} here.")
        return Response(document(found))


class AuditExportView(APIView):
    """Everything that the filters leave, as one file. The export is itself a line of the trail."""

    resource = "logs"

    @extend_schema(
        operation_id="audit_export",
        summary="Export audit entries",
        parameters=[*FILTERS, OpenApiParameter("format", str, enum=["csv", "json"], description="json by default")],
        responses={
            (200, "application/json"): AuditEntrySerializer(many=True),
            (200, "text/csv"): OpenApiTypes.STR,
        },
    )
    def get(self, request: Request) -> StreamingHttpResponse:
        params = _params(request, {"format"})
        kind = params.get("format", "json")
        if kind not in ("csv", "json"):
            raise ValidationError({"format": ["csv or json."]})
        who = author(request)
        search = search_of(params, who["actor"].tenant_id)
        return export(search, kind, actor=who["actor"], source=who["source"], filters=params)


def export(search: Search, kind: str, *, actor: Any, source: str, filters: Mapping[str, str]) -> StreamingHttpResponse:
    """A download. ``kind`` is csv or json."""
    audit.record("audit.export", actor=actor, source=source, details={"filters": dict(filters), "format": kind})
    lines = _csv(audit_trail.every(search)) if kind == "csv" else _json(audit_trail.every(search))
    content_type = "text/csv; charset=utf-8" if kind == "csv" else "application/json"
    response = StreamingHttpResponse(_in_pieces(lines), content_type=content_type)
    response["Content-Disposition"] = f'attachment; filename="audit.{kind}"'
    response["Cache-Control"] = "no-store"
    return response


def search_of(params: Mapping[str, str], tenant_id: str) -> Search:
    texts = {field: params.get(name, "") for name, (field, _) in _TEXTS.items()}
    for name, value in params.items():
        if len(value) > _LONGEST and name != "cursor":
            raise ValidationError({name: [f"At most {_LONGEST} characters."]})
        if not is_storable(value):
            raise ValidationError({name: ["The text holds a NUL character or half of a surrogate pair."]})
    if texts["outcome"] and texts["outcome"] not in AuditEvent.Outcome.values:
        raise ValidationError({"outcome": [f"One of {', '.join(AuditEvent.Outcome.values)}."]})
    return Search(tenant_id, **texts, since=_moment(params, "since"), until=_moment(params, "until"))


def _params(request: Request, own: set[str]) -> dict[str, str]:
    params: dict[str, str] = {name: str(value) for name, value in request.query_params.items()}
    unknown = sorted(set(params) - own - set(_TEXTS) - {"since", "until"})
    if unknown:
        raise ValidationError({name[:100]: ["This list has no such parameter."] for name in unknown})
    refuse_empty(request, ("outcome", "since", "until", "limit"))
    return params


def _moment(params: Mapping[str, str], name: str) -> datetime | None:
    number = _number(params, name, 0, _LAST_MS)
    return None if number is None else _EPOCH + timedelta(milliseconds=number)


def _number(params: Mapping[str, str], name: str, least: int, most: int) -> int | None:
    text = params.get(name, "")
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 15 and least <= int(text) <= most):
        raise ValidationError({name: [f"A whole number from {least} to {most}."]})
    return int(text)


# --- files ---------------------------------------------------------------------------------------------------------
def _in_pieces(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Few large ones: each is a turn of a thread."""
    piece = bytearray()
    for line in lines:
        piece += line
        if len(piece) >= _PIECE:
            yield bytes(piece)
            piece.clear()
    yield bytes(piece)


def _json(found: Iterable[Entry]) -> Iterator[bytes]:
    separator = b"["
    for entry in found:
        yield separator + orjson.dumps(document(entry))
        separator = b",\n"
    yield b"[]\n" if separator == b"[" else b"]\n"


def _csv(found: Iterable[Entry]) -> Iterator[bytes]:
    yield _line(COLUMNS)
    for entry in found:
        each = document(entry)
        yield _line(
            (
                entry.at.isoformat(),
                entry.action,
                entry.outcome,
                *(_plain(text) for text in (entry.actor_kind, entry.actor_id, entry.actor_name, entry.source)),
                *(_plain(text) for text in (entry.object_kind, entry.object_id, entry.object_name, entry.reason)),
                _plain(entry.request_id),
                _plain(entry.address),
                entry.revision or "",
                orjson.dumps(each["changes"]).decode(),
                orjson.dumps(each["details"]).decode(),
                entry.id,
            )
        )


def _line(cells: Iterable[object]) -> bytes:
    buffer = StringIO()
    csv.writer(buffer).writerow(cells)
    return buffer.getvalue().encode()


def _plain(text: str) -> str:
    """Spreadsheets take cells that begin like this for formulas (OWASP: CSV injection)."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text

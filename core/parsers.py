"""JSON in and out. Strictly: what PostgreSQL or the gateways could not hold is refused here with a sentence."""

import json
from collections.abc import Mapping
from typing import IO, Any

import orjson
from rest_framework.metadata import BaseMetadata
from rest_framework.negotiation import BaseContentNegotiation
from rest_framework.parsers import BaseParser
from rest_framework.renderers import BaseRenderer
from rest_framework.request import Request

from core.faults import ClientFault

MAX_BODY = 1024 * 1024
MAX_DEPTH = 32  # nothing that admins send is nested deeper than three levels


class StrictJSONParser(BaseParser):
    """UTF-8 JSON as RFC 8259 has it: no NaN, no half surrogate pairs, no NUL, which no column takes, no depths."""

    media_type = "application/json"

    def parse(
        self, stream: IO[Any], media_type: str | None = None, parser_context: Mapping[str, Any] | None = None
    ) -> Any:
        data = stream.read(MAX_BODY + 1)
        if len(data) > MAX_BODY:
            raise ClientFault("payload_too_large", f"The body is over the limit of {MAX_BODY} bytes.")
        try:
            document = orjson.loads(data)
        except orjson.JSONDecodeError as error:
            raise ClientFault("bad_request", f"The body is not valid JSON: {error}.") from None
        if b"\\u0000" in data or data.count(b"[") + data.count(b"{") > MAX_DEPTH:
            _check_values(document)
        json.loads(data, object_pairs_hook=_without_duplicates)  # after the check of depth: this one is recursive
        return document


def _without_duplicates(members: list[tuple[str, Any]]) -> None:
    """Of two members of a name most readers take the last, some the first (RFC 8259 section 4): nobody shall guess."""
    names = [name for name, _ in members]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ClientFault("bad_request", f"The body names the member {twice[:100]!r} twice.")


def _check_values(document: Any) -> None:
    waiting = [(document, 0)]
    while waiting:
        value, depth = waiting.pop()
        if isinstance(value, str) and "\x00" in value:
            raise ClientFault("bad_request", "The body holds a NUL character.")
        if isinstance(value, dict | list):
            if depth == MAX_DEPTH:  # whoever looks at it recursively would fail
                raise ClientFault("bad_request", f"The body is nested deeper than {MAX_DEPTH} levels.")
            inner = [*value, *value.values()] if isinstance(value, dict) else value
            waiting.extend((each, depth + 1) for each in inner)


class AlwaysJSON(BaseContentNegotiation):
    """There is one representation; a client that asks for another gets it rather than a refusal (RFC 9110, 12.5.1)."""

    def select_parser(self, request: Request, parsers: list[BaseParser]) -> BaseParser | None:  # type: ignore[override]
        content_type = (request.content_type or "").partition(";")[0].strip().lower()
        return next((parser for parser in parsers if parser.media_type == content_type), None)

    def select_renderer(  # type: ignore[override]
        self, request: Request, renderers: list[BaseRenderer], format_suffix: str | None = None
    ) -> tuple[BaseRenderer, str]:
        return renderers[0], str(renderers[0].media_type)


class NoMetadata(BaseMetadata):
    """OPTIONS answers with Allow; the rest stands in /openapi.json."""

    def determine_metadata(self, request: Request, view: Any) -> dict[str, Any]:
        return {}

"""JSON in and out. Strictly: what PostgreSQL or the gateways could not hold is refused here with a sentence."""

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


class StrictJSONParser(BaseParser):
    """UTF-8 JSON as RFC 8259 has it: no NaN, no half surrogate pairs, and no NUL, which no column takes."""

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
        if b"\\u0000" in data and _holds_nul(document):
            raise ClientFault("bad_request", "The body holds a NUL character.")
        return document


def _holds_nul(document: Any) -> bool:
    waiting = [document]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str) and "\x00" in value:
            return True
        if isinstance(value, dict):
            waiting.extend(value.keys())
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)
    return False


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

"""What every request to the control process passes first."""

import re
from collections.abc import AsyncIterator, Callable, Iterable

from django.http import HttpRequest, HttpResponse, StreamingHttpResponse

from core.ids import new_request_id
from core.ingress import is_through_gateway

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


class ControlMiddleware:
    """Names the request, and drops cookies that came by the gateway port: no panel session counts there (rule 15)."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        given = request.headers.get("X-Request-ID", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else new_request_id()
        request.request_id = request_id  # type: ignore[attr-defined]
        if is_through_gateway(request):
            request.META.pop("HTTP_COOKIE", None)
        response = self._get_response(request)
        response["X-Request-ID"] = request_id
        response.headers.setdefault("Cache-Control", "no-store")
        if isinstance(response, StreamingHttpResponse) and not response.is_async and hasattr(request, "scope"):
            response.streaming_content = _asynchronous(response.streaming_content)
        return response


async def _asynchronous(pieces: Iterable[bytes]) -> AsyncIterator[bytes]:
    """WhiteNoise's files, piece by piece: under ASGI, Django would first read them whole, and warn of it."""
    for piece in pieces:
        yield piece

"""What every request to the control process passes first."""

import re
from collections.abc import AsyncIterator, Callable, Iterable

from asgiref.sync import sync_to_async
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse

from core import own_headers
from core.ids import new_request_id
from core.ingress import is_through_gateway
from core.tenants import within_tenant

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


class ControlMiddleware:
    """Names the request, ends its tenant (`core.tenants`), and drops cookies that came by the gateway port: no panel
    session counts there (rule 15)."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        given = request.headers.get("X-Request-ID", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else new_request_id()
        request.request_id = request_id  # type: ignore[attr-defined]
        if is_through_gateway(request):
            request.META.pop("HTTP_COOKIE", None)
        with within_tenant(None):  # authentication enters one, up to here
            response = self._get_response(request)
        response["X-Request-ID"] = request_id
        response.headers.setdefault("Cache-Control", "no-store")
        _protect(response)
        if isinstance(response, StreamingHttpResponse) and not response.is_async and hasattr(request, "scope"):
            response.streaming_content = _asynchronous(response.streaming_content)
        return response


def _protect(response: HttpResponse) -> None:
    """What a view has said itself stays."""
    for name, value in own_headers.ALWAYS.items():
        response.headers.setdefault(name, value)
    is_page = response.headers.get("Content-Type", "").startswith("text/html")
    response.headers.setdefault("Content-Security-Policy", own_headers.PAGE if is_page else own_headers.NO_PAGE)


async def _asynchronous(pieces: Iterable[bytes]) -> AsyncIterator[bytes]:
    """Files and exports, piece by piece: under ASGI, Django would first read them whole, and warn of it. Pieces may
    come from the database, so they are made in the request's thread."""
    iterator = iter(pieces)
    following = sync_to_async(lambda: next(iterator, None))
    while (piece := await following()) is not None:
        yield piece

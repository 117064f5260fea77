"""The control process's ASGI application: panel and admin API. No request body beyond its limit reaches Django."""

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from django.conf import settings
from django.core.asgi import get_asgi_application

from core.faults import ClientFault
from core.ids import new_request_id
from core.parsers import MAX_BODY
from core.problem import render

_LINGER_S = 2.0
_LINGER_BYTES = 16 * MAX_BODY

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]


def limited(inner: Application) -> Application:
    """Django writes a whole body to disk before any view runs, so the limit must stand before it, for everybody."""

    async def application(scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await inner(scope, receive, send)
            return
        if _declared_length(scope) > MAX_BODY:
            await _refuse(scope, receive, send)
            return
        received = 0
        is_refused = False

        async def counted() -> Message:
            nonlocal received, is_refused
            message = await receive()
            received += len(message.get("body", b""))
            if received > MAX_BODY and not is_refused:
                is_refused = True
                await _refuse(scope, receive, send)
                return {"type": "http.disconnect"}
            return message

        async def unless_refused(message: Message) -> None:
            if not is_refused:
                await send(message)

        await inner(scope, counted, unless_refused)

    return application


def _declared_length(scope: Message) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit():
            return int(value[:20])
    return 0


async def _refuse(scope: Message, receive: Receive, send: Send) -> None:
    fault = ClientFault("payload_too_large", f"The body is over the limit of {MAX_BODY} bytes.")
    status, headers, body = render(fault, scope["path"], new_request_id())
    headers += [(b"content-length", b"%d" % len(body)), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": True})
    # Closing a connection on unread bytes resets it, and the client may never see the answer (RFC 9112 section 9.6).
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_LINGER_S):
            await _discard(receive)
    await send({"type": "http.response.body"})


async def _discard(receive: Receive) -> None:
    received = 0
    while received < _LINGER_BYTES:
        message = await receive()
        if not message.get("more_body"):  # its end, or the client has left
            return
        received += len(message["body"])


os.environ.setdefault("DJANGO_SETTINGS_MODULE", "gateway_project.settings")
# Under ASGI each request has a thread of its own, so a connection kept for the next one would be kept for nobody.
settings.DATABASES["default"]["CONN_MAX_AGE"] = 0
application = limited(get_asgi_application())  # type: ignore[arg-type]

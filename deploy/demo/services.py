"""Three small services for the gateway to serve: `auth`, `monolith` and `pipeline`, each an ASGI application.

    uvicorn deploy.demo.services:auth --port 7200

They know nothing of the gateway; the headers that it adds are all they learn of the client.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Answer = tuple[int, Any]
MAX_BODY = 1024 * 1024
PRODUCTS = {
    "1": {"id": "1", "name": "Hinge", "price": 12.5},
    "2": {"id": "2", "name": "Latch", "price": 7.25},
    "3": {"id": "3", "name": "Portcullis", "price": 1250.0},
}


@dataclass(frozen=True, slots=True)
class Call:
    """A request, read whole. ``matched`` is what the path's groups hold, ``document`` the JSON object of the body."""

    matched: dict[str, str]
    headers: dict[str, str]
    document: dict[str, Any]

    @property
    def told_by_gateway(self) -> dict[str, str | None]:
        return {
            "application": self.headers.get("x-gateway-application"),
            "request_id": self.headers.get("x-request-id"),
        }


class BadBody(Exception):
    """``str()`` says what is wrong with it."""


class Service:
    """An ASGI application made of handlers by method and path."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._handlers: list[tuple[str, re.Pattern[str], Callable[[Call], Answer]]] = []

    def on(self, method: str, path: str) -> Callable[[Callable[[Call], Answer]], Callable[[Call], Answer]]:
        """``path`` is a template: ``/products/{id}``."""
        pattern = re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", path))

        def register(handler: Callable[[Call], Answer]) -> Callable[[Call], Answer]:
            self._handlers.append((method, pattern, handler))
            return handler

        return register

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        try:
            body = await _read(receive)
            status, document = self._answer(scope, body)
        except BadBody as error:
            status, document = 400, {"error": str(error)}
        await _respond(send, status, document, is_head=scope["method"] == "HEAD")

    def _answer(self, scope: Scope, body: dict[str, Any]) -> Answer:
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        is_known_path = False
        for known_method, pattern, handler in self._handlers:
            match = pattern.fullmatch(scope["path"])
            if match and known_method == method:
                headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
                return handler(Call(match.groupdict(), headers, body))
            is_known_path = is_known_path or match is not None
        problem = "method not allowed" if is_known_path else "not found"
        return (405 if is_known_path else 404), {"error": problem, "service": self.name}


async def _read(receive: Receive) -> dict[str, Any]:
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > MAX_BODY:
            raise BadBody("the body is too large")
        if not message.get("more_body"):
            break
    try:
        document = json.loads(body or b"{}")
    except ValueError:
        raise BadBody("the body is no JSON") from None
    if not isinstance(document, dict):
        raise BadBody("the body is no JSON object")
    return document


async def _respond(send: Send, status: int, document: Any, *, is_head: bool) -> None:
    body = json.dumps(document).encode() + b"\n"
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if is_head else body})


auth = Service("auth")
monolith = Service("monolith")
pipeline = Service("pipeline")


@auth.on("GET", "/api/auth/status")
def auth_status(_: Call) -> Answer:
    return 200, {"service": "auth", "status": "up"}


@auth.on("POST", "/api/auth/login")
def log_in(call: Call) -> Answer:
    """Anybody may: this is a demonstration."""
    user = call.document.get("username")
    if not isinstance(user, str) or not user:
        return 422, {"error": "username is missing"}
    return 200, {"user": user, "session": f"session of {user}", **call.told_by_gateway}


@auth.on("GET", "/api/auth/profile")
def profile(call: Call) -> Answer:
    return 200, {"user": "demo", **call.told_by_gateway}


@monolith.on("GET", "/products")
def list_products(_: Call) -> Answer:
    return 200, {"products": list(PRODUCTS.values())}


@monolith.on("GET", "/products/{id}")
def show_product(call: Call) -> Answer:
    product = PRODUCTS.get(call.matched["id"])
    return (200, product) if product else (404, {"error": "no such product"})


@monolith.on("POST", "/orders")
def place_order(call: Call) -> Answer:
    product = PRODUCTS.get(str(call.document.get("product")))
    if product is None:
        return 422, {"error": f"product must be one of {', '.join(PRODUCTS)}"}
    return 201, {"order": {"product": product, "state": "placed"}, **call.told_by_gateway}


@pipeline.on("GET", "/{version}/pipelines")
def list_pipelines(call: Call) -> Answer:
    return 200, {"version": call.matched["version"], "pipelines": [{"id": "nightly", "state": "idle"}]}


@pipeline.on("POST", "/{version}/pipelines/{id}/runs")
def start_run(call: Call) -> Answer:
    return 202, {"version": call.matched["version"], "pipeline": call.matched["id"], "state": "started"}


for _service in (monolith, pipeline):

    @_service.on("GET", "/health")
    def health(_: Call) -> Answer:
        return 200, {"status": "up"}

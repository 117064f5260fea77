"""An exchange over ASGI, for servers that are not ours: the same pipeline, with messages instead of a socket."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from core.context import CLIENT_LEFT, BodySink, Exchange, RequestHead, Session
from core.faults import ClientFault, GatewayFault

if TYPE_CHECKING:
    from gateway_project.dataplane.app import Gateway

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
_HIGH_WATER = 256 * 1024  # of an answer's body that the server has not taken yet


class AsgiExchange(RequestHead, Exchange):
    """Bridges the pipeline's callbacks to `receive` and `send`; bounded buffers in both directions."""

    def __init__(self, gateway: Gateway, scope: dict[str, Any]) -> None:
        self._gateway = gateway
        self._scope = scope
        self.key_header = gateway.key_header
        self.max_field_bytes = gateway.settings.max_header_field_bytes
        self.method = scope["method"].encode("ascii")
        self.protocol = b"HTTP/" + scope["http_version"].encode("ascii")
        self.raw_path = scope.get("raw_path") or scope["path"].encode("utf-8")
        self.query = scope["query_string"] or None
        self.scheme = scope.get("scheme", "http")
        self.protocol = b"HTTP/" + scope.get("http_version", "1.1").encode("ascii")
        self.peer = scope["client"][0] if scope.get("client") else ""
        self.identity = gateway.identify(self.peer, self.scheme, b"", {})
        self.session = Session()
        self.started = gateway.now()
        self._messages: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self._waiting_bytes = 0
        self._may_read = asyncio.Event()
        self._is_answered = False
        self._is_body_over = False
        self._replaced: bytes | None = None  # the body, once a step has taken and changed it
        self._reader: asyncio.Task[None] | None = None
        self._receive: Receive

    async def run(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._begin()
        while (message := await self._messages.get()) is not None:
            await send(message)
            if message["type"] == "http.response.body":
                self._sent(len(message["body"]))
        if self._reader is not None:
            self._reader.cancel()

    def _begin(self) -> None:
        self.begin_head()
        try:
            for name, value in self._scope["headers"]:
                self.add_field(name, value)
            self._read_head()
        except GatewayFault as fault:
            self._gateway.refuse(self, fault)
        else:
            if not self.has_body:
                self._may_read.set()  # nothing comes but a disconnect
            self._reader = asyncio.get_running_loop().create_task(self._read())
            self._gateway.handle(self)

    def _read_head(self) -> None:
        noted = self.noted
        host = noted.get(b"host", b"")
        if not host and self._scope.get("http_version") == "1.1":
            raise ClientFault("bad_request", "The Host field is missing.")
        self.identity = self._gateway.identify(self.peer, self.scheme, host, noted)
        length = noted.get(b"content-length")
        if b"transfer-encoding" in noted:
            if length is not None or noted[b"transfer-encoding"].lower() != b"chunked":
                raise ClientFault("bad_request", "The only transfer coding that is served is chunked, by itself.")
            self.has_body = True
        elif length is not None:
            if not length.isdigit():
                raise ClientFault("bad_request", "Content-Length is no number.")
            self.content_length = int(length)
            self.has_body = self.content_length > 0

    # --- the body ---
    async def _read(self) -> None:
        await self._may_read.wait()
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self._client_left()
                return
            data = message.get("body", b"")
            if data and not self._take(data):
                return
            is_end = self.has_body and not message.get("more_body", False)
            if is_end and self.sink is not None and not self._is_body_over:
                self._is_body_over = True  # said once; from here on only a disconnect can come
                self.sink.body_end()
            await self._may_read.wait()

    def _take(self, data: bytes) -> bool:
        self.bytes_in += len(data)
        sink = self.sink
        if sink is None:
            return True
        if self.max_body_bytes is not None and self.bytes_in > self.max_body_bytes:
            sink.refuse_body(ClientFault("payload_too_large", f"The body is over {self.max_body_bytes} bytes."))
            return False
        sink.body_data(data)
        return True

    def read_body(self, sink: BodySink) -> None:
        self.sink = sink
        if self._replaced is not None:
            sink.body_data(self._replaced)
            sink.body_end()
        elif self.has_body:
            self._may_read.set()
        else:
            sink.body_end()

    def replace_body(self, body: bytes) -> None:
        self._replaced = body
        self.content_length = len(body)

    def pause_body(self) -> None:
        self._may_read.clear()

    def resume_body(self) -> None:
        self._may_read.set()

    def _client_left(self) -> None:
        if self._is_answered:
            return
        self.status = CLIENT_LEFT
        sink, self.sink = self.sink, None
        if sink is not None:
            sink.client_gone()
        if self.left is not None:
            self.left()
        self._finish()

    # --- the answer ---
    def answer(self, status: int, lines: bytes, body: bytes) -> None:
        if self._is_answered:
            return
        self.start(status, lines, is_sized=True)
        if body and self.method != b"HEAD":
            self.write(body)
        self.end()

    def start(self, status: int, lines: bytes, *, is_sized: bool) -> None:
        self.status = status
        self._may_read.set()  # from here on a disconnect must be heard
        headers = [tuple(line.split(b": ", 1)) for line in lines.split(b"\r\n") if line]
        self._messages.put_nowait({"type": "http.response.start", "status": status, "headers": headers})

    def write(self, data: bytes) -> bool:
        self.bytes_out += len(data)
        self._waiting_bytes += len(data)
        self._messages.put_nowait({"type": "http.response.body", "body": data, "more_body": True})
        return self._waiting_bytes < _HIGH_WATER

    def _sent(self, size: int) -> None:
        was_full = self._waiting_bytes >= _HIGH_WATER
        self._waiting_bytes -= size
        if was_full and self._waiting_bytes < _HIGH_WATER and self.sink is not None:
            self.sink.client_ready()

    def end(self) -> None:
        if not self._is_answered:
            self._messages.put_nowait({"type": "http.response.body", "body": b"", "more_body": False})
            self._finish()

    def abort(self) -> None:
        """ASGI has no way to cut an answer but to leave it unfinished, upon which servers close the connection."""
        if not self._is_answered:
            self.fault_code = self.fault_code or "aborted"
            self._finish()

    def _finish(self) -> None:
        self._is_answered = True
        self.sink = None
        self._messages.put_nowait(None)
        self._gateway.account(self)

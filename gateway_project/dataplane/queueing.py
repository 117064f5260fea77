"""Requests that lead to a queue, and questions about tasks: the agent is asked, the client gets its answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from core.context import Exchange
from core.faults import GatewayFault
from queues.envelope import accepted, parse_body

if TYPE_CHECKING:
    from gateway_project.dataplane.app import Gateway

_ACCEPT_TIMEOUT_S = 10.0


class Queueing:
    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def accept(self, exchange: Exchange) -> None:
        """Take the request's body whole (it is bounded) and have the agent store it; answer 202 (rule 19)."""
        collector = _Collector(self._gateway, exchange)
        exchange.sink = collector
        exchange.read_body(collector)

    def status(self, exchange: Exchange, task_id: bytes) -> None:
        """Answer with the state of a task to its sender, and to nobody else (rule 20)."""
        pipeline = self._gateway.pipeline
        credential = pipeline.credential(exchange)
        application = ""
        if credential is not None:
            exchange.key = pipeline.verify(exchange, credential)
            application = exchange.key.application_id or ""
        params = {"id": task_id.decode("ascii", "replace"), "application": application}
        self._gateway.spawn(exchange, self._ask(exchange, "task", params))

    async def _ask(self, exchange: Exchange, name: str, params: dict[str, Any]) -> None:
        result = await self._gateway.link.call(name, params, _ACCEPT_TIMEOUT_S)
        if name == "accept":
            fields, body = accepted(result["task_id"])
            self._gateway.answer(exchange, 202, fields, body)
        else:
            self._gateway.answer_json(exchange, 200, result)

    def store(self, exchange: Exchange, body: bytes) -> None:
        """The body is whole: validate and store it. Raises GatewayFault."""
        queue_route = exchange.match.queue_route
        params = {
            "queue_route": queue_route.id,
            "application": exchange.application.id if exchange.key is not None else "",
            "key": exchange.key.id if exchange.key is not None else "",
            "body": parse_body(queue_route, exchange.noted.get(b"content-type"), body),
            "request_id": exchange.request_id.decode("ascii"),
            "traceparent": exchange.trace_lines[13:68].decode("ascii"),
        }
        self._gateway.spawn(exchange, self._ask(exchange, "accept", params))


class _Collector:
    """Gathers a body; its size is bounded by the exchange's limit."""

    __slots__ = ("_chunks", "_exchange", "_gateway")

    def __init__(self, gateway: Gateway, exchange: Exchange) -> None:
        self._gateway = gateway
        self._exchange = exchange
        self._chunks: list[bytes] = []

    def body_data(self, data: bytes) -> None:
        self._chunks.append(data)

    def body_end(self) -> None:
        exchange = self._exchange
        exchange.sink = None
        try:
            self._gateway.queueing.store(exchange, b"".join(self._chunks))
        except GatewayFault as fault:
            self._gateway.refuse(exchange, fault)

    def client_gone(self) -> None:
        self._chunks.clear()

    def client_ready(self) -> None:
        """Nothing is written while a body is gathered."""

    def refuse_body(self, fault: GatewayFault) -> None:
        self._gateway.refuse(self._exchange, fault)

"""Requests that lead to a queue, and questions about tasks: the agent is asked, the client gets its answer."""

from __future__ import annotations

from functools import partial
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from core.context import Exchange
from gateway_project.dataplane.address_lists import check_application
from gateway_project.dataplane.body_collector import collect_body
from gateway_project.dataplane.questions import Question
from queues.envelope import accepted, parse_body

if TYPE_CHECKING:
    from gateway_project.dataplane.app import Gateway

_ACCEPT_TIMEOUT_S = 10.0
_MAX_USER = 100  # characters that are stored


class Queueing:
    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def accept(self, exchange: Exchange) -> None:
        """Take the request's body whole (it is bounded) and have the agent store it; answer 202 (rule 19)."""
        collect_body(self._gateway, exchange, partial(self.store, exchange))

    def status(self, exchange: Exchange, task_id: bytes) -> None:
        """Answer with the state of a task to its sender, and to nobody else (rule 20)."""
        admission, again = self._gateway.admission, partial(self.status, exchange, task_id)
        try:
            application = admission.sender(exchange, again)
        except Question as question:
            raise admission.hold(exchange, question, again) from None
        record = exchange.snapshot.applications.get(application)
        if record is not None:
            check_application(record, exchange.identity.client)
        params = {"id": task_id.decode("ascii", "replace"), "application": application, "user": user_id(exchange)}
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
        is_known = exchange.key is not None or exchange.user is not None or exchange.certificate is not None
        params = {
            "queue_route": queue_route.id,
            "application": exchange.application.id if is_known else "",
            "key": exchange.key.id if exchange.key is not None else "",
            "user": user_id(exchange),
            "body": parse_body(queue_route, exchange.noted.get(b"content-type"), body),
            "request_id": exchange.request_id.decode("ascii"),
            "traceparent": exchange.trace_lines[13:68].decode("ascii"),
        }
        self._gateway.spawn(exchange, self._ask(exchange, "accept", params))


def user_id(exchange: Exchange) -> str:
    """Whose task it is within the application, as it is stored: empty where no token came."""
    user: str = exchange.user.user if exchange.user is not None else ""
    return user if len(user) <= _MAX_USER else user[:30] + sha256(user.encode()).hexdigest()

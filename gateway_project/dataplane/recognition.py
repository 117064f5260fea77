"""Keys whose digest was made with another pepper than the gateway's present one: the agent knows them by argon2.

While the agent says that there are such keys, a request with a well-formed key that is unknown is held, and the agent
is asked. It costs milliseconds of a core whether the key is right or not, so little of it is done at once: some for
each address, some altogether. Requests with the same key wait for the same answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from access.addresses import failure_bucket
from core.context import Exchange
from core.faults import GatewayFault, InternalFault
from core.wire import Message
from gateway_project.dataplane.holding import Hold
from keys.records import KeyRecord

if TYPE_CHECKING:
    from gateway_project.dataplane.app import Gateway

_MOST_QUESTIONS = 64
_MOST_OF_ADDRESS = 4
_MOST_WAITING = 1_000  # for one answer
_PATIENCE_S = 10.0
_LOOKS, _LOOK_S = 300, 0.01  # for the configuration with the new digest, which follows the answer


Step = Callable[[KeyRecord | None], None]


class _Question:
    """Whose key it is. ``bucket`` is of the address that asked first."""

    __slots__ = ("bucket", "waiting")

    def __init__(self, bucket: str) -> None:
        self.bucket = bucket
        self.waiting: list[tuple[Hold, Step]] = []


class Recognition:
    """``is_needed``: there are keys of another pepper."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self.is_needed = False
        self._questions: dict[bytes, _Question] = {}  # by digest
        self._tasks: set[asyncio.Task[None]] = set()

    def take(self, message: Message) -> None:
        """The agent's ``peppers`` message (`core.wire`)."""
        self.is_needed = bool(message["others"])

    def hold(self, exchange: Exchange, credential: bytes, step: Step) -> Hold:
        """To be raised. The request goes on with ``step``, which is told the key's record, None for what is no key.
        Raises GatewayFault ``overloaded``: that is no reason to call a key wrong."""
        digest = self._gateway.digester(credential)
        question = self._questions.get(digest) or self._ask(exchange, digest, credential)
        if len(question.waiting) >= _MOST_WAITING:
            raise _busy()
        hold = Hold(self._gateway, exchange)
        question.waiting.append((hold, step))
        return hold

    def _ask(self, exchange: Exchange, digest: bytes, credential: bytes) -> _Question:
        bucket = failure_bucket(exchange.identity.client)
        of_address = sum(each.bucket == bucket for each in self._questions.values())
        if len(self._questions) >= _MOST_QUESTIONS or of_address >= _MOST_OF_ADDRESS:
            raise _busy()
        question = self._questions[digest] = _Question(bucket)
        task = self._gateway.loop.create_task(self._find_out(question, digest, credential))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return question

    async def _find_out(self, question: _Question, digest: bytes, credential: bytes) -> None:
        key: KeyRecord | None = None
        fault: GatewayFault | None = None
        try:
            key = await self._answer(digest, credential)
        except GatewayFault as error:
            fault = error
        except Exception as error:  # a mistake of ours must not leave anybody waiting
            fault = self._gateway.unexpected(error)
        finally:
            del self._questions[digest]
        for hold, step in question.waiting:
            hold.go_on(partial(_go_on, step, key, fault))

    async def _answer(self, digest: bytes, credential: bytes) -> KeyRecord | None:
        """The key's record, as the configuration has it after its digest was made anew; None: it is no key."""
        link = self._gateway.link
        reply = await link.call("recognise_key", {"key": credential.decode("ascii")}, _PATIENCE_S)
        for _ in range(_LOOKS if reply["is_known"] else 0):
            key = link.snapshot.keys.get(digest)
            if key is not None:
                return key
            await asyncio.sleep(_LOOK_S)
        if reply["is_known"]:
            raise InternalFault("dependency_unavailable", "The key's record has not arrived yet.", retry_after_s=1)
        return None


def _go_on(step: Step, key: KeyRecord | None, fault: GatewayFault | None) -> None:
    if fault is not None:
        raise fault
    step(key)


def _busy() -> InternalFault:
    detail = "Too many keys are being looked at that the gateway cannot tell yet."
    return InternalFault("overloaded", detail, retry_after_s=1)

"""Opaque tokens that have opened something long: their issuers are asked again as long as it is open (rule 12).

A few at once, each token once however much it has opened. An issuer that does not answer ends nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from core.faults import GatewayFault
from gateway_project.dataplane.questions import Opinion, Question

if TYPE_CHECKING:
    from access.tokens.records import IssuerRecord
    from gateway_project.dataplane.app import Gateway

LEAST_S = 5.0  # between two questions about one token, also where nothing is believed for any time
_MOST_AT_ONCE = 16
_KEPT_S = 60.0  # what nobody looks at any more

Claims = Mapping[str, Any]


class _Word(NamedTuple):
    """``claims``: what the issuer said last, None: that it is not active. ``next_at``: when to ask again."""

    issuer: IssuerRecord
    claims: Claims | None
    next_at: float


class AskingAgain:
    """Times are epoch seconds."""

    def __init__(self, gateway: Gateway, ask: Callable[[Question], Awaitable[Opinion]]) -> None:
        self._gateway = gateway
        self._ask = ask
        self._words: dict[tuple[str, bytes], _Word] = {}
        self._queue: deque[Question] = deque()
        self._asked: set[tuple[str, bytes]] = set()  # in the queue, or on the way
        self._askers: set[asyncio.Task[None]] = set()

    def claims(self, question: Question, known: Claims, now: float, *, is_due: bool) -> Claims | None:
        """What the issuer said last; None: the token is not active. ``known``: what it said before anything was open;
        ``is_due``: that has run out."""
        key = question.key
        word = self._words.get(key)
        if word is None or word.issuer is not question.issuer:
            next_at = now if is_due else now + _pause_s(question.issuer)
            word = self._words[key] = _Word(question.issuer, known, next_at)
        if word.next_at <= now and key not in self._asked:
            self._asked.add(key)
            self._queue.append(question)
            if len(self._askers) < _MOST_AT_ONCE:
                self._askers.add(self._gateway.loop.create_task(self._ask_all(), name="token questions"))
        return word.claims

    def forget(self, now: float) -> None:
        """Drop what has not been looked at for long: it is open no longer."""
        if self._words:
            self._words = {key: word for key, word in self._words.items() if word.next_at > now - _KEPT_S}

    async def _ask_all(self) -> None:
        while self._queue:
            question = self._queue.popleft()
            await self._find_out(question)
            self._asked.discard(question.key)
        task = asyncio.current_task()
        assert task is not None
        self._askers.discard(task)

    async def _find_out(self, question: Question) -> None:
        word = self._words.get(question.key)
        if word is None:
            return  # nobody looks at it any more
        claims, pause_s = word.claims, LEAST_S
        try:
            claims, pause_s = (await self._ask(question)).claims, _pause_s(question.issuer)
        except GatewayFault:
            pass  # no outage ends anything (rule 11)
        except Exception as error:
            self._gateway.unexpected(error)
        self._words[question.key] = _Word(question.issuer, claims, time.time() + pause_s)


def _pause_s(issuer: IssuerRecord) -> float:
    policy = issuer.rules.introspection
    return max(policy.cache_s, LEAST_S) if policy is not None else LEAST_S

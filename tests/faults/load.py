"""A paced load whose every request is told apart, and what became of each."""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256

import h11

ANSWER_WITHIN_S = 15.0
_METHODS = ("GET", "GET", "GET", "PUT", "POST")


@dataclass(slots=True)
class Outcome:
    """``ending``: "answered", "cut" (the answer broke off, visibly), or "silent" (none came in time)."""

    id: str
    method: str
    began: float
    took_s: float
    ending: str
    status: int = 0
    code: str = ""  # of a problem that the gateway reports
    is_right: bool = True  # a 200 holds exactly what the target said to this very request


@dataclass
class Load:
    """So many requests a second over so many kept connections, until `stop`."""

    port: int
    path: str
    key: str
    per_second: int = 200
    clients: int = 20
    outcomes: list[Outcome] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._stopped = threading.Event()
        self._random = random.Random(5)
        self._count = 0
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)

    def start(self) -> Load:
        self._thread.start()
        return self

    def stop(self) -> list[Outcome]:
        self._stopped.set()
        self._thread.join(ANSWER_WITHIN_S + 10)
        assert not self._thread.is_alive(), "the load does not end"
        return self.outcomes

    def since(self, began: float, until: float) -> Iterator[Outcome]:
        return (outcome for outcome in self.outcomes if began <= outcome.began < until)

    async def _run(self) -> None:
        await asyncio.gather(*(self._client(number) for number in range(self.clients)))

    async def _client(self, number: int) -> None:
        pace_s = self.clients / self.per_second
        await asyncio.sleep(pace_s * number / self.clients)
        streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        next_at = time.monotonic()
        while not self._stopped.is_set():
            await asyncio.sleep(max(0.0, next_at - time.monotonic()))
            next_at = max(next_at + pace_s, time.monotonic() - pace_s)
            if streams is None:
                streams = await asyncio.open_connection("127.0.0.1", self.port)
            goes_on = await self._ask(*streams)
            if not goes_on:
                streams[1].close()
                streams = None
        if streams is not None:
            streams[1].close()

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        self._count += 1
        method = self._random.choice(_METHODS)
        body = b"" if method == "GET" else self._random.randbytes(self._random.randrange(1, 2000))
        outcome = Outcome(f"r{self._count}", method, time.monotonic(), 0.0, "silent")
        connection = h11.Connection(h11.CLIENT)
        fields = [("host", "gateway.test"), ("x-api-key", self.key), ("x-id", outcome.id)]
        if body:
            fields.append(("content-length", str(len(body))))
        sent = connection.send(h11.Request(method=method, target=self.path, headers=fields)) or b""
        sent += (connection.send(h11.Data(data=body)) or b"") if body else b""
        sent += connection.send(h11.EndOfMessage()) or b""
        goes_on = False
        try:
            async with asyncio.timeout(ANSWER_WITHIN_S):
                writer.write(sent)
                goes_on = await _read_answer(connection, reader, outcome, body)
        except TimeoutError:
            pass
        except (h11.RemoteProtocolError, ConnectionError):
            outcome.ending = "cut"
        outcome.took_s = time.monotonic() - outcome.began
        self.outcomes.append(outcome)
        return goes_on


async def _read_answer(connection: h11.Connection, reader: asyncio.StreamReader, outcome: Outcome, sent: bytes) -> bool:
    """Whether the connection may be used again. Raises RemoteProtocolError for an answer that breaks off."""
    received = b""
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await reader.read(65536))
        elif isinstance(event, h11.Response):
            outcome.status = event.status_code
        elif isinstance(event, h11.Data):
            received += event.data
        elif isinstance(event, h11.EndOfMessage):
            break
        elif isinstance(event, h11.ConnectionClosed):
            raise ConnectionError("closed before an answer")
    outcome.ending = "answered"
    if outcome.status == 200:
        outcome.is_right = received == f"{outcome.id} {sha256(sent).hexdigest()}".encode()
    elif received.startswith(b"{"):
        outcome.code = json.loads(received)["code"]
    else:
        outcome.is_right = received == b"down"
    return connection.our_state is h11.DONE and connection.their_state is h11.DONE


def tally(outcomes: Iterator[Outcome]) -> Counter[str]:
    """For people: how often each ending came."""
    return Counter(
        f"{outcome.status} {outcome.code}".strip() if outcome.ending == "answered" else outcome.ending
        for outcome in outcomes
    )

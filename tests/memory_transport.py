"""Both ends of the data plane without sockets: scripted bytes in, written bytes out, and a clock that tests move."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from access.addresses import TrustedProxies
from core.faults import GatewayFault
from gateway_project.dataplane.identity import identify
from gateway_project.dataplane.protocol import ClientProtocol
from gateway_project.dataplane.socket_exchange import SocketExchange
from routing.upstream.connection import UpstreamConnection


class MemoryTransport(asyncio.Transport):
    """Keeps what is written, and notes what was asked of it."""

    def __init__(self) -> None:
        super().__init__({"peername": ("192.0.2.1", 1234)})
        self.written = b""
        self.unsent = 0  # of what was written, as if the other end did not take it
        self.is_reading_paused = False
        self.ended = ""  # "closed" or "aborted"; "shut" when only our side has ended

    @property
    def is_open(self) -> bool:
        return not self.ended

    def write(self, data: Any) -> None:
        self.written += bytes(data)

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def write_eof(self) -> None:
        self.ended = self.ended or "shut"

    def can_write_eof(self) -> bool:
        return True

    def pause_reading(self) -> None:
        self.is_reading_paused = True

    def resume_reading(self) -> None:
        self.is_reading_paused = False

    def close(self) -> None:
        self.ended = "closed"

    def abort(self) -> None:
        self.ended = "aborted"

    def is_closing(self) -> bool:
        return self.ended in ("closed", "aborted")


class Turns:
    """Stands for the event loop: what was put off is done by `run`."""

    def __init__(self) -> None:
        self._later: deque[Callable[[], None]] = deque()

    def call_soon(self, callback: Callable[..., None], *arguments: Any) -> None:
        self._later.append(lambda: callback(*arguments))

    def run(self) -> None:
        while self._later:
            self._later.popleft()()


@dataclass
class Taken:
    """A request as the pipeline would get it."""

    method: bytes
    path: bytes
    query: bytes | None
    host: bytes
    noted: dict[bytes, bytes]
    passed: list[bytes]
    body: bytes = b""
    is_whole: bool = False


class _Body:
    """Takes a request's body and answers when it is whole."""

    def __init__(self, gateway: RecordingGateway, exchange: SocketExchange, taken: Taken) -> None:
        self._gateway, self._exchange, self._taken = gateway, exchange, taken

    def body_data(self, data: bytes) -> None:
        self._taken.body += data

    def body_end(self) -> None:
        self._taken.is_whole = True
        self._gateway.respond(self._exchange)

    def client_gone(self) -> None:
        pass

    def client_ready(self) -> None:
        pass

    def refuse_body(self, fault: GatewayFault) -> None:
        self._gateway.refuse(self._exchange, fault)


@dataclass
class RecordingGateway:
    """What `ClientProtocol` asks of a gateway: takes every request and answers 200, at once or a turn later."""

    is_late: bool = False
    time_s: float = 1000.0
    is_draining: bool = False
    read_certificate: None = None
    key_header: bytes = b"x-api-key"
    settings: Any = field(default_factory=lambda: SimpleNamespace(max_header_field_bytes=8192))
    loop: Turns = field(default_factory=Turns)
    requests: list[Taken] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    holds_answers: bool = False

    def now(self) -> float:
        return self.time_s

    def identify(self, peer: str, scheme: str, host: bytes, noted: dict[bytes, bytes]) -> Any:
        return identify(TrustedProxies([]), peer, scheme, host, noted)

    def handle(self, exchange: SocketExchange) -> None:
        noted, passed = dict(exchange.noted), list(exchange.passed)
        host = exchange.identity.host
        taken = Taken(exchange.method, exchange.raw_path, exchange.query, host, noted, passed)
        self.requests.append(taken)
        if exchange.has_body:
            exchange.read_body(_Body(self, exchange, taken))
        else:
            taken.is_whole = True
            self.respond(exchange)

    def respond(self, exchange: SocketExchange) -> None:
        if self.holds_answers:
            return
        if self.is_late:
            self.loop.call_soon(exchange.answer, 200, b"content-length: 0\r\n", b"")
        else:
            exchange.answer(200, b"content-length: 0\r\n", b"")

    def refuse(self, exchange: SocketExchange, fault: GatewayFault) -> None:
        self.refusals.append(fault.code)
        exchange.answer(fault.status, b"content-length: 0\r\n", b"")

    def unexpected(self, error: BaseException) -> GatewayFault:
        raise error

    def account(self, exchange: SocketExchange) -> None:
        pass


def connected_client(gateway: RecordingGateway) -> tuple[ClientProtocol, MemoryTransport]:
    protocol = ClientProtocol(SimpleNamespace(loaded_app=gateway), SimpleNamespace(connections=set()), {})
    transport = MemoryTransport()
    protocol.connection_made(transport)
    return protocol, transport


class RecordingHandler:
    """Uses an upstream connection for one exchange and keeps what it hears."""

    def __init__(self, *, awaits_switch: bool = False) -> None:
        self.awaits_switch = awaits_switch
        self.status = 0
        self.lines: list[bytes] = []
        self.body = b""
        self.end = ""  # "whole", "garbage" or "cut"
        self.has_started = False

    def response_whole(self, connection: UpstreamConnection, body: bytes) -> None:
        self.status, self.lines, self.body, self.end = connection.status, list(connection.lines), body, "whole"
        connection.release()

    def response_started(self, connection: UpstreamConnection) -> None:
        self.status, self.lines, self.has_started = connection.status, list(connection.lines), True

    def response_data(self, data: bytes) -> None:
        self.body += data

    def response_ended(self, connection: UpstreamConnection) -> None:
        self.end = "whole"
        connection.release()

    def response_failed(self, connection: UpstreamConnection, *, is_garbage: bool) -> None:
        self.end = "garbage" if is_garbage else "cut"

    def may_switch(self, lines: list[bytes]) -> bool:
        return self.awaits_switch

    def response_switched(self, connection: UpstreamConnection, rest: bytes) -> None:
        self.status, self.lines, self.body, self.end = connection.status, list(connection.lines), rest, "switched"

    def upstream_busy(self) -> None:
        pass

    def upstream_ready(self) -> None:
        pass


class RecordingPool:
    """What an upstream connection asks of its pool."""

    def __init__(self) -> None:
        self.given_back = 0

    def give_back(self, connection: UpstreamConnection) -> None:
        self.given_back += 1

    def forget(self, connection: UpstreamConnection) -> None:
        pass

"""Stopping and replacing workers while they work (O14): no request is lost, what is in flight is finished, and whoever
holds a WebSocket is told."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from hashlib import sha256

import pytest

from tests.gateway_process import GatewayFactory, GatewayProcess, eventually
from tests.gateway_traffic import Shop, ask, connect_to, open_shop, traffic
from tests.raw_http import Answer, Client, request
from tests.scripted_upstream import Peer, Upstream
from tests.websocket_peers import ASKS, CLOSE, TEXT, Ended, Frame, accept_of, close, frame, read_frame

TIMEOUT_S = 40.0
PIECE = b"p" * 5000


@dataclass
class Service:
    """Digests of what is sent, downloads that wait for a word, and an echo for WebSockets."""

    may_go_on: dict[bytes, threading.Event] = field(default_factory=dict)  # by target

    def script(self, peer: Peer) -> None:
        peer.socket.settimeout(TIMEOUT_S)
        with suppress(TimeoutError):
            while (seen := peer.read_request()) is not None:
                if seen.field("upgrade") is not None:
                    self._echo(peer, seen.field("sec-websocket-key") or b"")
                    return
                if seen.target.startswith(b"/download"):
                    self._send_slowly(peer, seen.target)
                else:
                    body = seen.target + b" " + sha256(seen.body).hexdigest().encode()
                    peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

    def _send_slowly(self, peer: Peer, target: bytes) -> None:
        peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n")
        assert self.may_go_on.setdefault(target, threading.Event()).wait(TIMEOUT_S)
        peer.send(b"6\r\n whole\r\n0\r\n\r\n")

    def _echo(self, peer: Peer, key: bytes) -> None:
        lines = [b"HTTP/1.1 101 Switching Protocols", b"Upgrade: websocket", b"Connection: Upgrade"]
        peer.send(b"\r\n".join([*lines, b"Sec-WebSocket-Accept: " + accept_of(key), b"", b""]))
        with suppress(Ended):
            while (got := read_frame(peer.read)).opcode != CLOSE:
                peer.send(frame(got.opcode, got.payload, masked=False))
            peer.send(close(got.code, masked=False))


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
def upstream(service: Service) -> Iterator[Upstream]:
    upstream = Upstream(service.script)
    yield upstream
    upstream.close()
    assert not upstream.failures


class InFlight:
    """An upload, a download and a WebSocket on connections to one worker, each half way."""

    def __init__(self, gateway: GatewayProcess, shop: Shop, service: Service, worker: str, stack: ExitStack) -> None:
        def connected() -> Client:
            client: Client = stack.enter_context(connect_to(gateway, worker))
            client.socket.settimeout(TIMEOUT_S)
            return client

        self._service = service
        self._key = f"X-API-Key: {shop.key}"
        self._root = shop.path.rpartition("/")[0]
        self._target = f"/download/{worker}"
        self.upload, self.download, self.socket = connected(), connected(), connected()
        head = request("POST", f"{self._root}/upload", self._key, "Transfer-Encoding: chunked")
        self.upload.send(head + b"%x\r\n%b\r\n" % (len(PIECE), PIECE))
        self.download.send(request("GET", self._root + self._target, self._key))
        _, self._body = self.download.begin_answer()
        assert next(self._body) == b"half"
        self.socket.send(request("GET", f"{self._root}/socket", self._key, *ASKS))
        assert self.socket.answer().status == 101
        self.socket.send(frame(TEXT, b"hello"))
        assert read_frame(self.socket.exactly) == Frame(TEXT, b"hello")

    def finish(self) -> None:
        """Once the worker has said that it stops."""
        assert read_frame(self.socket.exactly).code == 1001
        self.socket.send(close(1001))
        assert self.socket.is_at_end()
        self._service.may_go_on.setdefault(self._target.encode(), threading.Event()).set()
        assert b"".join(self._body) == b" whole"
        self.upload.send(b"%x\r\n%b\r\n0\r\n\r\n" % (len(PIECE), PIECE))
        answer: Answer = self.upload.answer("POST")
        assert answer.body.split()[1].decode() == sha256(PIECE * 2).hexdigest()


def make_of(shop: Shop) -> Callable[[int, int], bytes]:
    """Reads and writes in turn."""

    def make(client: int, number: int) -> bytes:
        if number % 3:
            return shop.get
        return ask("POST", shop.path, shop.key, b"%d:%d" % (client, number) * 100)

    return make


def finish_all(flights: list[InFlight]) -> None:
    """Each worker stops in its own time."""
    failures: list[BaseException] = []

    def finish(flight: InFlight) -> None:
        try:
            flight.finish()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=finish, args=(flight,)) for flight in flights]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures


def test_workers_are_replaced_under_load_and_nothing_is_lost(
    start_gateway: GatewayFactory, service: Service, upstream: Upstream
) -> None:
    gateway = start_gateway(WORKERS="2")
    shop = open_shop(gateway, upstream.url)
    before = gateway.children()
    with ExitStack() as stack, traffic(gateway, make_of(shop)) as flow:
        flights = [InFlight(gateway, shop, service, worker, stack) for worker in ("worker-0", "worker-1")]
        gateway.signal(signal.SIGHUP)
        finish_all(flights)
        eventually(lambda: "all workers are replaced" in gateway.log(), 60, "the end of the replacement")
        flow.goes_on()
    assert flow.failed() == []
    after = gateway.children()
    assert all(after[name] != before[name] for name in ("worker-0", "worker-1"))
    lines = [line for line in gateway.access_log() if line["path"].endswith("/socket")]
    assert [line["status_code"] for line in lines] == [101, 101]


def test_a_gateway_that_stops_under_load_finishes_what_it_has_begun(
    start_gateway: GatewayFactory, service: Service, upstream: Upstream
) -> None:
    gateway = start_gateway(WORKERS="2")
    shop = open_shop(gateway, upstream.url)
    with ExitStack() as stack, traffic(gateway, make_of(shop)) as flow:
        flights = [InFlight(gateway, shop, service, worker, stack) for worker in ("worker-0", "worker-1")]
        gateway.signal(signal.SIGTERM)
        finish_all(flights)
        assert gateway.stop() == 0
    assert flow.failed() == []

"""Traffic through a whole gateway: connections to a worker of one's choice, and requests that do not end."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from pathlib import Path
from threading import Event, Thread
from typing import Any
from urllib.parse import urlsplit

import httpx

from tests.gateway_process import GatewayProcess, eventually
from tests.raw_http import Answer, Client, CutShort, request
from tests.scripted_upstream import Peer

PACE_S = 0.004  # between the requests of one client: two cores serve the gateway, its upstream and the tests
NO_LIMIT = 1_000_000


def echo(peer: Peer) -> None:
    """An upstream's script: answers with what was asked for and a digest of what was sent."""
    with suppress(TimeoutError):  # nobody has asked for a while
        while (seen := peer.read_request()) is not None:
            body = seen.target + b" " + sha256(seen.body).hexdigest().encode()
            peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))


def target_in(answer: Answer) -> str:
    """What the echoing upstream was asked for."""
    return answer.body.partition(b" ")[0].decode()


@dataclass(frozen=True)
class Shop:
    """A service ``orders``, an application ``shop`` that may call it, and a key of that."""

    gateway: GatewayProcess
    application: str
    key: str
    key_id: str
    path: str = "/api/v1/orders/1"

    @property
    def get(self) -> bytes:
        return ask("GET", self.path, self.key)

    def status(self) -> int:
        return httpx.get(self.gateway.url + self.path, headers={"X-API-Key": self.key}, trust_env=False).status_code


def open_shop(gateway: GatewayProcess, upstream_url: str) -> Shop:
    with panel_api(gateway) as admin:
        create(admin, "/admin/routing/services", name="orders", defaultUrl=upstream_url, implicitRoute=True)
        application = create(
            admin, "/admin/access/applications", name="shop", allowedServices=["*"], rateLimit=NO_LIMIT
        )["id"]
        key = new_key(admin, application)
    return Shop(gateway, application, key["key"], key["id"])


def panel_api(gateway: GatewayProcess, **headers: str) -> httpx.Client:
    """The admin API on the panel's port, where no worker stands between."""
    headers = {"X-API-Key": gateway.admin_key, **headers}
    return httpx.Client(base_url=gateway.panel_url, headers=headers, timeout=40, trust_env=False)


def set_up(gateway: GatewayProcess) -> dict[str, Any]:
    """Make the first admin, on the panel's port: ``username`` and ``password`` of the panel, ``key`` of the API."""
    with httpx.Client(base_url=gateway.panel_url, timeout=40, trust_env=False) as client:
        headers = {"X-Setup-Token": gateway.setup_token}
        answer = client.post("/setup", json={"name": "Ann", "email": "ann@example.com"}, headers=headers)
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    gateway.admin_key = made["key"]
    return made


@contextmanager
def signed_in(gateway: GatewayProcess, admin: dict[str, Any]) -> Iterator[httpx.Client]:
    """A browser, so to speak, that is signed in to the panel."""
    with httpx.Client(base_url=gateway.panel_url, timeout=40, trust_env=False) as browser:
        fields = {name: admin[name] for name in ("username", "password")}
        answer = submit(browser, "/login", **fields)
        assert answer.status_code == 302, answer.text
        yield browser


def submit(browser: httpx.Client, path: str, **fields: str) -> httpx.Response:
    """Post the form of a page."""
    token = re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', browser.get(path).text)
    assert token is not None
    return browser.post(path, data={"csrfmiddlewaretoken": token[1], **fields})


def create(admin: httpx.Client, where: str, /, **fields: Any) -> dict[str, Any]:
    answer = admin.post(where, json=fields)
    assert answer.status_code == 201, answer.text
    document: dict[str, Any] = answer.json()
    return document


def new_key(admin: httpx.Client, application: str, name: str = "test") -> dict[str, Any]:
    """``key`` is the credential, ``id`` the row."""
    return create(admin, "/keys", name=name, applicationId=application)


def ask(method: str, path: str, key: str | None = None, body: bytes | None = None) -> bytes:
    """The bytes of a request."""
    return request(method, path, *([] if key is None else [f"X-API-Key: {key}"]), body=body)


# --- connections to one worker -------------------------------------------------------------------------------------
def connect_to(gateway: GatewayProcess, name: str) -> Client:
    """A connection that the worker of this name (``worker-0``) has accepted: the workers share the port, and the
    kernel decides who gets one."""
    pids = gateway.children()
    for _ in range(200):
        client = connect(gateway)
        holder = eventually(partial(_holder, client, pids), what="the connection's acceptance")
        if holder == name:
            return client
        client.socket.close()
    raise AssertionError(f"{name} accepts no connections")


def connect(gateway: GatewayProcess) -> Client:
    return Client(urlsplit(gateway.url).port or 0)


def _holder(client: Client, pids: dict[str, int]) -> str | None:
    """Which process has the other end of a connection within this host as a descriptor (proc(5))."""
    ports = (client.socket.getpeername()[1], client.socket.getsockname()[1])
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, *columns = line.split()
        if tuple(int(address.rpartition(":")[2], 16) for address in (local, remote)) == ports:
            wanted = f"socket:[{columns[6]}]"
            return next((name for name, pid in pids.items() if wanted in _descriptors(pid)), None)
    return None


def _descriptors(pid: int) -> set[str]:
    links = set()
    with suppress(FileNotFoundError):  # the process has ended
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(FileNotFoundError):  # closed meanwhile
                links.add(os.readlink(descriptor))
    return links


# --- traffic -------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Result:
    """What became of a request; times are `time.monotonic`."""

    client: int
    status: int  # 0: the connection ended before the answer was whole
    sent_at: float
    done_at: float
    answer: Answer | None = None

    @property
    def code(self) -> str:
        """Of the problem, if it was one."""
        return "" if self.answer is None or self.status < 400 else self.answer.code


@dataclass
class Traffic:
    """``clients`` send requests one after the other, each on a connection that it keeps as long as the gateway does.

    ``make`` gives the bytes of a client's n-th request. A client that cannot connect at all stops.
    """

    gateway: GatewayProcess
    make: Callable[[int, int], bytes]
    clients: int = 4
    connect: Callable[[int], Client] | None = None  # for the first connection of each client
    timeout_s: float = 30.0
    pace_s: float = PACE_S
    results: list[Result] = field(default_factory=list)
    stop: Event = field(default_factory=Event)

    def statuses(self) -> set[int]:
        return {result.status for result in self.results}

    def failed(self) -> list[Result]:
        return [result for result in self.results if result.status != 200]

    def goes_on(self, count: int = 40) -> None:
        """Wait for some more requests."""
        before = len(self.results)
        eventually(lambda: len(self.results) >= before + count, 30, "more requests")

    def run(self, number: int) -> None:
        client = self.connect(number) if self.connect is not None else connect(self.gateway)
        count = 0
        while not self.stop.wait(self.pace_s):
            is_open = self._exchange(number, client, self.make(number, count))
            count += 1
            if not is_open:
                client.socket.close()
                again = self._connect_again(number)
                if again is None:
                    return
                client = again
        client.socket.close()

    def _connect_again(self, number: int) -> Client | None:
        """A killed process resets the connections that wait for its acceptance too, even while they are made."""
        while not self.stop.is_set():
            began_at = time.monotonic()
            try:
                return connect(self.gateway)
            except ConnectionRefusedError:
                return None
            except ConnectionResetError:
                self.results.append(Result(number, 0, began_at, time.monotonic()))
        return None

    def _exchange(self, number: int, client: Client, data: bytes) -> bool:
        """Whether the connection is still good."""
        sent_at = time.monotonic()
        try:
            client.socket.settimeout(self.timeout_s)
            answer = client.send(data).answer()
        except (CutShort, OSError):
            self.results.append(Result(number, 0, sent_at, time.monotonic()))
            return False
        self.results.append(Result(number, answer.status, sent_at, time.monotonic(), answer))
        return answer.field("connection") != "close"


@contextmanager
def traffic(gateway: GatewayProcess, make: Callable[[int, int], bytes], **options: Any) -> Iterator[Traffic]:
    """Goes on from before the block until after it. A block that ends the gateway ends the traffic too."""
    flow = Traffic(gateway, make, **options)
    threads = [Thread(target=flow.run, args=(number,)) for number in range(flow.clients)]
    for thread in threads:
        thread.start()
    try:
        flow.goes_on()
        yield flow
        before = len(flow.results)
        eventually(
            lambda: len(flow.results) >= before + 40 or not any(thread.is_alive() for thread in threads),
            30,
            "more requests, or the end of all clients",
        )
    finally:
        flow.stop.set()
        for thread in threads:
            thread.join()

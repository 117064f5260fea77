"""The worker as a process: what it imports, how it ends (architecture section 2)."""

import asyncio
import json
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from gateway_project.processes import ROOT
from tests.dataplane import DataPlane
from tests.gateway_process import eventually
from tests.raw_http import Client, CutShort, request
from tests.scripted_upstream import OK, Peer

CLIENTS = 200


def test_a_worker_imports_neither_django_nor_anything_that_leads_to_it() -> None:
    code = "import gateway_project.dataplane.worker, json, sys; print(json.dumps(sorted(sys.modules)))"
    output = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True).stdout
    loaded = {name.partition(".")[0] for name in json.loads(output)}
    assert not loaded & {
        "django",
        "rest_framework",
        "celery",
        "kombu",
        "environ",
        "psycopg",
        "httpx",
        "drf_spectacular",
        "cryptography",  # which only a TLS port needs
        "hpack",
    }


# --- drain -----------------------------------------------------------------------------------------------------------
def slowly(peer: Peer) -> None:
    while peer.read_request() is not None:
        time.sleep(0.002)  # so that requests are in flight at any moment
        peer.send(OK)


@dataclass
class Traffic:
    """Keep-alive clients that send all the time, each a request after the answer to the one before."""

    port: int
    ask: bytes
    answered: int = 0
    failures: list[str] = field(default_factory=list)
    refused: int = 0
    tls: ssl.SSLContext | None = None

    async def run(self, clients: int) -> None:
        await asyncio.gather(*(self._client() for _ in range(clients)))

    async def _client(self) -> None:
        """Until the port is closed; a connection that the gateway closes is followed by another."""
        while True:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port, ssl=self.tls)
            except ConnectionRefusedError:
                self.refused += 1
                return
            try:
                await self._exchange(reader, writer)
            except (OSError, asyncio.IncompleteReadError) as error:
                self.failures.append(repr(error))
            finally:
                writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(self.ask)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            assert head.startswith(b"http/1.1 200 "), head
            assert await reader.readexactly(2) == b"ok"
            self.answered += 1
            if b"connection: close" in head:
                return


def statuses_until_it_drains(probe: Client) -> list[int]:
    """Of /ready, asked on one connection until the gateway ends it."""
    statuses = []
    while True:
        answer = probe.send(request("GET", "/ready")).answer()
        statuses.append(answer.status)
        if answer.field("connection") == "close":
            return statuses


def test_sigterm_under_200_busy_clients_loses_no_request(start_plane: Callable[..., DataPlane]) -> None:
    plane = start_plane()
    traffic = Traffic(plane.port, plane.request("GET", f"{plane.serve(slowly).path}/x"))

    async def play(probe: Client) -> list[int]:
        running = asyncio.create_task(traffic.run(CLIENTS))
        while traffic.answered < 2 * CLIENTS:
            await asyncio.sleep(0.01)
        plane.terminate()
        statuses = await asyncio.to_thread(statuses_until_it_drains, probe)
        async with asyncio.timeout(30):
            await running
        return statuses

    with plane.connect() as probe:
        statuses = asyncio.run(play(probe))
    assert traffic.failures == []
    assert traffic.refused == CLIENTS
    assert statuses[-1] == 503
    assert plane.process.wait(30) == 0


def test_what_is_in_flight_when_a_worker_stops_is_finished(start_plane: Callable[..., DataPlane]) -> None:
    plane = start_plane()
    is_over: list[bool] = []

    def script(peer: Peer) -> None:
        if peer.read_request() is None:
            return
        peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while not is_over:
            peer.send(b"1\r\n.\r\n")
            time.sleep(0.05)  # a stream that takes its time
        peer.send(b"0\r\n\r\n")

    upstream = plane.serve(script)
    with plane.connect() as client, plane.connect() as upload:
        _, body = client.send(plane.request("GET", f"{upstream.path}/x")).begin_answer()
        slow = plane.serve()
        upload.send(plane.request("POST", f"{slow.path}/x", "Content-Length: 4") + b"ha")
        eventually(lambda: slow.connections == 1, what="the upload's beginning")
        plane.terminate()
        eventually(lambda: not is_listening(plane), 10.0, "the end of the listening socket")
        assert next(body)
        is_over.append(True)
        assert set(b"".join(body)) == set(b".")
        answer = upload.send(b"lf").answer("POST")
        assert (answer.status, answer.field("connection")) == (200, "close")
    assert plane.process.wait(30) == 0


def is_listening(plane: DataPlane) -> bool:
    try:
        plane.connect().__exit__()
    except ConnectionRefusedError:
        return False
    return True


def test_answers_end_their_connections_while_a_worker_stops(start_plane: Callable[..., DataPlane]) -> None:
    plane = start_plane()
    path = f"{plane.serve().path}/x"
    with plane.connect() as client, plane.connect() as probe, plane.connect() as idle:
        assert client.send(plane.request("GET", path)).answer().field("connection") is None
        plane.terminate()
        assert statuses_until_it_drains(probe)[-1] == 503
        assert client.send(plane.request("GET", path)).answer().field("connection") == "close"
        assert client.is_at_end()
        assert idle.is_at_end()  # it had sent nothing
    assert plane.process.wait(30) == 0


def test_a_second_sigterm_ends_a_worker_at_once(start_plane: Callable[..., DataPlane]) -> None:
    plane = start_plane()
    upstream = plane.serve(lambda peer: peer.wait_for_end())
    with plane.connect() as client, plane.connect() as probe:
        client.send(plane.request("GET", f"{upstream.path}/x"))
        eventually(lambda: upstream.connections == 1, what="the request in flight")
        plane.terminate()
        statuses_until_it_drains(probe)
        plane.terminate()
        assert plane.process.wait(5) == 0
        with pytest.raises(CutShort):
            client.answer()
    assert plane.log_lines()[-1]["status_code"] == 499


def test_sigint_drains_as_sigterm_does(start_plane: Callable[..., DataPlane]) -> None:
    plane = start_plane()
    plane.process.send_signal(signal.SIGINT)
    assert plane.process.wait(30) == 0

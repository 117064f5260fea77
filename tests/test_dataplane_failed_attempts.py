"""An address that sends wrong credentials without end leaves the worker to others (rule 10)."""

import gc
import signal
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trustme

from access.limits.local import FailureBuckets
from core.faults import GatewayFault
from gateway_project.dataplane.failed_attempts import FailedAttempts
from gateway_project.dataplane.holding import Hold
from keys.credential import generate
from tests.dataplane import DataPlane
from tests.gateway_process import eventually
from tests.http2_client import Http2Client
from tests.private_servers import free_port
from tests.raw_http import Client, chunked
from tests.scripted_upstream import Upstream
from tests.tls_clients import issue, put_pair, trusting

PROXY = "127.0.0.9"
PACE_S = 0.01  # from one refusal of an address to the next


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def plane(start_module_plane: Callable[..., DataPlane], ca: trustme.CA, tmp_path_factory: Any) -> DataPlane:
    directory: Path = tmp_path_factory.mktemp("tls")
    certificate, key = directory / "gateway.crt", directory / "gateway.key"
    put_pair(issue(ca, "localhost"), certificate, key)
    return start_module_plane(
        auth_failures_per_minute=1,
        max_body_bytes=100_000,
        trusted_proxies=(PROXY,),
        tls_port=free_port(),
        tls_certificate=str(certificate),
        tls_key=str(key),
    )


@pytest.fixture(scope="module")
def upstream(plane: DataPlane) -> Upstream:
    return plane.serve()


@contextmanager
def standing_still(plane: DataPlane) -> Iterator[None]:
    """Whatever is sent meanwhile is there at once when the worker goes on."""
    plane.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        plane.process.send_signal(signal.SIGCONT)


def wrong(plane: DataPlane, path: str, *fields: str, method: str = "GET", body: bytes | None = None) -> bytes:
    return plane.request(method, path, *fields, key=generate("km_").key, body=body)


def block(plane: DataPlane, path: str, source: str, *fields: str) -> None:
    with plane.connect(source) as client:
        assert client.send(wrong(plane, path, *fields)).answer().status == 401


def intrude(stack: ExitStack, plane: DataPlane, path: str, source: str, count: int) -> Sequence[Client]:
    """So many connections from an address, with a wrong key on each. Nothing is read from them."""
    clients = [stack.enter_context(plane.connect(source)) for _ in range(count)]
    for client in clients:
        client.send(wrong(plane, path))
    return clients


def lines(plane: DataPlane, path: str, count: int) -> list[dict[str, Any]]:
    """The access log's lines for a path, in the order in which the requests ended."""

    def found() -> list[dict[str, Any]]:
        return [line for line in plane.log_lines() if line["path"] == path]

    eventually(lambda: len(found()) >= count, what=f"{count} lines for {path}")
    return found()


def test_an_address_is_refused_at_a_pace_and_right_keys_pass_at_once(plane: DataPlane, upstream: Upstream) -> None:
    source, path = "127.0.0.11", f"{upstream.path}/paced"
    block(plane, path, source)
    with ExitStack() as stack:
        right = stack.enter_context(plane.connect(source))
        began = time.monotonic()
        with standing_still(plane):
            intruders = intrude(stack, plane, path, source, 150)
            right.send(plane.request("GET", path))
        assert right.answer().status == 200
        assert [each.answer().status for each in intruders] == [429] * 150
        assert time.monotonic() - began > 149 * PACE_S
    statuses = [line["status_code"] for line in lines(plane, path, 152)]
    assert statuses[0] == 401
    assert statuses.index(200) < 140


def test_a_client_that_connects_anew_for_each_wrong_key_waits_as_long(plane: DataPlane, upstream: Upstream) -> None:
    source, path = "127.0.0.12", f"{upstream.path}/anew"
    block(plane, path, source)
    began = time.monotonic()
    for _ in range(30):
        with plane.connect(source) as client:
            assert client.send(wrong(plane, path)).answer().status == 429
    assert time.monotonic() - began > 29 * PACE_S


def test_requests_that_a_trusted_proxy_brings_are_not_held(plane: DataPlane, upstream: Upstream) -> None:
    path, told = f"{upstream.path}/proxied", "X-Forwarded-For: 203.0.113.9"
    block(plane, path, PROXY, told)
    with ExitStack() as stack:
        clients = [stack.enter_context(plane.connect(PROXY)) for _ in range(100)]
        with standing_still(plane):
            for client in clients:
                client.send(wrong(plane, path, told))
        assert [client.answer().status for client in clients] == [429] * 100
    refused = lines(plane, path, 101)[1:]
    assert median(line["response_time_ms"] for line in refused) < 1000 * 100 * PACE_S / 4


def test_a_client_that_sends_many_wrong_keys_ahead_is_told_to_go(plane: DataPlane, upstream: Upstream) -> None:
    source, path = "127.0.0.13", f"{upstream.path}/ahead"
    block(plane, path, source)
    with plane.connect(source) as client:
        client.send(b"".join(wrong(plane, path) for _ in range(100)))
        answers = [client.answer()]
        while answers[-1].field("connection") != "close":
            answers.append(client.answer())
        assert {answer.status for answer in answers} == {429}
        assert len(answers) < 100
        assert client.is_at_end()
    assert plane.ask("GET", path, source=source).status == 200


def test_a_connection_goes_on_after_the_body_of_a_request_that_was_held(plane: DataPlane, upstream: Upstream) -> None:
    source, path = "127.0.0.14", f"{upstream.path}/body"
    block(plane, path, source)
    body = b"x" * 20_000
    with ExitStack() as stack:
        with standing_still(plane):
            intruders = intrude(stack, plane, path, source, 50)
            early, late = (stack.enter_context(plane.connect(source)) for _ in range(2))
            early.send(wrong(plane, path, method="POST", body=body))
            late.send(wrong(plane, path, method="POST", body=body)[: -len(body)])
        assert intruders[0].answer().status == 429
        late.send(body)
        for client in (early, late):
            assert client.answer().status == 429
            assert client.send(plane.request("POST", path, body=body)).answer().status == 200
        assert len(upstream.requests[-1].body) == len(body)


def test_a_client_that_waits_to_be_asked_for_its_body_is_not_asked(plane: DataPlane, upstream: Upstream) -> None:
    source, path = "127.0.0.15", f"{upstream.path}/expects"
    block(plane, path, source)
    with ExitStack() as stack:
        with standing_still(plane):
            intrude(stack, plane, path, source, 20)
            client = stack.enter_context(plane.connect(source))
            client.send(wrong(plane, path, "Expect: 100-continue", method="POST", body=b"x" * 100)[:-100])
        answer = client.answer()
        assert (answer.status, answer.field("connection")) == (429, "close")


def test_a_body_above_the_limit_is_refused_while_its_request_is_held(plane: DataPlane, upstream: Upstream) -> None:
    source, path = "127.0.0.16", f"{upstream.path}/large"
    block(plane, path, source)
    with ExitStack() as stack:
        with standing_still(plane):
            intrude(stack, plane, path, source, 100)
            client = stack.enter_context(plane.connect(source))
            client.send(wrong(plane, path, "Transfer-Encoding: chunked", method="POST"))
            client.send(chunked(b"x" * 60_000, b"y" * 60_000))
        assert client.answer().status == 413
        assert client.is_at_end()


def test_a_handshake_with_a_wrong_key_is_held_and_its_connection_goes_on(plane: DataPlane, upstream: Upstream) -> None:
    source, path = "127.0.0.17", f"{upstream.path}/socket"
    block(plane, path, source)
    fields = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13")
    with ExitStack() as stack:
        with standing_still(plane):
            intrude(stack, plane, path, source, 20)
            client = stack.enter_context(plane.connect(source))
            client.send(wrong(plane, path, *fields, "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="))
            client.send(plane.request("GET", path))
        assert [client.answer().status for _ in range(2)] == [429, 200]


def test_clients_that_leave_while_they_are_held_are_forgotten(plane: DataPlane, upstream: Upstream) -> None:
    source, path = "127.0.0.18", f"{upstream.path}/left"
    block(plane, path, source)
    with ExitStack() as stack:
        with standing_still(plane):
            intruders = intrude(stack, plane, path, source, 100)
        assert intruders[0].answer().status == 429
        for client in intruders[1:]:
            client.reset()
    statuses = {line["status_code"] for line in lines(plane, path, 101)}
    assert {429, 499} <= statuses
    assert plane.ask("GET", path, source=source).status == 200


def test_streams_with_wrong_keys_hold_up_no_other_of_their_connection(
    plane: DataPlane, upstream: Upstream, ca: trustme.CA
) -> None:
    source, path = "127.0.0.19", f"{upstream.path}/streams"
    block(plane, path, source)
    with Http2Client(plane.settings.tls_port, trusting(ca, "h2"), source=source) as client:
        with standing_still(plane):
            streams = []
            for _ in range(60):
                client.key = generate("km_").key
                streams.append(client.request("POST", path, body=b"x" * 100))
            client.key = plane.key
            right = client.request("GET", path)
        assert client.answer(right).status == 200
        assert [client.answer(stream).status for stream in streams] == [429] * 60
    statuses = [line["status_code"] for line in lines(plane, path, 62)]
    assert statuses.index(200) < 58


# --- pure, and in memory ---------------------------------------------------------------------------------------------
def test_the_refusals_of_an_address_are_spaced_and_none_waits_for_ever() -> None:
    failures = FailureBuckets(per_minute=1)
    pauses = [failures.pause_s("198.51.100.1", 10.0) for _ in range(1000)]
    assert pauses[:501] == pytest.approx([number * PACE_S for number in range(501)])
    assert all(2.5 <= pause <= 5.0 for pause in pauses[501:])
    assert len(set(pauses[501:])) > 400
    assert failures.pause_s("198.51.100.2", 10.0) == 0
    assert failures.pause_s("198.51.100.1", 20.0) == 0
    assert [failures.pause_s(f"2001:db8::{number}", 10.0) for number in range(3)] == pytest.approx([0, PACE_S, 0.02])


def test_a_refusal_that_was_held_keeps_nothing_of_its_request() -> None:
    class Request:
        started = 10.0
        identity = SimpleNamespace(client="198.51.100.1", is_proxied=False)
        left: Any = None

        def forget_body(self) -> None:
            pass

        stop_ahead = forget_body

    class Loop:
        due: list[Callable[[], None]] = []

        def call_later(self, _delay_s: float, callback: Callable[[], None]) -> Any:
            self.due.append(callback)
            return SimpleNamespace(cancel=lambda: self.due.remove(callback))

    def take_further(_exchange: Any, step: Callable[[], None]) -> None:
        with pytest.raises(GatewayFault, match="Too many failed"):
            step()

    loop, clock = Loop(), [10.0]
    gateway = SimpleNamespace(loop=loop, now=lambda: clock[0], take_further=take_further)
    failures = FailedAttempts(cast(Any, gateway), per_minute=1)
    failures.charge(cast(Any, Request()))
    with suppress(GatewayFault):
        failures.check(cast(Any, Request()))

    def hold(*, leaves: bool) -> weakref.ref[Request]:
        request = Request()
        with pytest.raises(Hold):
            failures.check(cast(Any, request))
        if leaves:
            request.left()
        return weakref.ref(request)

    gc.disable()  # so that nothing but the end of the refusal frees anything
    try:
        held = [hold(leaves=False), hold(leaves=True)]
        assert None not in [each() for each in held]
        clock[0] += 60.0
        while loop.due:
            loop.due.pop()()
        assert [each() for each in held] == [None, None]
    finally:
        gc.enable()

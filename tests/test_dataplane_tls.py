"""The TLS port of a worker: certificates by name, their renewal, versions, HTTPS alone, and the drain (R24)."""

import asyncio
import json
import re
import signal
import socket
import ssl
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography.hazmat.primitives import serialization
from websockets.asyncio.client import connect

from gateway_project.dataplane.protocol import LINGER_S
from gateway_project.dataplane.tls import CertificateError, Certificates, expired, sources
from tests.dataplane import DataPlane, worker_settings
from tests.gateway_process import GatewayFactory, eventually
from tests.private_servers import free_port
from tests.raw_http import Client
from tests.scripted_upstream import Peer, replying
from tests.test_dataplane_process import Traffic, slowly
from tests.tls_clients import TlsClient, careless, is_listening, issue, put_pair, trusting
from tests.websocket_peers import agreeing

Start = Callable[..., DataPlane]
OTHER = trustme.CA().issue_cert("other.test")
ENCRYPTED = serialization.load_pem_private_key(OTHER.private_key_pem.bytes(), None).private_bytes(
    serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"password")
)
HSTS = "max-age=31536000; includeSubDomains"


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


def tls_settings(directory: Path, **changes: Any) -> dict[str, Any]:
    return {
        "tls_port": free_port(),
        "tls_certificate": str(directory / "gateway.crt"),
        "tls_key": str(directory / "gateway.key"),
    } | changes


@pytest.fixture(scope="module")
def plane(start_module_plane: Start, ca: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> DataPlane:
    directory = tmp_path_factory.mktemp("tls")
    put_pair(issue(ca, "localhost"), directory / "gateway.crt", directory / "gateway.key")
    return start_module_plane(**tls_settings(directory, hsts=HSTS))


def secure(plane: DataPlane, context: ssl.SSLContext, name: str | None = "localhost", **options: Any) -> TlsClient:
    return TlsClient(plane.settings.tls_port, context, name, **options)


# --- requests --------------------------------------------------------------------------------------------------------
def test_requests_are_served_through_tls_and_told_to_be_https(plane: DataPlane, ca: trustme.CA) -> None:
    upstream = plane.serve()
    with secure(plane, trusting(ca)) as client:
        for _ in range(3):
            assert client.send(plane.request("GET", f"{upstream.path}/x")).answer().body == b"ok"
    seen = upstream.requests[-1]
    assert seen.field("x-forwarded-proto") == b"https"
    assert b"proto=https" in (seen.field("forwarded") or b"")


def test_the_plain_port_serves_beside_it(plane: DataPlane) -> None:
    upstream = plane.serve()
    answer = plane.ask("GET", f"{upstream.path}/x")
    assert (answer.status, answer.field("strict-transport-security")) == (200, None)
    assert upstream.requests[-1].field("x-forwarded-proto") == b"http"


def test_large_bodies_pass_in_both_directions(plane: DataPlane, ca: trustme.CA) -> None:
    body = bytes(range(256)) * 4096 * 9

    def echo(peer: Peer) -> None:
        while (seen := peer.read_request()) is not None:
            peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(seen.body) + seen.body)

    upstream = plane.serve(echo)
    with secure(plane, trusting(ca)) as client:
        # One after the other, as the script allows: OpenSSL takes no connection from two threads at once.
        assert client.send(plane.request("POST", f"{upstream.path}/x", body=body)).answer("POST").body == body


def test_a_client_that_takes_a_little_at_a_time_gets_all_of_it(plane: DataPlane, ca: trustme.CA) -> None:
    """What leaves the kernel's buffer is filled up from those of TLS, so that nothing shows there."""
    size = 12_000_000
    upstream = plane.serve(
        replying(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size), idle_timeout_ms=1000
    )
    with secure(plane, trusting(ca), receive_buffer=8192, segment_size=1400) as client:
        _, body = client.send(plane.request("GET", f"{upstream.path}/x")).begin_answer()
        received, slow_until = 0, time.monotonic() + 9
        for piece in body:
            received += len(piece)
            if time.monotonic() < slow_until:
                time.sleep(0.05)
                assert received < size / 2
        assert received == size


def test_a_client_that_pauses_within_its_last_answer_gets_all_of_it(plane: DataPlane, ca: trustme.CA) -> None:
    """What TLS has written and the kernel does not take yet is no end."""
    sizes = range(300_000, 500_000, 50_000)

    def script(peer: Peer) -> None:
        head = peer.read_head()
        assert head is not None
        size = int(head.target.rpartition(b"/")[2])
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size)
        peer.wait_for_end()

    upstream = plane.serve(script)
    with ExitStack() as stack:
        clients = [
            stack.enter_context(secure(plane, trusting(ca), receive_buffer=8192, segment_size=600)) for _ in sizes
        ]
        for client, size in zip(clients, sizes, strict=True):  # the body is not awaited: the connection ends after it
            client.send(plane.request("POST", f"{upstream.path}/{size}", "Content-Length: 5000000"))
        time.sleep(1.5 * LINGER_S)
        for client, size in zip(clients, sizes, strict=True):
            assert len(client.answer("POST").body) == size


def test_answers_of_the_tls_port_carry_hsts_whoever_makes_them(plane: DataPlane, ca: trustme.CA) -> None:
    upstream = plane.serve()
    paths = [(f"{upstream.path}/x", 200), ("/nowhere", 404), ("/health", 200)]
    with secure(plane, trusting(ca)) as client:
        for path, status in paths:
            answer = client.send(plane.request("GET", path)).answer()
            assert (answer.status, answer.field("strict-transport-security")) == (status, HSTS)
        answer = client.send(b"nonsense\r\n\r\n").answer()
        assert (answer.status, answer.field("strict-transport-security")) == (400, HSTS)


def test_plain_http_on_the_tls_port_is_closed_and_harms_nobody(plane: DataPlane, ca: trustme.CA) -> None:
    with Client(plane.settings.tls_port) as plain:
        plain.send(plane.request("GET", "/health"))
        assert b"HTTP" not in plain.received_within(5.0)
    with secure(plane, trusting(ca)) as client:
        assert client.send(plane.request("GET", "/health")).answer().status == 200


def test_a_handshake_that_does_not_come_is_given_up(plane: DataPlane) -> None:
    began = time.monotonic()
    with Client(plane.settings.tls_port) as client:
        assert client.is_at_end()
    assert time.monotonic() - began > 8


def test_connections_that_fail_before_the_handshake_leave_nothing_behind(plane: DataPlane) -> None:
    before = plane.sockets()
    for beginning in (b"", b"\x16\x03\x01", b"nonsense" * 100):
        for _ in range(5):
            with Client(plane.settings.tls_port) as client:
                client.send(beginning).reset()
    eventually(lambda: plane.sockets() <= before, 20.0, "the end of all descriptors")


# --- what is spoken --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("version", "name"), [(ssl.TLSVersion.TLSv1_2, "TLSv1.2"), (ssl.TLSVersion.TLSv1_3, "TLSv1.3")], ids=["1.2", "1.3"]
)
def test_tls_1_2_and_1_3_are_spoken_with_forward_secrecy(
    plane: DataPlane, ca: trustme.CA, version: ssl.TLSVersion, name: str
) -> None:
    context = trusting(ca)
    context.minimum_version = context.maximum_version = version
    with secure(plane, context) as client:
        assert client.socket.version() == name
        assert re.match("ECDHE-.*(GCM|POLY1305)|TLS_", client.socket.cipher()[0])
        assert client.socket.compression() is None


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated")
def test_older_versions_and_ciphers_are_refused(plane: DataPlane) -> None:
    old = careless()
    old.set_ciphers("DEFAULT:@SECLEVEL=0")
    old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    weak = careless()
    weak.maximum_version = ssl.TLSVersion.TLSv1_2
    weak.set_ciphers("AES128-SHA:AES256-SHA256:ECDHE-RSA-AES128-SHA")
    for context in (old, weak):
        with pytest.raises((ssl.SSLError, ConnectionResetError)):
            secure(plane, context)


def test_tls_1_3_alone_is_a_setting(start_plane: Start, ca: trustme.CA, tmp_path: Path) -> None:
    put_pair(issue(ca, "localhost"), tmp_path / "gateway.crt", tmp_path / "gateway.key")
    plane = start_plane(**tls_settings(tmp_path, tls_min_version="1.3"))
    context = trusting(ca)
    with secure(plane, context) as client:
        assert client.socket.version() == "TLSv1.3"
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError):
        secure(plane, context)


def test_sessions_are_resumed(plane: DataPlane, ca: trustme.CA) -> None:
    context = trusting(ca)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with secure(plane, context) as first:
        session = first.socket.session
    again = context.wrap_socket(
        socket.create_connection(("127.0.0.1", plane.settings.tls_port)), server_hostname="localhost", session=session
    )
    with again:
        assert again.session_reused


# --- certificates by name --------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def named(start_module_plane: Start, ca: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> DataPlane:
    """Certificates in all three forms, the default among them."""
    directory = tmp_path_factory.mktemp("certificates")
    put_pair(issue(ca, "gateway.test"), directory / "default.crt", directory / "default.key")
    put_pair(issue(ca, "orders.test", "www.orders.test"), directory / "orders.crt", directory / "orders.key")
    put_pair(issue(ca, "*.shop.test"), directory / "shop/fullchain.pem", directory / "shop/privkey.pem")
    put_pair(issue(ca, "own.shop.test"), directory / "own/tls.crt", directory / "own/tls.key")
    return start_module_plane(tls_port=free_port(), tls_certificates_dir=str(directory))


@pytest.mark.parametrize(
    ("name", "served"),
    [
        ("orders.test", "orders.test"),
        ("WWW.Orders.Test", "www.orders.test"),
        ("a.shop.test", "*.shop.test"),
        ("own.shop.test", "own.shop.test"),
    ],
    ids=["exact", "another name in capitals", "wildcard", "exact before wildcard"],
)
def test_the_certificate_is_that_of_the_name(named: DataPlane, ca: trustme.CA, name: str, served: str) -> None:
    with secure(named, trusting(ca), name) as client:
        assert served in client.names


@pytest.mark.parametrize("name", ["unknown.test", "a.b.shop.test", "shop.test", None])
def test_the_default_serves_names_that_no_certificate_has(named: DataPlane, ca: trustme.CA, name: str | None) -> None:
    context = trusting(ca)
    context.check_hostname = False
    with secure(named, context, name) as client:
        assert client.names == {"gateway.test"}


# --- renewal ---------------------------------------------------------------------------------------------------------
def serial(plane: DataPlane) -> bytes:
    with secure(plane, careless()) as client:
        der: bytes = client.socket.getpeercert(binary_form=True)
    return der


def test_a_renewed_certificate_serves_without_a_restart_and_open_connections_go_on(
    start_plane: Start, ca: trustme.CA, tmp_path: Path
) -> None:
    put_pair(issue(ca, "localhost"), tmp_path / "gateway.crt", tmp_path / "gateway.key")
    plane = start_plane(**tls_settings(tmp_path))
    first = serial(plane)
    with secure(plane, trusting(ca)) as client:
        put_pair(issue(ca, "localhost"), tmp_path / "gateway.crt", tmp_path / "gateway.key")
        eventually(lambda: serial(plane) != first, 20.0, "the renewed certificate")
        assert client.send(plane.request("GET", "/health")).answer().status == 200


def test_sigusr1_looks_at_the_certificates_at_once(start_plane: Start, ca: trustme.CA, tmp_path: Path) -> None:
    put_pair(issue(ca, "localhost"), tmp_path / "gateway.crt", tmp_path / "gateway.key")
    plane = start_plane(**tls_settings(tmp_path))
    first = serial(plane)
    put_pair(issue(ca, "localhost"), tmp_path / "gateway.crt", tmp_path / "gateway.key")
    plane.process.send_signal(signal.SIGUSR1)
    eventually(lambda: serial(plane) != first, 20.0, "the renewed certificate")


def gauges(plane: DataPlane) -> dict[str, float]:
    """The worker's latest, by name and the label ``name``."""
    found = [message for message in plane.feed.heard if message.get("type") == "metrics"]
    latest = found[-1]["gauges"] if found else []
    return {name + (f":{labels['name']}" if "name" in labels else ""): value for name, labels, value in latest}


def test_a_broken_renewal_leaves_what_works_and_is_told(start_plane: Start, ca: trustme.CA, tmp_path: Path) -> None:
    put_pair(issue(ca, "localhost", days=10), tmp_path / "gateway.crt", tmp_path / "gateway.key")
    plane = start_plane(**tls_settings(tmp_path))
    first = serial(plane)
    (tmp_path / "gateway.key").write_bytes(issue(ca, "localhost").private_key_pem.bytes())
    eventually(lambda: "is not the key of" in plane.output(), 20.0, "the line in the log")
    eventually(lambda: gauges(plane).get("api_gateway_tls_certificate_failures") == 1, 20.0, "the gauge")
    assert serial(plane) == first
    assert 9 * 86400 < gauges(plane)["api_gateway_tls_certificate_expiry_seconds:default"] < 10 * 86400
    assert plane.output().count("is not the key of") == 1  # once, not at every look
    put_pair(issue(ca, "localhost", days=20), tmp_path / "gateway.crt", tmp_path / "gateway.key")
    eventually(lambda: gauges(plane).get("api_gateway_tls_certificate_failures") == 0, 20.0, "the mended pair")
    assert serial(plane) != first


def certificates(directory: Path, clock: list[float], **changes: Any) -> Certificates:
    settings = worker_settings(directory, tls_port=1, tls_certificates_dir=str(directory), **changes)
    return Certificates(settings, lambda: clock[0])


def test_certificates_come_and_go_with_their_files(ca: trustme.CA, tmp_path: Path) -> None:
    put_pair(issue(ca, "a.test"), tmp_path / "a.crt", tmp_path / "a.key")
    kept = certificates(tmp_path, [time.time()])
    assert kept.pair("b.test").names == ("a.test",)
    put_pair(issue(ca, "b.test"), tmp_path / "b.crt", tmp_path / "b.key")
    kept.look()
    assert kept.pair("b.test").names == ("b.test",)
    (tmp_path / "b.crt").unlink()
    kept.look()
    assert kept.pair("b.test").names == ("a.test",)


def test_a_directory_that_is_emptied_changes_nothing(ca: trustme.CA, tmp_path: Path) -> None:
    put_pair(issue(ca, "a.test"), tmp_path / "a.crt", tmp_path / "a.key")
    kept = certificates(tmp_path, [time.time()])
    (tmp_path / "a.crt").unlink()
    kept.look()
    assert kept.pair("a.test").names == ("a.test",)
    assert {name: value for name, _, value in kept.gauges()}["api_gateway_tls_certificate_failures"] == 1


# --- the plain port --------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def redirecting(start_module_plane: Start, ca: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> DataPlane:
    directory = tmp_path_factory.mktemp("tls")
    put_pair(issue(ca, "localhost"), directory / "gateway.crt", directory / "gateway.key")
    settings = tls_settings(
        directory, https_redirect_port=443, trusted_proxies=("127.0.0.9/32",), metrics_token="t" * 16
    )
    return start_module_plane(**settings)


def test_the_plain_port_leads_to_https_keeping_method_and_query(redirecting: DataPlane) -> None:
    upstream = redirecting.serve()
    answer = redirecting.ask("POST", f"{upstream.path}/x%20y?a=1&b", host="Orders.Test:4200", body=b"secret")
    assert (answer.status, answer.body) == (308, b"")
    assert answer.field("location") == f"https://orders.test{upstream.path}/x%20y?a=1&b"
    assert upstream.requests == []


def test_the_port_of_the_redirect_is_told_unless_it_is_443(start_plane: Start, ca: trustme.CA, tmp_path: Path) -> None:
    put_pair(issue(ca, "localhost"), tmp_path / "gateway.crt", tmp_path / "gateway.key")
    plane = start_plane(**tls_settings(tmp_path, https_redirect_port=8443))
    assert plane.ask("GET", "/x", host="[::1]:80").field("location") == "https://[::1]:8443/x"


@pytest.mark.parametrize(("path", "status"), [("/health", 200), ("/ready", 200), ("/metrics", 401)])
def test_probes_and_scrapers_are_served_on_the_plain_port(redirecting: DataPlane, path: str, status: int) -> None:
    assert redirecting.ask("GET", path).status == status


def test_a_client_whose_tls_a_trusted_proxy_has_ended_is_served(redirecting: DataPlane) -> None:
    upstream = redirecting.serve()
    field = "X-Forwarded-Proto: https"
    assert redirecting.ask("GET", f"{upstream.path}/x", field, source="127.0.0.9").status == 200
    assert redirecting.ask("GET", f"{upstream.path}/x", field).status == 308  # anybody can say so


def test_what_is_no_proper_request_is_refused_and_not_led_on(redirecting: DataPlane) -> None:
    assert redirecting.ask("GET", "/a/../b").status == 400
    with redirecting.connect() as client:
        assert client.send(b"GET /x HTTP/1.0\r\n\r\n").answer().status == 400


def test_redirects_stand_in_the_access_log(redirecting: DataPlane) -> None:
    answer = redirecting.ask("GET", "/x")
    assert redirecting.log_line(answer.field("x-request-id"))["status_code"] == 308


# --- the drain -------------------------------------------------------------------------------------------------------
def test_both_ports_drain_and_no_handshake_that_has_begun_is_lost(
    start_plane: Start, ca: trustme.CA, tmp_path: Path
) -> None:
    put_pair(issue(ca, "localhost"), tmp_path / "gateway.crt", tmp_path / "gateway.key")
    plane = start_plane(**tls_settings(tmp_path))
    upstream = plane.serve()
    with secure(plane, trusting(ca)) as client, Client(plane.settings.tls_port) as half:
        assert client.send(plane.request("GET", f"{upstream.path}/x")).answer().field("connection") is None
        plane.terminate()
        eventually(lambda: "draining" in client.send(plane.request("GET", "/ready")).answer().body.decode())
        time.sleep(1.5)  # beyond the grace: the handshake that has begun keeps the worker
        with trusting(ca).wrap_socket(half.socket, server_hostname="localhost") as late:
            late.sendall(plane.request("GET", f"{upstream.path}/x"))
            answer = late.recv(65536)
            assert answer.startswith(b"HTTP/1.1 200 ")
            assert b"connection: close" in answer
    assert plane.process.wait(30) == 0
    assert not is_listening(plane.settings.tls_port)
    assert not is_listening(plane.port)


def test_sigterm_under_busy_tls_clients_loses_no_request(start_plane: Start, ca: trustme.CA, tmp_path: Path) -> None:
    put_pair(issue(ca, "localhost"), tmp_path / "gateway.crt", tmp_path / "gateway.key")
    plane = start_plane(**tls_settings(tmp_path))
    request = plane.request("GET", f"{plane.serve(slowly).path}/x")
    traffic = Traffic(plane.settings.tls_port, request, tls=careless())

    async def play() -> None:
        running = asyncio.create_task(traffic.run(50))
        while traffic.answered < 200:
            await asyncio.sleep(0.01)
        plane.terminate()
        async with asyncio.timeout(60):
            await running

    asyncio.run(play())
    assert traffic.failures == []
    assert traffic.refused == 50
    assert plane.process.wait(30) == 0


# --- settings and the start ------------------------------------------------------------------------------------------
def test_a_worker_without_a_certificate_ends_with_a_sentence(tmp_path: Path) -> None:
    settings = replace(worker_settings(tmp_path), **tls_settings(tmp_path))
    with pytest.raises(CertificateError, match=r"TLS_CERTIFICATE .*gateway\.crt cannot be read: No such file"):
        Certificates(settings)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda crt, _: crt.unlink(), "TLS_CERTIFICATE .* cannot be read: No such file or directory."),
        (lambda _, key: key.unlink(), "TLS_KEY .* cannot be read: No such file or directory."),
        (lambda crt, _: crt.write_text("no certificate"), "TLS_CERTIFICATE .* holds no certificate in PEM."),
        (lambda _, key: key.write_text("no key"), "TLS_KEY .* holds no private key in PEM for "),
        (lambda _, key: key.write_bytes(OTHER.private_key_pem.bytes()), "TLS_KEY .* is not the key of "),
        (lambda _, key: key.write_bytes(ENCRYPTED), "TLS_KEY .* is encrypted"),
    ],
    ids=["no certificate", "no key", "garbage", "garbage as key", "another's key", "an encrypted key"],
)
def test_a_pair_that_cannot_serve_is_named_with_its_setting(
    ca: trustme.CA, tmp_path: Path, spoil: Callable[[Path, Path], object], says: str
) -> None:
    certificate, key = tmp_path / "gateway.crt", tmp_path / "gateway.key"
    put_pair(issue(ca, "localhost"), certificate, key)
    spoil(certificate, key)
    with pytest.raises(CertificateError, match=says):
        expired(sources(str(certificate), str(key), ""), time.time())


def test_an_expired_certificate_is_a_warning(ca: trustme.CA, tmp_path: Path) -> None:
    certificate, key = tmp_path / "gateway.crt", tmp_path / "gateway.key"
    put_pair(issue(ca, "localhost", days=-1), certificate, key)
    (sentence,) = expired(sources(str(certificate), str(key), ""), time.time())
    assert re.match(r"TLS_CERTIFICATE .*gateway.crt has expired on \d{4}-", sentence)


def test_a_directory_without_certificates_is_named(tmp_path: Path) -> None:
    with pytest.raises(CertificateError, match=r"TLS_CERTIFICATES_DIR .* holds no certificate"):
        sources("", "", str(tmp_path))
    with pytest.raises(CertificateError, match=r"TLS_CERTIFICATES_DIR .* cannot be read"):
        sources("", "", str(tmp_path / "none"))


def test_the_whole_gateway_serves_both_ports_with_two_workers(
    start_gateway: GatewayFactory, ca: trustme.CA, tmp_path: Path
) -> None:
    port = free_port()
    certificate, key = tmp_path / "gateway.crt", tmp_path / "gateway.key"
    put_pair(issue(ca, "localhost"), certificate, key)
    gateway = start_gateway(
        WORKERS="2", TLS_PORT=str(port), TLS_CERTIFICATE=str(certificate), TLS_KEY=str(key), HTTPS_REDIRECT="true"
    )
    for _ in range(8):
        with TlsClient(port, trusting(ca)) as client:
            answer = client.send(b"GET /info HTTP/1.1\r\nHost: localhost\r\n\r\n").answer()
            assert json.loads(answer.body)["product"] == "portcullis"
    assert f"https://127.0.0.1:{port}" in gateway.log()


def test_a_websocket_passes_through_tls(plane: DataPlane, ca: trustme.CA) -> None:
    async def talk(url: str) -> None:
        headers = {"X-API-Key": plane.key}
        async with connect(url, additional_headers=headers, ssl=trusting(ca), max_size=None) as websocket:
            for message in ("hello", b"x" * 1_000_000):
                await websocket.send(message)
                assert await websocket.recv() == message

    upstream = plane.serve(agreeing())
    asyncio.run(talk(f"wss://localhost:{plane.settings.tls_port}{upstream.path}/x"))
    assert upstream.requests[-1].field("x-forwarded-proto") == b"https"

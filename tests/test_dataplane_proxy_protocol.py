"""The PROXY protocol from balancers in front of the gateway (R26), on the plain port and before TLS."""

import struct
import time
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path

import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st

from gateway_project.dataplane.proxy_protocol import V2_SIGNATURE, NoHeader, read_header
from tests.dataplane import DataPlane
from tests.gateway_process import GatewayFactory, eventually
from tests.private_servers import free_port
from tests.raw_http import Client
from tests.tls_clients import TlsClient, issue, put_pair, trusting

BALANCER = "127.0.0.9"
BEYOND = "127.0.0.8"  # a proxy behind the balancer's, which it tells of
Start = Callable[..., DataPlane]


def version_1(source: str = "203.0.113.7", kind: str = "TCP4", destination: str = "192.0.2.1") -> bytes:
    return f"PROXY {kind} {source} {destination} 51234 443\r\n".encode()


def version_2(source: str = "203.0.113.7", *, command: int = 1, tlvs: bytes = b"") -> bytes:
    address = ip_address(source).packed
    block = address + ip_address("192.0.2.1" if len(address) == 4 else "2001:db8::1").packed
    block += struct.pack("!HH", 51234, 443) + tlvs
    family = 0x11 if len(address) == 4 else 0x21
    return V2_SIGNATURE + struct.pack("!BBH", 0x20 | command, family, len(block)) + block


TLVS = struct.pack("!BH", 0x02, 11) + b"orders.test" + struct.pack("!BH", 0x04, 3000) + bytes(3000)
HEADERS = {
    "version 1": (version_1(), "203.0.113.7"),
    "version 1, IPv6": (version_1("2001:db8::7", "TCP6", "2001:db8::1"), "2001:db8::7"),
    "version 1, unknown": (b"PROXY UNKNOWN ffff::1 whatever\r\n", BALANCER),
    "version 2": (version_2(), "203.0.113.7"),
    "version 2, IPv6": (version_2("2001:db8::7"), "2001:db8::7"),
    "version 2, TLVs": (version_2(tlvs=TLVS), "203.0.113.7"),
    "version 2, local": (version_2(command=0), BALANCER),
    "version 2, unspecified": (V2_SIGNATURE + b"\x21\x00\x00\x00", BALANCER),
    "version 2, datagram": (V2_SIGNATURE + b"\x21\x12\x00\x0c" + bytes(12), BALANCER),
}
each_header = pytest.mark.parametrize(("header", "client"), HEADERS.values(), ids=HEADERS.keys())


# --- through the gateway ---------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def plane(start_module_plane: Start, ca: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> DataPlane:
    directory = tmp_path_factory.mktemp("tls")
    put_pair(issue(ca, "localhost"), directory / "gateway.crt", directory / "gateway.key")
    return start_module_plane(
        proxy_protocol=True,
        trusted_proxies=(f"{BALANCER}/32", f"{BEYOND}/32"),
        tls_port=free_port(),
        tls_certificate=str(directory / "gateway.crt"),
        tls_key=str(directory / "gateway.key"),
    )


@each_header
def test_the_address_of_the_header_is_the_clients(plane: DataPlane, header: bytes, client: str) -> None:
    upstream = plane.serve()
    with plane.connect(BALANCER) as connection:
        connection.send(header + plane.request("GET", f"{upstream.path}/x"))
        for _ in range(2):
            answer = connection.answer()
            assert answer.status == 200
            connection.send(plane.request("GET", f"{upstream.path}/x"))
        assert plane.log_line(answer.field("x-request-id"))["client"] == client
    assert upstream.requests[-1].field("x-forwarded-for") == client.encode()


@each_header
def test_the_header_comes_before_tls(plane: DataPlane, ca: trustme.CA, header: bytes, client: str) -> None:
    upstream = plane.serve()
    context = trusting(ca)
    with TlsClient(plane.settings.tls_port, context, before=header, source=BALANCER) as connection:
        assert connection.send(plane.request("GET", f"{upstream.path}/x")).answer().status == 200
    seen = upstream.requests[-1]
    assert seen.field("x-forwarded-for") == client.encode()
    assert seen.field("x-forwarded-proto") == b"https"


def test_a_header_that_arrives_in_pieces_is_read(plane: DataPlane) -> None:
    header = version_2(tlvs=TLVS)
    with plane.connect(BALANCER) as connection:
        for start in (0, 5, 14, 20, 900):
            end = {0: 5, 5: 14, 14: 20, 20: 900, 900: len(header) + 10}[start]
            connection.send((header + plane.request("GET", "/health"))[start:end])
            time.sleep(0.02)  # so that the pieces are read apart; nothing depends on it
        connection.send((header + plane.request("GET", "/health"))[len(header) + 10 :])
        assert connection.answer().status == 200


def test_the_told_address_is_the_peer_whose_forwarded_for_counts(plane: DataPlane) -> None:
    """The balancer tells of the other end of its connection. Only if that is a trusted proxy too, its field counts."""
    upstream = plane.serve()
    request = plane.request("GET", f"{upstream.path}/x", "X-Forwarded-For: 198.51.100.1")
    for source, client in (("203.0.113.7", b"203.0.113.7"), (BEYOND, b"198.51.100.1")):
        with plane.connect(BALANCER) as connection:
            assert connection.send(version_1(source) + request).answer().status == 200
        assert upstream.requests[-1].field("x-forwarded-for") == client


@pytest.mark.parametrize(
    "beginning",
    [
        b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n",
        b"PROXY TCP4 203.0.113.7\r\nGET /health HTTP/1.1\r\nHost: x\r\n\r\n",
        b"PROXY TCP4 203.0.113.7 192.0.2.1 1 99999\r\n",
        b"PROXY TCP4 203.0.113.07 192.0.2.1 1 2\r\n",
        b"PROXY TCP6 203.0.113.7 192.0.2.1 1 2\r\n",
        b"PROXY UNKNOWN " + b"x" * 200,
        V2_SIGNATURE + b"\x11\x11\x00\x0c" + bytes(12),
        V2_SIGNATURE + b"\x21\x11\x00\x04" + bytes(4),
        b"\x16\x03\x01\x02\x00\x01",
    ],
    ids=["HTTP", "half a line", "port", "zero", "family", "too long", "version", "cut short", "TLS"],
)
def test_what_is_no_header_ends_the_connection_without_an_answer(plane: DataPlane, beginning: bytes) -> None:
    with plane.connect(BALANCER) as connection:
        assert connection.send_what_is_taken(beginning).is_at_end()


def test_whoever_is_no_balancer_is_refused_and_not_believed(plane: DataPlane) -> None:
    # This host may ask after itself: probes do. It may speak for nobody else.
    for told in (b"PROXY UNKNOWN\r\n", version_1("127.0.0.1"), version_2(command=0)):
        with plane.connect("127.0.0.1") as connection:
            answer = connection.send(told + plane.request("GET", "/health", key=None)).answer()
            assert answer.status == 200
            assert plane.log_line(answer.field("x-request-id"))["client"] == "127.0.0.1"
    for told in (version_1(), version_2(), b""):
        with plane.connect("127.0.0.1") as connection:
            assert connection.send_what_is_taken(told + plane.request("GET", "/health")).is_at_end()
    eventually(lambda: "sent no PROXY header" in plane.output(), what="the line in the log")


def test_a_header_that_never_ends_is_given_up_after_10_seconds(plane: DataPlane) -> None:
    began = time.monotonic()
    with plane.connect(BALANCER) as connection:
        assert connection.send(b"PROXY TC").is_at_end()
    assert time.monotonic() - began > 8


def test_connections_that_leave_before_the_header_leave_nothing_behind(plane: DataPlane) -> None:
    before = plane.sockets()
    for beginning in (b"", b"PROXY ", V2_SIGNATURE):
        for _ in range(5):
            with plane.connect(BALANCER) as connection:
                connection.send(beginning).reset()
    eventually(lambda: plane.sockets() <= before, what="the end of all descriptors")


def test_without_the_setting_a_header_is_no_request(start_plane: Start) -> None:
    plane = start_plane(trusted_proxies=(f"{BALANCER}/32",))
    with plane.connect(BALANCER) as connection:
        assert connection.send(version_1() + plane.request("GET", "/health")).answer().status == 400


def test_a_worker_stops_while_headers_are_outstanding(start_plane: Start) -> None:
    plane = start_plane(proxy_protocol=True, trusted_proxies=(f"{BALANCER}/32",))
    upstream = plane.serve()
    with plane.connect(BALANCER) as late, plane.connect(BALANCER) as never:
        plane.terminate()
        time.sleep(1.5)  # beyond the grace: who has connected is still served
        assert late.send(version_1() + plane.request("GET", f"{upstream.path}/x")).answer().status == 200
        never.reset()
    assert plane.process.wait(30) == 0


def test_the_whole_gateway_becomes_ready_behind_a_balancer(start_gateway: GatewayFactory, tmp_path: Path) -> None:
    gateway = start_gateway(PROXY_PROTOCOL="on", TRUSTED_PROXIES=BALANCER)
    with Client(int(gateway.environment["PORT"]), BALANCER) as connection:
        assert connection.send(version_1() + b"GET /ready HTTP/1.1\r\nHost: x\r\n\r\n").answer().status == 200


# --- the parser alone ------------------------------------------------------------------------------------------------
LINES = st.text("TCP46UNKO :.0123456789af\r\n", max_size=120).map(str.encode)


@given(st.sampled_from((b"", b"PROXY ", V2_SIGNATURE, V2_SIGNATURE + b"\x21")), st.binary(max_size=300) | LINES)
def test_any_bytes_are_a_header_or_none_and_never_anything_else(start: bytes, rest: bytes) -> None:
    data = start + rest
    try:
        header = read_header(data)
    except NoHeader:
        return
    if header is not None:
        size, source = header
        assert 0 < size <= len(data)
        assert source is None or str(ip_address(source)) == source


@given(st.sampled_from([header for header, _ in HEADERS.values()]), st.binary(max_size=50), st.data())
def test_a_header_reads_the_same_however_it_is_split(header: bytes, after: bytes, data: st.DataObject) -> None:
    expected = read_header(header + after)
    assert expected is not None
    assert expected[0] == len(header)
    size = data.draw(st.integers(0, len(header) - 1))
    assert read_header(header[:size]) is None
    assert read_header(header) == expected


def test_nothing_beyond_the_header_is_taken_from_the_socket(plane: DataPlane) -> None:
    """The request may have arrived together with the header, and pipelined ones too."""
    with plane.connect(BALANCER) as connection:
        connection.send(version_2() + plane.request("GET", "/health") * 20)
        assert [connection.answer().status for _ in range(20)] == [200] * 20
        assert connection.received_within(0.1) == b""

"""Active checks: what an answer comes to, and how a probe goes about it, with real servers."""

import asyncio
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from itertools import groupby
from typing import Any

import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st

from access.addresses import EgressPolicy
from routing.health import Finding, Probe, Standing, check_of, judged, probes_of, url_of
from routing.policies import ActiveCheck, UpstreamTls
from routing.probing import Asker
from routing.records import ServiceRecord, TargetRecord
from tests.scripted_upstream import Peer, Script, Upstream, replying
from tests.wires import service_wire, version_wire


# --- judging -------------------------------------------------------------------------------------------------------
@given(st.lists(st.booleans(), max_size=60), st.integers(1, 6), st.integers(1, 6))
def test_a_target_turns_only_after_a_threshold_of_results_in_a_row(
    results: list[bool], healthy: int, unhealthy: int
) -> None:
    check = ActiveCheck(healthy_threshold=healthy, unhealthy_threshold=unhealthy)
    standing = Standing()
    expected = True  # healthy until proven otherwise
    for is_good, run in groupby(results):
        wanted = healthy if is_good else unhealthy
        for count, _ in enumerate(run, 1):
            standing = judged(standing, is_good, check)
            if is_good != expected and count >= wanted:
                expected = is_good
            assert standing.is_healthy is expected


# --- what is asked -------------------------------------------------------------------------------------------------
def service(**members: Any) -> ServiceRecord:
    return ServiceRecord.from_wire(service_wire(default_url="http://10.0.0.1:7000") | members)


def version(name: str, *targets: str) -> dict[str, Any]:
    return version_wire(name) | {"targets": [[url, 1] for url in targets]}


def test_a_health_endpoint_alone_asks_for_probes_with_the_defaults() -> None:
    assert check_of(service()) is None
    assert check_of(service(health_endpoint="/health")) == ActiveCheck(path="/health")
    assert check_of(service(health_endpoint="/health", is_active=False)) is None


def test_a_policy_decides_and_takes_the_path_from_the_service_where_it_names_none() -> None:
    active = {"health_checks": {"active": {"intervalS": 1}}}
    assert check_of(service(policies=active)) == ActiveCheck(interval_s=1, path="/")
    assert check_of(service(policies=active, health_endpoint="/up")) == ActiveCheck(interval_s=1, path="/up")
    passive: dict[str, Any] = {"health_checks": {"passive": {}}}
    assert check_of(service(policies=passive, health_endpoint="/up")) is None


def test_a_target_of_several_versions_is_asked_once() -> None:
    both = [version("v1", "http://10.0.0.1:7000", "http://10.0.0.2"), version("v2", "http://10.0.0.2:80")]
    probes = probes_of(service(versions=both, default_url="", health_endpoint="/health"))
    assert {url: probe.versions for url, probe in probes.items()} == {
        "http://10.0.0.1:7000": ("v1",),
        "http://10.0.0.2:80": ("v1", "v2"),
    }


def test_an_ipv6_target_has_a_url_that_can_be_read_back() -> None:
    target, _ = TargetRecord.from_url("http://[::1]:7000")
    assert url_of(target) == "http://[::1]:7000"


# --- asking --------------------------------------------------------------------------------------------------------
LOOPBACK = EgressPolicy(("127.0.0.0/8",)).permits
Ask = Callable[..., Finding]


@pytest.fixture
def upstream() -> Iterator[Callable[..., Upstream]]:
    started: list[Upstream] = []

    def start(script: Script, tls: ssl.SSLContext | None = None) -> Upstream:
        started.append(Upstream(script, tls))
        return started[-1]

    yield start
    for each in started:
        each.close()


def ask(
    url: str,
    *,
    permits: Callable[[str], bool] = LOOPBACK,
    context: Callable[[UpstreamTls | None], ssl.SSLContext] = lambda _: ssl.create_default_context(),
    tls: UpstreamTls | None = None,
    **check: Any,
) -> Finding:
    async def run() -> Finding:
        asker = Asker(permits, context)
        try:
            target, _ = TargetRecord.from_url(url, tls)
            return await asker.ask(Probe(target, ("v1",), ActiveCheck(**{"path": "/health", **check})))
        finally:
            await asker.aclose()

    return asyncio.run(run())


def answer(status: str, *lines: str) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status}", *lines, "Content-Length: 2", "", "ok"]).encode()


@pytest.mark.parametrize(
    ("status", "is_good"),
    [("200 OK", True), ("204 No Content", True), ("302 Found", True), ("404 Not Found", False), ("503 Busy", False)],
)
def test_the_status_decides(upstream: Callable[..., Upstream], status: str, is_good: bool) -> None:
    server = upstream(replying(answer(status)))
    finding = ask(server.url)
    assert (finding.is_good, finding.status) == (is_good, int(status[:3]))
    assert bool(finding.error) is not is_good


def test_a_probe_is_one_plain_request_of_its_own(upstream: Callable[..., Upstream]) -> None:
    server = upstream(replying(answer("200 OK", "Set-Cookie: a=b")))
    ask(server.url, method="HEAD", path="/up?deep=1")
    ask(server.url)
    first, second = server.requests
    assert (first.method, first.target) == (b"HEAD", b"/up?deep=1")
    assert first.field("host") == f"127.0.0.1:{server.port}".encode()
    assert first.field("connection") == b"close"
    assert second.field("cookie") is None
    assert server.connections == 2


def test_a_redirect_is_never_followed(upstream: Callable[..., Upstream]) -> None:
    elsewhere = upstream(replying(answer("200 OK")))
    server = upstream(replying(answer("302 Found", f"Location: {elsewhere.url}/")))
    assert ask(server.url, status_to=299).status == 302
    assert not elsewhere.requests


def test_a_name_is_resolved_and_kept_in_the_host_field(upstream: Callable[..., Upstream]) -> None:
    server = upstream(replying(answer("200 OK")))
    assert ask(f"http://localhost:{server.port}").is_good
    assert server.requests[0].field("host") == f"localhost:{server.port}".encode()


def test_an_address_that_the_policy_forbids_is_never_connected_to(upstream: Callable[..., Upstream]) -> None:
    server = upstream(replying(answer("200 OK")))
    for host in ("127.0.0.1", "localhost"):
        finding = ask(f"http://{host}:{server.port}", permits=EgressPolicy(()).permits)
        assert not finding.is_good
        assert "EGRESS_ALLOW" in finding.error
    assert server.connections == 0


def test_a_hung_target_is_given_up_after_the_timeout(upstream: Callable[..., Upstream]) -> None:
    server = upstream(lambda peer: peer.wait_for_end())
    started = time.monotonic()
    finding = ask(server.url, timeout_s=0.2)
    assert finding == Finding(False, finding.ms, None, "There was no answer within 0.2 s.")
    assert time.monotonic() - started < 5


def test_a_body_that_never_ends_is_not_waited_for(upstream: Callable[..., Upstream]) -> None:
    def script(peer: Peer) -> None:
        peer.read_request()
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\nbeginning")
        peer.wait_for_end()

    assert ask(upstream(script).url, timeout_s=5).is_good


@pytest.mark.parametrize("nonsense", [b"SSH-2.0-OpenSSH\r\n", b""], ids=["another protocol", "nothing"])
def test_what_is_no_http_is_bad(upstream: Callable[..., Upstream], nonsense: bytes) -> None:
    def script(peer: Peer) -> None:
        peer.read_request()
        peer.send(nonsense)
        peer.close()

    assert ask(upstream(script).url).error == "It closed the connection or sent no valid HTTP answer."


def test_a_refused_connection_and_an_unknown_name_are_told_apart() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert ask(f"http://127.0.0.1:{port}").error == "It refused the connection."
    assert ask("http://no-such-host.invalid").error == "Its name could not be resolved."


def test_https_is_verified_by_the_name_that_the_policy_gives(upstream: Callable[..., Upstream]) -> None:
    authority = trustme.CA()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("orders.internal").configure_cert(tls)
    server = upstream(replying(answer("200 OK")), tls)
    trusting = ssl.create_default_context(cadata=authority.cert_pem.bytes().decode())
    policy = UpstreamTls(server_name="orders.internal")
    assert ask(server.url, context=lambda _: trusting, tls=policy).is_good
    assert "certificate is not valid" in ask(server.url, context=lambda _: trusting).error
    assert "certificate is not valid" in ask(server.url, tls=policy).error

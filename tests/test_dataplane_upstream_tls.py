"""HTTPS upstreams under policies of their own: authorities, names, versions, client certificates (R24)."""

import asyncio
import datetime
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trustme

from core.policies import PolicyError, plain, read
from routing.policies import UpstreamTls
from routing.records import TargetRecord
from routing.upstream.connection import UpstreamConnection
from routing.upstream.pool import FORGET_S, Connector
from routing.upstream.tls import ClientContexts
from tests.dataplane import DataPlane, failed
from tests.gateway_process import eventually
from tests.memory_transport import MemoryTransport
from tests.scripted_upstream import OK, Upstream, replying

ONE_EACH = replying(OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))  # no connection is used again


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def secrets_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("secrets")


@pytest.fixture(scope="module")
def plane(start_module_plane: Callable[..., DataPlane], secrets_dir: Path) -> DataPlane:
    return start_module_plane(secrets_dir=str(secrets_dir))


def server(issued: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    issued.configure_cert(context)
    return context


def pem(ca: trustme.CA) -> str:
    return ca.cert_pem.bytes().decode()


def serve(plane: DataPlane, context: ssl.SSLContext, **policy: Any) -> Upstream:
    document = plain(UpstreamTls(**policy))
    return plane.serve(
        upstream=Upstream(tls=context, host="localhost"),
        policies={"upstream_tls": document, "circuit_breaker": {"enabled": False}},
    )


def serve_each_anew(plane: DataPlane, context: ssl.SSLContext, **policy: Any) -> Upstream:
    upstream = serve(plane, context, **policy)
    upstream.script = ONE_EACH
    return upstream


def put_client_certificate(directory: Path, issued: trustme.LeafCert) -> dict[str, str]:
    issued.cert_chain_pems[0].write_to_path(str(directory / "client.pem"))
    issued.private_key_pem.write_to_path(str(directory / "client.key"))
    return {"client_certificate": "secret://file/client.pem", "client_key": "secret://file/client.key"}


# --- who is believed -------------------------------------------------------------------------------------------------
def test_an_authority_of_the_services_own_is_believed_for_it_alone(plane: DataPlane, ca: trustme.CA) -> None:
    context = server(ca.issue_cert("localhost"))
    own = serve(plane, context, ca_pem=pem(ca))
    other = plane.serve(upstream=Upstream(tls=context, host="localhost"))
    assert plane.ask("GET", f"{own.path}/x").body == b"ok"
    failed(plane.ask("GET", f"{other.path}/x"), 502, "upstream_connect_failed", "tls_certificate_error")
    assert other.requests == []


@pytest.mark.parametrize("wrong", ["authority", "name", "time"])
def test_what_is_wrong_with_a_certificate_is_said(plane: DataPlane, ca: trustme.CA, wrong: str) -> None:
    yesterday = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
    issuer = trustme.CA() if wrong == "authority" else ca
    name = "other.test" if wrong == "name" else "localhost"
    issued = issuer.issue_cert(name, not_after=yesterday if wrong == "time" else None)
    upstream = serve(plane, server(issued), ca_pem=pem(ca))
    answer = plane.ask("GET", f"{upstream.path}/x")
    failed(answer, 502, "upstream_connect_failed", "tls_certificate_error")
    says = {"authority": "no authority", "name": "another name", "time": "expired"}[wrong]
    assert says in answer.body.decode()
    assert upstream.requests == []


def test_connections_under_different_policies_are_never_shared(plane: DataPlane, ca: trustme.CA) -> None:
    """One address behind two services: what the careless one has connected to, the careful one may not use."""
    upstream = serve(plane, server(trustme.CA().issue_cert("localhost")), verify=False)
    assert plane.ask("GET", f"{upstream.path}/x").body == b"ok"  # leaves an idle connection
    careful = Upstream(tls=upstream.tls)
    careful.stop_listening()
    careful.port, careful.host = upstream.port, "localhost"
    plane.serve(upstream=careful, policies={"upstream_tls": plain(UpstreamTls(ca_pem=pem(ca)))})
    failed(plane.ask("GET", f"{careful.path}/x"), 502, "upstream_connect_failed", "tls_certificate_error")
    assert len(upstream.requests) == 1


def test_verification_is_off_only_where_the_policy_says_so_and_the_log_warns(plane: DataPlane) -> None:
    upstream = serve(plane, server(trustme.CA().issue_cert("other.test")), verify=False, min_version="1.3")
    assert plane.ask("GET", f"{upstream.path}/x").body == b"ok"
    assert "upstreamTls.verify" in plane.output()


def test_the_policys_name_is_sent_and_verified_in_place_of_the_targets_host(plane: DataPlane, ca: trustme.CA) -> None:
    asked: list[str | None] = []
    context = server(ca.issue_cert("orders.internal"))
    context.sni_callback = lambda _socket, name, _context: asked.append(name)
    upstream = serve(plane, context, ca_pem=pem(ca), server_name="orders.internal")
    assert plane.ask("GET", f"{upstream.path}/x").body == b"ok"
    assert asked == ["orders.internal"]
    assert upstream.requests[0].field("host") == f"localhost:{upstream.port}".encode()


def test_the_targets_host_is_sent_by_default(plane: DataPlane, ca: trustme.CA) -> None:
    asked: list[str | None] = []
    context = server(ca.issue_cert("localhost"))
    context.sni_callback = lambda _socket, name, _context: asked.append(name)
    upstream = serve(plane, context, ca_pem=pem(ca))
    assert plane.ask("GET", f"{upstream.path}/x").body == b"ok"
    assert asked == ["localhost"]


# --- versions --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
def test_tls_1_2_and_1_3_are_spoken(plane: DataPlane, ca: trustme.CA, version: ssl.TLSVersion) -> None:
    context = server(ca.issue_cert("localhost"))
    context.minimum_version = context.maximum_version = version
    upstream = serve(plane, context, ca_pem=pem(ca))
    assert plane.ask("GET", f"{upstream.path}/x").body == b"ok"


def test_a_policy_may_ask_for_tls_1_3(plane: DataPlane, ca: trustme.CA) -> None:
    context = server(ca.issue_cert("localhost"))
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    upstream = serve(plane, context, ca_pem=pem(ca), min_version="1.3")
    failed(plane.ask("GET", f"{upstream.path}/x"), 502, "upstream_connect_failed", "tls_alert_received")


# --- client certificates ---------------------------------------------------------------------------------------------
def demanding(ca: trustme.CA, version: ssl.TLSVersion) -> ssl.SSLContext:
    context = server(ca.issue_cert("localhost"))
    context.maximum_version = version
    context.verify_mode = ssl.CERT_REQUIRED
    ca.configure_trust(context)
    return context


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
def test_a_client_certificate_is_shown_to_an_upstream_that_demands_one(
    plane: DataPlane, ca: trustme.CA, secrets_dir: Path, version: ssl.TLSVersion
) -> None:
    certificate = put_client_certificate(secrets_dir, ca.issue_cert("gateway@portcullis.test"))
    upstream = serve(plane, demanding(ca, version), ca_pem=pem(ca), **certificate)
    for _ in range(2):
        assert plane.ask("POST", f"{upstream.path}/x", body=b"x" * 50_000).body == b"ok"
    assert upstream.connections == 1


@pytest.mark.parametrize(
    ("version", "code"),
    [(ssl.TLSVersion.TLSv1_2, "upstream_connect_failed"), (ssl.TLSVersion.TLSv1_3, "upstream_reset")],
    ids=["1.2", "1.3"],
)
def test_an_upstream_that_misses_a_client_certificate_says_so(
    plane: DataPlane, ca: trustme.CA, version: ssl.TLSVersion, code: str
) -> None:
    upstream = serve(plane, demanding(ca, version), ca_pem=pem(ca))
    answer = plane.ask("GET", f"{upstream.path}/x")
    failed(answer, 502, code, "tls_alert_received")
    assert upstream.requests == []


def test_a_renewed_client_certificate_is_used_without_a_restart(
    start_plane: Callable[..., DataPlane], ca: trustme.CA, tmp_path: Path
) -> None:
    """The upstream believes the new authority alone, so only the new certificate passes."""
    plane = start_plane(secrets_dir=str(tmp_path))
    old, new = ca, trustme.CA()
    context = demanding(old, ssl.TLSVersion.TLSv1_2)
    certificate = put_client_certificate(tmp_path, old.issue_cert("gateway@portcullis.test"))
    upstream = serve_each_anew(plane, context, ca_pem=pem(ca), **certificate)
    assert plane.ask("GET", f"{upstream.path}/x").status == 200
    upstream.tls = server(ca.issue_cert("localhost"))
    upstream.tls.verify_mode = ssl.CERT_REQUIRED
    new.configure_trust(upstream.tls)
    put_client_certificate(tmp_path, new.issue_cert("gateway@portcullis.test"))

    def arrives() -> bool:
        return plane.ask("GET", f"{upstream.path}/x").status == 200

    eventually(arrives, 20.0, "a request with the new certificate")


def test_a_client_certificate_that_is_not_there_is_502_and_nothing_is_sent(plane: DataPlane, ca: trustme.CA) -> None:
    absent = {"client_certificate": "secret://file/none.pem", "client_key": "secret://file/none.key"}
    upstream = serve(plane, server(ca.issue_cert("localhost")), ca_pem=pem(ca), **absent)
    answer = plane.ask("GET", f"{upstream.path}/x")
    failed(answer, 502, "upstream_connect_failed", "proxy_configuration_error")
    assert upstream.connections == 0


def test_a_key_that_is_not_the_certificates_is_502_and_says_so(
    plane: DataPlane, ca: trustme.CA, secrets_dir: Path
) -> None:
    put_client_certificate(secrets_dir, ca.issue_cert("gateway@portcullis.test"))
    (secrets_dir / "other.key").write_bytes(ca.issue_cert("else@portcullis.test").private_key_pem.bytes())
    policy = {"client_certificate": "secret://file/client.pem", "client_key": "secret://file/other.key"}
    upstream = serve(plane, server(ca.issue_cert("localhost")), ca_pem=pem(ca), **policy)
    answer = plane.ask("GET", f"{upstream.path}/x")
    failed(answer, 502, "upstream_connect_failed", "proxy_configuration_error")
    assert "mismatch" in answer.body.decode()


def test_a_broken_renewal_leaves_the_certificate_that_works(
    start_plane: Callable[..., DataPlane], ca: trustme.CA, tmp_path: Path
) -> None:
    plane = start_plane(secrets_dir=str(tmp_path))
    certificate = put_client_certificate(tmp_path, ca.issue_cert("gateway@portcullis.test"))
    upstream = serve_each_anew(plane, demanding(ca, ssl.TLSVersion.TLSv1_2), ca_pem=pem(ca), **certificate)
    assert plane.ask("GET", f"{upstream.path}/x").status == 200
    (tmp_path / "client.key").write_text("-----BEGIN PRIVATE KEY-----\nnonsense\n-----END PRIVATE KEY-----\n")

    def is_told() -> bool:
        assert plane.ask("GET", f"{upstream.path}/x").status == 200
        return "stays as it was" in plane.output()

    eventually(is_told, 30.0, "the warning of a broken client certificate")
    assert "nonsense" not in plane.output()


# --- pools -----------------------------------------------------------------------------------------------------------
def test_pools_that_nobody_uses_any_more_are_forgotten() -> None:
    clock = [1000.0]
    connector = Connector(asyncio.new_event_loop(), lambda _: True, ClientContexts(lambda _: b""))
    connector.loop.close()
    connector.now = lambda: clock[0]
    target = TargetRecord(("https", "a.test", 443), b"a.test")
    other = TargetRecord(target.origin, b"a.test", UpstreamTls(verify=False))
    pools = connector.pool(target), connector.pool(other)
    assert pools[0] is not pools[1]
    idle = UpstreamConnection(pools[1])
    clock[0] += FORGET_S / 2
    pools[1].give_back(idle)
    assert pools[1].take() is idle
    clock[0] += FORGET_S / 2 + 1
    connector.sweep(clock[0])
    assert connector.pool(target) is not pools[0]
    assert connector.pool(other) is pools[1]
    idle.transport = MemoryTransport()
    clock[0] += 2 * FORGET_S
    connector.sweep(clock[0])
    pools[1].give_back(idle)  # it was in use all the while
    assert idle.is_closed


# --- the policy itself -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("document", "says"),
    [
        ({"caPem": "no certificate"}, "caPem must hold"),
        ({"caPem": "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"}, "caPem must hold"),
        ({"clientKey": "secret://env/UPSTREAM_KEY"}, "go together"),
        ({"clientCertificate": "-----BEGIN", "clientKey": "-----BEGIN"}, "secret://"),
        ({"serverName": "a b"}, "serverName"),
        ({"minVersion": "1.1"}, "minVersion"),
    ],
    ids=["text as authority", "garbage as authority", "key alone", "the secret itself", "a name with a space", "1.1"],
)
def test_a_policy_that_could_not_work_is_refused(document: dict[str, Any], says: str) -> None:
    with pytest.raises(PolicyError, match=says):
        read(UpstreamTls, document)

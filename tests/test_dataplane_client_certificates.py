"""Client certificates through a running worker (A26): by TLS on HTTP/1.1 and HTTP/2, and from trusted proxies."""

import base64
import datetime
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from gateway_project.dataplane.tls import CertificateError, Certificates
from tests.cached_services import cached, reply, status_of
from tests.dataplane import DataPlane, worker_settings
from tests.gateway_process import eventually
from tests.http2_client import Http2Client
from tests.private_servers import free_port
from tests.raw_http import Answer, CutShort
from tests.scripted_upstream import Peer, Seen, Upstream
from tests.tls_clients import TlsClient, issue, put_pair, trusting
from tests.wires import application_wire

Start = Callable[..., DataPlane]
ROBOT = "robot.acme.test"
SERVERS, CLIENTS = trustme.CA(), trustme.CA()


def context(shown: trustme.LeafCert | None = None, *alpn: str) -> ssl.SSLContext:
    made = trusting(SERVERS, *alpn)
    if shown is not None:
        shown.configure_cert(made)
    return made


def settings(directory: Path, **changes: Any) -> dict[str, Any]:
    put_pair(issue(SERVERS, "localhost"), directory / "gateway.crt", directory / "gateway.key")
    CLIENTS.cert_pem.write_to_path(str(directory / "clients.pem"))
    return {
        "tls_port": free_port(),
        "tls_certificate": str(directory / "gateway.crt"),
        "tls_key": str(directory / "gateway.key"),
        "tls_client_ca": str(directory / "clients.pem"),
        "tls_client_certificates": "optional",
        "trusted_proxies": ("127.0.0.7",),
        "trust_client_cert_field": True,
    } | changes


@pytest.fixture(scope="module")
def plane(start_module_plane: Start, tmp_path_factory: pytest.TempPathFactory) -> DataPlane:
    plane = start_module_plane(**settings(tmp_path_factory.mktemp("mtls")))
    accept(plane, ROBOT)
    return plane


@pytest.fixture(scope="module")
def upstream(plane: DataPlane) -> Upstream:
    return plane.serve()


def accept(plane: DataPlane, *sans: str, **changes: Any) -> None:
    """The application ``acme`` is who shows one of these names."""
    policies = {"client_certificates": {"accepted": [{"san": san} for san in sans]}} if sans else {}
    plane.feed.put("application", application_wire(id="app_acme", name="acme", policies=policies, **changes))


def ask(plane: DataPlane, path: str, shown: trustme.LeafCert | None, *fields: str, key: str | None = None) -> Answer:
    with TlsClient(plane.settings.tls_port, context(shown)) as client:
        return client.send(plane.request("GET", path, *fields, key=key)).answer()


def test_a_request_with_an_accepted_certificate_is_the_applications_without_a_key(
    plane: DataPlane, upstream: Upstream
) -> None:
    shown = issue(CLIENTS, ROBOT)
    with TlsClient(plane.settings.tls_port, context(shown)) as client:
        for _ in range(3):  # remembered or not
            answer = client.send(plane.request("GET", f"{upstream.path}/x", key=None)).answer()
            assert answer.status == 200
    assert upstream.requests[-1].field("x-gateway-application") == b"app_acme"
    assert plane.log_line(answer.field("x-request-id"))["application"] == "acme"
    with Http2Client(plane.settings.tls_port, context(shown, "h2")) as http2:
        assert http2.ask("GET", f"{upstream.path}/x").status == 200
    assert upstream.requests[-1].field("x-gateway-application") == b"app_acme"


def test_who_shows_none_or_one_that_nobody_accepts_needs_a_key(plane: DataPlane, upstream: Upstream) -> None:
    for shown in (None, issue(CLIENTS, "other.acme.test")):
        assert ask(plane, f"{upstream.path}/x", shown).code == "missing_credentials"
        assert ask(plane, f"{upstream.path}/x", shown, key=plane.key).status == 200
    assert upstream.requests[-1].field("x-gateway-application") == b"app_1"


def test_a_key_counts_before_the_certificate(plane: DataPlane, upstream: Upstream) -> None:
    shown = issue(CLIENTS, ROBOT)
    assert ask(plane, f"{upstream.path}/x", shown, key=plane.key).status == 200
    assert upstream.requests[-1].field("x-gateway-application") == b"app_1"
    assert ask(plane, f"{upstream.path}/x", shown, key="km_wrong").code == "invalid_credentials"


@pytest.mark.parametrize("wrong", ["another authority", "expired"])
def test_tls_refuses_certificates_of_others_and_those_that_have_expired(
    plane: DataPlane, upstream: Upstream, wrong: str
) -> None:
    shown = issue(trustme.CA(), ROBOT) if wrong == "another authority" else issue(CLIENTS, ROBOT, days=-1)
    with pytest.raises((ssl.SSLError, CutShort, ConnectionError)):
        ask(plane, f"{upstream.path}/x", shown)


def test_limits_count_by_the_subject_of_certificates(plane: DataPlane, upstream: Upstream) -> None:
    accept(plane, ROBOT, "two.acme.test", rate_limit=2)
    try:
        same = [issue(CLIENTS, ROBOT) for _ in range(3)]  # trustme gives each a subject of its own
        assert [ask(plane, f"{upstream.path}/x", same[0]).status for _ in range(3)] == [200, 200, 429]
        assert ask(plane, f"{upstream.path}/x", issue(CLIENTS, "two.acme.test")).status == 200
    finally:
        accept(plane, ROBOT)


def test_taking_it_from_the_application_revokes_it_within_a_second(plane: DataPlane) -> None:
    def stream(peer: Peer) -> None:
        if peer.read_request() is not None:
            peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n")
            peer.wait_for_end()

    upstream = plane.serve(stream)
    shown = issue(CLIENTS, ROBOT)
    try:
        with TlsClient(plane.settings.tls_port, context(shown)) as client:
            _, body = client.send(plane.request("GET", f"{upstream.path}/x", key=None)).begin_answer()
            assert next(body) == b"one"
            accept(plane)
            assert ask(plane, f"{upstream.path}/x", shown).code == "missing_credentials"
            with pytest.raises(CutShort):
                next(body)
    finally:
        accept(plane, ROBOT)


# --- RFC 9440 --------------------------------------------------------------------------------------------------------
def field_of(shown: trustme.LeafCert) -> str:
    der = x509.load_pem_x509_certificate(shown.cert_chain_pems[0].bytes()).public_bytes(Encoding.DER)
    return f"Client-Cert: :{base64.b64encode(der).decode()}:"


def test_a_trusted_proxys_field_is_believed_and_anybody_elses_is_not(plane: DataPlane, upstream: Upstream) -> None:
    path, shown = f"{upstream.path}/x", field_of(issue(CLIENTS, ROBOT))
    assert plane.ask("GET", path, shown, source="127.0.0.7", key=None).status == 200
    assert upstream.requests[-1].field("x-gateway-application") == b"app_acme"
    assert plane.ask("GET", path, shown, key=None).code == "missing_credentials"
    assert plane.ask("GET", path, shown, "Client-Cert-Chain: :AAAA:").status == 200
    assert not {"client-cert", "client-cert-chain"} & upstream.requests[-1].names
    expired = field_of(issue(CLIENTS, ROBOT, days=-1))
    assert plane.ask("GET", path, expired, source="127.0.0.7", key=None).code == "invalid_credentials"
    assert plane.ask("GET", path, "Client-Cert: nonsense", source="127.0.0.7", key=None).code == "bad_request"
    der = base64.b64decode(shown.split(":")[2])
    of_no_version = base64.b64encode(der.replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x05", 1)).decode()
    unreadable = f"Client-Cert: :{of_no_version}:"
    assert plane.ask("GET", path, unreadable, source="127.0.0.7", key=None).code == "bad_request"


def test_a_trusted_proxys_own_certificate_says_nothing_of_its_clients(plane: DataPlane, upstream: Upstream) -> None:
    with TlsClient(plane.settings.tls_port, context(issue(CLIENTS, ROBOT)), source="127.0.0.7") as client:
        answer = client.send(plane.request("GET", f"{upstream.path}/x", key=None)).answer()
    assert answer.code == "missing_credentials"


# --- the port --------------------------------------------------------------------------------------------------------
def test_required_certificates_and_new_authorities_count_without_a_restart(start_plane: Start, tmp_path: Path) -> None:
    plane = start_plane(**settings(tmp_path, tls_client_certificates="required"))
    upstream, others = plane.serve(), trustme.CA()
    accept(plane, ROBOT)
    path = f"{upstream.path}/x"
    with pytest.raises((ssl.SSLError, CutShort, ConnectionError)):
        ask(plane, path, None)
    once = context(issue(CLIENTS, ROBOT))
    with TlsClient(plane.settings.tls_port, once) as client:
        assert client.send(plane.request("GET", path, key=None)).answer().status == 200
        session = client.socket.session

    def resume() -> bool:
        with TlsClient(plane.settings.tls_port, once, session=session) as client:
            assert client.send(plane.request("GET", path, key=None)).answer().status == 200
            return bool(client.socket.session_reused)

    def is_refused(shown: trustme.LeafCert, **options: Any) -> bool:
        try:
            return ask(plane, path, shown).status != 200
        except (ssl.SSLError, CutShort, ConnectionError):
            return True

    assert resume()
    others.cert_pem.write_to_path(str(tmp_path / "clients.pem"))
    eventually(lambda: not is_refused(issue(others, ROBOT)), 10, "the new authority")
    assert is_refused(issue(CLIENTS, ROBOT))
    with pytest.raises((ssl.SSLError, CutShort, ConnectionError)):  # nor does a ticket outlive the old one
        resume()


def revoked(authority: ec.EllipticCurvePrivateKey, name: x509.Name, *serials: int) -> bytes:
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateRevocationListBuilder().issuer_name(name).last_update(now - datetime.timedelta(days=1))
    builder = builder.next_update(now + datetime.timedelta(days=1))
    for serial in serials:
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now).build()
        builder = builder.add_revoked_certificate(entry)
    return builder.sign(authority, hashes.SHA256()).public_bytes(Encoding.PEM)


def test_revoked_certificates_are_refused(start_plane: Start, tmp_path: Path) -> None:
    changes = settings(tmp_path, tls_client_crl=str(tmp_path / "clients.crl"))
    good, bad = issue(CLIENTS, ROBOT), issue(CLIENTS, ROBOT)
    serial = x509.load_pem_x509_certificate(bad.cert_chain_pems[0].bytes()).serial_number
    key = serialization.load_pem_private_key(CLIENTS.private_key_pem.bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    name = x509.load_pem_x509_certificate(CLIENTS.cert_pem.bytes()).subject
    (tmp_path / "clients.crl").write_bytes(revoked(key, name, serial))
    plane = start_plane(**changes)
    upstream = plane.serve()
    accept(plane, ROBOT)
    assert ask(plane, f"{upstream.path}/x", good).status == 200
    with pytest.raises((ssl.SSLError, CutShort, ConnectionError)):
        ask(plane, f"{upstream.path}/x", bad)


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("tls_client_ca", None, "TLS_CLIENT_CA .* cannot be read"),
        ("tls_client_ca", "no certificate", "TLS_CLIENT_CA .* holds no certificate in PEM"),
        ("tls_client_crl", "no list", "TLS_CLIENT_CRL .* holds no list of revoked certificates in PEM"),
    ],
)
def test_files_that_cannot_be_used_are_named(tmp_path: Path, name: str, text: str | None, sentence: str) -> None:
    file = tmp_path / "given.pem"
    if text is not None:
        file.write_text(text)
    with pytest.raises(CertificateError, match=sentence):
        Certificates(worker_settings(tmp_path, **settings(tmp_path, **{name: str(file)})))


def test_an_answer_to_a_certificate_stays_its_applications_own_when_it_is_renewed(plane: DataPlane) -> None:
    def script(seen: Seen) -> bytes:
        who = seen.field("x-gateway-application") or b""
        is_first = len(shelf.requests) == 1
        return reply("Cache-Control: max-age=60, stale-while-revalidate=600", body=who, age_s=90 if is_first else 0)

    shelf = cached(plane, script)
    shown = issue(CLIENTS, ROBOT)
    ask(plane, shelf.path + "/a", shown)
    assert status_of(ask(plane, shelf.path + "/a", shown)).endswith("detail=stale-while-revalidate")
    eventually(lambda: "detail" not in status_of(ask(plane, shelf.path + "/a", shown)), what="the renewed answer")
    assert ask(plane, shelf.path + "/a", shown).body == b"app_acme"
    assert ask(plane, shelf.path + "/a", None, key="").body == b"app_1"

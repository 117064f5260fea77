"""Whose a client certificate is (A26)."""

import base64

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from access.certificates import CertificateIndex, ClientCertificate
from access.records import ApplicationRecord
from core.faults import ClientFault
from gateway_project.dataplane.client_certificates import of_field
from tests.wires import application_wire

FINGERPRINT = "ab" * 32
SHOWN = ClientCertificate.of(FINGERPRINT, "CN=robot,O=Acme", {"robot.acme.test", "spiffe://acme/Robot"}, 0.0, 2e9)


def application(number: int, *accepted: dict[str, str]) -> ApplicationRecord:
    policies = {"client_certificates": {"accepted": list(accepted)}} if accepted else {}
    return ApplicationRecord.from_wire(application_wire(id=f"app_{number}", policies=policies), (1, 1))


def found(*applications: ApplicationRecord) -> str | None:
    index = CertificateIndex()
    for each in applications:
        index.load(each)
    return index.find(SHOWN)


@pytest.mark.parametrize(
    ("accepted", "fits"),
    [
        pytest.param({"fingerprint": FINGERPRINT}, True, id="its fingerprint"),
        pytest.param({"fingerprint": "cd" * 32}, False, id="another fingerprint"),
        pytest.param({"subject": "CN=robot,O=Acme"}, True, id="its subject"),
        pytest.param({"subject": "O=Acme,CN=robot"}, False, id="another order"),
        pytest.param({"subject": "CN=robot"}, False, id="half of its subject"),
        pytest.param({"san": "Robot.Acme.Test"}, True, id="a DNS name in any case"),
        pytest.param({"san": "spiffe://acme/Robot"}, True, id="a URI"),
        pytest.param({"san": "spiffe://acme/robot"}, False, id="a URI in another case"),
        pytest.param({"san": "acme.test"}, False, id="a domain above"),
        pytest.param({"san": "robot.acme.test", "subject": "CN=robot,O=Acme"}, True, id="both"),
        pytest.param({"san": "robot.acme.test", "subject": "CN=other"}, False, id="one of both"),
        pytest.param({"fingerprint": FINGERPRINT, "san": "other.test"}, False, id="a fingerprint with another name"),
    ],
)
def test_all_that_a_policy_names_must_fit(accepted: dict[str, str], fits: bool) -> None:
    assert found(application(1), application(2, accepted)) == ("app_2" if fits else None)


def test_the_most_precise_name_decides_and_then_the_oldest_application() -> None:
    by_subject, by_san = application(1, {"subject": "CN=robot,O=Acme"}), application(2, {"san": "robot.acme.test"})
    by_fingerprint = application(3, {"fingerprint": FINGERPRINT})
    assert found(by_subject, by_san, by_fingerprint) == "app_3"
    assert found(by_subject, by_san) == "app_2"
    assert found(application(5, {"san": "robot.acme.test"}), by_san) == "app_2"


def test_a_renewed_certificate_shares_its_bucket_with_the_one_before() -> None:
    renewed = ClientCertificate.of("cd" * 32, SHOWN.subject, (), 0.0, 3e9)
    other = ClientCertificate.of("cd" * 32, "", (), 0.0, 3e9)
    assert renewed.bucket == SHOWN.bucket != other.bucket
    assert renewed.point == SHOWN.point


def test_a_certificate_is_valid_between_its_times() -> None:
    shown = ClientCertificate.of(FINGERPRINT, "", (), 10.0, 20.0)
    assert [shown.is_valid(now) for now in (9.9, 10.0, 19.9, 20.0)] == [False, True, True, False]


def test_the_field_of_rfc_9440_is_read() -> None:
    pem = trustme.CA().issue_cert("robot@acme.test", "robot.acme.test").cert_chain_pems[0].bytes()
    der = x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)
    assert of_field(b":" + base64.b64encode(der) + b":").sans == {"robot@acme.test", "robot.acme.test"}


@pytest.mark.parametrize("value", [b"", b"::", b":AAAA:", b"AAAA", b':A"A:', b":A\xc3:", b":AAAA:, :AAAA:"])
def test_what_is_no_certificate_is_a_bad_request(value: bytes) -> None:
    with pytest.raises(ClientFault, match="Client-Cert"):
        of_field(value)

"""A SAML identity provider, as small as one can be: it signs in whoever comes, with a key made for the test."""

import base64
import threading
import zlib
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from html import escape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4
from xml.etree import ElementTree

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID
from onelogin.saml2.constants import OneLogin_Saml2_Constants
from onelogin.saml2.utils import OneLogin_Saml2_Utils

_RESPONSE = """<samlp:Response xmlns:samlp="urn:oasis:names:tc:SAML:2.0:protocol" ID="_{id}" Version="2.0" \
IssueInstant="{now}" Destination="{acs}" InResponseTo="{answers}">{issuer}<samlp:Status><samlp:StatusCode \
Value="urn:oasis:names:tc:SAML:2.0:status:Success"/></samlp:Status>{assertion}</samlp:Response>"""
_ASSERTION = """<saml:Assertion xmlns:saml="urn:oasis:names:tc:SAML:2.0:assertion" ID="_{id}" Version="2.0" \
IssueInstant="{now}">{issuer}<saml:Subject><saml:NameID \
Format="urn:oasis:names:tc:SAML:2.0:nameid-format:persistent">{subject}</saml:NameID><saml:SubjectConfirmation \
Method="urn:oasis:names:tc:SAML:2.0:cm:bearer"><saml:SubjectConfirmationData NotOnOrAfter="{later}" Recipient="{acs}" \
InResponseTo="{answers}"/></saml:SubjectConfirmation></saml:Subject><saml:Conditions NotBefore="{before}" \
NotOnOrAfter="{later}"><saml:AudienceRestriction><saml:Audience>{audience}</saml:Audience></saml:AudienceRestriction>\
</saml:Conditions><saml:AuthnStatement AuthnInstant="{now}" SessionIndex="_{id}"><saml:AuthnContext>\
<saml:AuthnContextClassRef>urn:oasis:names:tc:SAML:2.0:ac:classes:Password</saml:AuthnContextClassRef>\
</saml:AuthnContext></saml:AuthnStatement><saml:AttributeStatement>{attributes}</saml:AttributeStatement>\
</saml:Assertion>"""
_PAGE = """<!doctype html><title>IdP</title><form method="post" action="{acs}"><input type="hidden" \
name="SAMLResponse" value="{response}"><button>Go on</button></form>"""


def certificate_of(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> str:
    """A certificate of its own, in PEM."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "idp")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    return made.public_bytes(serialization.Encoding.PEM).decode()


class SamlIdp:
    """``attributes`` are those of whoever signs in next; ``spoil`` may change the signed assertion's bytes."""

    def __init__(self) -> None:
        self.attributes: Mapping[str, list[str]] = {}
        self.subject = "ada"
        self.spoil: Any = None
        self._key = rsa.generate_private_key(65537, 2048)
        self.certificate = certificate_of(self._key)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def entity_id(self) -> str:
        return f"{self.url}/metadata"

    def start(self) -> "SamlIdp":
        self._thread.start()
        return self

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def answer(self, request: str) -> tuple[str, str]:
        """Where the answer to a SAMLRequest goes, and what it is."""
        asked = ElementTree.fromstring(zlib.decompress(base64.b64decode(request), -15))
        audience = asked.findtext("{urn:oasis:names:tc:SAML:2.0:assertion}Issuer") or ""
        acs, now = asked.attrib["AssertionConsumerServiceURL"], datetime.now(UTC)
        values = {
            "issuer": f'<saml:Issuer xmlns:saml="urn:oasis:names:tc:SAML:2.0:assertion">{self.entity_id}</saml:Issuer>',
            "acs": acs,
            "answers": asked.attrib["ID"],
            "audience": audience,
            "subject": self.subject,
            "attributes": "".join(
                f'<saml:Attribute Name="{escape(name)}">'
                + "".join(f"<saml:AttributeValue>{escape(value)}</saml:AttributeValue>" for value in given)
                + "</saml:Attribute>"
                for name, given in self.attributes.items()
            ),
            "now": _instant(now),
            "before": _instant(now - timedelta(minutes=1)),
            "later": _instant(now + timedelta(minutes=5)),
        }
        assertion = OneLogin_Saml2_Utils.add_sign(
            _ASSERTION.format(id=uuid4().hex, **values),
            self._key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            ).decode(),
            self.certificate,
            sign_algorithm=OneLogin_Saml2_Constants.RSA_SHA256,
            digest_algorithm=OneLogin_Saml2_Constants.SHA256,
        ).decode()
        if self.spoil is not None:
            assertion = self.spoil(assertion)
        document = _RESPONSE.format(id=uuid4().hex, assertion=assertion, **values)
        return acs, base64.b64encode(document.encode()).decode()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        idp = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked = parse_qs(urlsplit(self.path).query)
                body = b""
                if "SAMLRequest" in asked:
                    acs, response = idp.answer(asked["SAMLRequest"][0])
                    body = _PAGE.format(acs=escape(acs), response=response).encode()
                self.send_response(200 if body else 204)
                self.send_header("content-type", "text/html")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        return Handler


def _instant(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")

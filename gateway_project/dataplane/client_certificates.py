"""Client certificates as they arrive (A26): by TLS, or in the field Client-Cert of a trusted proxy (RFC 9440).

Imported only where a setting asks for them: reading certificates takes `cryptography`.
"""

from __future__ import annotations

import asyncio
from base64 import b64decode
from functools import lru_cache
from hashlib import sha256

from cryptography import x509

from access.certificates import ClientCertificate
from core.faults import ClientFault

_MAX_FIELD = 8192
_UNREADABLE = (x509.DuplicateExtension, x509.InvalidVersion, x509.UnsupportedGeneralNameType)


def of_connection(transport: asyncio.BaseTransport) -> ClientCertificate | None:
    """The certificate that the client of a TLS connection has proved to hold; None: it has shown none that can be
    read."""
    handshake = transport.get_extra_info("ssl_object")
    der = handshake.getpeercert(True) if handshake is not None else None
    if der is None:
        return None
    try:
        return _read(der)
    except ValueError:
        return None


@lru_cache(maxsize=1024)
def of_field(value: bytes) -> ClientCertificate:
    """RFC 9440 section 2.2: one Byte Sequence (RFC 9651 section 3.3.5) with the DER form. Raises ClientFault."""
    try:
        if len(value) > _MAX_FIELD or len(value) < 3 or value[:1] != b":" or value[-1:] != b":":
            raise ValueError
        return _read(b64decode(value[1:-1], validate=True))
    except ValueError:
        raise ClientFault("bad_request", "Client-Cert holds no certificate as RFC 9440 writes it.") from None


def _read(der: bytes) -> ClientCertificate:
    """Raises ValueError."""
    try:
        certificate = x509.load_der_x509_certificate(der)
        return ClientCertificate.of(
            sha256(der).hexdigest(),
            certificate.subject.rfc4514_string(),
            _sans(certificate),
            certificate.not_valid_before_utc.timestamp(),
            certificate.not_valid_after_utc.timestamp(),
        )
    except _UNREADABLE as error:
        raise ValueError(str(error)) from None


def _sans(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return [
        *(name.lower() for name in names.get_values_for_type(x509.DNSName)),
        *names.get_values_for_type(x509.UniformResourceIdentifier),
        *names.get_values_for_type(x509.RFC822Name),
    ]

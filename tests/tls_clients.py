"""Certificates for a gateway's TLS port, and clients that speak TLS with it."""

from __future__ import annotations

import datetime
import os
import socket
import ssl
from pathlib import Path
from typing import Any

import trustme

from tests.raw_http import TIMEOUT_S, Client


def put_pair(issued: trustme.LeafCert, certificate: Path, key: Path) -> None:
    """Whole or not at all, as certbot and Kubernetes do it."""
    for path, data in (
        (certificate, b"".join(pem.bytes() for pem in issued.cert_chain_pems)),
        (key, issued.private_key_pem.bytes()),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(path.name + ".new")
        draft.write_bytes(data)
        os.replace(draft, path)


def issue(ca: trustme.CA, *names: str, days: float = 30) -> trustme.LeafCert:
    end = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days)
    return ca.issue_cert(*names, not_after=end)


def trusting(ca: trustme.CA, *alpn: str) -> ssl.SSLContext:
    context = ssl.create_default_context()
    ca.configure_trust(context)
    context.set_alpn_protocols(list(alpn or ("http/1.1",)))
    return context


def careless() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


class TlsClient(Client):
    """One connection through TLS; ``before`` is sent ahead of the handshake. Raises ssl.SSLError."""

    def __init__(
        self,
        port: int,
        context: ssl.SSLContext,
        name: str | None = "localhost",
        *,
        before: bytes = b"",
        session: ssl.SSLSession | None = None,
        **options: Any,
    ) -> None:
        super().__init__(port, **options)
        self.socket.sendall(before)
        try:
            self.socket: Any = context.wrap_socket(self.socket, server_hostname=name, session=session)
        except BaseException:
            self.socket.close()
            raise

    @property
    def names(self) -> set[str]:
        """Of the server's certificate, which must have been verified."""
        return {value for kind, value in self.socket.getpeercert()["subjectAltName"] if kind == "DNS"}


def is_listening(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), TIMEOUT_S).close()
    except ConnectionRefusedError:
        return False
    return True

"""TLS towards upstreams, as each service's policy says: verified, unless the policy itself says otherwise.

Without a policy the system's certificate authorities decide (or SSL_CERT_FILE, SSL_CERT_DIR).
"""

from __future__ import annotations

import logging
import os
import ssl
from collections.abc import Callable

from core.secret_references import SecretUnavailable
from routing.policies import UpstreamTls
from routing.upstream.errors import ClientCertificateUnusable

logger = logging.getLogger("portcullis")

MAX_CONTEXTS = 512  # beyond it all are made anew: policies that are no longer in force left them behind
_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}

Material = tuple[bytes, bytes]  # PEM: certificate chain and key


class ClientContexts:
    """The context of each policy, made once, and again when the secrets of its client certificate have changed.

    ``resolve`` gives what a ``secret://`` reference stands for, and raises `SecretUnavailable`.
    """

    def __init__(self, resolve: Callable[[str], bytes]) -> None:
        self._resolve = resolve
        self._made: dict[UpstreamTls | None, tuple[ssl.SSLContext, Material | None]] = {}
        self._told = ""

    def context(self, policy: UpstreamTls | None) -> ssl.SSLContext:
        """For a new connection. Raises `ClientCertificateUnusable`, when there is no earlier one to go on with."""
        made = self._made.get(policy)
        if policy is None or policy.client_certificate is None or policy.client_key is None:
            return made[0] if made is not None else self._make(policy, None)
        try:
            material = self._resolve(policy.client_certificate), self._resolve(policy.client_key)
            return made[0] if made is not None and made[1] == material else self._make(policy, material)
        except (SecretUnavailable, OSError, ValueError) as error:
            if made is None:
                raise ClientCertificateUnusable(_why(error)) from None
            self._tell(f"{policy.client_certificate} stays as it was: what is there now is unusable ({_why(error)})")
            return made[0]

    def _tell(self, text: str) -> None:
        if text != self._told:  # once, and not for every connection
            self._told = text
            logger.warning("the client certificate %s", text)

    def _make(self, policy: UpstreamTls | None, material: Material | None) -> ssl.SSLContext:
        context = client_context(policy)
        if material is not None:
            load_certificate(context, *material)
        if len(self._made) >= MAX_CONTEXTS:
            self._made.clear()
        self._made[policy] = context, material
        return context


def client_context(policy: UpstreamTls | None) -> ssl.SSLContext:
    """A context as the policy says, but for the client certificate. Raises ssl.SSLError."""
    context = ssl.create_default_context(cadata=policy.ca_pem if policy is not None and policy.ca_pem else None)
    context.minimum_version = _VERSIONS[policy.min_version] if policy is not None else ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    if policy is not None and not policy.verify:
        logger.warning(
            "a service's policy turns the verification of its upstream's certificate off (upstreamTls.verify)"
        )
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def load_certificate(context: ssl.SSLContext, certificate: bytes, key: bytes) -> None:
    """OpenSSL's binding reads certificates from files alone; these never reach a disk. Raises OSError, of which
    ssl.SSLError is one."""
    files = [_in_memory(certificate), _in_memory(key)]
    try:
        # An encrypted key would have OpenSSL ask for its password on the terminal.
        chain, private = (f"/proc/self/fd/{file}" for file in files)
        context.load_cert_chain(chain, private, password=_no_password)
    finally:
        for file in files:
            os.close(file)


def _in_memory(data: bytes) -> int:
    file = os.memfd_create("certificate", os.MFD_CLOEXEC)
    try:
        os.write(file, data)
    except OSError:
        os.close(file)
        raise
    return file


def _no_password() -> bytes:
    raise ValueError("the private key is encrypted")


def _why(error: Exception) -> str:
    """Without what the error may repeat of the secret."""
    if isinstance(error, SecretUnavailable):
        return error.reason
    if isinstance(error, ssl.SSLError):
        return (error.reason or "no certificate and key in PEM").replace("_", " ").lower()
    return str(error)

"""The certificates of the TLS port: read, chosen by the name that a client asks for, and read again when they change.

Imported only where there is a TLS port: reading certificates takes `cryptography`, which is 8 MiB of a worker.
"""

from __future__ import annotations

import logging
import os
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.x509.oid import NameOID

from gateway_project.dataplane.settings import WorkerSettings

logger = logging.getLogger("portcullis")

# Mozilla's "intermediate" list (https://wiki.mozilla.org/Security/Server_Side_TLS, 5.7) without DHE, which needs
# parameters of one's own. All of them are fit for HTTP/2 (RFC 9113 section 9.2.2). TLS 1.3 has its own three.
CIPHERS = (
    "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256:ECDHE-ECDSA-AES256-GCM-SHA384:"
    "ECDHE-RSA-AES256-GCM-SHA384:ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-RSA-CHACHA20-POLY1305"
)
DEFAULT = "default"
_OF_CLIENTS = "TLS_CLIENT_CA"
_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
_IN_FOLDERS = (("fullchain.pem", "privkey.pem"), ("tls.crt", "tls.key"))  # certbot's and Kubernetes' names
_Stamp = tuple[int, ...]


class CertificateError(Exception):
    """``str()`` is a sentence that names the setting and the file."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where a pair is found. ``name`` is what log and metrics call it."""

    name: str
    certificate: Path
    key: Path
    settings: tuple[str, str]  # what named the certificate, and the key


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate with its key, in force."""

    names: tuple[str, ...]  # of the certificate, lower case; "*.example.com" covers one label
    expires_at: float  # epoch seconds
    context: ssl.SSLContext


def sources(certificate: str, key: str, directory: str) -> list[Source]:
    """The pairs that TLS_CERTIFICATE, TLS_KEY and TLS_CERTIFICATES_DIR name; the default first. Raises
    CertificateError."""
    found = list(_in_directory(Path(directory))) if directory else []
    if certificate:
        found.insert(0, Source(DEFAULT, Path(certificate), Path(key), ("TLS_CERTIFICATE", "TLS_KEY")))
    if not found:
        raise CertificateError(
            f"TLS_CERTIFICATES_DIR {directory} holds no certificate: it needs NAME.crt with NAME.key, or folders with "
            "fullchain.pem and privkey.pem, or tls.crt and tls.key."
        )
    found.sort(key=lambda source: source.name != DEFAULT)
    return found


def _in_directory(directory: Path) -> Iterator[Source]:
    setting = "TLS_CERTIFICATES_DIR"
    try:
        entries = sorted(entry for entry in directory.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise CertificateError(f"{setting} {directory} cannot be read: {error.strerror}.") from None
    for entry in entries:
        if entry.suffix == ".crt":
            yield Source(entry.stem, entry, entry.with_suffix(".key"), (setting, setting))
            continue
        for certificate, key in _IN_FOLDERS:
            if (entry / certificate).exists():
                yield Source(entry.name, entry / certificate, entry / key, (setting, setting))
                break


def load(source: Source, min_version: str, alpn: Sequence[str]) -> Pair:
    """Read a pair. Raises CertificateError."""
    of_certificate, of_key = source.settings
    try:
        leaf = x509.load_pem_x509_certificates(source.certificate.read_bytes())[0]
    except OSError as error:
        raise CertificateError(f"{of_certificate} {source.certificate} cannot be read: {error.strerror}.") from None
    except ValueError:
        raise CertificateError(f"{of_certificate} {source.certificate} holds no certificate in PEM.") from None
    try:
        source.key.read_bytes()
    except OSError as error:
        raise CertificateError(f"{of_key} {source.key} cannot be read: {error.strerror}.") from None
    context = server_context(min_version, alpn)
    try:
        context.load_cert_chain(source.certificate, source.key, password=_no_password)
    except (ssl.SSLError, ValueError) as error:
        raise CertificateError(f"{of_key} {source.key} {_wrong_with_key(error)} {source.certificate}.") from None
    return Pair(_names(leaf), leaf.not_valid_after_utc.timestamp(), context)


def _no_password() -> bytes:
    raise ValueError("encrypted")  # else OpenSSL asks on the terminal


def _wrong_with_key(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        if error.reason == "KEY_VALUES_MISMATCH":
            return "is not the key of"
        if error.reason in ("EE_KEY_TOO_SMALL", "CA_MD_TOO_WEAK"):
            return "is too weak, or so is the signature of"
        return "holds no private key in PEM for"
    return "is encrypted, and nobody is there to type the password of the key of"


def _names(leaf: x509.Certificate) -> tuple[str, ...]:
    try:
        found = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        names = found.value.get_values_for_type(x509.DNSName)
    except x509.ExtensionNotFound:
        names = [str(each.value) for each in leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    return tuple(name.lower() for name in names)


def server_context(min_version: str, alpn: Sequence[str]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = _VERSIONS[min_version]
    context.set_ciphers(CIPHERS)
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE  # all are good: let the client have what is fast for it
    context.set_alpn_protocols(list(alpn))
    return context


class Certificates:
    """All pairs of the port. ``front`` is its context: it gives each handshake to the pair of its name, so that a
    renewed pair serves the next handshake. It stays when pairs are renewed, so that session tickets outlive that, and
    is made anew when what vouches for clients changes, so that no ticket does."""

    def __init__(self, settings: WorkerSettings, now: Callable[[], float] = time.time) -> None:
        self._settings = settings
        self._now = now
        self._alpn = ("h2", "http/1.1") if settings.http2 else ("http/1.1",)
        self._pairs: dict[str, Pair] = {}
        self._stamps: dict[str, _Stamp] = {}
        self._wrong: dict[str, str] = {}  # what is wrong with a pair's files, by its name
        self._by_name: dict[str, Pair] = {}
        self._default: Pair
        self._clients = ClientTrust(settings)
        self._look()
        if not self._pairs:
            raise CertificateError(next(iter(self._wrong.values())))
        self.front = self._front()

    def _front(self) -> ssl.SSLContext:
        front = server_context(self._settings.tls_min_version, self._alpn)
        self._clients.ask(front)  # whether a certificate is asked for is the first context's to say
        front.sni_callback = self._choose
        return front

    def _choose(self, handshake: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
        """Also called for a client that sends no name (RFC 6066 section 3)."""
        handshake.context = self.pair(name or "").context

    def pair(self, name: str) -> Pair:
        """For a host name as a client sends it: exact, then wildcard (RFC 6125 section 6.4.3), then the default."""
        name = name.lower().rstrip(".")
        return self._by_name.get(name) or self._by_name.get("*." + name.partition(".")[2]) or self._default

    def look(self) -> None:
        """Take what has changed. What is wrong is told once, and what served so far goes on serving."""
        before, wrong = dict(self._pairs), dict(self._wrong)
        try:
            is_new = self._clients.look()
            self._wrong.pop(_OF_CLIENTS, None)
        except CertificateError as error:
            is_new = False
            self._wrong[_OF_CLIENTS] = str(error)
        try:
            if is_new:
                self._stamps.clear()  # every pair's context holds what vouches for clients
                self.front = self._front()
            self._look()
        except CertificateError as error:
            self._wrong[""] = str(error)
        for name, sentence in self._wrong.items():
            if wrong.get(name) != sentence:
                logger.error(
                    "a certificate could not be taken, and what was there before goes on serving: %s", sentence
                )
        for name, pair in self._pairs.items():
            if before.get(name) is not pair:
                logger.info("the certificate %s serves %s", name, ", ".join(pair.names))

    def _look(self) -> None:
        settings = self._settings
        found = sources(settings.tls_certificate, settings.tls_key, settings.tls_certificates_dir)
        names = {source.name for source in found}
        self._wrong = {name: sentence for name, sentence in self._wrong.items() if name in names or name == _OF_CLIENTS}
        self._pairs = {name: pair for name, pair in self._pairs.items() if name in names}
        for source in found:
            self._renew(source)
        self._index(found)

    def _renew(self, source: Source) -> None:
        stamp = _stamp([source.certificate, source.key])
        if self._stamps.get(source.name) == stamp and (source.name in self._pairs or source.name in self._wrong):
            return
        self._stamps[source.name] = stamp
        try:
            pair = load(source, self._settings.tls_min_version, self._alpn)
            self._clients.ask(pair.context)
            self._pairs[source.name] = pair
            self._wrong.pop(source.name, None)
        except CertificateError as error:
            self._wrong[source.name] = str(error)

    def _index(self, found: list[Source]) -> None:
        """In the order of ``found``: where two certificates hold a name, the first has it."""
        self._by_name = {}
        pairs = [self._pairs[source.name] for source in found if source.name in self._pairs]
        for pair in pairs:
            for name in pair.names:
                self._by_name.setdefault(name, pair)
        if pairs:
            self._default = pairs[0]

    def gauges(self) -> list[tuple[str, dict[str, str], float]]:
        now = self._now()
        expiry = [
            ("api_gateway_tls_certificate_expiry_seconds", {"name": name}, pair.expires_at - now)
            for name, pair in self._pairs.items()
        ]
        return [*expiry, ("api_gateway_tls_certificate_failures", {}, float(len(self._wrong)))]


class ClientTrust:
    """What vouches for clients' certificates (A26): TLS_CLIENT_CA, and TLS_CLIENT_CRL if there is one. Raises
    CertificateError when it is made for files that cannot be used."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._mode = {"optional": ssl.CERT_OPTIONAL, "required": ssl.CERT_REQUIRED}.get(
            settings.tls_client_certificates, ssl.CERT_NONE
        )
        named = ((_OF_CLIENTS, settings.tls_client_ca), ("TLS_CLIENT_CRL", settings.tls_client_crl))
        self._files = [(setting, Path(path)) for setting, path in named if path and self._mode != ssl.CERT_NONE]
        self._stamp: _Stamp = ()
        self._texts: list[bytes] = []
        self.look()

    def look(self) -> bool:
        """Whether the files say something new, which is taken. Raises CertificateError, and keeps what there was."""
        stamp = _stamp([path for _, path in self._files])
        if stamp == self._stamp:
            return False
        texts = [self._read(setting, path) for setting, path in self._files]
        is_new = texts != self._texts
        self._texts, self._stamp = texts, stamp
        return is_new

    def _read(self, setting: str, path: Path) -> bytes:
        try:
            data = path.read_bytes()
            if setting == _OF_CLIENTS:
                x509.load_pem_x509_certificates(data)
            else:
                x509.load_pem_x509_crl(data)
        except OSError as error:
            raise CertificateError(f"{setting} {path} cannot be read: {error.strerror}.") from None
        except ValueError:
            what = "certificate" if setting == _OF_CLIENTS else "list of revoked certificates"
            raise CertificateError(f"{setting} {path} holds no {what} in PEM.") from None
        return data

    def ask(self, context: ssl.SSLContext) -> None:
        """Have the context ask clients for certificates, and refuse those that nobody here vouches for. Raises
        CertificateError."""
        if self._mode == ssl.CERT_NONE:
            return
        context.verify_mode = self._mode
        try:
            for _, path in self._files:
                context.load_verify_locations(path)
        except OSError as error:  # ssl.SSLError is one
            raise CertificateError(f"{_OF_CLIENTS} cannot be taken: {error.strerror}.") from None
        if len(self._files) > 1:
            context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF


def _stamp(paths: Sequence[Path]) -> _Stamp:
    """By what to see that a file has changed; links are followed, since what they lead to is what changes."""
    stamp: list[int] = []
    for path in paths:
        try:
            status = os.stat(path)
            stamp += (status.st_mtime_ns, status.st_ino, status.st_size)
        except OSError as error:
            stamp.append(-(error.errno or 1))
    return tuple(stamp)


def expired(found: Sequence[Source], now: float) -> list[str]:
    """Sentences about the certificates whose time is over. Raises CertificateError for a pair that
    cannot be used at all."""
    said = []
    for source in found:
        pair = load(source, "1.2", ("http/1.1",))
        if pair.expires_at <= now:
            day = time.strftime("%Y-%m-%d", time.gmtime(pair.expires_at))
            said.append(f"{source.settings[0]} {source.certificate} has expired on {day}; clients will refuse it")
    return said

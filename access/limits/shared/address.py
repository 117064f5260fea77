"""Where REDIS_URL leads, in the spelling of redis-py, which other parts of the gateway give the same URL."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from urllib.parse import parse_qs, unquote, urlsplit

_PORT = 6379
_NO_VERIFICATION = ("none", "optional")


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """``path`` is that of a Unix socket, in place of host and port. ``str()`` tells no password."""

    host: str
    port: int
    path: str = ""
    username: str = ""
    password: str = ""
    database: int = 0
    is_tls: bool = False
    tls_options: tuple[tuple[str, str], ...] = ()  # ssl_ca_certs, ssl_certfile, ssl_keyfile, ssl_cert_reqs

    def __str__(self) -> str:
        return self.path or f"{self.host}:{self.port}"

    def __repr__(self) -> str:
        return f"<RedisAddress {self}>"

    @classmethod
    def from_url(cls, url: str) -> RedisAddress:
        """Of ``redis://``, ``rediss://`` and ``unix://``. Raises ValueError, without the URL."""
        try:
            parts = urlsplit(url)
            port = parts.port or _PORT
            options = {name: values[-1] for name, values in parse_qs(parts.query).items()}
            is_unix = parts.scheme == "unix"
            database = options.get("db") or ("" if is_unix else parts.path.strip("/")) or "0"
            if parts.scheme not in ("redis", "rediss", "unix") or not database.isdecimal():
                raise ValueError
        except ValueError:
            raise ValueError("REDIS_URL is none such as redis://user:password@host:6379/0") from None
        return cls(
            host=parts.hostname or "localhost",
            port=port,
            path=unquote(parts.path) if is_unix else "",
            username=unquote(parts.username or "") or options.get("username", ""),
            password=unquote(parts.password or "") or options.get("password", ""),
            database=int(database),
            is_tls=parts.scheme == "rediss",
            tls_options=tuple(sorted((name, value) for name, value in options.items() if name.startswith("ssl_"))),
        )

    def tls_context(self) -> ssl.SSLContext | None:
        """None without TLS. Reads the files that the URL names. Raises OSError (ssl.SSLError is one)."""
        if not self.is_tls:
            return None
        options = dict(self.tls_options)
        context = ssl.create_default_context(cafile=options.get("ssl_ca_certs"), capath=options.get("ssl_ca_path"))
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        verifies = options.get("ssl_cert_reqs", "required").lower() not in _NO_VERIFICATION
        context.check_hostname = verifies and options.get("ssl_check_hostname", "true").lower() not in ("false", "0")
        if not verifies:
            context.verify_mode = ssl.CERT_NONE
        if certificate := options.get("ssl_certfile"):
            context.load_cert_chain(certificate, options.get("ssl_keyfile"), options.get("ssl_password"))
        return context

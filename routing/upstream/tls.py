"""TLS towards upstreams: always verified, by the system's certificate authorities (or SSL_CERT_FILE, SSL_CERT_DIR)."""

import ssl
from functools import cache


@cache
def client_context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    return context

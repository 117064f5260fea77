"""Fields of answers that the gateway makes itself (A17): JSON and problem documents, on both ports.

What an upstream says of its own answers passes as it is. HSTS stands on every answer of the TLS port instead (HSTS),
and the panel's pages have a policy of their own for scripts.
"""

from __future__ import annotations

from collections.abc import Mapping

ALWAYS: Mapping[str, str] = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",  # of no-cors requests alone: CORS is judged by itself
}
NO_PAGE = "default-src 'none'; frame-ancestors 'none'"  # should a browser take it for one all the same
PAGE = "frame-ancestors 'none'"

LINES = b"".join(
    f"{name.lower()}: {value}\r\n".encode("ascii")
    for name, value in {**ALWAYS, "Content-Security-Policy": NO_PAGE}.items()
)

"""Cross-origin requests (rule 18; the Fetch standard, https://fetch.spec.whatwg.org/#http-cors-protocol)."""

from __future__ import annotations

import re
from collections.abc import Sequence

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#\s@,]+")
_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110 section 5.6.2
_FIELD_NAMES = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z, \t-]*")
_EXPOSED = b"Access-Control-Expose-Headers: RateLimit, RateLimit-Policy, Retry-After, X-Request-ID\r\n"
_VARY = b"Vary: Origin\r\n"
_PREFLIGHT_VARY = b"Origin, Access-Control-Request-Method, Access-Control-Request-Headers"
_MAX_AGE_S = b"600"


class CorsPolicy:
    """Which origins may read answers. ``origins`` are exact (``https://app.example.com``), or ``*`` for any.

    Credentials (cookies) are allowed to origins that are named, never to ``*``.
    """

    __slots__ = ("_any", "_fields", "_otherwise", "enabled")

    def __init__(self, origins: Sequence[str]) -> None:
        self.enabled = bool(origins)
        self._any = "*" in origins
        self._fields = {origin: _fields(origin) for origin in map(_normal, origins) if origin != b"*"}
        vary = _VARY if self._fields else b""  # one and the same answer for every origin needs none
        self._otherwise = b"Access-Control-Allow-Origin: *\r\n" + _EXPOSED + vary if self._any else vary

    def preflight(self, origin: bytes, method: bytes, headers: bytes | None) -> list[tuple[bytes, bytes]] | None:
        """The fields that answer a preflight; None when ``origin`` may not ask or what it asks is malformed.

        ``method`` and ``headers`` are the values of Access-Control-Request-Method and -Headers. Routes and whitelists
        judge the method when the request itself comes, so it is echoed here.
        """
        named = origin in self._fields
        if not (named or self._any) or not _TOKEN.fullmatch(method) or not _FIELD_NAMES.fullmatch(headers or b""):
            return None
        fields = [
            (b"access-control-allow-origin", origin if named else b"*"),
            (b"access-control-allow-methods", method),
            (b"access-control-max-age", _MAX_AGE_S),
            (b"vary", _PREFLIGHT_VARY),
        ]
        if headers:
            fields.append((b"access-control-allow-headers", headers))
        if named:
            fields.append((b"access-control-allow-credentials", b"true"))
        return fields

    def response_fields(self, origin: bytes) -> bytes:
        """The header lines for an answer to ``origin`` (empty for a request without one), each with its CRLF."""
        return self._fields.get(origin, self._otherwise)


def _normal(origin: str) -> bytes:
    """An origin as browsers send it. Raises ValueError, with a sentence, for what is none."""
    normal = origin.strip().rstrip("/").lower()
    if normal != "*" and not (normal.isascii() and _ORIGIN.fullmatch(normal)):
        raise ValueError(
            f"{origin!r} is no origin: write scheme, host and port, as in https://app.example.com:8443, or *."
        )
    return normal.encode()


def _fields(origin: bytes) -> bytes:
    allow = b"Access-Control-Allow-Origin: " + origin + b"\r\nAccess-Control-Allow-Credentials: true\r\n"
    return allow + _EXPOSED + _VARY

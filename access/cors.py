"""Cross-origin requests (rule 18; the Fetch standard, https://fetch.spec.whatwg.org/#http-cors-protocol)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#\s@,*]+")
_SUFFIX = re.compile(r"[a-z][a-z0-9+.-]*://\*((?:\.[a-z0-9_-]+){2,})(:[0-9]{1,5})?")
# An origin below a domain: labels of a host name and nothing else stand before it.
_BELOW = re.compile(rb"([a-z][a-z0-9+.-]*)://[a-z0-9_-]+((?:\.[a-z0-9_-]+)+(?::[0-9]{1,5})?)")
_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110 section 5.6.2
_FIELD_NAMES = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z, \t-]*")
_EXPOSED = ("RateLimit", "RateLimit-Policy", "Retry-After", "X-Request-ID")
_VARY = b"Vary: Origin\r\n"
_PREFLIGHT_VARY = b"Origin, Access-Control-Request-Method, Access-Control-Request-Headers"
_REMEMBERED = 1024  # origins, of each policy that names domains
_LONGEST = 300  # an origin: a host name has 253 octets


class CorsPolicy:
    """Which origins may read answers. ``origins`` are exact (``https://app.example.com``), all hosts below a domain
    (``https://*.example.com``), or ``*`` for any.

    ``methods`` and ``headers`` are what a preflight grants, whatever it asks for; empty: what it asks for. ``expose``
    stands beside the gateway's own fields. ``credentials`` (cookies): True for every origin but ``*``, None for origins
    that are named whole. Raises ValueError, with a sentence, for what is no origin.
    """

    __slots__ = ("_any", "_below", "_credentials", "_exposed", "_fields_below", "_headers", "_max_age", "_methods",
                 "_named", "_otherwise", "enabled")  # fmt: skip

    def __init__(
        self,
        origins: Sequence[str],
        *,
        methods: Sequence[str] = (),
        headers: Sequence[str] = (),
        expose: Sequence[str] = (),
        credentials: bool | None = None,
        max_age_s: int = 600,
    ) -> None:
        self.enabled = bool(origins)
        normal = [_normal(origin) for origin in origins]
        self._any = "*" in normal
        self._below = frozenset(_below(origin) for origin in normal if "://*" in origin)
        self._credentials = credentials
        self._methods = ", ".join(methods).encode("ascii")
        self._headers = ", ".join(headers).encode("ascii")
        known = {name.lower() for name in _EXPOSED}
        exposed = (*_EXPOSED, *(name for name in expose if name.lower() not in known))
        self._exposed = b"Access-Control-Expose-Headers: " + ", ".join(exposed).encode("ascii") + b"\r\n"
        self._max_age = b"%d" % max_age_s
        # One and the same answer for every origin needs no Vary, and nor does one for none.
        vary = _VARY if not set(normal) <= {"*"} else b""
        self._otherwise = (b"Access-Control-Allow-Origin: *\r\n" + self._exposed if self._any else b"") + vary
        named = [origin.encode() for origin in normal if "*" not in origin]
        self._named = {origin: self._told(origin, credentials is not False) for origin in named}
        self._fields_below = lru_cache(_REMEMBERED)(self._told)

    def allows(self, origin: bytes) -> bool:
        return self._any or origin in self._named or self._is_below(origin)

    def _is_below(self, origin: bytes) -> bool:
        """Whether the origin's host lies below one of the domains, by whole labels."""
        parts = _BELOW.fullmatch(origin) if self._below and len(origin) <= _LONGEST else None
        if parts is None:
            return False
        scheme, rest = parts[1], parts[2]
        while rest.startswith(b"."):
            if (scheme, rest) in self._below:
                return True
            dot = rest.find(b".", 1)
            if dot < 0:
                return False
            rest = rest[dot:]
        return False

    def _grants_credentials(self, origin: bytes) -> bool:
        if self._credentials is None:
            return origin in self._named
        return self._credentials and (origin in self._named or self._is_below(origin))

    def preflight(self, origin: bytes, method: bytes, headers: bytes | None) -> list[tuple[bytes, bytes]] | None:
        """The fields that answer a preflight; None when ``origin`` may not ask or what it asks is malformed.

        ``method`` and ``headers`` are the values of Access-Control-Request-Method and -Headers. The browser judges by
        what is granted here; routes and whitelists judge the method when the request itself comes.
        """
        if not self.allows(origin) or not _TOKEN.fullmatch(method) or not _FIELD_NAMES.fullmatch(headers or b""):
            return None
        fields = [
            (b"access-control-allow-origin", origin if self._is_told(origin) else b"*"),
            (b"access-control-allow-methods", self._methods or method),
            (b"access-control-max-age", self._max_age),
            (b"vary", _PREFLIGHT_VARY),
        ]
        if headers:
            fields.append((b"access-control-allow-headers", self._headers or headers))
        if self._grants_credentials(origin):
            fields.append((b"access-control-allow-credentials", b"true"))
        return fields

    def _is_told(self, origin: bytes) -> bool:
        """Whether the origin itself is named in answers to it."""
        return origin in self._named or self._is_below(origin)

    def response_fields(self, origin: bytes | None) -> bytes:
        """The header lines for an answer to ``origin`` (None: the request has none), each with its CRLF."""
        if origin is None:
            return self._otherwise
        lines = self._named.get(origin)
        if lines is None:
            is_below = self._is_below(origin)
            lines = self._fields_below(origin, self._credentials is True) if is_below else self._otherwise
        return lines

    def _told(self, origin: bytes, with_credentials: bool) -> bytes:
        lines = b"Access-Control-Allow-Origin: " + origin + b"\r\n"
        if with_credentials:
            lines += b"Access-Control-Allow-Credentials: true\r\n"
        return lines + self._exposed + _VARY


def _normal(origin: str) -> str:
    """An origin as browsers send it, or a pattern. Raises ValueError, with a sentence, for what is none."""
    normal = origin.strip().rstrip("/").lower()
    if normal == "*" or (normal.isascii() and (_ORIGIN.fullmatch(normal) or _SUFFIX.fullmatch(normal))):
        return normal
    raise ValueError(
        f"{origin!r} is no origin: write scheme, host and port, as in https://app.example.com:8443,"
        " https://*.example.com for all hosts below a domain, or *."
    )


def _below(origin: str) -> tuple[bytes, bytes]:
    """Scheme, and what follows the star: ``.example.com:8443``."""
    scheme, _, rest = origin.partition("://*")
    return scheme.encode(), rest.encode()

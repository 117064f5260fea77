"""What conditions and templates read of a request: header fields, query parameters, segments of its path."""

from __future__ import annotations

from urllib.parse import unquote_to_bytes

from core.context import Exchange


class RequestFields:
    """Reads when it is asked, and remembers what for: a decision that asked for fields holds for this request alone
    (``is_read``), and its answer varies by the header fields among them (``names``).

    ``path`` is the canonical one. The field that carries the gateway's key is invisible. A preflight comes without the
    header fields of the request that it asks for (``has_headers`` False).
    """

    __slots__ = ("_key_header", "_parameters", "_path", "_segments", "exchange", "has_headers", "is_read", "names")

    def __init__(self, exchange: Exchange, path: bytes, key_header: bytes, *, has_headers: bool = True) -> None:
        self.exchange = exchange
        self.has_headers = has_headers
        self.is_read = False
        self.names: tuple[bytes, ...] = ()  # each once
        self._key_header = key_header
        self._path = path
        self._segments: list[bytes] | None = None
        self._parameters: dict[bytes, list[bytes]] | None = None

    @classmethod
    def of_path(cls, path: bytes) -> RequestFields:
        """Of a request of which nothing but its path is known."""
        exchange = Exchange()
        exchange.noted, exchange.passed = {}, []
        return cls(exchange, path, b"")

    def header(self, name: bytes) -> bytes | None:
        """The value of a field (``name`` in lower case); several lines count as one list, joined by commas."""
        self.is_read = True
        if name not in self.names:
            self.names += (name,)
        if name == self._key_header:
            return None
        noted = self.exchange.noted.get(name)
        if noted is not None:
            return noted
        passed = self.exchange.passed
        values = [passed[at + 2] for at in range(0, len(passed), 4) if passed[at] == name]
        return b", ".join(values) if values else None

    def parameters(self, name: bytes) -> list[bytes]:
        """The values of a query parameter, decoded, in order."""
        self.is_read = True
        if self._parameters is None:
            self._parameters = {}
            for pair in (self.exchange.query or b"").split(b"&"):
                if pair:
                    key, _, value = pair.partition(b"=")
                    self._parameters.setdefault(decoded(key), []).append(decoded(value))
        return self._parameters.get(name, [])

    def segment(self, place: int) -> bytes | None:
        """A segment of the path, decoded; the first is 1."""
        if self._segments is None:
            self._segments = self._path.split(b"/")
        return unquote_to_bytes(self._segments[place]) if place < len(self._segments) else None


def vary_line(names: tuple[bytes, ...]) -> bytes:
    """What the answer depends on, for caches on its way (RFC 9110 section 12.5.5)."""
    return b"vary: " + b", ".join(names) + b"\r\n" if names else b""


def decoded(text: bytes) -> bytes:
    """A name or value of a query as forms write them: ``+`` is a space, ``%`` escapes octets."""
    return unquote_to_bytes(text.replace(b"+", b" ")) if b"%" in text or b"+" in text else text


def parameter_places(path: bytes) -> dict[str, int]:
    """The names in a pattern, as `compile_pattern` returns it, and which segment each one is. Of equal names the last
    counts."""
    segments = path.split(b"/")
    return {segment[1:-1].decode(): place for place, segment in enumerate(segments) if segment[:1] == b"{"}

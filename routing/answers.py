"""An upstream's answer on its way to the client, through whatever works on it.

Steps of the pipeline that want to see or change answers (compression, cache, transformations) add a filter to the
exchange; the first one added stands nearest to the client. An exchange without filters pays nothing: its forwarding
writes to the exchange directly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from core.context import Exchange

BODILESS = frozenset((204, 304))


class AnswerHead:
    """Status and field lines (``b"name: value\\r\\n"``, names in any case) without hop-by-hop fields and without what
    the gateway adds for this one request. ``is_sized``: Content-Length stands among them, and holds. ``ends_by_close``:
    nobody can tell whether the body will be whole (RFC 9112 section 6.3, item 8)."""

    __slots__ = ("ends_by_close", "is_sized", "lines", "status")

    def __init__(self, status: int, lines: list[bytes], *, is_sized: bool, ends_by_close: bool = False) -> None:
        self.status = status
        self.lines = lines
        self.is_sized = is_sized
        self.ends_by_close = ends_by_close

    def values(self, name: bytes) -> list[bytes]:
        """Of every line with this name (lower case), in order."""
        start = name + b":"
        size = len(start)
        return [line[size:].strip() for line in self.lines if line[:size].lower() == start]

    def value(self, name: bytes) -> bytes | None:
        """All lines of this name as one list; None where there is none."""
        values = self.values(name)
        return b", ".join(values) if values else None

    def remove(self, *names: bytes) -> None:
        starts = tuple(name + b":" for name in names)
        longest = max(map(len, starts))
        self.lines = [line for line in self.lines if not line[:longest].lower().startswith(starts)]
        if b"content-length" in names:
            self.is_sized = False

    def add(self, name: bytes, value: bytes) -> None:
        self.lines.append(name + b": " + value + b"\r\n")

    def fields(self) -> Iterable[tuple[bytes, bytes]]:
        """Names in lower case, and values."""
        for line in self.lines:
            name, _, value = line.partition(b":")
            yield name.lower(), value.strip()


class AnswerSink(Protocol):
    """Takes one answer: ``whole``, or ``start``, ``data`` …, ``end``. ``abort`` at any time after ``start``."""

    def whole(self, head: AnswerHead, body: bytes) -> None: ...
    def start(self, head: AnswerHead) -> None: ...
    def data(self, data: bytes) -> bool: ...  # False: the client is slower; wait until it is ready
    def end(self) -> None: ...
    def abort(self) -> None: ...


MakeFilter = Callable[[AnswerSink], AnswerSink]


class Filter:
    """Passes everything on; subclasses change what they are about."""

    def __init__(self, onward: AnswerSink) -> None:
        self.onward = onward

    def whole(self, head: AnswerHead, body: bytes) -> None:
        self.onward.whole(head, body)

    def start(self, head: AnswerHead) -> None:
        self.onward.start(head)

    def data(self, data: bytes) -> bool:
        return self.onward.data(data)

    def end(self) -> None:
        self.onward.end()

    def abort(self) -> None:
        self.onward.abort()


class ToClient:
    """The end of the way: adds what the gateway says about this one request, and writes to the exchange."""

    __slots__ = ("_exchange", "_own_lines")

    def __init__(self, exchange: Exchange, own_lines: bytes) -> None:
        self._exchange = exchange
        self._own_lines = own_lines

    def whole(self, head: AnswerHead, body: bytes) -> None:
        lines = b"".join(head.lines)
        if not head.is_sized and head.status not in BODILESS and self._exchange.method != b"HEAD":
            lines += b"content-length: %d\r\n" % len(body)
        self._exchange.answer(head.status, lines + self._own_lines + self._exchange.answer_lines, body)

    def start(self, head: AnswerHead) -> None:
        lines = b"".join(head.lines) + self._own_lines + self._exchange.answer_lines
        self._exchange.start(head.status, lines, is_sized=head.is_sized)

    def data(self, data: bytes) -> bool:
        return self._exchange.write(data)

    def end(self) -> None:
        self._exchange.end()

    def abort(self) -> None:
        self._exchange.abort()


def through_filters(exchange: Exchange, own_lines: bytes) -> AnswerSink:
    """Where an answer for the exchange is to be written: its filters, then the client."""
    sink: AnswerSink = ToClient(exchange, own_lines)
    for make in exchange.filters:
        sink = make(sink)
    return sink

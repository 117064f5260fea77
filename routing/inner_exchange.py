"""A request that the gateway itself makes on behalf of one: a revalidation, a mirrored copy, a part of an aggregate.

It goes the way of every forwarding, with the same time limits, retries and circuit breaker, and its answer is collected
in memory. Nobody is authenticated, charged or logged for it: that was done for the exchange that it belongs to.
"""

from __future__ import annotations

from collections.abc import Callable

from core.context import BodySink, Exchange


class InnerExchange(Exchange):
    """``done`` is told when the answer is whole (``is_whole``) or has failed; ``fault_code`` says when it is a fault of
    the gateway's own making. ``limit`` bounds the answer's body: beyond it the answer counts as failed."""

    is_whole = False

    def __init__(
        self,
        of: Exchange,
        done: Callable[[InnerExchange], None],
        *,
        method: bytes,
        raw_path: bytes,
        query: bytes | None,
        passed: list[bytes],
        body: bytes = b"",
        limit: int,
        started: float,
    ) -> None:
        self.method = method
        self.raw_path = raw_path
        self.query = query
        self.passed = passed
        self.noted = {name: of.noted[name] for name in (b"via", b"connection") if name in of.noted}
        self.identity = of.identity
        self.session = of.session
        self.started = started
        self.request_id, self.trace_id, self.trace_lines = of.request_id, of.trace_id, of.trace_lines
        self.snapshot, self.path, self.match = of.snapshot, of.path, of.match
        self.version, self.application, self.key = of.version, of.application, of.key
        self.user, self.certificate = of.user, of.certificate
        self.has_body = bool(body)
        self.content_length = len(body) if body else None
        self.lines = b""  # of the answer, with its status in ``status``
        self.body = b""
        self._done = done
        self._request_body = body
        self._limit = limit
        self._pieces: list[bytes] = []
        self._is_over = False

    def read_body(self, sink: BodySink) -> None:
        self.sink = sink
        if self._request_body:
            sink.body_data(self._request_body)
        sink.body_end()

    def replace_body(self, body: bytes) -> None:
        self._request_body = body
        self.content_length = len(body)

    def pause_body(self) -> None:
        pass  # all of it has been handed over

    def resume_body(self) -> None:
        pass

    def cancel(self) -> None:
        """Nobody wants the answer any more; ``done`` is not told."""
        self._is_over = True
        sink, self.sink = self.sink, None
        if sink is not None:
            sink.client_gone()

    def answer(self, status: int, lines: bytes, body: bytes) -> None:
        if self._is_over:
            return
        self.status, self.lines, self.body = status, lines, body
        self.bytes_out = len(body)
        self.is_whole = len(body) <= self._limit
        self._finish()

    def start(self, status: int, lines: bytes, *, is_sized: bool) -> None:
        self.status, self.lines = status, lines

    def write(self, data: bytes) -> bool:
        if self._is_over:
            return True
        self.bytes_out += len(data)
        if self.bytes_out > self._limit:
            sink, self.sink = self.sink, None
            if sink is not None:
                sink.client_gone()
            self._finish()
        else:
            self._pieces.append(data)
        return True

    def end(self) -> None:
        if not self._is_over:
            self.body = b"".join(self._pieces)
            self.is_whole = True
            self._finish()

    def abort(self) -> None:
        if not self._is_over:
            self.fault_code = self.fault_code or "aborted"
            self._finish()

    def _finish(self) -> None:
        self._is_over = True
        self.sink = None
        self._done(self)

"""A WebSocket after its handshake: two connections, and frames that pass between them as they are.

Either side that cannot take more pauses the reading of the other. Nothing runs per socket but callbacks; its time
limits are looked at by the worker's sweep, like those of every other connection (``deadline``, ``sweep``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from core.context import Exchange
from core.outflow import NOTHING_KNOWN, taken_bytes, unsent_bytes
from routing.websocket_frames import (
    GOING_AWAY,
    INTERNAL_ERROR,
    POLICY_VIOLATION,
    TOO_BIG,
    FrameError,
    FrameWalker,
    close_frame,
)

CLOSE_S = 10.0  # for an end to answer the other's Close
GOODBYE_S = 2.0  # to answer ours, and between signs that what was written to an end still leaves
STALL_S = 30.0  # for an end that takes nothing at all
_NEVER = float("inf")


class Side(asyncio.Protocol):
    """One of the two ends, and what arrives from it."""

    __slots__ = (
        "arrived",
        "is_client",
        "is_lost",
        "is_over",
        "other",
        "stalled_at",
        "taken",
        "transport",
        "tunnel",
        "walker",
    )

    other: Side

    def __init__(self, tunnel: Tunnel, transport: asyncio.Transport, walker: FrameWalker, *, is_client: bool) -> None:
        self.tunnel = tunnel
        self.transport = transport
        self.walker = walker
        self.is_client = is_client
        self.is_lost = False
        self.is_over = False  # nothing more of it is passed on
        self.arrived = 0  # bytes
        self.stalled_at = _NEVER  # since when it has taken nothing
        self.taken = NOTHING_KNOWN  # at that time

    def data_received(self, data: bytes) -> None:
        tunnel = self.tunnel
        tunnel.heard_at = tunnel.now()
        if self.is_over:
            self._listen_for_close(data)
            return
        self.arrived += len(data)
        try:
            data = self.walker.take(data)
        except FrameError as error:
            tunnel.broken(self, error)
            return
        if data:
            self.other.transport.write(data)
        if self.walker.has_closed:
            tunnel.closing(self)

    def _listen_for_close(self, data: bytes) -> None:
        """We have said goodbye: only the answer to that is of interest."""
        try:
            self.walker.take(data)
        except FrameError:
            self.transport.abort()
            return
        if self.walker.has_closed:
            self.transport.close()

    def eof_received(self) -> bool:
        # Who has sent a Close and shut its side may still be told the other's (RFC 6455 section 7.1.1).
        return self.walker.has_closed and not (self.other.is_lost or self.is_over) and self.transport.can_write_eof()

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_lost = True
        self.tunnel.lost(self)

    def pause_writing(self) -> None:
        self.other.transport.pause_reading()
        self.tunnel.stalled(self)

    def resume_writing(self) -> None:
        self.stalled_at = _NEVER
        self.other.transport.resume_reading()

    def say_goodbye(self, code: int, reason: str) -> None:
        """Tell this end that it is over: by a Close frame, where one can stand; else by ending the connection within
        a frame, which no client takes for a proper end."""
        self.is_over = True
        if self.is_lost:
            return
        if self.other.walker.left or self.other.walker.has_closed:
            self.transport.close()
            return
        self.transport.write(close_frame(code, reason, is_masked=not self.is_client))
        if self.walker.has_closed:
            self.transport.close()
        else:
            self.transport.resume_reading()


class Discarding(FrameWalker):
    """For an end that has sent what is no frame: read on, so that our Close is not lost to a reset."""

    def take(self, data: bytes) -> bytes:
        return b""


class Tunnel:
    """Both ends, and how they come to theirs. ``ended`` is told once, when both are gone."""

    def __init__(
        self,
        exchange: Exchange,
        client: asyncio.Transport,
        upstream: asyncio.Transport,
        *,
        idle_s: float,
        max_message_bytes: int,
        is_compressed: bool,
        now: Callable[[], float],
        ended: Callable[[Tunnel], None],
    ) -> None:
        def walker(*, is_masked: bool) -> FrameWalker:
            return FrameWalker(is_masked=is_masked, may_compress=is_compressed, limit=max_message_bytes)

        self.exchange = exchange
        self.transport = client  # what is closed when the worker must end at once
        self.now = now
        self.heard_at = now()
        self.deadline = self.heard_at + idle_s
        self.client = Side(self, client, walker(is_masked=True), is_client=True)
        self.upstream = Side(self, upstream, walker(is_masked=False), is_client=False)
        self.client.other, self.upstream.other = self.upstream, self.client
        self._idle_s = idle_s
        self._is_ending = False
        self._taken = NOTHING_KNOWN  # by both ends, when that was last looked at while ending
        self._ended = ended

    # --- what the ends do ---
    def closing(self, side: Side) -> None:
        """A Close frame has been passed on."""
        self._begin_ending(CLOSE_S)
        if side.other.walker.has_closed:  # it was the answer: nothing is left to say
            self.client.transport.close()
            self.upstream.transport.close()

    def broken(self, side: Side, error: FrameError) -> None:
        """An end has sent what must not be passed on."""
        if error.valid:
            side.other.transport.write(error.valid)
        is_too_big = error.code == TOO_BIG
        if side.is_client:
            fault = "payload_too_large" if is_too_big else "bad_request"
            codes = error.code, GOING_AWAY
        else:
            fault = "upstream_invalid_response"
            codes = TOO_BIG if is_too_big else INTERNAL_ERROR, error.code
        self._end(*codes, error.reason, fault)
        side.walker = Discarding(is_masked=False, may_compress=False, limit=0)
        if not side.transport.is_closing() and side.transport.can_write_eof():
            side.transport.write_eof()

    def stalled(self, side: Side) -> None:
        side.stalled_at = self.now()
        side.taken = taken_bytes(side.transport)
        self.deadline = min(self.deadline, side.stalled_at + STALL_S)

    def lost(self, side: Side) -> None:
        """A connection has ended."""
        other = side.other
        if other.is_lost:
            self.deadline = _NEVER
            self._ended(self)
            return
        was_ending = self._is_ending
        self._begin_ending(GOODBYE_S)
        if side.is_over:  # we have ended both, each in its own time
            return
        if side.is_client or was_ending:
            # An upstream sees the end of a client that has said nothing as what it is: abnormal (code 1006).
            other.is_over = True
            other.transport.close()
        else:
            self.exchange.fault_code = "upstream_reset"
            other.say_goodbye(INTERNAL_ERROR, "the upstream has closed the connection")

    # --- what the gateway does ---
    def sweep(self, now: float) -> None:
        """The deadline has passed."""
        if self._is_ending:
            self._cut_off(now)
            return
        due = self.heard_at + self._idle_s
        if due <= now:
            self._end(GOING_AWAY, GOING_AWAY, "nothing was sent for too long", "")
            return
        for side in (self.client, self.upstream):
            if side.stalled_at + STALL_S <= now:
                taken = taken_bytes(side.transport)
                if taken <= side.taken:
                    side.transport.abort()
                    return
                side.stalled_at, side.taken = now, taken  # slow, but it goes on
            due = min(due, side.stalled_at + STALL_S)
        self.deadline = due

    def _cut_off(self, now: float) -> None:
        """The time for ending well is over, unless what was written before still leaves, if slowly."""
        ends = self.client.transport, self.upstream.transport
        taken = sum(map(taken_bytes, ends))
        if taken > self._taken and any(map(unsent_bytes, ends)):
            self._taken = taken
            self.deadline = now + GOODBYE_S
            return
        self.deadline = _NEVER
        self.client.transport.abort()
        self.upstream.transport.abort()

    def shutdown(self) -> None:
        """The worker stops."""
        self._end(GOING_AWAY, GOING_AWAY, "the gateway is stopping", "")

    def revoke(self) -> None:
        """What the socket was opened with does not hold any longer (rule 12)."""
        self._end(POLICY_VIOLATION, GOING_AWAY, "access was revoked", "invalid_credentials")

    def _end(self, client_code: int, upstream_code: int, reason: str, fault: str) -> None:
        if self.client.is_over or self.upstream.is_over:
            return
        self._begin_ending(GOODBYE_S)
        self.exchange.fault_code = self.exchange.fault_code or fault
        self.client.say_goodbye(client_code, reason)
        self.upstream.say_goodbye(upstream_code, reason)

    def _begin_ending(self, within_s: float) -> None:
        self._is_ending = True
        self.deadline = min(self.deadline, self.now() + within_s)

"""The headers of WebSocket frames (RFC 6455 section 5), as far as somebody between two ends must understand them.

Payloads are neither unmasked nor looked at, and bytes are passed on as they came: only a header that has not arrived
whole is kept back, since nothing may pass before it has been judged.
"""

from __future__ import annotations

import os

NORMAL, GOING_AWAY, PROTOCOL_ERROR, POLICY_VIOLATION, TOO_BIG, INTERNAL_ERROR = 1000, 1001, 1002, 1008, 1009, 1011

_FINAL, _RESERVED, _COMPRESSED, _OPCODE = 0x80, 0x70, 0x40, 0x0F
_CONTINUATION, _TEXT, _BINARY, _CLOSE, _PING, _PONG = 0, 1, 2, 8, 9, 10
_WHOLE = frozenset((_FINAL | _TEXT, _FINAL | _BINARY))  # messages of a single frame, uncompressed
_MAX_CONTROL = 125


class FrameError(Exception):
    """What an end has sent is no frame that may follow. ``code`` is the close code that says so; ``valid`` is what
    came before it in the same read."""

    def __init__(self, code: int, reason: str, valid: bytes = b"") -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason
        self.valid = valid


class FrameWalker:
    """Goes from header to header through the bytes of one direction.

    ``limit``: bytes of a message, all fragments together, as they are on the wire. ``left`` is 0 between two frames:
    what has been passed on ends with a frame. ``has_closed``: a Close frame has passed, and nothing may follow it.
    """

    __slots__ = ("_beginning", "_is_closing", "_limit", "_mask_bit", "_may_compress", "_message", "has_closed", "left")

    def __init__(self, *, is_masked: bool, may_compress: bool, limit: int) -> None:
        self._mask_bit = 0x80 if is_masked else 0
        self._may_compress = may_compress
        self._limit = limit
        self._beginning = b""  # of a header that has not arrived whole
        self._message = -1  # bytes of the fragmented message under way; -1: there is none
        self._is_closing = False  # the frame under way is a Close
        self.has_closed = False
        self.left = 0

    def take(self, data: bytes) -> bytes:
        """What may be passed on now that ``data`` has come. Raises `FrameError`, after which nothing more is taken."""
        if self._beginning:
            data = self._beginning + data
            self._beginning = b""
        if self.has_closed:
            return b""
        size = len(data)
        position = self.left
        while position < size and not self._is_closing:
            try:
                after = self._next(data, position, size)
            except FrameError as error:
                self.left = 0
                error.valid = data[:position]
                raise
            if not after:
                self._beginning = data[position:]
                self.left = 0
                return data[:position]
            position = after
        if self._is_closing and position <= size:
            self.has_closed = True
            self.left = 0
            return data[:position]
        self.left = position - size
        return data

    def _next(self, data: bytes, position: int, size: int) -> int:
        """Where the frame that begins at ``position`` ends, which may lie beyond the data; 0: its header is not whole
        yet."""
        if size - position < 2:
            return 0
        first, second = data[position], data[position + 1]
        length = second & 0x7F
        after = position + 2
        if length > _MAX_CONTROL:
            after += 2 if length == 126 else 8
            if after > size:
                self._judge_early(first, second)
                return 0
            length = _long_length(data[position + 2 : after])
        if second & 0x80 != self._mask_bit:
            raise FrameError(PROTOCOL_ERROR, "a frame is masked that must not be, or not that must be")
        if self._mask_bit:
            after += 4
            if after > size:
                return 0
        if first not in _WHOLE or self._message >= 0:
            self._judge(first, length)
        elif length > self._limit:
            raise self._too_big()
        return after + length

    def _judge_early(self, first: int, second: int) -> None:
        """A control frame never has a long length: no need to wait for it."""
        if first & 0x08:
            self._judge(first, second & 0x7F)

    def _judge(self, first: int, length: int) -> None:
        """Frames other than whole messages: fragments, control frames, compressed ones, and what is none."""
        opcode, reserved = first & _OPCODE, first & _RESERVED
        if opcode in (_CLOSE, _PING, _PONG):
            if not first & _FINAL or length > _MAX_CONTROL or reserved:
                raise FrameError(PROTOCOL_ERROR, "a control frame is fragmented, too long, or has a reserved bit")
            if opcode == _CLOSE:
                if length == 1:
                    raise FrameError(PROTOCOL_ERROR, "a close code is cut off")
                self._is_closing = True
            return
        if opcode not in (_CONTINUATION, _TEXT, _BINARY):
            raise FrameError(PROTOCOL_ERROR, f"the opcode {opcode} is reserved")
        is_continuation = opcode == _CONTINUATION
        if reserved and (reserved != _COMPRESSED or not self._may_compress or is_continuation):
            raise FrameError(PROTOCOL_ERROR, "a reserved bit is set that no extension gives a meaning")
        if is_continuation != (self._message >= 0):
            raise FrameError(PROTOCOL_ERROR, "a message is continued that was not begun, or begun before one has ended")
        total = length + max(self._message, 0)
        if total > self._limit:
            raise self._too_big()
        self._message = -1 if first & _FINAL else total

    def _too_big(self) -> FrameError:
        return FrameError(TOO_BIG, f"a message is over the limit of {self._limit} bytes")


def _long_length(octets: bytes) -> int:
    length = int.from_bytes(octets)
    if length >> 63 or length <= (_MAX_CONTROL if len(octets) == 2 else 0xFFFF):  # the shortest form is a must
        raise FrameError(PROTOCOL_ERROR, "a length is not in its shortest form")
    return length


def close_frame(code: int, reason: str, *, is_masked: bool) -> bytes:
    """``reason`` is ASCII of at most 123 bytes."""
    payload = code.to_bytes(2) + reason.encode("ascii")
    if not is_masked:
        return bytes((_FINAL | _CLOSE, len(payload))) + payload
    mask = os.urandom(4)  # unpredictable, so that no text of ours looks like HTTP on the wire (section 10.3)
    masked = bytes(octet ^ mask[i & 3] for i, octet in enumerate(payload))
    return bytes((_FINAL | _CLOSE, 0x80 | len(payload))) + mask + masked

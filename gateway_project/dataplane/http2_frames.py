"""HTTP/2 on the wire: frames (RFC 9113 sections 4 and 6) and the header sections of answers (HPACK, RFC 7541)."""

from __future__ import annotations

import struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
MAX_FRAME = 16_384  # bytes of a payload, in both directions (section 4.2)
MAX_WINDOW = 2**31 - 1

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM = ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8
HAS_PRIORITY = 0x20

NO_ERROR, PROTOCOL_ERROR, INTERNAL_ERROR, FLOW_CONTROL_ERROR = 0x0, 0x1, 0x2, 0x3
STREAM_CLOSED, FRAME_SIZE_ERROR, REFUSED_STREAM, CANCEL, COMPRESSION_ERROR = 0x5, 0x6, 0x7, 0x8, 0x9
ENHANCE_YOUR_CALM = 0xB

HEADER_TABLE_SIZE, ENABLE_PUSH, MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE = 0x1, 0x2, 0x3, 0x4
MAX_FRAME_SIZE, MAX_HEADER_LIST_SIZE = 0x5, 0x6
NO_RFC7540_PRIORITIES = 0x9  # RFC 9218 section 2.1

_HEAD = struct.Struct("!HBBBL")
_SETTING = struct.Struct("!HL")


class ConnectionFault(Exception):
    """What ends a connection (section 5.4.1)."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class StreamFault(Exception):
    """What ends a stream, and leaves the others alone (section 5.4.2)."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code


def frame(kind: int, flags: int, stream: int, payload: bytes | memoryview = b"") -> bytes:
    size = len(payload)
    return _HEAD.pack(size >> 8, size & 0xFF, kind, flags, stream) + payload


def settings(values: dict[int, int]) -> bytes:
    return frame(SETTINGS, 0, 0, b"".join(_SETTING.pack(*each) for each in values.items()))


def read_settings(payload: bytes) -> list[tuple[int, int]]:
    if len(payload) % 6:
        raise ConnectionFault(FRAME_SIZE_ERROR, "SETTINGS of a broken size")
    return list(_SETTING.iter_unpack(payload))


def reset(stream: int, code: int) -> bytes:
    return frame(RST_STREAM, 0, stream, code.to_bytes(4, "big"))


def goaway(last_stream: int, code: int) -> bytes:
    return frame(GOAWAY, 0, 0, last_stream.to_bytes(4, "big") + code.to_bytes(4, "big"))


def window_update(stream: int, increment: int) -> bytes:
    return frame(WINDOW_UPDATE, 0, stream, increment.to_bytes(4, "big"))


def unpadded(flags: int, payload: bytes) -> bytes:
    """The payload of DATA or HEADERS without its padding (sections 6.1, 6.2)."""
    if not flags & PADDED:
        return payload
    if not payload or payload[0] >= len(payload):
        raise ConnectionFault(PROTOCOL_ERROR, "padding that is longer than its frame")
    return payload[1 : len(payload) - payload[0]]


# --- header sections of answers --------------------------------------------------------------------------------------
# Nothing is put into the dynamic table: the client's memory then needs no bookkeeping here, and what a line becomes
# depends on nothing but the line, so it can be remembered. It costs some bytes, and a fifth of the time.
NO_TABLE = b"\x20"  # a dynamic table of no size: said once, with the first answer (RFC 7541 section 4.2)
_NEVER_INDEXED = frozenset((b"set-cookie", b"www-authenticate"))  # not by intermediaries either (section 7.1.3)
_STATIC_STATUS = {200: 8, 204: 9, 206: 10, 304: 11, 400: 12, 404: 13, 500: 14}
STATIC_NAMES = {
    name: 15 + index
    for index, name in enumerate(
        b"accept-charset accept-encoding accept-language accept-ranges accept access-control-allow-origin age allow "
        b"authorization cache-control content-disposition content-encoding content-language content-length "
        b"content-location content-range content-type cookie date etag expect expires from host if-match "
        b"if-modified-since if-none-match if-range if-unmodified-since last-modified link location max-forwards "
        b"proxy-authenticate proxy-authorization range referer refresh retry-after server set-cookie "
        b"strict-transport-security transfer-encoding user-agent vary via www-authenticate".split()
    )
}
_remembered: dict[bytes, bytes] = {}
_MAX_REMEMBERED = 2048
_MAX_LINE = 120
# Different in each answer: not worth remembering, and some are secret.
_CHANGING = (b"x-request-id:", b"ratelimit:", b"content-length:", b"date:", b"set-cookie:", b"etag:", b"location:")


def header_block(status: int, lines: bytes) -> bytes:
    """``lines`` are field lines with their CRLF, names in any case."""
    index = _STATIC_STATUS.get(status)
    pieces = [bytes((0x80 | index,)) if index else b"\x08\x03%d" % status]  # literal, with the name of entry 8
    for line in lines.split(b"\r\n"):
        if line:
            pieces.append(_remembered.get(line) or _encoded(line))
    return b"".join(pieces)


def _encoded(line: bytes) -> bytes:
    name, _, value = line.partition(b":")
    name, value = name.lower(), value.strip(b" \t")
    kind = 0x10 if name in _NEVER_INDEXED else 0x00
    index = STATIC_NAMES.get(name)
    head = _integer(index, 4, kind) if index else bytes((kind,)) + _integer(len(name), 7, 0) + name
    encoded = head + _integer(len(value), 7, 0) + value
    if len(line) <= _MAX_LINE and not line[:15].lower().startswith(_CHANGING):
        if len(_remembered) >= _MAX_REMEMBERED:
            _remembered.clear()
        _remembered[line] = encoded
    return encoded


def _integer(number: int, bits: int, first: int) -> bytes:
    """RFC 7541 section 5.1."""
    limit = (1 << bits) - 1
    if number < limit:
        return bytes((first | number,))
    pieces = bytearray((first | limit,))
    number -= limit
    while number >= 128:
        pieces.append(0x80 | number & 0x7F)
        number >>= 7
    pieces.append(number)
    return bytes(pieces)


def header_frames(stream: int, block: bytes, *, ends: bool) -> bytes:
    """HEADERS, and CONTINUATION where the block is too long for one frame."""
    flags = END_STREAM if ends else 0
    if len(block) <= MAX_FRAME:
        return frame(HEADERS, flags | END_HEADERS, stream, block)
    pieces = [block[start : start + MAX_FRAME] for start in range(0, len(block), MAX_FRAME)]
    last = len(pieces) - 1
    return frame(HEADERS, flags, stream, pieces[0]) + b"".join(
        frame(CONTINUATION, END_HEADERS if number == last else 0, stream, piece)
        for number, piece in enumerate(pieces[1:], 1)
    )

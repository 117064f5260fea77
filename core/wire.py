"""Frames between the agent and its workers: four bytes of length (big-endian), then one JSON object.

The agent says
    ``reset``    a full load begins: ``{"type": "reset", "revision", "token"}``
    ``records``  a slice of it: ``{"type": "records", "kind": K, "records": [ … ]}``, small enough for 2 ms of a loop
    ``commit``   the load is whole and takes force: ``{"type": "commit", "revision", "token", "as_of"}``
    ``delta``    ``{"type": "delta", "revision", "token", "put": {K: [ … ]}, "drop": {K: [id, … ]}}``
    ``tick``     the feed is alive: ``{"type": "tick", "revision", "as_of"}``, ``as_of`` = epoch seconds of the last
                 successful look at the database; sent every half second, whether or not that look succeeds
    ``reply``    to a call: ``{"type": "reply", "id", "result"}`` or ``{"type": "reply", "id", "fault"}``, ``fault`` =
                 ``{"code", "detail", "members", "retry_after_s"}``
A worker says
    ``join``     ``{"type": "join", "slot", "pid", "revision", "token"}`` (revision 0 when it has nothing)
    ``ack``      ``{"type": "ack", "revision", "problems"}``, ``problems`` = records that did not compile in the worker
    ``metrics``  ``{"type": "metrics", …}``, totals since the worker started, once a second
    ``used``     ``{"type": "used", "keys": {id: epoch seconds}}``
    ``call``     ``{"type": "call", "id", "name", "params": { … }}``: ``accept`` a task, ``task`` status

``K`` is one of `KINDS`; a record is a JSON object with at least ``id``.
"""

import struct
from collections.abc import Iterator
from typing import Any

import orjson

KINDS = ("service", "route", "queue_route", "application", "api_key")
FORMAT = 1  # of records; a worker or a snapshot file of another format asks for everything anew
SLICE = 100  # records in one frame of a full load
MAX_FRAME = 64 * 1024 * 1024

Message = dict[str, Any]


def encode(message: Message) -> bytes:
    body = orjson.dumps(message)
    return struct.pack(">I", len(body)) + body


class FrameReader:
    """Bytes in, messages out, however the bytes are split."""

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Message]:
        """Yield each message that is now whole. Raises ValueError for a frame beyond `MAX_FRAME`."""
        self._buffer += data
        start = 0
        try:
            while len(self._buffer) - start >= 4:
                (length,) = struct.unpack_from(">I", self._buffer, start)
                if length > MAX_FRAME:
                    raise ValueError(f"a frame of {length} bytes is over the limit of {MAX_FRAME}")
                end = start + 4 + length
                if len(self._buffer) < end:
                    break
                message = orjson.loads(memoryview(self._buffer)[start + 4 : end])
                start = end
                yield message
        finally:
            del self._buffer[:start]

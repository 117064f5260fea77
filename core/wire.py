"""Frames between the agent and its workers: four bytes of length (big-endian), then one JSON object.

The agent says
    ``reset``    a full load begins: ``{"type": "reset", "revision", "token"}``
    ``records``  a slice of it: ``{"type": "records", "kind": K, "records": [ … ]}``, small enough for 2 ms of a loop
    ``commit``   the load is whole and takes force: ``{"type": "commit", "revision", "token", "as_of"}``
    ``delta``    ``{"type": "delta", "revision", "token", "put": {K: [ … ]}, "drop": {K: [id, … ]}}``
    ``tick``     the feed is alive: ``{"type": "tick", "revision", "as_of"}``, ``as_of`` = epoch seconds of the last
                 successful look at the database; sent every half second, whether or not that look succeeds
    ``health``   what active health checks have found, after the configuration that it speaks of:
                 ``{"type": "health", "whole", "targets": [{"service", "url", "healthy"}]}``, ``service`` = its id;
                 ``whole``: any target that is not named is healthy, else it is as it was
    ``purges``   what is to be dropped from caches: ``{"type": "purges", "number", "whole", "rules": [[number, kind,
                 value], … ]}``, ``number`` = the latest; ``whole``: all that is remembered, else what is new
    ``jwks``     the keys of issuers of tokens that are fetched: ``{"type": "jwks", "whole", "issuers":
                 {id: JWK Set}}``, each with the ``url`` that it is from; ``whole``: these and no others, else these too
    ``revocations``  of our own tokens (`access.tokens.revocations`): ``{"type": "revocations", "number", "whole",
                 "rows": [[what, value, before, until], … ]}``
    ``peppers``  ``{"type": "peppers", "others"}``: whether there are keys whose digest another pepper made
    ``dropped``  what another worker says, passed on
    ``reply``    to a call: ``{"type": "reply", "id", "result"}`` or ``{"type": "reply", "id", "fault"}``, ``fault`` =
                 ``{"code", "detail", "members", "retry_after_s"}``
A worker says
    ``join``     ``{"type": "join", "slot", "pid", "revision", "token"}`` (revision 0 when it has nothing)
    ``ack``      ``{"type": "ack", "revision", "problems"}``, ``problems`` = records that did not compile in the worker
    ``metrics``  ``{"type": "metrics", …, "targets"}``, totals since the worker started, once a second; ``targets`` as
                 they are now: [[service id, service, version, url, circuit (0 closed, 1 open, 2 half-open), is ejected,
                 requests under way], …]
    ``used``     ``{"type": "used", "rows": [[key, address, requests, last], … ]}`` since the last such message;
                 ``last`` epoch seconds; an empty address: some that were too many to be told apart
    ``version_uses``     ``{"type", "rows": [[service, version, application, key, requests, last, address], … ]}`` since
                 the last such message; ids (``key`` may be empty), ``last`` epoch seconds; of deprecated versions
    ``version_traffic``  ``{"type", "rows": [[service, version, phase, requests, errors, [ … ]], … ]}`` likewise, with
                 the latencies by bucket of `routing.judging.LATENCY_S`; of services that are measured
    ``limit_uses``  the busiest subjects of limits: ``{"type", "rows": [[limit, subject, admitted, refused, used,
                 is_shared], … ]}`` since the last such message; ``is_shared``: all workers see the same ``used``
    ``violations``  who was refused: ``{"type", "rows": [[tenant, limit, name, subject, application, address, requests,
                 is_reported], … ]}`` since the last such message; of limits without a row their key
    ``dropped``  URLs whose stored answers unsafe requests have made void, for the host's other workers:
                 ``{"type": "dropped", "places": [[service, canonical path, query or null], … ]}``
    ``call``     ``{"type": "call", "id", "name", "params": { … }}``: ``accept`` a task, ``task`` status,
                 ``issuer_keys`` of an issuer, now, ``introspect`` a token,
                 ``recognise_key`` of another pepper, ``secret`` of a manager, ``quotas`` that have been used

``K`` is one of `KINDS`; a record is a JSON object with at least ``id``.
"""

import struct
from collections.abc import Iterator
from typing import Any

import orjson

KINDS = ("service", "route", "queue_route", "application", "api_key", "gateway", "issuer", "limit")
FORMAT = 3  # of records; a worker or a snapshot file of another format asks for everything anew
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

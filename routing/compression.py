"""Content codings for answers on their way to the client (R16; RFC 9110 sections 8.4 and 12.5.3).

The gateway is a transforming proxy here, so it answers for what it changes (RFC 9110 section 7.7): `Vary` says that
there are several representations, an entity tag becomes a weak one, digests and ranges of the other bytes go. What is
coded already, or must not be transformed, passes untouched.
"""

from __future__ import annotations

import asyncio
import re
import sys
import zlib
from collections import deque
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, Protocol

import brotli

from core.context import BodySink, Exchange
from core.faults import GatewayFault
from routing.answers import BODILESS, AnswerHead, AnswerSink, Filter
from routing.policies import Compression

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

STEP = 64 * 1024  # bytes compressed in one go of the event loop: gzip takes 1.5 ms for them, brotli 0.8, zstd 0.2
STALLED_S = 30.0  # for a client to take more of an answer that has arrived from its upstream
_GZIP_LEVEL, _BROTLI_QUALITY, _ZSTD_LEVEL = 5, 4, 3
_WINDOW_LOG = 18  # 256 KiB: what a compressor keeps of the body, for each answer under way (RFC 9659 allows 8 MiB)
_MAX_REMEMBERED = 256

_QVALUE = re.compile(r"0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?")  # RFC 9110 section 12.4.2
_ALIASES = {"x-gzip": "gzip"}  # RFC 9110 section 8.4.1.3


# --- choosing ------------------------------------------------------------------------------------------------------
def negotiate(accept_encoding: bytes | None, algorithms: tuple[str, ...]) -> str | None:
    """The coding for an answer, None for none. ``algorithms``: those that we have, the preferred first.

    The client's weights decide, our preference among equal ones, and any coding goes before none of the same weight. A
    client that accepts nothing that we have gets the answer as it is rather than a 406 (RFC 9110 section 12.5.3).
    """
    if accept_encoding is None:
        return None
    weights = _weights(accept_encoding)
    others = weights.get("*")
    # Not listed, no coding is always acceptable; a client that lists some prefers those.
    plain = weights.get("identity", others or 0.0)
    best, best_weight = None, 0.0
    for name in algorithms:
        weight = weights.get(name, others)
        if weight is not None and weight > best_weight:
            best, best_weight = name, weight
    return best if best_weight >= plain else None


def _weights(accept_encoding: bytes) -> dict[str, float]:
    """By coding in lower case. Members that are malformed say nothing."""
    weights: dict[str, float] = {}
    for member in accept_encoding.decode("latin-1").lower().split(","):
        name, *parameters = (part.strip() for part in member.split(";"))
        weight = 1.0
        for parameter in parameters:
            key, _, value = parameter.partition("=")
            if key.rstrip() != "q" or not _QVALUE.fullmatch(value.lstrip()):
                break
            weight = float(value)
        else:
            if name:
                weights.setdefault(_ALIASES.get(name, name), weight)
    return weights


class Rules:
    """A policy, ready for use."""

    __slots__ = ("_algorithms", "_chosen", "_is_type", "_types", "min_bytes", "with_cookies")

    def __init__(self, policy: Compression) -> None:
        self.min_bytes = max(policy.min_bytes, 1)
        self.with_cookies = policy.with_cookies
        self._algorithms: tuple[str, ...] = policy.algorithms
        patterns = [re.escape(each.strip().lower()).replace(r"\*", "[^/;]*") for each in policy.types]
        self._is_type = re.compile("|".join(patterns) or r"(?!)").fullmatch
        # The same few fields come again and again.
        self._chosen: dict[bytes, str | None] = {}
        self._types: dict[bytes, bool] = {}

    def coding(self, accept_encoding: bytes | None) -> str | None:
        if accept_encoding is None:
            return None
        try:
            return self._chosen[accept_encoding]
        except KeyError:
            if len(self._chosen) >= _MAX_REMEMBERED:
                self._chosen.clear()
            chosen = self._chosen[accept_encoding] = negotiate(accept_encoding, self._algorithms)
            return chosen

    def is_compressible(self, content_type: bytes) -> bool:
        known = self._types.get(content_type)
        if known is None:
            if len(self._types) >= _MAX_REMEMBERED:
                self._types.clear()
            media_type = content_type.partition(b";")[0].strip().lower().decode("latin-1")
            known = self._types[content_type] = self._is_type(media_type) is not None
        return known


@lru_cache(maxsize=1024)
def rules_of(policy: Compression) -> Rules:
    return Rules(policy)


def effective_rules(route: Compression | None, service: Compression | None) -> Rules | None:
    """The route's policy goes before the service's. None: nothing is compressed."""
    policy = route if route is not None else service
    return rules_of(policy) if policy is not None and policy.enabled else None


# --- compressing ---------------------------------------------------------------------------------------------------
class Compressor(Protocol):
    """One body. ``add`` may keep back what ``flush`` and ``finish`` give."""

    def add(self, data: bytes | memoryview) -> bytes: ...
    def flush(self) -> bytes: ...
    def finish(self) -> bytes: ...


class _Gzip:
    __slots__ = ("_compressor", "add", "finish")

    def __init__(self) -> None:
        compressor = self._compressor = zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
        self.add: Callable[[bytes | memoryview], bytes] = compressor.compress
        self.finish: Callable[[], bytes] = compressor.flush

    def flush(self) -> bytes:
        return self._compressor.flush(zlib.Z_SYNC_FLUSH)


class _Brotli:
    __slots__ = ("add", "finish", "flush")

    def __init__(self) -> None:
        compressor = brotli.Compressor(quality=_BROTLI_QUALITY, lgwin=_WINDOW_LOG)
        self.add: Callable[[bytes | memoryview], bytes] = compressor.process
        self.flush: Callable[[], bytes] = compressor.flush
        self.finish: Callable[[], bytes] = compressor.finish


_ZSTD_OPTIONS: dict[int, int] = {
    zstd.CompressionParameter.compression_level: _ZSTD_LEVEL,
    zstd.CompressionParameter.window_log: _WINDOW_LOG,
}


class _Zstd:
    __slots__ = ("_compressor", "add", "finish")

    def __init__(self) -> None:
        compressor = self._compressor = zstd.ZstdCompressor(options=_ZSTD_OPTIONS)
        self.add: Callable[[bytes | memoryview], bytes] = compressor.compress
        self.finish: Callable[[], bytes] = compressor.flush

    def flush(self) -> bytes:
        return self._compressor.flush(zstd.ZstdCompressor.FLUSH_BLOCK)


COMPRESSORS: dict[str, Callable[[], Compressor]] = {"gzip": _Gzip, "br": _Brotli, "zstd": _Zstd}


# --- answers -------------------------------------------------------------------------------------------------------
# Of the bytes as they were (RFC 9530, RFC 3230, RFC 1864), and ranges of them.
_OUTDATED = (b"content-length", b"accept-ranges", b"content-digest", b"repr-digest", b"digest", b"content-md5")
_LOOKED_AT = frozenset(
    b"cache-control content-encoding content-length content-range content-type etag set-cookie vary".split()
)


def _looked_at(head: AnswerHead) -> dict[bytes, bytes]:
    """The fields that decide; several lines of one name as one list."""
    fields: dict[bytes, bytes] = {}
    for line in head.lines:
        name, _, value = line.partition(b":")
        name = name.lower()
        if name in _LOOKED_AT:
            value = value.strip()
            fields[name] = fields[name] + b", " + value if name in fields else value
    return fields


def _forbids_transformation(cache_control: bytes | None) -> bool:
    """RFC 9111 sections 5.2.1.6 and 5.2.2.6."""
    return cache_control is not None and b"no-transform" in cache_control.lower()


class Compressing(Filter):
    """Compresses the answer to one exchange, where the rules, the client and the answer itself let it.

    A body is compressed `STEP` bytes at a time. While more is at hand the filter is the exchange's sink, in front of
    the one that was, so that it hears of the client; the upstream waits.
    """

    def __init__(self, onward: AnswerSink, exchange: Exchange, rules: Rules) -> None:
        super().__init__(onward)
        self._exchange = exchange
        self._rules = rules
        self._compressor: Compressor | None = None
        self._flushes = False  # after each piece: whoever streams wants it seen
        self._queue: deque[memoryview] = deque()
        self._is_pumping = False
        self._is_held = False  # by a client that is slower
        self._is_last = False  # nothing follows what is queued
        self._is_over = False  # the client has gone, or the answer was cut
        self._behind: BodySink | None = None
        self._timer: asyncio.TimerHandle | None = None

    # --- the head ---
    def whole(self, head: AnswerHead, body: bytes) -> None:
        is_head = self._exchange.method == b"HEAD"
        coding = self._decide(head, None if is_head else len(body))
        if coding is None or is_head:
            self.onward.whole(head, body)
        elif len(body) <= STEP:
            compressor = COMPRESSORS[coding]()
            self.onward.whole(head, compressor.add(body) + compressor.finish())
        else:
            self._compressor = COMPRESSORS[coding]()
            self.onward.start(head)
            self._is_last = True
            self._take(body)

    def start(self, head: AnswerHead) -> None:
        is_sized = head.is_sized
        coding = self._decide(head, None)
        if coding is not None and self._exchange.method != b"HEAD":
            self._compressor = COMPRESSORS[coding]()
            self._flushes = not is_sized
        self.onward.start(head)

    def _decide(self, head: AnswerHead, size: int | None) -> str | None:
        """The coding to use, if any; the head says so then. ``size`` None: as Content-Length says, if it does."""
        if head.status in BODILESS:
            if head.status == 304:
                self._name_known_tag(head)
            return None
        fields = _looked_at(head)
        if not self._may_compress(fields, size):
            return None
        if head.status == 206 or b"content-range" in fields:
            if head.status == 206 and b"content-range" in fields:  # it says what the whole would (section 15.3.7)
                _add_vary(head, fields.get(b"vary"))
            return None
        coding = self._rules.coding(self._exchange.noted.get(b"accept-encoding"))
        if coding is not None and _forbids_transformation(_passed_field(self._exchange, b"cache-control")):
            coding = None
        if coding is not None:
            head.remove(b"etag", *_OUTDATED)
            tag = fields.get(b"etag")
            if tag is not None:
                head.add(b"etag", _weak(tag))
            head.add(b"content-encoding", coding.encode("ascii"))
        _add_vary(head, fields.get(b"vary"))
        return coding

    def _may_compress(self, fields: dict[bytes, bytes], size: int | None) -> bool:
        """Whether the answer would be compressed for a client that accepts a coding; of a part: the whole of it."""
        if b"content-encoding" in fields:
            return False
        if b"set-cookie" in fields and not self._rules.with_cookies:
            return False
        if b"content-range" in fields:
            size = _whole_size(fields[b"content-range"])
        elif size is None:
            length = fields.get(b"content-length", b"")
            size = int(length) if length.isdigit() else None
        if size is not None and size < self._rules.min_bytes:
            return False
        if _forbids_transformation(fields.get(b"cache-control")):
            return False
        return self._rules.is_compressible(fields.get(b"content-type", b""))

    def _name_known_tag(self, head: AnswerHead) -> None:
        """A 304 names the tag under which the client has the answer (RFC 9111 section 4.3.4): the weak one, if it was
        compressed, of which the upstream knows nothing."""
        tag = head.value(b"etag")
        asked = _passed_field(self._exchange, b"if-none-match")
        if tag is None or asked is None or tag.startswith(b"W/") or b"W/" + tag not in asked:
            return
        head.remove(b"etag")
        head.add(b"etag", _weak(tag))
        _add_vary(head, head.value(b"vary"))

    # --- the body ---
    def data(self, data: bytes) -> bool:
        compressor = self._compressor
        if compressor is None:
            return self._is_over or self.onward.data(data)
        if self._is_pumping or len(data) > STEP:
            self._take(data)
            return not self._is_pumping
        return self._pass(compressor.add(data) + compressor.flush() if self._flushes else compressor.add(data))

    def _pass(self, compressed: bytes) -> bool:
        return self.onward.data(compressed) if compressed else True

    def end(self) -> None:
        if self._is_pumping:  # the sink that was is done, and gone from the exchange
            self._is_last = True
            self._behind, self._exchange.sink = None, self
            if self._is_held:
                self._keep_time()
        elif not self._is_over:
            self._finish()

    def _finish(self) -> None:
        compressor, self._compressor = self._compressor, None
        if compressor is not None:
            self._pass(compressor.finish())
        self.onward.end()

    def abort(self) -> None:
        self._stop()
        self.onward.abort()

    # --- large pieces ---
    def _take(self, data: bytes) -> None:
        view = memoryview(data)
        self._queue.extend(view[start : start + STEP] for start in range(0, len(view), STEP))
        if not self._is_pumping:
            self._is_pumping = True
            self._behind, self._exchange.sink = self._exchange.sink, self
            self._pump()

    def _pump(self) -> None:
        """Compress one step of what is queued, and come again for the next when the loop has seen to the others."""
        if not self._is_pumping or self._is_held:
            return
        compressor = self._compressor
        assert compressor is not None  # nothing is queued without
        piece = self._queue.popleft()
        compressed = compressor.add(piece)
        if self._flushes and not self._queue:
            compressed += compressor.flush()
        self._is_held = not self._pass(compressed)
        if not self._is_pumping:  # the client went while it was written to
            return
        if self._is_held:
            if self._is_last:
                self._keep_time()
        elif self._queue:
            asyncio.get_running_loop().call_soon(self._pump)
        else:
            self._drained()

    def _keep_time(self) -> None:
        """For a client that holds us up when the sink that was is done: nobody else does."""
        self._timer = asyncio.get_running_loop().call_later(STALLED_S, self._stalled)

    def _drained(self) -> None:
        self._is_pumping = False
        behind, self._behind = self._behind, None
        self._exchange.sink = behind
        if self._is_last:
            self._finish()
        elif behind is not None:
            behind.client_ready()

    def _stop(self) -> None:
        self._is_over = True
        self._is_pumping = self._is_held = False
        self._queue.clear()
        self._compressor = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _stalled(self) -> None:
        if self._exchange.is_taking():
            self._keep_time()  # it is slow, but it goes on
            return
        self._exchange.sink = self._exchange.measured = None
        self.abort()

    # --- what the exchange tells its sink meanwhile ---
    def client_ready(self) -> None:
        if not self._is_held:
            return
        self._is_held = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._queue:
            self._pump()
        else:
            self._drained()

    def client_gone(self) -> None:
        self._stop()
        behind, self._behind = self._behind, None
        if behind is not None:
            behind.client_gone()

    def body_data(self, data: bytes) -> None:
        if self._behind is not None:
            self._behind.body_data(data)

    def body_end(self) -> None:
        if self._behind is not None:
            self._behind.body_end()

    def refuse_body(self, fault: GatewayFault) -> None:
        behind = self._behind
        if behind is not None:
            behind.refuse_body(fault)
        else:
            self.abort()


def _whole_size(content_range: bytes) -> int | None:
    """RFC 9110 section 14.4."""
    size = content_range.rpartition(b"/")[2].strip()
    return int(size) if size.isdigit() and len(size) < 19 else None


def _weak(tag: bytes) -> bytes:
    """The bytes differ from those that a strong tag stands for (RFC 9110 section 8.8.1)."""
    return tag if tag.startswith(b"W/") else b"W/" + tag


def _add_vary(head: AnswerHead, present: bytes | None) -> None:
    names = [name.strip().lower() for name in present.split(b",")] if present is not None else []
    if b"*" in names or b"accept-encoding" in names:
        return
    head.remove(b"vary")
    head.add(b"vary", b"Accept-Encoding" if present is None else present + b", Accept-Encoding")


def _passed_field(exchange: Exchange, name: bytes) -> bytes | None:
    """A field of the request that only passes; several lines as one list."""
    passed = exchange.passed
    if name not in passed:
        return None
    values = [passed[at + 2] for at in range(0, len(passed), 4) if passed[at] == name]
    return b", ".join(values) if values else None


def compression_step(route: Compression | None, service: Compression | None) -> Callable[[Exchange, Any], bool] | None:
    """The step of the pipeline where the policies of route and service ask for one."""
    rules = effective_rules(route, service)
    return None if rules is None else partial(_step, rules)


def _step(rules: Rules, exchange: Exchange, match: Any) -> bool:
    compress_answer(exchange, rules)
    return False  # it answers nothing itself


def compress_answer(exchange: Exchange, rules: Rules) -> None:
    """Have the answer to the exchange compressed if it may be."""
    if exchange.method not in (b"GET", b"HEAD"):
        _name_upstreams_tag(exchange)
    exchange.filters += (lambda onward: Compressing(onward, exchange, rules),)


def _name_upstreams_tag(exchange: Exchange) -> None:
    """If-Match compares strongly, so the weak tag of a compressed answer never matches. It was the gateway that made
    it weak, and the client means the state that the upstream calls by the strong one (RFC 9110 section 13.1.1)."""
    passed = exchange.passed
    if b"if-match" in passed:
        for at in range(0, len(passed), 4):
            if passed[at] == b"if-match":
                passed[at + 2] = re.sub(rb'W/("[^"]*")|("[^"]*")', rb"\1\2", passed[at + 2])

"""The access log: one JSON line per request, buffered, and written by a thread so that no disk stops the event loop."""

from __future__ import annotations

import os
import time
from concurrent.futures import Future, ThreadPoolExecutor

import orjson

from core.context import Exchange
from core.masking import mask_octets, masked

FLUSH_BYTES = 64 * 1024
MAX_WAITING = 8 * 1024 * 1024  # of a disk that does not keep up; beyond it lines are dropped and counted
_MAX_PATH = 2048
_MAX_SHARED = 4096
_MAX_SHORT = 512  # of a path that is remembered
_PLAIN = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~!$&'()*+,;=:@/%"
_LINE = (
    b'{"timestamp":"%b","level":"%b","request_id":"%b","trace_id":"%b","protocol":"%b","method":"%b","path":%b,"status_code":%d,'
    b'"response_time_ms":%.3f,"upstream_time_ms":%b,%b,"bytes_in":%d,"bytes_out":%d,"code":%b}\n'
)
_SHARED = (
    "client", "service", "version", "route", "application", "key_id", "tenant_id", "revision", "user_id", "issuer",
)  # fmt: skip


class AccessLog:
    """``path`` is a file, or "-" for standard output. `flush` is called by the worker's sweep."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._file = _open(path)
        self._lines: list[bytes] = []
        self._bytes = 0
        self._writing: Future[None] | None = None
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="access-log")
        self._millisecond = self._second = 0
        self._second_text = self._timestamp_text = b""
        self._shared: dict[tuple[str | int | None, ...], bytes] = {}
        self._paths: dict[bytes, bytes] = {}
        self.dropped = 0

    def add(self, exchange: Exchange, duration_s: float) -> None:
        if self._bytes > MAX_WAITING:
            self.dropped += 1
            return
        upstream_s = exchange.upstream_s
        line = _LINE % (
            self._timestamp(),
            b"info" if exchange.status < 500 else b"error",
            exchange.request_id,
            exchange.trace_id,
            exchange.protocol,
            exchange.method,
            self._path_of(exchange.raw_path),
            exchange.status,
            duration_s * 1000,
            b"null" if upstream_s is None else b"%.3f" % (upstream_s * 1000),
            self._who_and_what(exchange),
            exchange.bytes_in,
            exchange.bytes_out,
            b'"%b"' % exchange.fault_code.encode("ascii") if exchange.fault_code else b"null",
        )
        self._lines.append(line)
        self._bytes += len(line)
        if self._bytes > FLUSH_BYTES:
            self.flush()

    def _timestamp(self) -> bytes:
        """ISO 8601 with milliseconds; most requests of a busy worker share one with the request before."""
        now = int(time.time() * 1000)
        if now != self._millisecond:
            self._millisecond = now
            second, rest = divmod(now, 1000)
            if second != self._second:
                self._second = second
                self._second_text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second)).encode("ascii")
            self._timestamp_text = b"%b.%03dZ" % (self._second_text, rest)
        return self._timestamp_text

    def _path_of(self, raw: bytes) -> bytes:
        """The path as JSON, masked (`core.masking`). The same few are asked for again and again."""
        known = self._paths.get(raw)
        if known is None:
            known = _quoted(mask_octets(raw))
            if len(raw) <= _MAX_SHORT:
                if len(self._paths) >= _MAX_SHARED:
                    self._paths.clear()
                self._paths[raw] = known
        return known

    def _who_and_what(self, exchange: Exchange) -> bytes:
        """The members that many requests share, as JSON, remembered by what they are made of."""
        match, version = exchange.match, exchange.version
        application, key, user, snapshot = exchange.application, exchange.key, exchange.user, exchange.snapshot
        made_of = (
            exchange.identity.client,
            None if match is None else match.destination,
            None if version is None else version.name,
            None if match is None or match.route is None else match.route.name,
            None if application is None else application.name,
            None if key is None else key.id,
            None if application is None else application.tenant_id,
            0 if snapshot is None else snapshot.revision,
            None if user is None else user.subject,
            None if user is None else user.issuer,
        )
        known = self._shared.get(made_of)
        if known is None:
            if len(self._shared) >= _MAX_SHARED:
                self._shared.clear()
            known = self._shared[made_of] = _members(made_of)
        return known

    def flush(self) -> None:
        """Hand what has gathered to the writing thread, unless it is still busy with what came before."""
        if not self._lines or (self._writing is not None and not self._writing.done()):
            return
        data = b"".join(self._lines)
        self._lines.clear()
        self._bytes = 0
        self._writing = self._writer.submit(self._write, data)

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._file, view) :]
        except OSError:  # a full disk: the lines are lost, and counted
            self.dropped += view.tobytes().count(b"\n")

    def reopen(self) -> None:
        """After rotation (SIGUSR1). By the writing thread, so that no line goes to a closed file."""
        self._writer.submit(self._reopen)

    def _reopen(self) -> None:
        if self._path != "-":
            old, self._file = self._file, _open(self._path)
            os.close(old)

    def close(self) -> None:
        if self._writing is not None:
            self._writing.result()
        self.flush()
        self._writer.shutdown(wait=True)
        if self._path != "-":
            os.close(self._file)


def _members(values: tuple[str | int | None, ...]) -> bytes:
    members = dict(zip(_SHARED, values, strict=True))
    return orjson.dumps(masked(members))[1:-1]


def _quoted(path: bytes) -> bytes:
    """The path as a JSON string, cut at 2 KiB (rule 28)."""
    if not path.translate(None, _PLAIN):
        return b'"' + path[:_MAX_PATH] + b'"'
    return orjson.dumps(path[:_MAX_PATH].decode("ascii", "backslashreplace"))


def _open(path: str) -> int:
    return 1 if path == "-" else os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)

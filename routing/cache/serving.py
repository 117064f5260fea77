"""An answer from memory for one request: whole, 304, a part, or the head alone (RFC 9110 sections 13 to 15)."""

from __future__ import annotations

import re

from routing.answers import BODILESS, AnswerHead
from routing.cache.asking import PLAIN, Asked
from routing.cache.http_dates import parse_date
from routing.cache.store import StoredAnswer

# Fields that a 304 repeats (RFC 9110 section 15.4.5).
_IN_304 = frozenset(b"cache-control cdn-cache-control content-location date etag expires last-modified vary".split())
# What an upstream's 304 cannot change of a stored answer (RFC 9111 section 3.2), what is said of one request only,
# and a cookie, which is for one client only.
_NOT_MERGED = frozenset(
    b"cache-status content-encoding content-length content-range content-type set-cookie transfer-encoding".split()
)
_TAG = re.compile(rb'(W/)?("[\x21\x23-\x7e\x80-\xff]*")')
_RANGE = re.compile(rb"bytes=[ \t]*(?:([0-9]{1,18})-([0-9]{1,18})?|-([0-9]{1,18}))[ \t]*", re.IGNORECASE)


def serve(answer: StoredAnswer, asked: Asked, method: bytes, said: list[bytes]) -> tuple[AnswerHead, bytes]:
    """What ``answer`` is for a request; ``said`` are lines of ours: Age and Cache-Status."""
    if asked is not PLAIN and answer.status == 200:
        if is_unchanged(answer, asked):
            lines = [line for line in answer.lines if line.partition(b":")[0].lower() in _IN_304]
            return AnswerHead(304, lines + said, is_sized=False), b""
        if asked.range is not None and method == b"GET" and _range_holds(answer, asked.if_range):
            part = _part(asked.range, len(answer.body))
            if part is not None:
                return _partial(answer, part, said)
    is_sized = answer.status not in BODILESS
    return AnswerHead(answer.status, answer.lines + said, is_sized=is_sized), answer.body


def is_unchanged(answer: StoredAnswer, asked: Asked) -> bool:
    """RFC 9110 section 13.2.2, RFC 9111 section 4.3.2."""
    if asked.if_none_match is not None:
        if asked.if_none_match.strip() == b"*":
            return True
        etag = _opaque(answer.etag)
        return etag is not None and any(tag == etag for _, tag in _TAG.findall(asked.if_none_match))
    if asked.if_modified_since is not None:
        since = parse_date(asked.if_modified_since)
        modified = parse_date(answer.last_modified) if answer.last_modified is not None else answer.date
        return since is not None and modified is not None and modified <= since
    return False


def _opaque(etag: bytes | None) -> bytes | None:
    """For the weak comparison (RFC 9110 section 8.8.3.2)."""
    match = _TAG.fullmatch(etag) if etag is not None else None
    return match[2] if match is not None else None


def _range_holds(answer: StoredAnswer, if_range: bytes | None) -> bool:
    """RFC 9110 section 13.1.5: a strong comparison."""
    if if_range is None:
        return True
    if if_range.startswith((b'"', b"W/")):
        return if_range == answer.etag and not if_range.startswith(b"W/")
    if answer.last_modified is None or if_range != answer.last_modified:
        return False
    modified = parse_date(if_range)
    return modified is not None and answer.date - modified >= 1  # else it is no strong validator (section 8.8.2.2)


def _part(value: bytes, size: int) -> tuple[int, int] | None:
    """Start and end (exclusive) of a single range; None for what is to be ignored: other units, several ranges, and
    what is malformed (RFC 9110 section 14.2). An empty part cannot be satisfied."""
    match = _RANGE.fullmatch(value)
    if match is None:
        return None
    first, last, suffix = match.groups()
    if suffix is not None:
        return max(0, size - int(suffix)), size
    start = int(first)
    if last is None:
        return start, size
    if int(last) < start:
        return None
    return start, min(int(last) + 1, size)


def _partial(answer: StoredAnswer, part: tuple[int, int], said: list[bytes]) -> tuple[AnswerHead, bytes]:
    start, end = part
    size = len(answer.body)
    if start >= end:
        return AnswerHead(
            416, [b"content-range: bytes */%d\r\n" % size, b"content-length: 0\r\n", *said], is_sized=True
        ), b""
    lines = [line for line in answer.lines if line[:15].lower() != b"content-length:"]
    lines.append(b"content-range: bytes %d-%d/%d\r\n" % (start, end - 1, size))
    lines.append(b"content-length: %d\r\n" % (end - start))
    return AnswerHead(206, lines + said, is_sized=True), answer.body[start:end]


def merged_lines(answer: StoredAnswer, head: AnswerHead) -> list[bytes]:
    """The stored fields with those of a 304 in their place (RFC 9111 sections 3.2 and 4.3.4)."""
    fresh = [line for line in head.lines if _name(line) not in _NOT_MERGED]
    names = {_name(line) for line in fresh}
    return [line for line in answer.lines if _name(line) not in names] + fresh


def is_same(answer: StoredAnswer, head: AnswerHead) -> bool:
    """Whether the answer to a HEAD describes what is stored (RFC 9111 section 4.3.5)."""
    length = head.value(b"content-length")
    etag, modified = head.value(b"etag"), head.value(b"last-modified")
    return (
        head.status == answer.status
        and (length is None or length == b"%d" % len(answer.body))
        and (etag is None or etag == answer.etag)
        and (modified is None or modified == answer.last_modified)
    )


def _name(line: bytes) -> bytes:
    return line.partition(b":")[0].lower()

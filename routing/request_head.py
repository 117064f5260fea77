"""The request line and fields as an upstream gets them (rules 3, 24; RFC 9110 section 7.6)."""

from __future__ import annotations

from core.bearer import bearer_token
from core.context import Exchange
from routing.records import TargetRecord
from routing.upstream.connection import PANEL_COOKIES

_NONE: frozenset[bytes] = frozenset()


def request_head(
    exchange: Exchange,
    target: TargetRecord,
    request_target: bytes,
    via: bytes,
    key_header: bytes,
    *,
    pass_credentials: bool,
) -> bytes:
    """``via`` is our field line; ``key_header`` the name of the field that carries the client's key."""
    noted = exchange.noted
    application, user = exchange.application, exchange.user
    forwarded = exchange.forwarded
    passed = exchange.passed if forwarded is None else forwarded.passed
    pieces = [
        exchange.method,
        b" ",
        request_target,
        b" HTTP/1.1\r\nhost: ",
        target.host_header,
        b"\r\n",
        *passed,
        exchange.identity.forwarding_lines,
        exchange.trace_lines,
        application.upstream_line if application is not None else b"",
    ]
    if user is not None and not exchange.is_fallback:
        pieces.append(user.upstream_lines)
    if exchange.content_length is not None:
        pieces.append(b"content-length: %d\r\n" % exchange.content_length)
    elif exchange.has_body:
        pieces.append(b"transfer-encoding: chunked\r\n")
    if exchange.protocol != b"HTTP/1.1":
        via = via_of(exchange.protocol, via)
    came_by = noted.get(b"via")
    pieces.append(via if came_by is None else b"via: " + came_by + b", " + via[5:])
    dropped = _NONE
    connection = noted.get(b"connection")
    if connection is not None and connection not in (b"keep-alive", b"close", b"Keep-Alive"):
        # They were meant for us alone (RFC 9110 section 7.6.1).
        dropped = frozenset(token.strip().lower() for token in connection.split(b","))
    credentials = exchange.upstream_credentials
    if credentials is not None:
        dropped |= credentials.names
        if not exchange.is_fallback:  # rule 7
            pieces.append(credentials.lines)
    if b"cookie" in noted or b"authorization" in noted or pass_credentials:
        pieces += _credential_lines(exchange, key_header, pass_credentials, dropped)
    if forwarded is not None:  # the client's Connection has no say in what is ours
        dropped = credentials.names if credentials is not None else _NONE
    if dropped:
        pieces[6 : 6 + len(passed)] = _without(dropped, passed)
    pieces.append(b"\r\n")
    return b"".join(pieces)


def via_of(protocol: bytes, via: bytes) -> bytes:
    """Our field line, for a message that was received in ``protocol`` (RFC 9110 section 7.6.3)."""
    return via.replace(b" 1.1 ", b" " + protocol[5:] + b" ", 1)


def _credential_lines(
    exchange: Exchange, key_header: bytes, pass_credentials: bool, dropped: frozenset[bytes]
) -> list[bytes]:
    """Cookies but the panel's; Authorization unless it is for the gateway; the key where the route says so.
    A fallback gets none of it (rule 7)."""
    noted = exchange.noted
    if exchange.is_fallback:
        return []
    lines = []
    if b"cookie" in noted and b"cookie" not in dropped:
        lines.append(_cookie_line(noted[b"cookie"]))
    authorization = noted.get(b"authorization")
    is_ours = authorization is None or bearer_token(authorization) is not None
    if authorization is not None and b"authorization" not in dropped and (pass_credentials or not is_ours):
        lines.append(b"authorization: " + authorization + b"\r\n")
    if pass_credentials and key_header in noted and key_header not in dropped:
        lines.append(key_header + b": " + noted[key_header] + b"\r\n")
    return lines


def _cookie_line(cookie: bytes) -> bytes:
    """The client's cookies without the panel's, which know no ports (rule 15)."""
    if b"portcullis_" not in cookie:
        return b"cookie: " + cookie + b"\r\n"
    kept = [pair for pair in cookie.split(b";") if not pair.strip().startswith(PANEL_COOKIES)]
    return b"cookie: " + b";".join(kept).strip() + b"\r\n" if kept else b""


def _without(dropped: frozenset[bytes], passed: list[bytes]) -> list[bytes]:
    """The client's fields, in pieces of name, colon, value and line end, but those named."""
    kept: list[bytes] = []
    for i in range(0, len(passed), 4):
        if passed[i] not in dropped:
            kept += passed[i : i + 4]
    return kept

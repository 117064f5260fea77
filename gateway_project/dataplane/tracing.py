"""W3C Trace Context in and out (https://www.w3.org/TR/trace-context/), and request ids."""

from __future__ import annotations

from random import getrandbits
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from core.context import Exchange

REQUEST_ID_LINE = 48  # bytes of ``x-request-id: <32 digits>`` and its CRLF, with which every answer's lines begin
_HEX = b"0123456789abcdef"


def begin_trace(exchange: Exchange) -> None:
    """Give the exchange its ids and the field lines that carry them: a trace that the client began is continued."""
    digits = b"%064x" % getrandbits(256)  # unique, not secret, hence the fast generator
    request_id = exchange.request_id = digits[:32]
    noted = exchange.noted
    parent = noted.get(b"traceparent")
    if parent is not None and is_traceparent(parent):
        exchange.trace_id = parent[3:35]
        flags = parent[53:55]
        state = noted.get(b"tracestate")
        state_line = b"" if state is None else b"tracestate: " + state + b"\r\n"
    else:
        exchange.trace_id = digits[32:]
        flags, state_line = b"00", b""
    # The span is the gateway's own; the first half of the request id names it.
    exchange.trace_lines = b"traceparent: 00-%b-%b-%b\r\n%bx-request-id: %b\r\n" % (
        exchange.trace_id,
        request_id[:16],
        flags,
        state_line,
        request_id,
    )
    exchange.answer_lines = exchange.trace_lines[-REQUEST_ID_LINE:]


def is_traceparent(value: bytes) -> bool:
    # A future version may append fields after another dash; version ff is forbidden.
    if len(value) < 55 or value[2:3] != b"-" or value[35:36] != b"-" or value[52:53] != b"-":
        return False
    if value[:2] == b"ff" or (len(value) > 55 and (value[:2] == b"00" or value[55:56] != b"-")):
        return False
    digits = value[:2] + value[3:35] + value[36:52] + value[53:55]
    return not digits.translate(None, _HEX) and value[3:35] != b"0" * 32 and value[36:52] != b"0" * 16

"""Faults on the wire: application/problem+json (RFC 9457) with Proxy-Status (RFC 9209)."""

from __future__ import annotations

from typing import TypeVar

import orjson

from core.faults import GatewayFault, UpstreamFault
from core.masking import mask

PROBLEM_JSON = b"application/problem+json"
F = TypeVar("F", bound=GatewayFault)


class Form:
    """What all answers with a fault have in common: ``lines`` of their head, and the document but for two members."""

    __slots__ = ("_begin", "_end", "_middle", "fields", "lines")

    def __init__(self, fault: GatewayFault) -> None:
        kind = fault.kind
        self.fields = fields = [(b"content-type", PROBLEM_JSON), (b"proxy-status", proxy_status(fault))]
        if fault.retry_after_s is not None:
            fields.append((b"retry-after", b"%d" % fault.retry_after_s))
        fields.extend(fault.headers)
        self.lines = b"".join(b"%b: %b\r\n" % field for field in fields)
        begin = {"type": kind.type, "title": kind.title, "status": kind.status, "detail": fault.detail}
        self._begin = orjson.dumps(begin)[:-1] + b',"instance":'
        self._middle = b',"code":"%b","request_id":"' % kind.code.encode("ascii")
        self._end = b'",' + orjson.dumps(fault.members)[1:] if fault.members else b'"}'

    def document(self, instance: bytes, request_id: bytes) -> bytes:
        """``instance`` is the request's path, without its query, as `instance_of` gives it; an id is hex digits."""
        return b"".join((self._begin, instance, self._middle, request_id, self._end))


def instance_of(path: str) -> bytes:
    """As JSON, masked."""
    return orjson.dumps(mask(path))


def common(fault: F) -> F:
    """A fault that many requests meet: its form is remembered with it, and with all that it is raised as
    (`GatewayFault.again`)."""
    fault.form = Form(fault)
    return fault


def render(fault: GatewayFault, instance: str, request_id: str) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Status, header fields and body for a fault. ``instance`` is the request's path, without its query."""
    form = fault.form or Form(fault)
    return fault.status, [*form.fields], form.document(instance_of(instance), request_id.encode("ascii"))


def proxy_status(fault: GatewayFault) -> bytes:
    """``portcullis; error=connection_refused; next-hop="10.0.0.7:80"``: who failed, the gateway or the upstream."""
    value = "portcullis"
    if fault.proxy_error:
        value += f"; error={fault.proxy_error}"
    if isinstance(fault, UpstreamFault) and fault.next_hop:
        value += f'; next-hop="{fault.next_hop}"'
    if not fault.proxy_error:
        value += f'; details="{fault.code}"'
    return value.encode("ascii", "replace")

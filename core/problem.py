"""Faults on the wire: application/problem+json (RFC 9457) with Proxy-Status (RFC 9209)."""

import orjson

from core.faults import GatewayFault, UpstreamFault

PROBLEM_JSON = b"application/problem+json"


def render(fault: GatewayFault, instance: str, request_id: str) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Status, header fields and body for a fault. ``instance`` is the request's path, without its query."""
    kind = fault.kind
    document = {
        "type": kind.type,
        "title": kind.title,
        "status": kind.status,
        "detail": fault.detail,
        "instance": instance,
        "code": kind.code,
        "request_id": request_id,
        **fault.members,
    }
    headers = [(b"content-type", PROBLEM_JSON), (b"proxy-status", proxy_status(fault))]
    if fault.retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % fault.retry_after_s))
    headers.extend(fault.headers)
    return kind.status, headers, orjson.dumps(document)


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

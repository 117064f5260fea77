"""Who the client is and what the upstream is told of it (rule 24, RFC 7239)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from access.addresses import TrustedProxies
from core.faults import ClientFault

_HOST_OCTETS = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~!$&'()*+,;=:[]%"
_TOKEN_OCTETS = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~!$&'*+%"


@dataclass(frozen=True, slots=True)
class Identity:
    """The client's side of a request, the same for most requests of a connection."""

    host_field: bytes
    host: bytes  # lower case, without port
    client: str  # the address that counts
    is_proxied: bool  # read from a trusted proxy's fields: to be read anew for every request
    forwarding_lines: bytes


def identify(
    proxies: TrustedProxies, peer: str, scheme: str, host_field: bytes, noted: Mapping[bytes, bytes]
) -> Identity:
    """Raises ClientFault for a Host that is none (RFC 9112 section 3.2)."""
    if host_field.translate(None, _HOST_OCTETS):
        raise ClientFault("bad_request", "The Host field holds a character that no host name has.")
    client, proto, host = peer, scheme, host_field
    is_proxied = proxies.trusts(peer)
    if is_proxied:
        hops = noted.get(b"x-forwarded-for")
        client = proxies.client(peer, [hops] if hops is not None else [])
        if noted.get(b"x-forwarded-proto") in (b"http", b"https"):
            proto = noted[b"x-forwarded-proto"].decode("ascii")
        forwarded_host = noted.get(b"x-forwarded-host", b"")
        if forwarded_host and not forwarded_host.translate(None, _HOST_OCTETS):
            host = forwarded_host
    return Identity(host_field, _name(host_field), client, is_proxied, _lines(client, proto, host))


def _name(host: bytes) -> bytes:
    if host.startswith(b"["):
        return host.partition(b"]")[0].lower() + b"]"
    return host.partition(b":")[0].lower().rstrip(b".")


def _lines(client: str, proto: str, host: bytes) -> bytes:
    """Made anew, never appended to what a client sent, so that nothing in them can be forged."""
    address = client.encode("ascii")
    node = b'"[' + address + b']"' if b":" in address else address
    quoted = host if host and not host.translate(None, _TOKEN_OCTETS) else b'"' + host + b'"'
    scheme = proto.encode("ascii")
    return b"x-forwarded-for: %b\r\nx-forwarded-proto: %b\r\nx-forwarded-host: %b\r\n" % (
        address,
        scheme,
        host,
    ) + b"forwarded: for=%b;proto=%b;host=%b\r\n" % (node, scheme, quoted)

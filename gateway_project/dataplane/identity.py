"""Who the client is and what the upstream is told of it (rule 24, RFC 7239)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from access.addresses import TrustedProxies
from core.faults import ClientFault

_HOST_OCTETS = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~!$&'()*+,;=:[]%"
_TOKEN_OCTETS = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~!$&'*+%"
_MAX_REMEMBERED_BYTES = 512


@dataclass(frozen=True, slots=True)
class Identity:
    """The client's side of a request, the same for most requests of a connection."""

    host_field: bytes
    host: bytes  # lower case, without port
    origin: bytes  # scheme and authority as the upstream is told of them, lower case, without a port that goes unsaid
    client: str  # the address that counts
    is_proxied: bool  # read from a trusted proxy's fields: to be read anew for every request
    forwarding_lines: bytes
    is_secure: bool = False  # came by https, as far as we can trust that


def identify(
    proxies: TrustedProxies, peer: str, scheme: str, host_field: bytes, noted: Mapping[bytes, bytes]
) -> Identity:
    """Raises ClientFault for a Host that is none (RFC 9112 section 3.2)."""
    if host_field.translate(None, _HOST_OCTETS):
        raise ClientFault("bad_request", "The Host field holds a character that no host name has.")
    if not proxies.trusts(peer):
        return _identity(host_field, peer, scheme, host_field, is_proxied=False)
    hops, proto = noted.get(b"x-forwarded-for", b""), noted.get(b"x-forwarded-proto", b"")
    host = noted.get(b"x-forwarded-host", b"")
    if len(host_field) + len(hops) + len(proto) + len(host) > _MAX_REMEMBERED_BYTES:
        return _told.__wrapped__(proxies, peer, scheme, host_field, hops, proto, host)
    return _told(proxies, peer, scheme, host_field, hops, proto, host)


@lru_cache(maxsize=4096)
def _told(
    proxies: TrustedProxies, peer: str, scheme: str, host_field: bytes, hops: bytes, proto: bytes, forwarded_host: bytes
) -> Identity:
    """What a trusted proxy says of a client. It says so again and again, on whichever of its connections."""
    client, host = proxies.client(peer, [hops] if hops else []), host_field
    if proto in (b"http", b"https"):
        scheme = proto.decode("ascii")
    if forwarded_host and not forwarded_host.translate(None, _HOST_OCTETS):
        host = forwarded_host
    return _identity(host_field, client, scheme, host, is_proxied=True)


def _identity(host_field: bytes, client: str, scheme: str, host: bytes, *, is_proxied: bool) -> Identity:
    origin = scheme.encode("ascii") + b"://" + host.lower().removesuffix(b":443" if scheme == "https" else b":80")
    lines = _lines(client, scheme, host)
    return Identity(host_field, _name(host_field), origin, client, is_proxied, lines, scheme == "https")


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

"""Sticky sessions (R13): a signed cookie that says which target a client had.

Nothing is stored. A target is called by a keyed hash of its address, since an address space as small as a company's
is searched in no time; the cookie holds that name, the end of its life and a signature over both and the service, so
that nobody can choose a target for themselves or carry a cookie from one service to another.
"""

from __future__ import annotations

import hmac
from base64 import urlsafe_b64encode

from routing.policies import Sticky

_NAME_BYTES = 9
_MAC_BYTES = 16
_NAME_CHARACTERS = 12
_MAC_CHARACTERS = 22
_LONGEST = 64


def target_name(key: bytes, service_id: str, origin: tuple[str, str, int]) -> bytes:
    """What cookies call a target: 12 characters that tell nothing of its address."""
    scheme, host, port = origin
    return _mac(key, f"target {service_id} {scheme}://{host}:{port}".encode(), _NAME_BYTES)


def sign(key: bytes, service_id: str, name: bytes, expires_at: int = 0) -> bytes:
    """The cookie's value. ``expires_at`` in epoch seconds; 0: when the browser ends."""
    content = b"%b.%x" % (name, expires_at)
    return content + b"." + _mac(key, b"cookie %b %b" % (service_id.encode(), content), _MAC_BYTES)


def read(key: bytes, service_id: str, value: bytes, epoch_s: float) -> bytes | None:
    """The name of the target that a cookie's value names; None for one that is forged, malformed or has expired."""
    if len(value) > _LONGEST:
        return None
    content, _, mac = value.rpartition(b".")
    expected = _mac(key, b"cookie %b %b" % (service_id.encode(), content), _MAC_BYTES)
    if not hmac.compare_digest(mac, expected):
        return None
    name, _, expires = content.partition(b".")  # ours, since we signed it
    expires_at = int(expires, 16)
    return None if expires_at and expires_at <= epoch_s else name


def cookie_value(field: bytes, name: bytes) -> bytes | None:
    """The first cookie of this name in a Cookie field (RFC 6265 section 4.2)."""
    if name not in field:
        return None
    for pair in field.split(b";"):
        key, _, value = pair.strip().partition(b"=")
        if key == name:
            return value
    return None


def cookie_name(policy: Sticky, service_name: str) -> bytes:
    return (policy.cookie or f"gateway_affinity_{service_name}").encode("ascii")


def set_cookie_line(
    policy: Sticky, cookie: bytes, key: bytes, service_id: str, name: bytes, epoch_s: float, *, is_secure: bool
) -> bytes:
    """The Set-Cookie line that binds a client to the target of this name. ``is_secure``: it came by https."""
    expires_at = 0 if policy.ttl_s is None else int(epoch_s) + policy.ttl_s
    pieces = [b"set-cookie: ", cookie, b"=", sign(key, service_id, name, expires_at)]
    pieces.append(b"; Path=/; HttpOnly; SameSite=Lax")
    if policy.ttl_s is not None:
        pieces.append(b"; Max-Age=%d" % policy.ttl_s)
    if is_secure:
        pieces.append(b"; Secure")
    pieces.append(b"\r\n")
    return b"".join(pieces)


def _mac(key: bytes, message: bytes, size: int) -> bytes:
    return urlsafe_b64encode(hmac.digest(key, message, "sha256")[:size]).rstrip(b"=")

"""Bearer credentials in Authorization (RFC 6750 section 2.1): those are meant for the gateway."""

from __future__ import annotations

_TCHARS = b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def bearer_token(authorization: bytes) -> bytes | None:
    """What follows the scheme; None where the scheme is another one.

    Empty, which is nobody's credential, where anything but spaces follows the scheme (RFC 9110 section 11.4): others
    might read a tab as a space, so it is neither anonymous nor for the upstream.
    """
    scheme = authorization[:7].lower()
    if scheme == b"bearer ":
        return authorization[7:].strip(b" ")
    if scheme[:6] != b"bearer" or (len(scheme) > 6 and scheme[6] in _TCHARS):
        return None
    return b""

"""The canonical form of a URI's path: one spelling for all that mean the same (RFC 3986 section 6.2.2).

Whitelist and routes are compared with it, so whatever an upstream might read as another path is refused rather than
guessed at: gateway and upstream must never disagree on which endpoint a request names.
"""

import re
from string import hexdigits

_UNRESERVED = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~"
_PATH_OCTETS = _UNRESERVED + b"!$&'()*+,;=:@/"  # pchar without pct-encoded (RFC 3986 section 3.3), and the separator

# Every escape in its canonical spelling, whatever the case of its digits. Octets that may not stand in a path as they
# are, and that clients send all the same, count as the escapes that they should have been.
_SPELLINGS = {
    f"%{high}{low}".encode(): bytes([octet]) if octet in _UNRESERVED else b"%%%02X" % octet
    for high in hexdigits
    for low in hexdigits
    for octet in (int(high + low, 16),)
} | {bytes([octet]): b"%%%02X" % octet for octet in b'"<>^`{|}'}
_RESPELLED = re.compile(rb'%.{0,2}|["<>^`{|}]')
_FORBIDDEN = re.compile(rb"[^!-~]|[\\?#]")

# A dot segment, also where an upstream cuts path parameters off first (`..;x`) or takes %2F for a separator.
_DOT_SEGMENT = re.compile(rb"(?:/|%2F)\.\.?(?:/|%2F|;|%3B|\Z)")
# UTF-8 has one spelling for each character. Longer ones of ASCII (%C0%AE is a dot) only ever served to hide it.
_OVERLONG = re.compile(rb"%C[01]%[89AB]|%E0%[89]|%F0%8")


def canonical_path(path: bytes) -> bytes:
    """``path`` (without query) with unreserved octets decoded and all other escapes in upper case.

    ``%2F`` and ``%252E`` are data and stay. Raises ValueError, with a sentence, for dot segments in any encoding,
    backslashes, NUL, octets that may not stand in a URI, malformed escapes, and paths that are not absolute.
    """
    if not path.translate(None, _PATH_OCTETS) and path.find(b"/.") < 0 and path.startswith(b"/"):
        return path
    return _canonicalise(path)


def _canonicalise(path: bytes) -> bytes:
    if not path.startswith(b"/"):
        raise ValueError("The path must begin with a slash.")
    if _FORBIDDEN.search(path):
        raise ValueError("The path holds a backslash, a space or another character that must be percent-encoded.")
    try:
        path = _RESPELLED.sub(lambda match: _SPELLINGS[match[0]], path)
    except KeyError:
        raise ValueError("The path holds a percent sign that two hexadecimal digits do not follow.") from None
    if _DOT_SEGMENT.search(path):
        raise ValueError("The path holds a dot segment.")
    if b"%00" in path or b"%5C" in path:
        raise ValueError("The path holds an encoded NUL or backslash.")
    if _OVERLONG.search(path):
        raise ValueError("The path holds an overlong UTF-8 sequence.")
    return path

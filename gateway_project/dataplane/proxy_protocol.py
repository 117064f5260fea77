"""The PROXY protocol, versions 1 and 2: whose connection it is that a balancer has passed on.

https://www.haproxy.org/download/3.2/doc/proxy-protocol.txt: the header is the very first that arrives, before TLS. A
receiver that expects it must not guess: what does not begin with a valid header is refused.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

V2_SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
V1_LIMIT = 107  # bytes of a line with its CRLF (section 2.1)
_V1 = b"PROXY "
_V2_FIXED = 16
_LOCAL, _PROXY = 0, 1
_ADDRESS_BYTES = {1: 12, 2: 36, 3: 216}  # by family: addresses and ports of IPv4, IPv6, Unix sockets
_IPV4, _IPV6 = 1, 2

# What a header says: how many bytes it took, and the client's address (None: the sender speaks for itself).
Header = tuple[int, str | None]


class NoHeader(ValueError):
    """What arrived is no PROXY header. ``str()`` says why."""


def read_header(data: bytes) -> Header | None:
    """The header with which ``data`` begins; None while more is needed. Raises `NoHeader` as soon as it can be none."""
    if data.startswith(_V1[: len(data)]):
        return _version_1(data)
    if data.startswith(V2_SIGNATURE[: len(data)]):
        return _version_2(data)
    raise NoHeader("it does not begin as one")


def _version_1(data: bytes) -> Header | None:
    end = data.find(b"\r\n", 0, V1_LIMIT)
    if end < 0:
        if len(data) >= V1_LIMIT:
            raise NoHeader(f"the line has no end within {V1_LIMIT} bytes")
        return None
    words = data[:end].split(b" ")
    size = end + 2
    if words[1] == b"UNKNOWN":
        return size, None  # whatever follows is to be ignored (section 2.1)
    if len(words) != 6 or words[1] not in (b"TCP4", b"TCP6"):
        raise NoHeader("the line is malformed")
    kind = IPv4Address if words[1] == b"TCP4" else IPv6Address
    try:
        source, _ = (kind(word.decode("ascii")) for word in words[2:4])
    except ValueError:
        raise NoHeader("the line holds no addresses of its family") from None
    if not all(_is_port(word) for word in words[4:6]):
        raise NoHeader("the line holds no ports")
    return size, str(source)


def _is_port(word: bytes) -> bool:
    return word.isdigit() and len(word) <= 5 and int(word) <= 65535 and (word == b"0" or word[:1] != b"0")


def _version_2(data: bytes) -> Header | None:
    if len(data) < _V2_FIXED:
        return None
    version, command = data[12] >> 4, data[12] & 0xF
    family, transport = data[13] >> 4, data[13] & 0xF
    if version != 2 or command not in (_LOCAL, _PROXY):
        raise NoHeader("its version or command is unknown")
    length = int.from_bytes(data[14:16], "big")
    if command == _PROXY and length < _ADDRESS_BYTES.get(family, 0):
        raise NoHeader("its addresses are cut short")
    if len(data) < _V2_FIXED + length:  # what follows the addresses are TLVs, which nobody here reads
        return None
    size = _V2_FIXED + length
    if command == _LOCAL:  # the sender's own connection, a health check: the rest is to be ignored (section 2.2)
        return size, None
    if transport == 1 and family == _IPV4:
        return size, str(IPv4Address(data[16:20]))
    if transport == 1 and family == _IPV6:
        return size, str(IPv6Address(data[16:32]))
    return size, None  # unspecified, Unix, datagrams: the sender's own address counts

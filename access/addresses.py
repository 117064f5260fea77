"""Client addresses, the buckets that failures are counted in, and the addresses that the gateway may connect to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

_Address = IPv4Address | IPv6Address
_Network = IPv4Network | IPv6Network
_MAX_HOPS = 32  # no chain of proxies is longer; whoever sends more wants the gateway to work
_MAX_HOP_LENGTH = 64


def _parse(text: str) -> _Address | None:
    """An address, IPv4-mapped IPv6 as IPv4; None for anything else."""
    try:
        address = ip_address(text)
    except ValueError:
        return None
    return address if isinstance(address, IPv4Address) else address.ipv4_mapped or address


class TrustedProxies:
    """Whose X-Forwarded-For is believed. ``networks`` are addresses or CIDR networks."""

    __slots__ = ("_networks", "trusts")

    def __init__(self, networks: Sequence[str]) -> None:
        self._networks = _networks(networks)
        # Whether an address is a trusted proxy's. The same few ask again and again.
        self.trusts: Callable[[str], bool] = lru_cache(maxsize=4096)(self._is_within)

    def client(self, peer: str, forwarded_for: Sequence[bytes]) -> str:
        """The client's address: X-Forwarded-For read from the right, through trusted proxies only (rule 24).

        ``peer`` is the other end of the connection, ``forwarded_for`` the field's values in the order received.
        What is no address ends the walk: the proxy that wrote it is the best that is known.
        """
        if not self._networks or not forwarded_for or not self.trusts(peer):
            return peer
        client = peer
        for hop in reversed(b",".join(forwarded_for).rsplit(b",", _MAX_HOPS)[-_MAX_HOPS:]):
            address = _hop_address(hop) if len(hop) <= _MAX_HOP_LENGTH else None
            if address is None:
                break
            client = address
            if not self.trusts(address):
                break
        return client

    def _is_within(self, text: str) -> bool:
        address = _parse(text)
        return address is not None and _is_in(address, self._networks)


def _is_in(address: _Address, networks: tuple[_Network, ...]) -> bool:
    return any(address in network for network in networks)


def _networks(networks: Sequence[str]) -> tuple[_Network, ...]:
    return tuple(ip_network(network, strict=False) for network in networks)


@lru_cache(maxsize=4096)
def _hop_address(hop: bytes) -> str | None:
    """The address in an element of X-Forwarded-For; some proxies add a port."""
    text = hop.strip().decode("latin-1")
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    address = _parse(text.partition("%")[0])  # a zone (RFC 4007) means something to its own host alone
    return None if address is None else str(address)


def is_loopback(text: str) -> bool:
    address = _parse(text)
    return address is not None and address.is_loopback


def failure_bucket(address: str) -> str:
    """Where failures from an address are counted: IPv6 by /64, since one client holds at least that many addresses."""
    return address if ":" not in address else _ipv6_bucket(address)


@lru_cache(maxsize=4096)
def _ipv6_bucket(address: str) -> str:
    parsed = _parse(address)
    if not isinstance(parsed, IPv6Address):
        return address if parsed is None else str(parsed)
    return f"{IPv6Address(int(parsed) >> 64 << 64)}/64"


_NEVER = _networks(
    (
        "0.0.0.0/8",  # "this network"; Linux connects 0.0.0.0 to the host itself
        "169.254.0.0/16",  # link-local, and the metadata service of most clouds
        "100.100.100.200/32",  # metadata: Alibaba Cloud
        "168.63.129.16/32",  # metadata: Azure's wire server
        "192.0.0.192/32",  # metadata: Oracle Cloud
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, and broadcast
        "::/128",
        "fe80::/10",
        "fd00:ec2::/32",  # metadata: AWS
        "fd20:ce::254/128",  # metadata: Google Cloud
        "fd00:c1::a9fe:a9fe/128",  # metadata: Oracle Cloud
        "ff00::/8",
    )
)
# What IANA's registries gained after some versions of the standard library.
_NOT_GLOBAL = _networks(("192.0.0.0/24", "192.88.99.0/24", "3fff::/20"))
_GLOBAL_UNICAST = _networks(("0.0.0.0/0", "2000::/3"))
_LAST_32_BITS = _networks(("::/96", "::ffff:0:0/96", "::ffff:0:0:0/96", "64:ff9b::/96"))
_LOCAL_NAT64 = IPv6Network("64:ff9b:1::/48")  # the embedded address stands where the operator chose (RFC 8215)
_SIX_TO_FOUR = IPv6Network("2002::/16")
_TEREDO = IPv6Network("2001::/32")


class EgressPolicy:
    """Which addresses the gateway may connect to (rule 25). ``allow`` opens loopback and private networks."""

    __slots__ = ("_allow",)

    def __init__(self, allow: Sequence[str]) -> None:
        self._allow = _networks(allow)

    def permits(self, address: str) -> bool:
        """Whether ``address``, as resolved, may be connected to. IPv4 inside IPv6 is judged by the inner address."""
        try:
            parsed = ip_address(address.partition("%")[0])
        except ValueError:
            return False
        return all(self._permits(each) for each in _faces(parsed))

    def _permits(self, address: _Address) -> bool:
        if _is_in(address, _NEVER):
            return False
        if _is_in(address, self._allow):
            return True
        return address.is_global and _is_in(address, _GLOBAL_UNICAST) and not _is_in(address, _NOT_GLOBAL)


def _faces(address: _Address) -> list[_Address]:
    """Where a connection to ``address`` may end (RFC 4291 section 2.5.5, RFC 6052, RFC 3056, RFC 4380)."""
    if isinstance(address, IPv4Address) or int(address) <= 1:
        return [address]  # :: and ::1 embed nothing
    number = int(address)
    if address in _SIX_TO_FOUR:
        return [IPv4Address(number >> 80 & 0xFFFFFFFF)]
    if address in _TEREDO:
        return [IPv4Address(number >> 64 & 0xFFFFFFFF), IPv4Address(~number & 0xFFFFFFFF)]
    inner = IPv4Address(number & 0xFFFFFFFF)
    if address in _LOCAL_NAT64:
        return [address, inner]
    return [inner] if _is_in(address, _LAST_32_BITS) else [address]

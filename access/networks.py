"""Lists of addresses that are let in or kept out (A12), compiled: however many networks a list holds, an address costs
one look into a sorted row of ranges, and an address that has been asked for before one look into a dictionary."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network

from access.policies import IpAccess
from core.faults import PolicyDenied

_MAPPED = IPv6Network("::ffff:0:0/96")  # RFC 4291 section 2.5.5.2: an IPv4 client of a socket that listens on ::
_REMEMBERED = 1024  # addresses for each list


class NetworkSet:
    """Networks as ranges that neither overlap nor touch. ``networks`` are addresses or CIDR networks; those within
    ::ffff:0:0/96 are the IPv4 networks that they stand for. Raises ValueError."""

    __slots__ = ("_ends", "_starts")

    def __init__(self, networks: Iterable[str]) -> None:
        ranges: dict[int, list[tuple[int, int]]] = {4: [], 6: []}
        for text in networks:
            network = ip_network(text, strict=False)
            first, last, version = int(network.network_address), int(network.broadcast_address), int(network.version)
            if isinstance(network, IPv6Network) and network.subnet_of(_MAPPED):
                first, last, version = first & 0xFFFFFFFF, last & 0xFFFFFFFF, 4
            ranges[version].append((first, last))
        self._starts: dict[int, tuple[int, ...]] = {}
        self._ends: dict[int, tuple[int, ...]] = {}
        for version, found in ranges.items():
            merged = _merged(found)
            self._starts[version] = tuple(first for first, _ in merged)
            self._ends[version] = tuple(last for _, last in merged)

    def __bool__(self) -> bool:
        return any(self._starts.values())

    def holds(self, address: IPv4Address | IPv6Address) -> bool:
        """``address`` is no IPv4-mapped one."""
        number, version = int(address), address.version
        place = bisect_right(self._starts[version], number) - 1
        return place >= 0 and number <= self._ends[version][place]


def _merged(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = merged[-1][0], max(merged[-1][1], last)
        else:
            merged.append((first, last))
    return merged


class AddressRules:
    """A compiled `IpAccess`: what ``deny`` holds is refused, and what ``allow`` does not hold if that names anything.
    What is no address (a peer without one) is in no list."""

    __slots__ = ("_allow", "_deny", "permits")

    def __init__(self, policy: IpAccess) -> None:
        self._allow, self._deny = NetworkSet(policy.allow), NetworkSet(policy.deny)
        # Whether a client's address may pass. The same few ask again and again.
        self.permits: Callable[[str], bool] = lru_cache(maxsize=_REMEMBERED)(self._judge)

    def _judge(self, text: str) -> bool:
        try:
            address = ip_address(text.partition("%")[0])  # fe80::1%eth0
        except ValueError:
            return not self._allow
        if isinstance(address, IPv6Address):
            address = address.ipv4_mapped or address
        if self._deny.holds(address):
            return False
        return not self._allow or self._allow.holds(address)


@lru_cache(maxsize=256)  # many routes have the same list
def compile_addresses(policy: IpAccess | None) -> AddressRules | None:
    """None where the policy names nothing: everybody may pass."""
    return AddressRules(policy) if policy is not None and (policy.allow or policy.deny) else None


def refusal(whose: str) -> PolicyDenied:
    """The 403 of a list, which is named and not told: ``whose`` is "the gateway", "the route orders", …"""
    return PolicyDenied("ip_not_allowed", f"The address list of {whose} does not admit your address.")

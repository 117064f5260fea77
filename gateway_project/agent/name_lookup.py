"""Looks targets up in DNS: addresses (A, AAAA) or services (SRV, RFC 2782) behind a name."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import dns.asyncresolver
import dns.exception
import dns.rdatatype
import dns.resolver

from routing.policies import DnsLookup, server_address

MOST_ANSWERS = 200
SHORTEST_S = 1.0  # between two lookups, however short the TTL
RETRY_S = 5.0  # after a failure
_LIFETIME_S = 4.0  # of one lookup, over all name servers
_AT_ONCE = 32


class LookupFailed(Exception):
    """Nobody has answered, or the answer says that the name servers failed. The message is a sentence's end."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where one target is. ``host`` is an address, of SRV a name."""

    host: str
    port: int | None
    weight: int = 100


class NameLookup:
    """``permits`` judges name servers that a policy names; those of the host are the operator's own."""

    def __init__(self, permits: Callable[[str], bool]) -> None:
        self._permits = permits
        self._places = asyncio.Semaphore(_AT_ONCE)

    async def look_up(self, lookup: DnsLookup) -> tuple[list[Place], float]:
        """The places, none when the name has none, and for how many seconds they count. Raises LookupFailed."""
        async with self._places:
            answer = await self._resolve(lookup)
        if answer is None:
            return [], min(RETRY_S, lookup.interval_s)
        ttl_s = min(max(float(answer.chaining_result.minimum_ttl), SHORTEST_S), lookup.interval_s)
        records = list(answer)[:MOST_ANSWERS]
        if lookup.type != "SRV":
            return [Place(record.address, lookup.port) for record in records], ttl_s
        # The others are there for when none of these can be reached, which nobody knows here (RFC 2782).
        first = min((record.priority for record in records), default=0)
        return [
            Place(record.target.to_text(omit_final_dot=True), record.port, max(record.weight, 1))
            for record in records
            if record.priority == first and record.target.to_text() != "."
        ], ttl_s

    async def _resolve(self, lookup: DnsLookup) -> dns.resolver.Answer | None:
        """None: the name servers say that there is nothing."""
        try:
            resolver = self._resolver(lookup.server)
            return await resolver.resolve(
                lookup.name.rstrip(".") + ".", dns.rdatatype.from_text(lookup.type), lifetime=_LIFETIME_S
            )
        except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer):
            return None
        except (dns.exception.DNSException, OSError) as error:
            raise LookupFailed(str(error).partition("\n")[0][:200] or type(error).__name__) from None

    def _resolver(self, server: str) -> dns.asyncresolver.Resolver:
        if not server:
            return dns.asyncresolver.Resolver()
        host, port = server_address(server)
        if not self._permits(host):
            raise LookupFailed(f"the gateway may not connect to the name server {host} (EGRESS_ALLOW)")
        resolver = dns.asyncresolver.Resolver(configure=False)
        resolver.nameservers, resolver.port = [host], port
        return resolver

"""Who calls the control process: the address that counts, and how often it may try."""

import time
from collections import OrderedDict
from collections.abc import Callable
from ipaddress import ip_address
from math import ceil
from threading import Lock

from django.conf import settings
from django.http import HttpRequest

from access.addresses import TrustedProxies, failure_bucket
from core.ingress import is_through_gateway

_MOST_ADDRESSES = 10_000
_UNKNOWN = "unknown"
_FROM_PROXIES = ("Forwarded", "Via", "X-Forwarded-For", "X-Forwarded-Host", "X-Real-IP")


def client_address(request: HttpRequest) -> str:
    """What trusted proxies say (rule 24), seen from the peer on the panel's port, or from the address that the worker
    gives as the last of X-Forwarded-For when it handed the request over."""
    hops = [hop.strip() for hop in request.headers.get("X-Forwarded-For", "").split(",") if hop.strip()]
    if is_through_gateway(request):
        peer = hops.pop() if hops else _UNKNOWN
    else:
        peer = str(request.META.get("REMOTE_ADDR") or _UNKNOWN)
    return TrustedProxies(settings.TRUSTED_PROXIES).client(peer, [hop.encode("latin-1", "replace") for hop in hops])


def is_direct_loopback(request: HttpRequest) -> bool:
    """A program on this very host, with nobody between: no proxy, and no web page (browsers send Origin with POST)."""
    if is_through_gateway(request):
        is_direct = request.headers.get("X-Gateway-Direct") == "yes"  # the worker has seen no trace of a proxy
    else:
        is_direct = not any(name in request.headers for name in _FROM_PROXIES)
    if not is_direct or "Origin" in request.headers:
        return False
    try:
        address = ip_address(client_address(request))
    except ValueError:
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


class AddressThrottle:
    """So many per minute from each address, at once or spread. A host has one control process, so memory will do."""

    def __init__(self, per_minute: Callable[[], int], clock: Callable[[], float] = time.monotonic) -> None:
        self._per_minute = per_minute
        self._clock = clock
        self._lock = Lock()
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # (tokens left, when)

    def wait_s(self, address: str) -> int:
        """0 when a token is left, else the whole seconds until there is one. Takes none."""
        with self._lock:
            return self._wait_s(self._tokens(failure_bucket(address)))

    def charge(self, address: str) -> int:
        """Take a token and return 0, or the whole seconds until there is one again."""
        bucket = failure_bucket(address)
        with self._lock:
            tokens = self._tokens(bucket)
            if tokens >= 1:
                self._buckets[bucket] = (tokens - 1, self._clock())
                self._buckets.move_to_end(bucket)
                if len(self._buckets) > _MOST_ADDRESSES:
                    self._buckets.popitem(last=False)  # idle for longest, so fullest
            return self._wait_s(tokens)

    def clear(self) -> None:
        with self._lock:
            self._buckets.clear()

    def _wait_s(self, tokens: float) -> int:
        return 0 if tokens >= 1 else ceil((1 - tokens) * 60 / self._per_minute())

    def _tokens(self, bucket: str) -> float:
        limit = float(self._per_minute())
        tokens, since = self._buckets.get(bucket, (limit, 0.0))
        return min(limit, tokens + (self._clock() - since) * limit / 60)

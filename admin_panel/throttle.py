"""Brakes on guessing passwords: failed sign-ins counted per address and per account.

Counts live in Django's cache: the control process is one, so its memory is enough.
"""

from django.conf import settings
from django.core.cache import cache
from django.http import HttpRequest

from access.addresses import TrustedProxies, failure_bucket

WINDOW_S = 15 * 60
MOST_PER_ADDRESS = 30
MOST_PER_ACCOUNT = 10


def is_held_back(address: str, username: str) -> bool:
    """Whether an address or an account has failed too often within the window."""
    counts: dict[str, int] = cache.get_many([_address_key(address), _account_key(username)])
    by_address, by_account = counts.get(_address_key(address), 0), counts.get(_account_key(username), 0)
    return by_address >= MOST_PER_ADDRESS or by_account >= MOST_PER_ACCOUNT


def note_failure(address: str, username: str) -> None:
    for key in (_address_key(address), _account_key(username)):
        cache.add(key, 0, WINDOW_S)
        try:
            cache.incr(key)
        except ValueError:  # it expired between the two
            cache.set(key, 1, WINDOW_S)


def forget_account(username: str) -> None:
    """After a success: the account's own count. The address keeps its."""
    cache.delete(_account_key(username))


def client_address(request: HttpRequest) -> str:
    """Who signs in: the peer, or whom a trusted proxy before the panel names (rule 24)."""
    peer = str(request.META.get("REMOTE_ADDR") or "unknown")
    named = request.headers.get("X-Forwarded-For", "").encode("latin-1", "replace")
    return TrustedProxies(settings.TRUSTED_PROXIES).client(peer, [named] if named else [])


def _address_key(address: str) -> str:
    return f"signin:address:{failure_bucket(address)}"


def _account_key(username: str) -> str:
    return f"signin:account:{username.strip().casefold()[:150].encode().hex()}"

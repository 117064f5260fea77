"""Identifiers: a type prefix and 26 characters that sort by time (48 bits of milliseconds, 80 random bits)."""

import os
import time
from random import getrandbits

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32, lower case


def new_id(prefix: str) -> str:
    """An unguessable id such as ``svc_01k9zs8c0v7d…``; ids of one prefix sort by the time they were made."""
    number = (time.time_ns() // 1_000_000) << 80 | int.from_bytes(os.urandom(10), "big")
    return f"{prefix}_" + "".join(_ALPHABET[number >> shift & 31] for shift in range(125, -1, -5))


def new_request_id() -> str:
    """32 hexadecimal digits. Unique, not secret, hence the fast generator."""
    return f"{getrandbits(128):032x}"

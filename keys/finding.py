"""Whose key it is, as the control process finds out: by digest, or, after a change of pepper, by argon2."""

import time
from threading import BoundedSemaphore, Lock

from core.faults import InternalFault
from keys import recognition
from keys.credential import is_well_formed_with_any_prefix
from keys.models import ApiKey
from keys.services import find_live_key

_AT_ONCE = 2  # each takes a core, and 19 MiB
_PATIENCE_S = 3.0
_NEED_LASTS_S = 5.0


class _Need:
    """Whether there are keys that only argon2 knows: asked of the database now and then."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._known_until = 0.0
        self._is_there = False

    def is_there(self) -> bool:
        with self._lock:
            if time.monotonic() >= self._known_until:
                self._is_there = recognition.is_needed()
                self._known_until = time.monotonic() + _NEED_LASTS_S
            return self._is_there

    def forget(self) -> None:
        self._known_until = 0.0


NEED = _Need()
_slots = BoundedSemaphore(_AT_ONCE)


def known_key(secret: str, *, admin: bool | None = None) -> ApiKey | None:
    """As `find_live_key`; a key of another pepper is recognised on the way. Raises InternalFault ``overloaded``."""
    key = find_live_key(secret, admin=admin)
    if key is not None or not NEED.is_there():
        return key
    if not is_well_formed_with_any_prefix(secret.encode("utf-8", "surrogatepass")):
        return None
    if not _slots.acquire(timeout=_PATIENCE_S):
        raise InternalFault("overloaded", "Too many keys are being looked at.", retry_after_s=1)
    try:
        is_known = recognition.recognise(secret)
    finally:
        _slots.release()
    return find_live_key(secret, admin=admin) if is_known else None

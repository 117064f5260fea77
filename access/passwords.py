"""Hashes of passwords: argon2id with the parameters of the settings, a bounded number at once, and no oracle.

Django's hashers keep the form of what is stored (``argon2$argon2id$…``), so that a change of the parameters, or of the
kind of hash, is taken up at the next login.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

from django.conf import settings
from django.contrib.auth.hashers import Argon2PasswordHasher as DjangoArgon2
from django.contrib.auth.hashers import identify_hasher, make_password, verify_password
from django.contrib.auth.password_validation import validate_password
from django.core.exceptions import ValidationError

from core.faults import InternalFault
from core.validation import is_storable

LONGEST = 1024  # characters; argon2 takes more, and nobody means more
_PATIENCE_S = 3.0
_RETRY_AFTER_S = 2


class Argon2Hasher(DjangoArgon2):
    """The parameters that OWASP recommends, from the settings, where Django's own need 100 MiB for each login."""

    @property
    def time_cost(self) -> int:  # type: ignore[override]
        return int(settings.ARGON2_TIME_COST)

    @property
    def memory_cost(self) -> int:  # type: ignore[override]
        return int(settings.ARGON2_MEMORY_KIB)

    @property
    def parallelism(self) -> int:  # type: ignore[override]
        return int(settings.ARGON2_PARALLELISM)


class HashingRoom:
    """So many compute at once, and so many wait. Logins share the process with the panel and the admin API, which must
    not stand behind them."""

    def __init__(self, at_once: int, waiting: int, patience_s: float = _PATIENCE_S) -> None:
        self._computing = threading.BoundedSemaphore(at_once)
        self._places = threading.BoundedSemaphore(at_once + waiting)
        self._patience_s = patience_s

    @contextmanager
    def place(self) -> Iterator[None]:
        """Raises InternalFault ``overloaded`` when too many wait, or have waited for too long."""
        if not self._places.acquire(blocking=False):
            raise _overloaded()
        try:
            if not self._computing.acquire(timeout=self._patience_s):
                raise _overloaded()
            try:
                yield
            finally:
                self._computing.release()
        finally:
            self._places.release()


def _overloaded() -> InternalFault:
    detail = "Too many passwords are being checked at the moment."
    return InternalFault("overloaded", detail, retry_after_s=_RETRY_AFTER_S)


@cache
def room() -> HashingRoom:
    at_once: int = settings.PASSWORD_THREADS
    return HashingRoom(at_once, waiting=16 * at_once)


def hashed(password: str) -> str:
    """Takes a place. Raises InternalFault ``overloaded``."""
    with room().place():
        return make_password(password)


def matches(password: str, encoded: str, keep: Callable[[str], None]) -> bool:
    """Whether the password is the one of the hash. ``encoded`` may be empty, for nobody's, which takes as long.
    ``keep`` is given a new hash when the present one has other parameters than new ones. Takes a place."""
    known = bool(encoded) and _is_readable(encoded)
    with room().place():
        if len(password) > LONGEST:
            password, known = "", False
        is_right, must_update = verify_password(password, encoded if known else _nobodys())
        renewed = make_password(password) if known and is_right and must_update else ""
    if renewed:
        keep(renewed)
    return known and is_right


def _is_readable(encoded: str) -> bool:
    try:
        identify_hasher(encoded)
    except ValueError:
        return False
    return True


def _nobodys() -> str:
    return _made_nobodys(settings.ARGON2_TIME_COST, settings.ARGON2_MEMORY_KIB, settings.ARGON2_PARALLELISM)


@cache
def _made_nobodys(*parameters: int) -> str:
    """What the passwords of users that do not exist are compared with, by the present parameters."""
    return make_password("nobody has this password")


def complaints(password: str, user: object | None = None) -> list[str]:
    """What the policy (AUTH_PASSWORD_VALIDATORS) says against a new password. ``user``: whose names it may not be
    like."""
    if len(password) > LONGEST:
        return [f"A password has at most {LONGEST} characters."]
    if not is_storable(password):
        return ["The password holds a NUL character or half of a surrogate pair."]
    try:
        validate_password(password, user)  # type: ignore[arg-type]  # any object with the attributes that are compared
    except ValidationError as error:
        return list(error.messages)
    return []

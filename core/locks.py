"""Work that one process of all hosts does at a time."""

from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from threading import Lock

from django.db import connection, transaction

_process_locks: dict[str, Lock] = {}


@contextmanager
def sole_holder(name: str) -> Iterator[bool]:
    """Whether this thread holds the lock of that name; while it does, nobody else does, on no host.

    On PostgreSQL the lock is held by a transaction that lasts as long as the block (so it works behind PgBouncer, and
    dies with its holder). On SQLite there is one agent, and its threads exclude one another.
    """
    if connection.vendor == "postgresql":
        with transaction.atomic(), connection.cursor() as cursor:
            # The timeout frees the lock of a host that has vanished without closing its connection.
            cursor.execute(
                "SELECT set_config('idle_in_transaction_session_timeout', '60s', true), pg_try_advisory_xact_lock(%s)",
                [_lock_number(name)],
            )
            _, held = cursor.fetchone()
            yield held
        return
    lock = _process_locks.setdefault(name, Lock())
    held = lock.acquire(blocking=False)
    try:
        yield held
    finally:
        if held:
            lock.release()


def hold_lock(name: str) -> None:
    """Wait for the lock of that name and hold it until the transaction ends; call it inside one. On SQLite transactions
    are IMMEDIATE, which is such a lock."""
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(%s)", [_lock_number(name)])


def _lock_number(name: str) -> int:
    digest = blake2b(f"portcullis {name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)

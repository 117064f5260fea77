"""Django's ORM for an asyncio process: one thread with one connection, which mends itself when the database returns."""

import asyncio
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from copy import deepcopy
from typing import Any, TypeVar

from django.db import DEFAULT_DB_ALIAS, Error, connection, connections
from psycopg import IsolationLevel

T = TypeVar("T")
_Job = tuple[Future[Any], Callable[[], Any]]

# A host that vanished is noticed in seconds rather than after the kernel's two hours (tcp(7)).
_TCP = {"keepalives_idle": 5, "keepalives_interval": 2, "keepalives_count": 3, "tcp_user_timeout": 6_000}


class DatabaseAway(Exception):
    """The database cannot be used now; the message is the first line of its reason."""


class DatabaseThread:
    """Runs functions one after the other. The thread is a daemon: a connection that hangs does not hold up the exit.

    A ``reading`` one sees one state of the database throughout a transaction, and never writes.
    """

    def __init__(self, name: str, *, reading: bool = False) -> None:
        self._reading = reading
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    async def run(self, function: Callable[..., T], *args: Any) -> T:
        """Raises DatabaseAway for whatever the database could not do, and what else ``function`` raises."""
        future: Future[T] = Future()
        self._jobs.put((future, lambda: function(*args)))
        return await asyncio.wrap_future(future)

    async def close(self, timeout_s: float = 1.0) -> None:
        """Let go of the connection, unless the thread hangs in it."""
        self._jobs.put(None)
        await asyncio.to_thread(self._thread.join, timeout_s)

    def _work(self) -> None:
        connections[DEFAULT_DB_ALIAS] = _own_connection(reading=self._reading)
        while (job := self._jobs.get()) is not None:
            future, function = job
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(function())
            except Error as error:
                _close()
                future.set_exception(DatabaseAway(str(error).strip().partition("\n")[0] or type(error).__name__))
            except BaseException as error:
                future.set_exception(error)
        _close()


def _own_connection(*, reading: bool) -> Any:
    wrapper = connections.create_connection(DEFAULT_DB_ALIAS)
    wrapper.settings_dict = deepcopy(wrapper.settings_dict)
    options = wrapper.settings_dict["OPTIONS"]
    if wrapper.vendor == "postgresql":
        options.update(_TCP | {"application_name": "portcullis agent"})
        if reading:
            options["isolation_level"] = IsolationLevel.REPEATABLE_READ
    elif reading:
        options.pop("transaction_mode", None)  # IMMEDIATE takes the writers' lock
        options["init_command"] = "PRAGMA query_only=ON;"
    return wrapper


def _close() -> None:
    """A connection in doubt is not asked again; closing one that is broken may itself fail."""
    try:
        connection.close()
    except Error:
        connection.connection = None

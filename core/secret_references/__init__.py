"""``secret://…`` references: names of secrets that stand in the configuration in place of the secrets (rule 22).

    secret://env/UPSTREAM_ORDERS_TOKEN    an environment variable of the gateway; its name begins with UPSTREAM_
    secret://file/orders/token            a file below SECRETS_DIR
    secret://aws/orders/token#password    a secrets manager's secret (`core.secret_references.managers`)

They are resolved on the host, by the process that needs the value, at the moment when it needs it: no row, snapshot,
revision, log line or answer holds what they stand for. An admin who may write the configuration chooses the reference,
so what it can name is bounded: neither SECRET_KEY and DATABASE_URL can be sent to an upstream, nor /etc/shadow, nor a
file in SECRETS_DIR that holds one of the gateway's own settings.
"""

from __future__ import annotations

import logging
import os
import stat
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Protocol

from core.secret_references.names import MANAGERS, SecretUnavailable, check_owner, check_reference, parts

__all__ = ["LOOK_S", "MAX_BYTES", "SecretReferences", "SecretUnavailable", "check_owner", "check_reference"]

logger = logging.getLogger("portcullis.secrets")

LOOK_S = 2.0  # so long a value is used before its file is looked at again
MAX_BYTES = 64 * 1024
_Stamp = tuple[int, int, int, int]  # device, inode, time of change in nanoseconds, size


class _Kept:
    """What a reference stood for when it was last looked at: a value, or the reason why there is none."""

    __slots__ = ("looked_at", "reason", "stamp", "value")

    def __init__(self, looked_at: float) -> None:
        self.looked_at = looked_at
        self.value: bytes | None = None
        self.reason = ""
        self.stamp: _Stamp | None = None


class Managed(Protocol):
    """Who knows the secrets of managers. Neither waits for anybody where an event loop would."""

    def resolve(self, reference: str) -> bytes: ...  # raises `SecretUnavailable`
    @property
    def problems(self) -> Mapping[str, str]: ...


class SecretReferences:
    """Resolves references and keeps the values in memory, for one process.

    Variables are read once for good. A file is looked at every `LOOK_S` at most, and read again when it has changed, so
    that rotation needs no restart. ``own_files`` are those of the gateway's own settings, which no reference reaches.
    ``managed`` is asked for what stands in secrets managers. ``now`` gives monotonic seconds.
    """

    def __init__(
        self,
        directory: str | Path,
        own_files: Iterable[str | Path] = (),
        *,
        managed: Managed | None = None,
        environment: Mapping[str, str] | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._directory = os.path.realpath(directory)
        self._own_files = tuple(own_files)
        self._environment = os.environ if environment is None else environment
        self._managed = managed
        self._now = now
        self._kept: dict[str, _Kept] = {}
        self._complaints: dict[str, tuple[str, bytes | None]] = {}

    def resolve(self, reference: str) -> bytes:
        """The secret, without the line ends at its end; never empty. Raises `SecretUnavailable`."""
        now = self._now()
        kept = self._kept.get(reference)
        if kept is None and self._managed is not None and parts(reference)[0] in MANAGERS:
            return self._managed.resolve(reference)
        if kept is None or now - kept.looked_at >= LOOK_S:
            kept = self._kept[reference] = self._look(reference, kept, now)
        if kept.value is None:
            raise self.complain(reference, kept.reason, None)
        return kept.value

    def complain(self, reference: str, reason: str, value: bytes | None) -> SecretUnavailable:
        """What to raise. The log is told once of each value that cannot be used, and that there is none."""
        if self._complaints.get(reference) != (reason, value):
            self._complaints[reference] = reason, value
            logger.warning("%s cannot be resolved: %s", reference, reason)
        return SecretUnavailable(reference, reason)

    @property
    def problems(self) -> dict[str, str]:
        """Why, by reference, of those that could not be resolved when they were last needed."""
        missing = {reference: kept.reason for reference, kept in self._kept.items() if kept.value is None}
        return missing if self._managed is None else {**missing, **self._managed.problems}

    def forget(self, in_use: set[str]) -> None:
        """Keep nothing of references that the configuration no longer has."""
        self._kept = {reference: kept for reference, kept in self._kept.items() if reference in in_use}
        self._complaints = {reference: told for reference, told in self._complaints.items() if reference in in_use}

    def _look(self, reference: str, former: _Kept | None, now: float) -> _Kept:
        kept = _Kept(now)
        try:
            check_reference(reference)
            source, name = parts(reference)
            if source in MANAGERS:
                raise ValueError("this process asks no secrets manager")
            if source == "env":
                value = self._environment.get(name, "").encode("utf-8", "surrogateescape")
                if not value:
                    raise ValueError("the environment variable is not set")
            else:
                value, kept.stamp = self._read(name, former)
            kept.value = value.rstrip(b"\r\n")
            if not kept.value:
                kept.value = None
                raise ValueError("it is empty")
            if former is None or former.value != kept.value:
                self._complaints.pop(reference, None)
        except OSError as error:
            kept.reason = f"the file cannot be read ({error.strerror})"
        except ValueError as error:
            kept.reason = str(error)
        return kept

    def _read(self, name: str, former: _Kept | None) -> tuple[bytes, _Stamp]:
        """The file's content, and by what to see that it has changed.

        Links are followed (Kubernetes mounts secrets as links to a directory that it swaps), but not out of the
        directory. Opening does not block on a FIFO.
        """
        path = os.path.realpath(os.path.join(self._directory, name))
        if not path.startswith(self._directory.rstrip("/") + "/"):
            raise ValueError("the file is a link that leads out of SECRETS_DIR")
        if any(path == os.path.realpath(own) for own in self._own_files):
            raise ValueError("the file holds a setting of the gateway itself")
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise ValueError("it is not a file")
            if status.st_size > MAX_BYTES:
                raise ValueError(f"the file is over the limit of {MAX_BYTES} bytes")
            stamp = (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size)
            if former is not None and former.value is not None and former.stamp == stamp:
                return former.value, stamp
            return file.read(MAX_BYTES + 1), stamp

"""kombu's filesystem transport, made safe to publish with: the broker of the embedded mode.

The files and folders are kombu's own, so that any Celery app consumes from them with the plain ``filesystem://``
transport. What kombu leaves open and this closes:

* it creates a message's file and then fills it, and a reader that comes in between loses the message: here the file
  appears under its final name when it is whole and on disk;
* messages of the same millisecond come out in any order: here names sort in the order of publishing;
* a message that is being read passes through the common temporary directory: here it stays in the broker's folder.
"""

from __future__ import annotations

import os
import re
import time
import uuid
from pathlib import Path
from queue import Empty
from threading import Lock
from typing import Any

from kombu.transport import filesystem
from kombu.utils.json import dumps, loads

POLLING_INTERVAL_S = 0.2
_QUEUE_NAME = re.compile(r"[A-Za-z0-9._@-]{1,150}")  # it becomes part of a file name
_WRITING_TAKES_S = 2.0  # longest wait for a message that another process has begun to write


def make_folders(folder: Path) -> dict[str, Any]:
    """Make the broker's folders, private to this user, and return kombu's ``transport_options`` for them.

    A consumer in another process gives the same folder: ``messages`` both as ``data_folder_in`` and as
    ``data_folder_out``, and ``control`` as ``control_folder``.
    """
    for path in (folder, *(folder / name for name in ("messages", "control", "reading"))):
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return {
        "data_folder_in": str(folder / "messages"),
        "data_folder_out": str(folder / "messages"),
        "control_folder": str(folder / "control"),
        "processed_folder": str(folder / "reading"),
        "polling_interval": POLLING_INTERVAL_S,
    }


class _Clock:
    """Nanoseconds since the epoch that never repeat within a process."""

    def __init__(self) -> None:
        self._last = 0
        self._lock = Lock()

    def next(self) -> int:
        with self._lock:
            self._last = max(self._last + 1, time.time_ns())
            return self._last


_clock = _Clock()


class Channel(filesystem.Channel):
    def _put(self, queue: str, payload: Any, **_: Any) -> None:
        """Raises ValueError for a queue that cannot be part of a file name, OSError when the folder is not writable."""
        if not _QUEUE_NAME.fullmatch(queue):
            raise ValueError(f"the filesystem broker cannot have a queue named {queue!r}")
        name = f"{_clock.next():020d}_{uuid.uuid4()}.{queue}.msg"
        draft = Path(self.processed_folder) / name
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(dumps(payload).encode())
            file.flush()
            os.fsync(descriptor)
        os.rename(draft, Path(self.data_folder_out) / name)
        _sync_folder(self.data_folder_out)

    def _get(self, queue: str) -> Any:
        """The oldest message of the queue; raises `queue.Empty`."""
        for name in sorted(os.listdir(self.data_folder_in)):
            if name.partition(".")[2] != f"{queue}.msg":
                continue
            taken = Path(self.processed_folder) / name
            try:
                os.rename(Path(self.data_folder_in) / name, taken)
            except FileNotFoundError:
                continue  # another consumer was faster
            message = _read(taken)
            taken.unlink()
            return message
        raise Empty


class Transport(filesystem.Transport):
    Channel = Channel
    global_state = filesystem.Transport.global_state


def _sync_folder(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read(path: Path) -> Any:
    """A message's content, waited for while a writer that is plain kombu has not finished it."""
    deadline = time.monotonic() + _WRITING_TAKES_S
    while True:
        try:
            return loads(path.read_text())
        except ValueError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)

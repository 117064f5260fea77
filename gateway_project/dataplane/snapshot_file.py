"""The last good snapshot as a file: what agent and worker start from while the database is away.

Layout: `_HEADER` (magic, version of this layout, version of the records), then the frames of `core.wire` for one full
load (``reset``, ``records`` …, ``commit`` with ``as_of``), then a BLAKE2b digest of everything before it. It holds what
workers hold: keyed digests, no argon2 hash, no key.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO

from core.wire import FORMAT, FrameReader, Message

REVOCATIONS_FILE = "revocations.bin"  # of the same layout, with frames ``revocations``
_MAGIC = b"PORTCULLIS"
_LAYOUT = 1
_HEADER = struct.pack(">10sHH", _MAGIC, _LAYOUT, FORMAT)
_DIGEST_BYTES = 32
_HASHED_BYTES = 256 * 1024  # each well under a millisecond's work
_PARSED_BYTES = 16 * 1024


class SnapshotFileError(Exception):
    """The file cannot be used: missing, foreign, of another format, or torn. The message says which."""


def write_snapshot_file(path: Path, frames: Iterable[bytes]) -> None:
    """Replace the file as a whole (mode 0600), so that a crash leaves the old one or the new one. Raises OSError."""
    temporary = path.with_name(f"{path.name}.tmp")  # there is one writer: the agent holds a lock on the directory
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            digest = blake2b(_HEADER, digest_size=_DIGEST_BYTES)
            file.write(_HEADER)
            for frame in frames:
                digest.update(frame)
                file.write(frame)
            file.write(digest.digest())
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)  # the rename itself
    finally:
        os.close(directory)


def read_snapshot_file(path: Path) -> Iterator[list[Message]]:
    """The file's messages in slices small enough for an event loop; an empty list is a slice of checking it.

    Nothing comes out before the digest has proved right. Raises SnapshotFileError.
    """
    try:
        with path.open("rb") as file:
            size = _checked_header(file, path)
            yield from ([] for _ in _checked_digest(file, size, path))
            file.seek(len(_HEADER))
            frames = FrameReader()
            for data in _chunks(file, size, _PARSED_BYTES):
                yield list(frames.feed(data))
    except OSError as error:
        raise SnapshotFileError(f"{path} cannot be read: {error.strerror}") from None


def _checked_header(file: BinaryIO, path: Path) -> int:
    """The size of what stands between header and digest."""
    header = file.read(len(_HEADER))
    size = os.fstat(file.fileno()).st_size - len(_HEADER) - _DIGEST_BYTES
    if header[: len(_MAGIC)] != _MAGIC or size < 0:
        raise SnapshotFileError(f"{path} is not a snapshot of this gateway")
    if header != _HEADER:
        raise SnapshotFileError(f"{path} has the format of another version of the gateway")
    return size


def _checked_digest(file: BinaryIO, size: int, path: Path) -> Iterator[None]:
    digest = blake2b(_HEADER, digest_size=_DIGEST_BYTES)
    for data in _chunks(file, size, _HASHED_BYTES):
        digest.update(data)
        yield
    if file.read(_DIGEST_BYTES) != digest.digest():
        raise SnapshotFileError(f"{path} is torn or damaged")


def _chunks(file: BinaryIO, size: int, chunk_bytes: int) -> Iterator[bytes]:
    while size > 0 and (data := file.read(min(size, chunk_bytes))):
        size -= len(data)
        yield data

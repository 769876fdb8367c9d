"""Atomic file writes: a file is complete or absent, also after a kill or a loss of power.

A file is written under a temporary name in the same folder, synced to disk and renamed. A killed
run leaves only temporary files behind, which the next run removes.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO

TEMP_SUFFIX = ".partial"
# EFBIG: a limit on the size of files.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_atomically(path: Path, content: bytes) -> None:
    """Replace the content of a file atomically.

    Raises:
        OSError: the file cannot be written; its previous content is unchanged.
    """
    with open_atomic(path) as file:
        file.write(content)


@contextlib.contextmanager
def open_atomic(path: Path) -> Iterator[IO[bytes]]:
    """Open a file to write, which replaces `path` if the block succeeds.

    Raises:
        OSError: the file cannot be written; `path` is unchanged.
    """
    temporary = path.with_name(path.name + TEMP_SUFFIX)
    temporary.unlink(missing_ok=True)
    # Mode x: never write through a link of that name that somebody else created.
    file = temporary.open("xb+")
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames and removals in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_regular_file(path: Path, max_bytes: int = 256 << 20) -> bytes:
    """Return the content of a regular file of limited size.

    Raises:
        OSError: the file cannot be read, is not a regular file, or is too large.
    """
    # Without O_NONBLOCK, a named pipe would block here.
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        if status.st_size > max_bytes:
            raise OSError(errno.EINVAL, f"more than {max_bytes:,} bytes", str(path))
        return file.read()


def is_disk_full(error: BaseException) -> bool:
    """Return whether a write failed because of a full disk, a quota or a file size limit."""
    return isinstance(error, OSError) and error.errno in _NO_ROOM


def compute_file_sha256(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

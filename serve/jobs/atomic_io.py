"""Files that are there whole or not at all, also after a kill or a loss of power.

Each is written under a temporary name beside its own, forced to the disk and renamed. What a killed
run leaves behind are temporary files alone, which the next one removes.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

TEMP_SUFFIX = ".partial"
# The last one is what a limit on the size of files gives.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_READ_BYTES = 1 << 20


def write_atomically(path: Path, content: bytes) -> None:
    """Put `content` in the place of a file, at once.

    Raises:
        OSError: it cannot be written; the file is what it was before.
    """
    with open_atomic(path) as file:
        file.write(content)


@contextlib.contextmanager
def open_atomic(path: Path) -> Iterator[IO[bytes]]:
    """A file to write to, which takes the place of `path` if the block succeeds.

    Raises:
        OSError: it cannot be written; `path` is what it was before.
    """
    temporary = path.with_name(path.name + TEMP_SUFFIX)
    temporary.unlink(missing_ok=True)
    # Made here or not at all: somebody else's link of that name is not written through.
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
    """The content of a regular file that is not too large.

    Raises:
        OSError: it is none.
    """
    # Without it a named pipe would block here.
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is no regular file", str(path))
        if status.st_size > max_bytes:
            raise OSError(errno.EINVAL, f"it has more than {max_bytes:,} bytes", str(path))
        return file.read()


def is_disk_full(error: BaseException) -> bool:
    """Whether the disk, a quota or a limit on sizes is what made a write fail."""
    return isinstance(error, OSError) and error.errno in _NO_ROOM


def compute_file_sha256(path: Path, on_read: Callable[[int], None] | None = None) -> str:
    """Digest of a file.

    Args:
        path: the file.
        told: the number of bytes of each piece that was read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_READ_BYTES):
            digest.update(piece)
            if on_read:
                on_read(len(piece))
    return digest.hexdigest()

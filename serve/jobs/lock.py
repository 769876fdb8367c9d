"""Exclusive lock on a job's folder; the operating system releases it when the process exits."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from serve.errors import JobRefusedError


@contextlib.contextmanager
def hold_lock(path: Path) -> Iterator[None]:
    """Hold the lock of a job.

    Args:
        path: the lock file; its content names the process that holds the lock. The file is never
            removed: removal would let two runs lock two files of the same name.

    Raises:
        JobRefusedError: another run holds the lock.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 200).decode("utf-8", "replace").strip()
            raise JobRefusedError(
                f"{path.parent} is in use by {holder or 'another run'}; wait until that run ends, "
                "or give another output"
            ) from None
        _write_owner(descriptor)
        yield
    finally:
        os.close(descriptor)


def _write_owner(descriptor: int) -> None:
    # Only for people to read, so a full disk does not fail the run here.
    with contextlib.suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)

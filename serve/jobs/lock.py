"""One run at a time on one output. The lock goes with its process, however that ends."""

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
        path: the lock's file; says who holds it. It stays, since to remove it would let two runs
            hold locks on two files of one name.

    Raises:
        JobRefusedError: another run holds it.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 200).decode("utf-8", "replace").strip()
            raise JobRefusedError(
                f"{path.parent} is in use by {holder or 'another run'}; wait for it, or give "
                "another output"
            ) from None
        _sign(descriptor)
        yield
    finally:
        os.close(descriptor)


def _sign(descriptor: int) -> None:
    # For people: on a full disk there may be no room even for this.
    with contextlib.suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)

"""Files next to an output: written atomically, and never through a link that somebody planted.

A file is complete or absent, also after a kill or a loss of power: it is written under a temporary
name in the same folder, synced to disk and renamed. A killed run leaves only temporary files
behind, which the next run removes.

An output may be in a folder where others can write, such as `/tmp`. The folder of a job has a fixed
name next to the output, so another user could have created a folder or a link of that name first.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from serve.errors import JobRefusedError

TEMP_SUFFIX = ".partial"


def write_atomically(path: Path, content: bytes) -> None:
    """Replace the content of a file; an `OSError` leaves the previous content."""
    with open_atomic(path) as file:
        file.write(content)


@contextlib.contextmanager
def open_atomic(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that replaces `path` if the block succeeds; an error leaves `path` unchanged."""
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
        OSError: also if the file is not a regular file, or is too large.
    """
    # Without O_NONBLOCK, a named pipe would block here.
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        if status.st_size > max_bytes:
            raise OSError(errno.EINVAL, f"more than {max_bytes:,} bytes", str(path))
        return file.read()


def make_private_folder(folder: Path) -> None:
    """Create a folder with mode 0700, or check that an existing folder is private.

    Raises:
        JobRefusedError: `folder` is a link, is not a folder, belongs to another user, or contains
            links.
    """
    with contextlib.suppress(FileExistsError):
        os.mkdir(folder, 0o700)
        sync_folder(folder.parent)
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        problem = "is a link" if folder.is_symlink() else f"is not a readable folder ({error})"
        raise _folder_error(folder, problem) from error
    try:
        owner = os.fstat(descriptor).st_uid
        if owner != _own_user(folder.parent):
            raise _folder_error(folder, f"belongs to another user (uid {owner})")
        with contextlib.suppress(OSError):  # some file systems do not have modes
            os.fchmod(descriptor, 0o700)
        with os.scandir(descriptor) as entries:
            for entry in entries:
                if entry.is_symlink():
                    raise _folder_error(folder, f"contains a link ({entry.name})")
    finally:
        os.close(descriptor)


def reject_foreign_link(path: Path) -> None:
    """Refuse a path that is a link of another user; links of this user and of root are accepted.

    Raises:
        JobRefusedError: `path` is a link that another user made.
    """
    with contextlib.suppress(FileNotFoundError):
        status = os.lstat(path)
        if stat.S_ISLNK(status.st_mode) and not _is_trusted(status.st_uid, path.parent):
            raise JobRefusedError(
                f"{path} is a link to {os.path.realpath(path)} that another user made (uid "
                f"{status.st_uid}); give that folder itself, or another one"
            )


def _is_trusted(user: int, folder: Path) -> bool:
    if user in (os.geteuid(), 0):
        return True
    with contextlib.suppress(OSError):  # no file can be created there to find the owner
        return user == _own_user(folder)
    return False


def _own_user(folder: Path) -> int:
    """Return the owner of files we create in a folder: file systems may map user ids."""
    with tempfile.TemporaryFile(dir=folder) as probe:
        return os.fstat(probe.fileno()).st_uid


def _folder_error(folder: Path, problem: str) -> JobRefusedError:
    return JobRefusedError(
        f"{folder} {problem}, so this job did not create it; remove it, or give another output"
    )

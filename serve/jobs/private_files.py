"""Private folders, and protection against links that other users of the machine planted.

An output may be in a folder where others can write, such as `/tmp`. The folder of a job has a fixed
name next to the output, so another user could have created a folder or a link of that name first.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from pathlib import Path

from serve.errors import JobRefusedError


def make_private_folder(folder: Path) -> None:
    """Create a folder with mode 0700, or check that an existing folder is private.

    Raises:
        JobRefusedError: `folder` is a link, is not a folder, belongs to another user, or contains
            links.
        OSError: the folder cannot be created.
    """
    with contextlib.suppress(FileExistsError):
        os.mkdir(folder, 0o700)
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

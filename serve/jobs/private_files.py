"""Folders that other users of the machine cannot enter, and links of theirs that are not followed.

An output may lie where others can write, such as `/tmp`. What a job keeps beside it has a fixed
name, so somebody else could have put a folder or a link there first.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from pathlib import Path

from serve.errors import JobRefusedError


def make_private_folder(folder: Path) -> None:
    """Make a folder that this user alone may enter, or make sure that an existing one is ours.

    Raises:
        JobRefusedError: it is a link, no folder, another user's, or has links in it.
        OSError: it cannot be made.
    """
    with contextlib.suppress(FileExistsError):
        os.mkdir(folder, 0o700)
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        found = "a link" if folder.is_symlink() else f"no folder that can be read ({error})"
        raise _folder_error(folder, f"is {found}") from error
    try:
        owner = os.fstat(descriptor).st_uid
        if owner != _own_user(folder.parent):
            raise _folder_error(folder, f"belongs to another user (uid {owner})")
        with contextlib.suppress(OSError):  # some file systems have no modes
            os.fchmod(descriptor, 0o700)
        with os.scandir(descriptor) as entries:
            for entry in entries:
                if entry.is_symlink():
                    raise _folder_error(folder, f"has a link in it ({entry.name})")
    finally:
        os.close(descriptor)


def reject_foreign_link(path: Path) -> None:
    """Return unless a path is a link that another user made; one of ours or the system's is fine.

    Raises:
        JobRefusedError: it is.
    """
    with contextlib.suppress(FileNotFoundError):
        status = os.lstat(path)
        if stat.S_ISLNK(status.st_mode) and not _is_trusted(status.st_uid, path.parent):
            raise JobRefusedError(
                f"{path} is a link that another user made (uid {status.st_uid}), to "
                f"{os.path.realpath(path)}; give that folder itself, or another one"
            )


def _is_trusted(user: int, folder: Path) -> bool:
    if user in (os.geteuid(), 0):
        return True
    with contextlib.suppress(OSError):  # where we can make nothing, nothing else is ours
        return user == _own_user(folder)
    return False


def _own_user(folder: Path) -> int:
    """Who owns what we make there: not our own id where a file system maps users."""
    with tempfile.TemporaryFile(dir=folder) as probe:
        return os.fstat(probe.fileno()).st_uid


def _folder_error(folder: Path, found: str) -> JobRefusedError:
    return JobRefusedError(
        f"{folder} {found}, so this job did not make it as it is; remove it, or give another output"
    )

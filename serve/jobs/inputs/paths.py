"""Check that files are in the folder that the user named, also if they are links."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from serve.errors import JobInputError


def is_plain_name(name: str) -> bool:
    """Return whether a name is the name of a file or folder, without a path."""
    return bool(name) and name not in (".", "..") and not set(name) & set("/\\\0")


def require_inside(folder: Path, files: Iterable[Path]) -> None:
    """Check that all files of a folder are in it after links are resolved.

    Snapshots in the hub's cache may link to the `blobs` folder of the same repository.

    Raises:
        JobInputError: a file is outside; the message names the first one.
    """
    real = Path(os.path.realpath(folder))
    roots = [real]
    for path in (folder.absolute(), real):
        snapshots = next((p for p in (path, *path.parents) if p.parent.name == "snapshots"), None)
        if snapshots and snapshots.parent.parent.name.startswith(("datasets--", "models--")):
            roots.append(Path(os.path.realpath(snapshots.parent.parent / "blobs")))
    for file in files:
        target = Path(os.path.realpath(file))
        if not any(target.is_relative_to(root) for root in roots):
            raise JobInputError(
                f"{file} is a link to {target}, outside {folder}; copy the file into the folder, "
                "or give the link itself or a glob as the input, where links are followed"
            )

"""Files that lie in the folder that was named, also where they are links."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from serve.errors import JobInputError


def is_plain_name(name: str) -> bool:
    """Whether a name means something directly in its folder."""
    return bool(name) and name not in (".", "..") and not set(name) & set("/\\\0")


def require_inside(folder: Path, files: Iterable[Path]) -> None:
    """Return if all files of a folder are in it once links are followed.

    Snapshots of the hub's cache are links to `blobs` beside them.

    Raises:
        JobInputError: names the first that is not.
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
                "or name it itself or by a glob, where links are followed"
            )

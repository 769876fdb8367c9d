"""What an INPUT of the command line names: file, folder, glob, `datasets` folder, or the hub."""

from __future__ import annotations

from serve.jobs.inputs.source import Source


def open_source(name: str, *, split: str | None = None) -> Source:
    """The input that NAME means.

    Args:
        name: path of a file or folder, a glob, or `hf://datasets/ORG/NAME[@REV][/PATH or GLOB]`.
        split: which split of a folder, a saved `datasets` set or a hub repository.

    Raises:
        JobInputError: nothing there, several kinds, an unknown kind, or a split is to be chosen.
    """
    raise NotImplementedError

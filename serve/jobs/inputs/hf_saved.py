"""Find the Arrow files, in their order, of folders that `datasets` wrote by `save_to_disk`.

A downloaded folder may name any file in its `state.json`: names with a folder in them and links out
of the folder are refused.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from serve.errors import JobInputError
from serve.jobs.atomic_io import read_regular_file
from serve.jobs.inputs.paths import is_plain_name, require_inside

_STATE, _DICT = "state.json", "dataset_dict.json"
_MAX_BYTES = 16 << 20


def is_saved_dataset(folder: Path) -> bool:
    """Return whether `save_to_disk` wrote the folder."""
    return (folder / _STATE).is_file() or (folder / _DICT).is_file()


def list_saved_files(folder: Path, split: str | None) -> list[Path]:
    """Return the files of a saved `Dataset`, or of one split of a saved `DatasetDict`.

    Raises:
        JobInputError: a split must be chosen or does not exist, or a file is missing or outside of
            the folder.
    """
    if (folder / _DICT).is_file():
        splits = _check_names(folder / _DICT, _read(folder / _DICT).get("splits", []))
        if split is None and len(splits) == 1:
            split = splits[0]
        if split not in splits:
            given = "no --split" if split is None else f"--split {split}"
            raise JobInputError(
                f"{folder} has the splits {', '.join(splits)}, and {given} is given; choose one of "
                "them by --split"
            )
        files = list_saved_files(folder / split, None)
        require_inside(folder, files)  # a split may itself be a link
        return files
    state = _read(folder / _STATE)
    if split not in (None, state.get("_split")):
        raise JobInputError(
            f"{folder} is the split {state.get('_split')!r}, not {split!r}; leave --split out"
        )
    if state.get("_indices_files") or state.get("_indices_data_files"):
        raise JobInputError(
            f"{folder} is a selection of rows that was saved by reference; save the dataset again "
            "after `flatten_indices()`"
        )
    try:
        filenames = [file["filename"] for file in state.get("_data_files", [])]
    except (KeyError, TypeError) as error:
        raise JobInputError(
            f"_data_files of {folder / _STATE} is not a list of objects with a filename; save the "
            "dataset again with save_to_disk"
        ) from error
    files = [folder / name for name in _check_names(folder / _STATE, filenames)]
    if missing := [file.name for file in files if not file.is_file()]:
        raise JobInputError(f"{folder} lacks {', '.join(missing)}; copy the complete folder again")
    require_inside(folder, files)
    return files


def _check_names(file: Path, values: Any) -> list[str]:
    """Check names of files or folders in the folder of `file`."""
    names: list[str] = values if isinstance(values, list) else [values]
    for value in names:
        if not isinstance(value, str) or not is_plain_name(value):
            raise JobInputError(
                f"{file} names {str(value)[:80]!r}, and only names of files and folders in the "
                "same folder are read; save the dataset again with save_to_disk"
            )
    return names


def _read(path: Path) -> dict[str, Any]:
    require_inside(path.parent, [path])
    try:
        content = json.loads(read_regular_file(path, _MAX_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        raise JobInputError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise JobInputError(f"{path} is not a JSON object")
    return content

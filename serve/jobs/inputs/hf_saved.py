"""Folders that `datasets` writes by `save_to_disk`: which Arrow files, in which order.

A folder from somewhere else may name any file in its `state.json`: names with a folder in them are
refused, and so are links that leave the folder.
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
    """Whether `save_to_disk` wrote the folder."""
    return (folder / _STATE).is_file() or (folder / _DICT).is_file()


def list_saved_files(folder: Path, split: str | None) -> list[Path]:
    """The files of a saved set, or of one split of a saved dictionary of sets.

    Raises:
        JobInputError: a split is to be chosen, there is no such split, or a file is missing.
    """
    if (folder / _DICT).is_file():
        splits = _check_names(folder / _DICT, _read(folder / _DICT).get("splits", []))
        if split is None and len(splits) == 1:
            split = splits[0]
        if split not in splits:
            came = "no --split" if split is None else f"--split {split}"
            raise JobInputError(f"{folder} has the splits {', '.join(splits)}, and {came} is given")
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
            f"{folder} is a selection of rows that was saved by reference; save it again after "
            "`flatten_indices()`"
        )
    try:
        named = [file["filename"] for file in state.get("_data_files", [])]
    except (KeyError, TypeError) as error:
        raise JobInputError(
            f"_data_files of {folder / _STATE} is no list of objects with a filename; save the set "
            "again with save_to_disk"
        ) from error
    files = [folder / name for name in _check_names(folder / _STATE, named)]
    if missing := [file.name for file in files if not file.is_file()]:
        raise JobInputError(f"{folder} lacks {', '.join(missing)}; bring a whole copy of it")
    require_inside(folder, files)
    return files


def _check_names(file: Path, values: Any) -> list[str]:
    """Names of files or folders directly beside `file`."""
    names: list[str] = values if isinstance(values, list) else [values]
    for value in names:
        if not isinstance(value, str) or not is_plain_name(value):
            raise JobInputError(
                f"{file} names {str(value)[:80]!r}, and only names of files and folders beside "
                "it are read; save the set again with save_to_disk"
            )
    return names


def _read(path: Path) -> dict[str, Any]:
    require_inside(path.parent, [path])
    try:
        content = json.loads(read_regular_file(path, _MAX_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        raise JobInputError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise JobInputError(f"{path} holds no JSON object")
    return content

"""Folders that `datasets` writes by `save_to_disk`: which Arrow files, in which order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from serve.jobs.errors import JobInputError

_STATE, _DICT = "state.json", "dataset_dict.json"


def is_saved_set(folder: Path) -> bool:
    """Whether `save_to_disk` wrote the folder."""
    return (folder / _STATE).is_file() or (folder / _DICT).is_file()


def saved_files(folder: Path, split: str | None) -> list[Path]:
    """The files of a saved set, or of one split of a saved dictionary of sets.

    Raises:
        JobInputError: a split is to be chosen, there is no such split, or a file is missing.
    """
    if (folder / _DICT).is_file():
        splits = [str(name) for name in _read(folder / _DICT).get("splits", [])]
        if split is None and len(splits) == 1:
            split = splits[0]
        if split not in splits:
            came = "no --split" if split is None else f"--split {split}"
            raise JobInputError(f"{folder} has the splits {', '.join(splits)}, and {came} is given")
        return saved_files(folder / split, None)
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
    files = [folder / str(file["filename"]) for file in state.get("_data_files", [])]
    if missing := [file.name for file in files if not file.is_file()]:
        raise JobInputError(f"{folder} lacks {', '.join(missing)}; bring a whole copy of it")
    return files


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise JobInputError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise JobInputError(f"{path} holds no JSON object")
    return content

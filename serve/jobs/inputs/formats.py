"""Formats of files, recognized by their names and their first bytes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from serve.errors import JobInputError
from serve.jobs.inputs.source import FileFormat

SUFFIXES: dict[str, FileFormat] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".jsonl.gz": "jsonl",
    ".ndjson.gz": "jsonl",
    ".json.gz": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
}
_UNSUPPORTED_SUFFIXES = (
    ".csv",
    ".tsv",
    ".txt",
    ".zip",
    ".tar",
    ".zst",
    ".xz",
    ".bz2",
    ".lz4",
    ".xlsx",
    ".npz",
)
_MAGIC: dict[bytes, FileFormat] = {
    b"PAR1": "parquet",
    b"ARROW1": "arrow",
    b"\xff\xff\xff\xff": "arrow",  # an IPC stream
}
# Files of a `datasets` folder or repository that are never data.
_METADATA_FILES = ("state.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json")
_SPLIT_WORDS = ("train", "validation", "valid", "dev", "test", "eval")
_SHARD = re.compile(r"(?:^|/)(\w[\w.]*?)-\d{5}-of-\d{5}")


def find_format_by_name(name: str) -> FileFormat | None:
    """Return the format that a file's name implies, or None."""
    if name.rpartition("/")[2] in _METADATA_FILES:
        return None
    formats = (format_ for suffix, format_ in SUFFIXES.items() if name.lower().endswith(suffix))
    return next(formats, None)


def detect_format(path: Path) -> FileFormat:
    """Return the format of a file from its first bytes or its name; JSON lines by default.

    Raises:
        JobInputError: `path` is not a regular file, or has an unsupported format.
    """
    if not path.is_file():
        raise JobInputError(
            f"{path} is not a regular file; a job reads its input twice, so it cannot be a pipe"
        )
    if path.suffix.lower() in _UNSUPPORTED_SUFFIXES:
        raise JobInputError(
            f"{path} has an unsupported format; it must be one of {', '.join(SUFFIXES)}"
        )
    with path.open("rb") as file:
        beginning = file.read(8)
    formats = (format_ for magic, format_ in _MAGIC.items() if beginning.startswith(magic))
    return next(formats, None) or find_format_by_name(path.name) or "jsonl"


def is_data_file(name: str) -> bool:
    """Return whether a file, given by its path in the folder, is one of the folder's data files.

    Hidden files and files in the `....job` folder of an earlier job are not.
    """
    is_hidden = any(component.startswith((".", "_")) for component in name.split("/"))
    return find_format_by_name(name) is not None and not is_hidden and not is_job_state(name)


def is_job_state(name: str) -> bool:
    """Return whether a path is in a folder with the state of a job."""
    return any(folder.endswith(".job") for folder in name.split("/")[:-1])


def select_split(names: Sequence[str], split: str) -> list[str]:
    """Return the files whose names say that they belong to a split."""
    if any(split in _SHARD.findall(name) for name in names):
        return [name for name in names if split in _SHARD.findall(name)]
    word = re.compile(rf"(?<![A-Za-z0-9]){re.escape(split)}(?![A-Za-z0-9]|_[A-Za-z])")
    return [name for name in names if word.search(name)]


def find_splits(names: Sequence[str]) -> list[str]:
    """Return the splits in names of files, in their usual order."""
    sharded = [split for name in names for split in _SHARD.findall(name)]
    unsharded = [word for word in _SPLIT_WORDS if select_split(names, word)]
    return list(dict.fromkeys([*sharded, *unsharded]))

"""Kinds of files, by their names and by how they begin."""

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
# Beside the data of a `datasets` folder or repository, never data themselves.
_METADATA_FILES = ("state.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json")
_SPLIT_WORDS = ("train", "validation", "valid", "dev", "test", "eval")
_SHARD = re.compile(r"(?:^|/)(\w[\w.]*?)-\d{5}-of-\d{5}")


def find_format_by_name(name: str) -> FileFormat | None:
    """The kind that a file's name tells, if it tells one."""
    if name.rpartition("/")[2] in _METADATA_FILES:
        return None
    ends = (kind for suffix, kind in SUFFIXES.items() if name.lower().endswith(suffix))
    return next(ends, None)


def detect_format(path: Path) -> FileFormat:
    """The kind of a file that was named itself; JSON lines if nothing speaks against it.

    Raises:
        JobInputError: it is of another kind.
    """
    if not path.is_file():
        raise JobInputError(f"{path} is no file; it is read twice, so it cannot be a pipe")
    if path.suffix.lower() in _UNSUPPORTED_SUFFIXES:
        raise JobInputError(
            f"{path} is of a kind that is not read; it must be one of {', '.join(SUFFIXES)}"
        )
    with path.open("rb") as file:
        beginning = file.read(8)
    kinds = (kind for magic, kind in _MAGIC.items() if beginning.startswith(magic))
    return next(kinds, None) or find_format_by_name(path.name) or "jsonl"


def is_data_file(name: str) -> bool:
    """Whether a file is one of the data in its folder, by its path there.

    Hidden files are not, nor is what an earlier job keeps in a folder `....job`.
    """
    is_hidden = any(part.startswith((".", "_")) for part in name.split("/"))
    return find_format_by_name(name) is not None and not is_hidden and not is_job_state(name)


def is_job_state(name: str) -> bool:
    """Whether a path lies in a folder where a job keeps its state."""
    return any(folder.endswith(".job") for folder in name.split("/")[:-1])


def select_split(names: Sequence[str], split: str) -> list[str]:
    """Those files whose names tell that they are of a split."""
    if any(split in _SHARD.findall(name) for name in names):
        return [name for name in names if split in _SHARD.findall(name)]
    word = re.compile(rf"(?<![A-Za-z0-9]){re.escape(split)}(?![A-Za-z0-9]|_[A-Za-z])")
    return [name for name in names if word.search(name)]


def find_splits(names: Sequence[str]) -> list[str]:
    """Splits that names of files tell, in the order in which they are usually told."""
    sharded = [split for name in names for split in _SHARD.findall(name)]
    words = [word for word in _SPLIT_WORDS if select_split(names, word)]
    return list(dict.fromkeys([*sharded, *words]))

"""Which files of a folder, of a saved dataset or of a hub dataset are data, and in which format.

Folders that `datasets` wrote by `save_to_disk` list their files in `state.json`. A downloaded one
may name any file there: names with a folder in them and links out of the folder are refused.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

from rm_core.text import quote
from serve.errors import JobInputError
from serve.jobs.atomic_io import read_regular_file
from serve.jobs.storage import LocalFile, Location

FileFormat: TypeAlias = Literal["jsonl", "parquet", "arrow"]

HUB_PREFIX = "hf://"
SELECTION_SUFFIX = ".selection.json"
"""End of the name of the report that `skyreward select` writes next to its output."""
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
    *(".csv", ".tsv", ".txt", ".xlsx", ".npz"),
    *(".zip", ".tar", ".zst", ".xz", ".bz2", ".lz4"),
)
_MAGIC: dict[bytes, FileFormat] = {
    b"PAR1": "parquet",
    b"ARROW1": "arrow",
    b"\xff\xff\xff\xff": "arrow",  # an IPC stream
}
_STATE, _DICT = "state.json", "dataset_dict.json"
_MAX_STATE_BYTES = 16 << 20
# Files of a `datasets` folder or repository that are never data.
_METADATA_FILES = (_STATE, _DICT, "dataset_info.json", "dataset_infos.json")
_SPLIT_WORDS = ("train", "validation", "valid", "dev", "test", "eval")
_SHARD = re.compile(r"(?:^|/)(\w[\w.]*?)-\d{5}-of-\d{5}")
_HUB_ADDRESS = re.compile(
    r"hf://datasets/(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>refs/(?:convert|pr)/\w+|[^/]+))?"
    r"(?:/(?P<path>.+))?"
)


def detect_format(location: Location) -> FileFormat:
    """Return the format of a file from its first bytes or its name; JSON lines by default."""
    if not location.is_file():
        raise JobInputError(
            f"{location} is not a regular file; a job reads its input twice, so it cannot be a pipe"
        )
    if location.name.lower().endswith(_UNSUPPORTED_SUFFIXES):
        raise JobInputError(
            f"{location} has an unsupported format; it must be one of {', '.join(SUFFIXES)}"
        )
    with location.open() as file:
        beginning = file.read(8)
    formats = (format_ for magic, format_ in _MAGIC.items() if beginning.startswith(magic))
    return next(formats, None) or _find_format_by_name(location.name) or "jsonl"


def _find_format_by_name(name: str) -> FileFormat | None:
    if name.rpartition("/")[2] in _METADATA_FILES:
        return None
    formats = (format_ for suffix, format_ in SUFFIXES.items() if name.lower().endswith(suffix))
    return next(formats, None)


def list_data_files(
    folder: Location, split: str | None, exclude: Callable[[Location], bool]
) -> list[Location]:
    """Return the data files of a folder, sorted.

    Args:
        folder: the folder.
        split: split in the names of files; None for all files.
        exclude: returns whether a file does not belong to the input.

    Raises:
        JobInputError: the folder has no data files, or a link leads out of it.
    """
    names = [
        name
        for name in folder.list_files()
        if is_data_file(name) and not exclude(folder.child(name))
    ]
    if split is not None:
        splits = ", ".join(find_splits(names)) or "no splits in names of files"
        names = select_split(names, split)
        if not names:
            raise JobInputError(f"{folder} has no files of a split {split!r}; it has {splits}")
    if not names:
        raise JobInputError(
            f"{folder} has no files to score; file names must end in one of {', '.join(SUFFIXES)}"
        )
    if folder.local_path is not None:
        _require_inside(folder.local_path, [folder.local_path / name for name in names])
    return [folder.child(name) for name in names]


def is_data_file(name: str) -> bool:
    """Return whether a file, by its path in a folder, is data; hidden and jobs' files are not."""
    is_hidden = any(component.startswith((".", "_")) for component in name.split("/"))
    return _find_format_by_name(name) is not None and not is_hidden and not is_job_state(name)


def is_job_state(name: str) -> bool:
    """Return whether a path is in a folder with the state of a job, or a report of a selection."""
    *folders, file = name.split("/")
    return file.endswith(SELECTION_SUFFIX) or any(folder.endswith(".job") for folder in folders)


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


def is_saved_dataset(folder: Path) -> bool:
    """Return whether `save_to_disk` wrote the folder."""
    return (folder / _STATE).is_file() or (folder / _DICT).is_file()


def list_saved_files(folder: Path, split: str | None) -> list[str]:
    """Return the files of a saved `Dataset`, or of one split of a saved `DatasetDict`."""
    if (folder / _DICT).is_file():
        splits = _check_names(folder / _DICT, _read_state(folder / _DICT).get("splits", []))
        if split is None and len(splits) == 1:
            split = splits[0]
        if split not in splits:
            given = "no --split" if split is None else f"--split {split}"
            raise JobInputError(
                f"{folder} has the splits {', '.join(splits)}, and {given} is given; choose one of "
                "them by --split"
            )
        paths = list_saved_files(folder / split, None)
        _require_inside(folder, map(Path, paths))  # a split may itself be a link
        return paths
    state = _read_state(folder / _STATE)
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
    _require_inside(folder, files)
    return [str(file) for file in files]


def find_roots(folder: Path) -> list[Path]:
    """Return the folders in which a folder's files have to be after links are resolved.

    Snapshots in the hub's cache may link to the `blobs` folder of the same repository.
    """
    real = Path(os.path.realpath(folder))
    roots = [real]
    for path in (folder.absolute(), real):
        snapshots = next((p for p in (path, *path.parents) if p.parent.name == "snapshots"), None)
        if snapshots and snapshots.parent.parent.name.startswith(("datasets--", "models--")):
            roots.append(Path(os.path.realpath(snapshots.parent.parent / "blobs")))
    return roots


def _require_inside(folder: Path, files: Iterable[Path]) -> None:
    """Check that all files of a folder are in it after links are resolved."""
    roots = find_roots(folder)
    for file in files:
        target = Path(os.path.realpath(file))
        if not any(target.is_relative_to(root) for root in roots):
            raise JobInputError(
                f"{file} is a link to {target}, outside {folder}; copy the file into the folder, "
                "or give the link itself or a glob as the input, where links are followed"
            )


def _check_names(file: Path, values: Any) -> list[str]:
    names: list[str] = values if isinstance(values, list) else [values]
    for value in names:
        is_plain = isinstance(value, str) and value not in ("", ".", "..")
        if not is_plain or set(value) & set("/\\\0"):
            raise JobInputError(
                f"{file} names {quote(value)}, and only names of files and folders in the "
                "same folder are read; save the dataset again with save_to_disk"
            )
    return names


def _read_state(path: Path) -> dict[str, Any]:
    _require_inside(path.parent, [path])
    try:
        content = json.loads(read_regular_file(path, _MAX_STATE_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        raise JobInputError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise JobInputError(f"{path} is not a JSON object")
    return content


def fetch_dataset(address: str, split: str | None) -> tuple[str, list[str]]:
    """Download the files of `hf://datasets/ORG/NAME[@REV][/PATH]` to the hub's cache.

    Returns:
        The address with the commit in it, and the files in the order of reading.
    """
    match = _HUB_ADDRESS.fullmatch(address.rstrip("/"))
    if match is None:
        raise JobInputError(
            f"{address} is not a dataset of the hub; write hf://datasets/ORG/NAME, with @REVISION "
            "and /PATH or /GLOB if needed"
        )
    repo, revision, path = match["repo"], match["revision"], match["path"]
    if path is None:
        patterns = [f"*{suffix}" for suffix in SUFFIXES]
    else:
        patterns = [path, path.replace("**/", ""), f"{path}/*"]
    narrow = split is not None and path is None
    # Do not download other splits.
    wanted = [f"*{split}{pattern}" for pattern in patterns] if narrow else patterns
    folder = _download(repo, revision.replace("%2F", "/") if revision else None, wanted)
    names = [
        name
        for name in LocalFile(folder).list_files()
        if is_data_file(name) and any(fnmatch.fnmatch(name, pattern) for pattern in patterns)
    ]
    name = f"hf://datasets/{repo}@{folder.name}" + (f"/{path}" if path else "")
    if split is None and path is None and len(splits := find_splits(names)) > 1:
        raise JobInputError(f"{name} has the splits {', '.join(splits)}; choose one by --split")
    if split is not None:
        names = select_split(names, split)
    if not names:
        raise JobInputError(
            f"{name} has no files to score"
            + (f" of a split {split!r}" if split else "")
            + f"; file names must end in one of {', '.join(SUFFIXES)}: check the files on the hub, "
            "and name a path or a glob"
        )
    _require_inside(folder, [folder / name for name in names])
    return name, [str(folder / name) for name in names]


def _download(repo: str, revision: str | None, patterns: list[str]) -> Path:
    from huggingface_hub import constants, snapshot_download

    try:
        return Path(
            snapshot_download(
                repo,
                repo_type="dataset",
                revision=revision,
                allow_patterns=patterns,
                # huggingface-hub 1.33 asks the hub for the files of a commit even when offline.
                local_files_only=constants.HF_HUB_OFFLINE,
            )
        )
    # The hub's client raises errors of several libraries; all mean that the download failed.
    except Exception as error:
        at_revision = f" at revision {revision!r}" if revision else ""
        reason = str(error).splitlines()[0] if str(error) else "no reason"
        raise JobInputError(
            f"the dataset {repo!r} could not be downloaded from the hub{at_revision}: "
            f"{type(error).__name__}: {reason}; check the name, the revision, the network and "
            "HF_TOKEN, or give a local folder"
        ) from error

"""Fetch datasets of the Hugging Face hub, named by `hf://datasets/ORG/NAME[@REV][/PATH]`."""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass
from pathlib import Path

from serve.errors import JobInputError
from serve.jobs.inputs.formats import SUFFIXES, find_splits, is_data_file, select_split
from serve.jobs.inputs.paths import require_inside

HUB_PREFIX = "hf://"
_ADDRESS = re.compile(
    r"hf://datasets/(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>refs/(?:convert|pr)/\w+|[^/]+))?"
    r"(?:/(?P<path>.+))?"
)


@dataclass(frozen=True, slots=True)
class HubFiles:
    """Downloaded files of a dataset.

    Attributes:
        name: address of the dataset with the commit in it.
        paths: files in the order of reading.
    """

    name: str
    paths: list[Path]


def fetch_dataset(address: str, split: str | None) -> HubFiles:
    """Download the files of an address to the hub's cache.

    Raises:
        JobInputError: the address is invalid, no file matches, or a split must be chosen.
    """
    match = _ADDRESS.fullmatch(address.rstrip("/"))
    if match is None:
        raise JobInputError(
            f"{address} is not a dataset of the hub; write hf://datasets/ORG/NAME, with @REVISION "
            "and /PATH or /GLOB if needed"
        )
    repo, revision, path = match["repo"], match["revision"], match["path"]
    patterns = _patterns(path)
    revision = revision.replace("%2F", "/") if revision else None
    folder = _download(repo, revision, _narrow_patterns(patterns, split, path))
    all_names = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*"))
    names = [
        name
        for name in all_names
        if is_data_file(name) and any(fnmatch.fnmatch(name, pattern) for pattern in patterns)
    ]
    names = [name for name in names if (folder / name).is_file()]
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
    require_inside(folder, [folder / name for name in names])
    return HubFiles(name, [folder / name for name in names])


def _patterns(path: str | None) -> list[str]:
    if path is None:
        return [f"*{suffix}" for suffix in SUFFIXES]
    return [path, path.replace("**/", ""), f"{path}/*"]


def _narrow_patterns(patterns: list[str], split: str | None, path: str | None) -> list[str]:
    # Do not download other splits.
    if split is None or path is not None:
        return patterns
    return [f"*{split}{pattern}" for pattern in patterns]


def _download(repo: str, revision: str | None, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(repo, repo_type="dataset", revision=revision, allow_patterns=patterns)
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

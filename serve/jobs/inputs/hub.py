"""Data sets of the Hugging Face hub: what `hf://datasets/ORG/NAME[@REV][/PATH]` names, fetched."""

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
    """Files of a data set, here now.

    Attributes:
        name: the address with the commit in it.
        paths: in order.
    """

    name: str
    paths: list[Path]


def fetch_dataset(address: str, split: str | None) -> HubFiles:
    """Bring the files that an address names onto this machine, through the hub's own cache.

    Raises:
        JobInputError: no such address, no such files, or a split is to be chosen.
    """
    parts = _ADDRESS.fullmatch(address.rstrip("/"))
    if parts is None:
        raise JobInputError(
            f"{address} is no data set of the hub; write hf://datasets/ORG/NAME, with @REVISION "
            "and /PATH or /GLOB if needed"
        )
    repo, revision, path = parts["repo"], parts["revision"], parts["path"]
    patterns = _patterns(path)
    revision = revision.replace("%2F", "/") if revision else None
    folder = _download(repo, revision, _narrow_patterns(patterns, split, path))
    every = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*"))
    names = [n for n in every if is_data_file(n) and any(fnmatch.fnmatch(n, p) for p in patterns)]
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
            + f"; it must have some of {', '.join(SUFFIXES)}: look at its files on the hub, and "
            "name a path or a glob"
        )
    require_inside(folder, [folder / name for name in names])
    return HubFiles(name, [folder / name for name in names])


def _patterns(path: str | None) -> list[str]:
    if path is None:
        return [f"*{suffix}" for suffix in SUFFIXES]
    return [path, path.replace("**/", ""), f"{path}/*"]


def _narrow_patterns(patterns: list[str], split: str | None, path: str | None) -> list[str]:
    # Other splits need not be fetched.
    if split is None or path is not None:
        return patterns
    return [f"*{split}{pattern}" for pattern in patterns]


def _download(repo: str, revision: str | None, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(repo, repo_type="dataset", revision=revision, allow_patterns=patterns)
        )
    # The hub's client raises errors of several libraries; all mean that nothing was fetched.
    except Exception as error:
        at = f" at revision {revision!r}" if revision else ""
        reason = str(error).splitlines()[0] if str(error) else "no reason"
        raise JobInputError(
            f"the data set {repo!r} could not be fetched from the hub{at}: "
            f"{type(error).__name__}: {reason}; check the name, the revision, the network and "
            "HF_TOKEN, or give a local folder"
        ) from error

"""What an INPUT of the command line names: file, folder, glob, `datasets` folder, or the hub."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from serve.errors import JobInputError
from serve.jobs.inputs.files import FileSource
from serve.jobs.inputs.formats import (
    SUFFIXES,
    detect_format,
    find_splits,
    is_data_file,
    is_job_state,
    select_split,
)
from serve.jobs.inputs.hf_saved import is_saved_dataset, list_saved_files
from serve.jobs.inputs.hub import HUB_PREFIX, fetch_dataset
from serve.jobs.inputs.paths import require_inside
from serve.jobs.inputs.source import FileFormat, InputFile
from serve.jobs.inputs.tabular import read_arrow_schema, read_parquet_schema


def open_source(name: str, *, split: str | None = None, exclude: Path | None = None) -> FileSource:
    """The input that NAME means.

    Args:
        name: path of a file or folder, a glob, or `hf://datasets/ORG/NAME[@REV][/PATH or GLOB]`.
        split: which split of a folder, a saved `datasets` set or a hub repository.
        without: a file or a folder that is not of the input, though it may be in its folder: the
            output.

    Raises:
        JobInputError: nothing there, several kinds, an unknown kind, or a split is to be chosen.
    """
    if name == "-":
        raise JobInputError(
            "a job reads its input twice, and again when it goes on, so it cannot be standard "
            "input; save it to a file"
        )
    if name.startswith(HUB_PREFIX):
        fetched = fetch_dataset(name, split)
        return _build_source(fetched.name, fetched.paths)
    path = Path(name)
    if path.is_dir():
        paths = (
            list_saved_files(path, split)
            if is_saved_dataset(path)
            else _list_folder(path, split, exclude)
        )
        return _build_source(str(path.absolute()), paths)
    if split is not None:
        raise JobInputError(
            f"--split chooses among the files of a folder or of the hub, and {name} is no folder; "
            "leave it out"
        )
    if path.exists():
        return _build_source(str(path.absolute()), [path])
    if glob.has_magic(name):
        found = sorted(glob.glob(name, recursive=True))
        every = [
            one
            for one in found
            if os.path.isfile(one) and not is_job_state(one) and not _is_inside(Path(one), exclude)
        ]
        if not every:
            raise JobInputError(f"no file matches {name}")
        return _build_source(os.path.abspath(name), [Path(one) for one in every])
    raise JobInputError(f"there is no file or folder {name}")


def _is_inside(path: Path, other: Path | None) -> bool:
    return other is not None and path.resolve().is_relative_to(other.resolve())


def _list_folder(folder: Path, split: str | None, exclude: Path | None) -> list[Path]:
    every = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if not _is_inside(path, exclude)
    )
    names = [name for name in every if is_data_file(name) and (folder / name).is_file()]
    if split is not None:
        there = ", ".join(find_splits(names)) or "none that names of files tell"
        names = select_split(names, split)
        if not names:
            raise JobInputError(f"{folder} has no files of a split {split!r}; it has {there}")
    if not names:
        raise JobInputError(
            f"{folder} has no files to score; it must have some of {', '.join(SUFFIXES)}"
        )
    require_inside(folder, [folder / name for name in names])
    return [folder / name for name in names]


def _build_source(name: str, paths: Sequence[Path]) -> FileSource:
    kinds: dict[FileFormat, Path] = {}
    for path in paths:
        kinds.setdefault(detect_format(path), path)
    if len(kinds) != 1:
        examples = " and ".join(f"{kind} ({path})" for kind, path in kinds.items())
        raise JobInputError(
            f"{name} has files of several kinds: {examples}; choose one by a glob, such as "
            "'FOLDER/*.parquet'"
            if kinds
            else f"{name} has no files"
        )
    (kind,) = kinds
    files = []
    for path in paths:
        stat = path.stat()
        files.append(InputFile(path.absolute(), stat.st_size, stat.st_mtime_ns))
    return FileSource(name, kind, tuple(files), _schema(kind, paths))


def _schema(kind: FileFormat, paths: Sequence[Path]) -> pa.Schema | None:
    if kind == "jsonl":
        return None
    read = read_parquet_schema if kind == "parquet" else read_arrow_schema
    schema = read(paths[0])
    for path in paths[1:]:
        try:
            schema = pa.unify_schemas([schema, read(path)], promote_options="permissive")
        except pa.ArrowException as error:
            raise JobInputError(
                f"the columns of {path} do not go with those of {paths[0]}: {error}; score them "
                "apart, or write both with the same types"
            ) from error
    if len(set(schema.names)) < len(schema.names):
        raise JobInputError(f"{paths[0]} has two columns of one name; rename one")
    return schema

"""Find the files of INPUT: a file, a folder, a glob, a `datasets` folder, or a hub dataset."""

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
    """Open the input that `name` means.

    Args:
        name: path of a file or folder, a glob, or `hf://datasets/ORG/NAME[@REV][/PATH or GLOB]`.
        split: split of a folder, of a saved `datasets` folder or of a hub dataset.
        exclude: file or folder that does not belong to the input even if it is in its folder, such
            as the output.

    Raises:
        JobInputError: no file matches, the files have several formats or an unknown one, or a split
            must be chosen.
    """
    if name == "-":
        raise JobInputError(
            "a job reads its input twice, and again when it resumes, so the input cannot be "
            "standard input; save it to a file"
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
            f"--split chooses among the files of a folder or of the hub, and {name} is not a "
            "folder; leave --split out"
        )
    if path.exists():
        return _build_source(str(path.absolute()), [path])
    if glob.has_magic(name):
        found = sorted(glob.glob(name, recursive=True))
        files = [
            file
            for file in found
            if os.path.isfile(file)
            and not is_job_state(file)
            and not _is_inside(Path(file), exclude)
        ]
        if not files:
            raise JobInputError(f"no file matches {name}")
        return _build_source(os.path.abspath(name), [Path(file) for file in files])
    raise JobInputError(f"the file or folder {name} does not exist")


def _is_inside(path: Path, other: Path | None) -> bool:
    return other is not None and path.resolve().is_relative_to(other.resolve())


def _list_folder(folder: Path, split: str | None, exclude: Path | None) -> list[Path]:
    all_names = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if not _is_inside(path, exclude)
    )
    names = [name for name in all_names if is_data_file(name) and (folder / name).is_file()]
    if split is not None:
        splits = ", ".join(find_splits(names)) or "no splits in names of files"
        names = select_split(names, split)
        if not names:
            raise JobInputError(f"{folder} has no files of a split {split!r}; it has {splits}")
    if not names:
        raise JobInputError(
            f"{folder} has no files to score; file names must end in one of {', '.join(SUFFIXES)}"
        )
    require_inside(folder, [folder / name for name in names])
    return [folder / name for name in names]


def _build_source(name: str, paths: Sequence[Path]) -> FileSource:
    formats: dict[FileFormat, Path] = {}
    for path in paths:
        formats.setdefault(detect_format(path), path)
    if len(formats) != 1:
        examples = " and ".join(f"{format_} ({path})" for format_, path in formats.items())
        raise JobInputError(
            f"{name} has files of several formats: {examples}; choose one format by a glob, such "
            "as 'FOLDER/*.parquet'"
            if formats
            else f"{name} has no files"
        )
    (format_,) = formats
    files = []
    for path in paths:
        stat = path.stat()
        files.append(InputFile(path.absolute(), stat.st_size, stat.st_mtime_ns))
    return FileSource(name, format_, tuple(files), _schema(format_, paths))


def _schema(format_: FileFormat, paths: Sequence[Path]) -> pa.Schema | None:
    if format_ == "jsonl":
        return None
    read = read_parquet_schema if format_ == "parquet" else read_arrow_schema
    schema = read(paths[0])
    for path in paths[1:]:
        try:
            schema = pa.unify_schemas([schema, read(path)], promote_options="permissive")
        except pa.ArrowException as error:
            raise JobInputError(
                f"the columns of {path} do not match the columns of {paths[0]}: {error}; score the "
                "files separately, or write both with the same types"
            ) from error
    if len(set(schema.names)) < len(schema.names):
        raise JobInputError(f"{paths[0]} has two columns with the same name; rename one of them")
    return schema

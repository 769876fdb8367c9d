"""A job's input: files of one format whose rows are read in order, from any row.

An input does not know conversations; `serve.jobs.record_reader` finds what to score in a row.
"""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from serve.errors import JobInputError
from serve.jobs.inputs.folders import (
    HUB_PREFIX,
    FileFormat,
    detect_format,
    fetch_dataset,
    is_job_state,
    is_saved_dataset,
    list_data_files,
    list_saved_files,
)
from serve.jobs.inputs.json_rows import read_json
from serve.jobs.inputs.rows import DecodeFilter, FileRange, FileRows, Row
from serve.jobs.inputs.storage import (
    InputFile,
    expand_glob,
    is_folder,
    is_remote,
    measure_file,
)
from serve.jobs.inputs.tabular import read_arrow, read_parquet, read_table_schema

_READERS: Mapping[FileFormat, Callable[[FileRange, DecodeFilter], FileRows]] = {
    "jsonl": read_json,
    "parquet": read_parquet,
    "arrow": read_arrow,
}


@dataclass(frozen=True, slots=True)
class FileSource:
    """The files of an input. Reading again gives the same rows as long as they are unchanged.

    Attributes:
        name: INPUT as given, with the commit for the hub; for messages and for the state of a job.
        format: format of all files.
        files: files in the order of reading.
        schema: columns of all files together; None for JSON.
    """

    name: str
    format: FileFormat
    files: tuple[InputFile, ...]
    schema: pa.Schema | None = None

    def iter_rows(self, first_row: int = 0, *, decode: bool = True) -> Iterator[Row]:
        """Yield the rows from `first_row` on; those before it are skipped without decoding them.

        `decode=False` leaves `Row.record` None, which is faster if only sizes or `cells` matter.

        Raises:
            JobInputError: a file is damaged, or the input has fewer than `first_row` rows.
        """
        number = 0
        for file in range(len(self.files)):
            number = yield from self.iter_file_rows(file, number, first_row, decode=decode)
        if number < first_row:
            raise JobInputError(
                f"{self.name} has {number:,} rows and is shorter than when the job began; restore "
                "the input, or start over with --overwrite"
            )

    def iter_file_rows(
        self, file: int, start: int, first_row: int = 0, *, decode: DecodeFilter = True
    ) -> FileRows:
        """Yield the rows of one file; the generator returns the number of the row after them.

        Args:
            file: index of the file.
            start: number of the file's first row.
            first_row: number of the first row to yield.
            decode: see `iter_rows`; or a function that is called with the bytes of each JSON row
                that is not too long, and returns whether to decode it. Tables are not decoded then.
        """
        rows = FileRange(self.files[file].path, file, start, first_row)
        return _READERS[self.format](rows, decode)

    def read_file_schema(self, file: int) -> pa.Schema | None:
        """Return the columns of the file at an index; None for JSON."""
        return self.schema and _read_schema(self.format, self.files[file].path)


def open_source(name: str, *, split: str | None = None, exclude: Path | None = None) -> FileSource:
    """Open the input that `name` means.

    Args:
        name: path of a file or folder, a glob, or `hf://datasets/ORG/NAME[@REV][/PATH or GLOB]`.
        split: split of a folder, of a saved `datasets` folder or of a hub dataset.
        exclude: file or folder that does not belong to the input, such as the output in its folder.

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
        return _build_source(*fetch_dataset(name, split))
    full_name = name if is_remote(name) else str(Path(name).absolute())
    if is_folder(name):
        if not is_remote(name) and is_saved_dataset(Path(name)):
            files = list_saved_files(Path(name), split)
        else:
            files = list_data_files(name, split, lambda path: _is_inside(path, exclude))
        return _build_source(full_name, files)
    if split is not None:
        raise JobInputError(
            f"--split chooses among the files of a folder or of the hub, and {name} is not a "
            "folder; leave --split out"
        )
    if measure_file(name).size >= 0:
        return _build_source(full_name, [name])
    if glob.has_magic(name):
        files = [
            file
            for file in expand_glob(name)
            if not is_job_state(file) and not _is_inside(file, exclude)
        ]
        if not files:
            raise JobInputError(f"no file matches {name}")
        return _build_source(full_name, files)
    raise JobInputError(f"the file or folder {name} does not exist")


def _is_inside(path: str, other: Path | None) -> bool:
    return (
        other is not None
        and not is_remote(path)
        and Path(path).resolve().is_relative_to(other.resolve())
    )


def _build_source(name: str, paths: Sequence[str]) -> FileSource:
    formats: dict[FileFormat, str] = {}
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
    return FileSource(
        name, format_, tuple(map(measure_file, paths)), _merge_schemas(format_, paths)
    )


def _merge_schemas(format_: FileFormat, paths: Sequence[str]) -> pa.Schema | None:
    schema = _read_schema(format_, paths[0])
    if schema is None:
        return None
    for path in paths[1:]:
        try:
            schema = pa.unify_schemas(
                [schema, _read_schema(format_, path)], promote_options="permissive"
            )
        except pa.ArrowException as error:
            raise JobInputError(
                f"the columns of {path} do not match the columns of {paths[0]}: {error}; score the "
                "files separately, or write both with the same types"
            ) from error
    if len(set(schema.names)) < len(schema.names):
        raise JobInputError(f"{paths[0]} has two columns with the same name; rename one of them")
    return schema


def _read_schema(format_: FileFormat, path: str) -> pa.Schema | None:
    if format_ == "jsonl":
        return None
    return read_table_schema(path, is_parquet=format_ == "parquet")

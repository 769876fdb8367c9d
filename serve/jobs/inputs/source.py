"""A job's input: files of one format whose rows are read in order, from any row.

An input does not know conversations; `serve.jobs.record_reader` finds what to score in a row.
"""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
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
from serve.jobs.inputs.tabular import read_arrow, read_parquet, read_table_schema
from serve.jobs.storage import (
    FetchedFiles,
    InputFile,
    LocalFile,
    Location,
    parse_location,
)

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
        fetched: local copies of remote files.
    """

    name: str
    format: FileFormat
    files: tuple[InputFile, ...]
    schema: pa.Schema | None = None
    fetched: FetchedFiles = field(default_factory=FetchedFiles, repr=False, compare=False)

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
        rows = FileRange(self.fetched.fetch(self.files[file]), file, start, first_row)
        return _READERS[self.format](rows, decode)

    def read_file_schema(self, file: int) -> pa.Schema | None:
        """Return the columns of the file at an index; None for JSON."""
        return self.schema and _read_schema(self.format, self.fetched.fetch(self.files[file]))


def open_source(
    name: str,
    *,
    split: str | None = None,
    exclude: Location | None = None,
    fetched: FetchedFiles | None = None,
) -> FileSource:
    """Open the input that `name` means.

    Args:
        name: path or address of a file or folder, or a glob, or
            `hf://datasets/ORG/NAME[@REV][/PATH or GLOB]`.
        split: split of a folder, of a saved `datasets` folder or of a hub dataset.
        exclude: file or folder that does not belong to the input, such as the output in its folder.
        fetched: local copies of remote files; None for copies that this process removes.

    Raises:
        JobInputError: no file matches, the files have several formats or an unknown one, or a split
            must be chosen.
        StorageError: a store cannot be reached.
    """
    if name == "-":
        raise JobInputError(
            "a job reads its input twice, and again when it resumes, so the input cannot be "
            "standard input; save it to a file"
        )
    fetched = fetched or FetchedFiles()
    if name.startswith(HUB_PREFIX):
        address, paths = fetch_dataset(name, split)
        return _build_source(address, [LocalFile(Path(path)) for path in paths], fetched)

    def is_excluded(file: Location) -> bool:
        return exclude is not None and file.is_inside(exclude)

    location = parse_location(name)
    if location.is_folder():
        folder = location.local_path
        if folder is not None and is_saved_dataset(folder):
            saved = list_saved_files(folder, split)
            return _build_source(location.name, [LocalFile(Path(p)) for p in saved], fetched)
        return _build_source(location.name, list_data_files(location, split, is_excluded), fetched)
    if split is not None:
        raise JobInputError(
            f"--split chooses among the files of a folder or of the hub, and {location} is not a "
            "folder; leave --split out"
        )
    if location.measure().exists:
        return _build_source(location.name, [location], fetched)
    if glob.has_magic(name):
        files = [
            file
            for file in location.expand_glob()
            if not is_job_state(file.name) and not is_excluded(file)
        ]
        if not files:
            raise JobInputError(f"no file matches {location}")
        return _build_source(location.name, files, fetched)
    raise JobInputError(f"the file or folder {location} does not exist")


def _build_source(name: str, files: Sequence[Location], fetched: FetchedFiles) -> FileSource:
    formats: dict[FileFormat, Location] = {}
    for file in files:
        formats.setdefault(detect_format(file), file)
    if len(formats) != 1:
        examples = " and ".join(f"{format_} ({file})" for format_, file in formats.items())
        raise JobInputError(
            f"{name} has files of several formats: {examples}; choose one format by a glob, such "
            "as 'FOLDER/*.parquet'"
            if formats
            else f"{name} has no files"
        )
    (format_,) = formats
    measured = tuple(map(InputFile.from_location, files))
    return FileSource(name, format_, measured, _merge_schemas(format_, files), fetched)


def _merge_schemas(format_: FileFormat, files: Sequence[Location]) -> pa.Schema | None:
    schema = _read_schema(format_, files[0])
    if schema is None:
        return None
    for file in files[1:]:
        try:
            schema = pa.unify_schemas(
                [schema, _read_schema(format_, file)], promote_options="permissive"
            )
        except pa.ArrowException as error:
            raise JobInputError(
                f"the columns of {file} do not match the columns of {files[0]}: {error}; score the "
                "files separately, or write both with the same types"
            ) from error
    if len(set(schema.names)) < len(schema.names):
        raise JobInputError(f"{files[0]} has two columns with the same name; rename one of them")
    return schema


def _read_schema(format_: FileFormat, location: Location) -> pa.Schema | None:
    if format_ == "jsonl":
        return None
    return read_table_schema(location, is_parquet=format_ == "parquet")

"""An input of several files of the same format, read one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from serve.jobs.inputs.io import Watcher
from serve.jobs.inputs.json_array import is_array, read_array
from serve.jobs.inputs.jsonl import read_lines
from serve.jobs.inputs.source import START, DecodeFilter, FileFormat, InputFile, Position, Row
from serve.jobs.inputs.tabular import (
    read_arrow,
    read_arrow_schema,
    read_parquet,
    read_parquet_schema,
)


def _read_json(
    path: Path, start: Position, *, decode: DecodeFilter, watch: Watcher | None
) -> Iterator[Row]:
    # `.json` files in use have either one array, or one record per line.
    is_json = path.name.lower().removesuffix(".gz").endswith(".json")
    read = read_array if is_json and is_array(path) else read_lines
    return read(path, start, decode=decode, watch=watch)


_READERS: Mapping[FileFormat, Callable[..., Iterator[Row]]] = {
    "jsonl": _read_json,
    "parquet": read_parquet,
    "arrow": read_arrow,
}


@dataclass(frozen=True, slots=True)
class FileSource:
    """A `Source` of files.

    Attributes:
        name: name of the input, for messages and for the manifest.
        format: format of all files.
        files: files in the order of reading.
        schema: columns of all files together; None for JSON.
    """

    name: str
    format: FileFormat
    files: tuple[InputFile, ...]
    schema: pa.Schema | None = None

    def iter_rows(self, start: Position = START, *, decode: bool = True) -> Iterator[Row]:
        """See `Source.iter_rows`."""
        for file in range(start.file, len(self.files)):
            for row in self.iter_file_rows(start, decode=decode):
                start = row.next_position
                yield row
            start = Position(file + 1, 0, start.row)

    def iter_file_rows(
        self, start: Position, *, decode: DecodeFilter = True, watch: Watcher | None = None
    ) -> Iterator[Row]:
        """Yield the rows of the file that `start` is in.

        Args:
            start: position of the first row.
            decode: see `Source.iter_rows`; or a function that is called with the bytes of each JSON
                row that is not too long, and returns whether to decode it. Tables are not decoded
                then.
            watch: receives every byte of the file once, in order; for text, as far as it is read.
        """
        reader = _READERS[self.format]
        return reader(self.files[start.file].path, start, decode=decode, watch=watch)

    def read_file_schema(self, file: int) -> pa.Schema | None:
        """Return the columns of one file; None for JSON.

        Args:
            file: index into `files`.
        """
        if self.schema is None:
            return None
        read = read_parquet_schema if self.format == "parquet" else read_arrow_schema
        return read(self.files[file].path)

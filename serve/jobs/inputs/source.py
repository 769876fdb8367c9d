"""The interface of a job's input: rows in order, from any position.

An input does not know conversations; `serve.jobs.record_schema` finds what to score in a row. Each
file format has its own reader; this module has what the readers share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

import pyarrow as pa

FileFormat = Literal["jsonl", "parquet", "arrow"]
Cells = tuple[pa.RecordBatch, int]
"""A row in Arrow: the batch and the row's index in the batch."""

DecodeFilter: TypeAlias = bool | Callable[[bytes], bool]
"""Whether to decode rows; a function decides for each JSON row, from the row's bytes."""


class Position(NamedTuple):
    """A position between two rows; JSON stores it as a list, `Position(*value)` restores it.

    Attributes:
        file: index into the source's files.
        offset: offset of the next row in the file: uncompressed bytes of text, rows of a table.
        row: number of rows before the position, over the whole input.
    """

    file: int
    offset: int
    row: int


START = Position(0, 0, 0)


class Row(NamedTuple):
    """One row of the input.

    Attributes:
        number: number of the row, from 0 over the whole input.
        size: size of the row in the input, in bytes; independent of where reading began.
        record: columns of the row; a `ScoreError` for a line that is not JSON; any other JSON value
            unchanged; None if the row was not decoded.
        raw: text of a line that is not JSON.
        file: index of the row's file.
        end: offset of the next row in that file, as `Position.offset`.
        cells: the row in Arrow, with exact types; None for JSON.
    """

    number: int
    size: int
    record: Any
    raw: str | None
    file: int
    end: int
    cells: Cells | None = None

    @property
    def next_position(self) -> Position:
        """Position after this row."""
        return Position(self.file, self.end, self.number + 1)


@dataclass(frozen=True, slots=True)
class InputFile:
    """A file of the input as it was when the source was opened.

    Attributes:
        path: absolute path.
        size: size in bytes.
        mtime_ns: modification time in nanoseconds.
    """

    path: Path
    size: int
    mtime_ns: int


class Source(Protocol):
    """A job's input. Reading again gives the same rows as long as the files are unchanged."""

    @property
    def name(self) -> str:
        """Name for messages and for the manifest: INPUT as given, with the commit for the hub."""

    @property
    def format(self) -> FileFormat:
        """Format of all files."""

    @property
    def files(self) -> Sequence[InputFile]:
        """Files in the order of reading."""

    @property
    def schema(self) -> pa.Schema | None:
        """Columns of all files together; None for JSON."""

    def iter_rows(self, start: Position = START, *, decode: bool = True) -> Iterator[Row]:
        """Yield rows from a position on.

        Args:
            start: a `Row.next_position` of the same input.
            decode: False leaves `Row.record` None, which is faster if only sizes or `cells` matter.

        Raises:
            JobInputError: a file is damaged, or shorter than the position.
        """

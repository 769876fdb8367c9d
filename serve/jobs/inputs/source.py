"""The rows of a job's input, in order, from any place in it.

Knows no conversations: what is to be scored in a row is for `serve.jobs.record_schema`. Each kind
of file has a reader of its own; this file holds what they share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

import pyarrow as pa

FileFormat = Literal["jsonl", "parquet", "arrow"]
Cells = tuple[pa.RecordBatch, int]
"""A row as Arrow has it: the batch and the row's index in it."""

DecodeFilter: TypeAlias = bool | Callable[[bytes], bool]
"""Whether to decode rows; a function is called with the text of each row of JSON and decides."""


class Position(NamedTuple):
    """A place between two rows; plain JSON as a list, back by `Position(*value)`.

    Attributes:
        file: index into the source's files.
        offset: where the next row begins in it: uncompressed bytes of text, rows of a table.
        row: number of rows before it, over the whole input.
    """

    file: int
    offset: int
    row: int


START = Position(0, 0, 0)


class Row(NamedTuple):
    """One row of the input.

    Attributes:
        number: from 0 over the whole input.
        size: bytes of input that it takes; the same wherever reading began.
        record: its columns; a `ScoreError` for a line that is no JSON; any other JSON value as
            it is; None where the reader was asked not to decode.
        raw: the text of a line that is no JSON.
        file: index of its file.
        end: where the next row begins in that file, as `Position.offset`.
        cells: the same as Arrow has it, types exact; None for JSON.
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
        """Where to go on after this row."""
        return Position(self.file, self.end, self.number + 1)


@dataclass(frozen=True, slots=True)
class InputFile:
    """A file of the input as it was when the source was opened.

    Attributes:
        path: absolute.
        size: bytes.
        mtime_ns: of its last change.
    """

    path: Path
    size: int
    mtime_ns: int


class Source(Protocol):
    """A job's input. Reading again gives the same rows for as long as the files are the same."""

    @property
    def name(self) -> str:
        """What to pin and to show: as it was named, for the hub with the commit."""

    @property
    def format(self) -> FileFormat:
        """Of all its files."""

    @property
    def files(self) -> Sequence[InputFile]:
        """In the order they are read."""

    @property
    def schema(self) -> pa.Schema | None:
        """Columns of all files together; None for JSON."""

    def iter_rows(self, start: Position = START, *, decode: bool = True) -> Iterator[Row]:
        """Rows from a position on.

        Args:
            start: from `Row.next_position` of the same input.
            decoded: False leaves `Row.record` None: faster where only sizes or `cells` matter.

        Raises:
            JobInputError: a file is damaged, or shorter than the position.
        """

"""Rows of an input, as the readers of all formats give them."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, NamedTuple, TypeAlias

import pyarrow as pa

from serve.jobs.storage import Location

Cells: TypeAlias = tuple[pa.RecordBatch, int]
"""A row in Arrow: the batch and the row's index in the batch."""

DecodeFilter: TypeAlias = bool | Callable[[bytes], bool]
"""Whether to decode rows; a function decides for each JSON row, from the row's bytes."""


class Row(NamedTuple):
    """One row of the input.

    Attributes:
        number: number of the row, from 0 over the whole input.
        size: size of the row in bytes; independent of where reading began.
        record: columns of the row; a `ScoreError` for a line that is not JSON; any other JSON value
            unchanged; None if the row was not decoded.
        raw: text of a line that is not JSON.
        file: index of the row's file.
        cells: the row in Arrow, with exact types; None for JSON.
    """

    number: int
    size: int
    record: Any
    raw: str | None
    file: int
    cells: Cells | None = None

    @property
    def content(self) -> Any:
        """The record, or the text of a row that cannot be read."""
        return self.record if self.raw is None else self.raw


class FileRange(NamedTuple):
    """The rows to read of one file.

    Attributes:
        location: the file, or a local copy of it with the same name.
        file: index of the file in the input.
        start: number of the file's first row in the input.
        first_row: number of the first row to yield in the input.
    """

    location: Location
    file: int = 0
    start: int = 0
    first_row: int = 0


FileRows: TypeAlias = Generator[Row, None, int]
"""Rows of one file; the generator returns the number of the row after the file's last row."""

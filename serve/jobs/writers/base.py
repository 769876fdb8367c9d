"""Rows with their rewards into OUTPUT; which format is decided by its name.

Equal rows and results give equal bytes. Naming the file, fsync and rename are the caller's.
"""

from __future__ import annotations

from collections import Counter
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Protocol

from serve.errors import JobOutputError
from serve.jobs.inputs.scan import InputScan
from serve.jobs.inputs.source import Row
from serve.jobs.row_results import RowOutput
from serve.jobs.writers.jsonl import JsonlWriter
from serve.jobs.writers.parquet import ParquetWriter

_PARQUET_SUFFIXES = (".parquet", ".pq")
_GZIP_SUFFIX = ".gz"
_UNSUPPORTED_SUFFIXES = (".json", ".csv", ".tsv", ".arrow", ".zst", ".xz", ".bz2", ".zip", ".xlsx")


class Writer(Protocol):
    """Takes rows in order.

    Attributes:
        nulled: values that the format cannot hold and that are null in the output, by column.
    """

    null_counts: Counter[str]

    def write(self, row: Row, output: RowOutput) -> None:
        """Append one row with what became of it; see `serve.jobs.row_results.build_row_output`."""


def is_tabular(output: Path) -> bool:
    """Whether OUTPUT's name asks for a table, which needs `survey(..., tabular=True)`.

    Raises:
        JobOutputError: a name that asks for what is not written, such as `.csv`.
    """
    suffix = output.suffix.lower()
    if suffix in _UNSUPPORTED_SUFFIXES:
        raise JobOutputError(
            f"{output} has a name that ends in {suffix}, which is not written; let it end in "
            ".jsonl, .jsonl.gz or .parquet"
        )
    return suffix in _PARQUET_SUFFIXES


def open_writer(output: Path, file: IO[bytes], scan: InputScan) -> AbstractContextManager[Writer]:
    """A writer of the format that OUTPUT's name asks for.

    Leaving the context finishes the format; leaving it with an error does not. FILE stays open.

    Args:
        output: decides the format.
        file: where the bytes go; written from its beginning.
        survey: of the input; its schema and shapes decide the columns of a table.

    Raises:
        JobOutputError: as for `is_tabular`.
    """
    if is_tabular(output):
        assert scan.schema is not None, "the survey of a table's input has a schema"
        return ParquetWriter(file, scan.schema, scan.kinds, scan.names)
    packed = output.suffix.lower() == _GZIP_SUFFIX
    return JsonlWriter(file, compress=packed, names=scan.names)

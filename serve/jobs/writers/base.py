"""Write rows with their rewards to OUTPUT; its name decides the format.

Equal rows and results give equal bytes. The caller names, syncs and renames the file.
"""

from __future__ import annotations

from collections import Counter
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Protocol

from serve.errors import JobOutputError
from serve.jobs.inputs.rows import Row
from serve.jobs.inputs.scan import InputScan
from serve.jobs.row_results import RowOutput
from serve.jobs.writers.jsonl import JsonlWriter
from serve.jobs.writers.parquet import ParquetWriter

_PARQUET_SUFFIXES = (".parquet", ".pq")
_GZIP_SUFFIX = ".gz"
_UNSUPPORTED_SUFFIXES = (".json", ".csv", ".tsv", ".arrow", ".zst", ".xz", ".bz2", ".zip", ".xlsx")


class Writer(Protocol):
    """Writes rows in order.

    Attributes:
        null_counts: number of values per column that the format cannot hold and that are null in
            the output.
    """

    null_counts: Counter[str]

    def write(self, row: Row, output: RowOutput) -> None:
        """Append one row with its results; see `serve.jobs.row_results.build_row_output`."""


def is_tabular(output: Path) -> bool:
    """Return whether OUTPUT is a table, which needs `scan_input(..., tabular=True)`.

    Raises:
        JobOutputError: the name asks for a format that cannot be written, such as `.csv`.
    """
    suffix = output.suffix.lower()
    if suffix in _UNSUPPORTED_SUFFIXES:
        raise JobOutputError(
            f"{output} ends in {suffix}, a format that cannot be written; use a name that ends in "
            ".jsonl, .jsonl.gz or .parquet"
        )
    return suffix in _PARQUET_SUFFIXES


def open_writer(output: Path, file: IO[bytes], scan: InputScan) -> AbstractContextManager[Writer]:
    """Open a writer for the format of OUTPUT.

    Leaving the context finishes the file format, except after an error. `file` stays open.

    Args:
        output: path whose name decides the format.
        file: file to write, from its beginning.
        scan: scan of the input; its schema and record kinds decide the columns of a table.

    Raises:
        JobOutputError: see `is_tabular`.
    """
    if is_tabular(output):
        assert scan.schema is not None, "the scan for a table has a schema"
        return ParquetWriter(file, scan.schema, scan.kinds, scan.names)
    is_compressed = output.suffix.lower() == _GZIP_SUFFIX
    return JsonlWriter(file, compress=is_compressed, names=scan.names)

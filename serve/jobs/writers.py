"""Write rows with their rewards to OUTPUT: JSON lines, plain or compressed, or Parquet.

The name of OUTPUT decides the format. Equal rows and results give equal bytes. The caller names,
syncs and renames the file.
"""

from __future__ import annotations

import base64
import datetime
import decimal
import gzip
import io
import itertools
import json
import math
import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from serve.errors import JobOutputError
from serve.jobs.columns import RecordKind
from serve.jobs.inputs.rows import Row
from serve.jobs.inputs.scan import RESULTS_METADATA_KEY, InputScan
from serve.jobs.output import Output
from serve.jobs.row_results import ResultNames, list_result_columns, merge_record

_PARQUET_SUFFIXES = (".parquet", ".pq")
_GZIP_SUFFIX = ".gz"
_UNSUPPORTED_SUFFIXES = (".json", ".csv", ".tsv", ".arrow", ".zst", ".xz", ".bz2", ".zip", ".xlsx")
# Rows become Arrow in small batches, and batches become row groups of a size that readers like.
_GATHERED_ROWS, _GATHERED_BYTES = 1024, 4 << 20
_GROUP_ROWS, _GROUP_BYTES = 100_000, 64 << 20
_ERROR = pa.struct([("code", pa.string()), ("message", pa.string())])
_NUMBERS = pa.list_(pa.float64())
# The difference of two float32 is exact only in float64, as in JSON output.
_TYPES = {
    "reward": pa.float64(),
    "chosen_reward": pa.float64(),
    "rejected_reward": pa.float64(),
    "margin": pa.float64(),
    "rewards": _NUMBERS,
    "step_rewards": _NUMBERS,
    "chosen_step_rewards": _NUMBERS,
    "rejected_step_rewards": _NUMBERS,
    "responses_step_rewards": pa.list_(_NUMBERS),
    "probability": pa.float64(),
    "orders": pa.list_(pa.struct([("log_odds", pa.float64()), ("label_mass", pa.float64())])),
    "consistent": pa.bool_(),
    "error": _ERROR,
    "truncated": pa.bool_(),
    "warnings": pa.list_(pa.string()),
}
# The rewards of a classifier are float32; those of other models are computed from several outputs.
_CLASSIFIER_TYPES = {
    "reward": pa.float32(),
    "chosen_reward": pa.float32(),
    "rejected_reward": pa.float32(),
    "rewards": pa.list_(pa.float32()),
}


def is_tabular(output: Path | Output) -> bool:
    """Return whether OUTPUT is a table, which needs `scan_input(..., tabular=True)`.

    Raises:
        JobOutputError: the name asks for a format that cannot be written, such as `.csv`.
    """
    suffix = _get_suffix(output)
    if suffix in _UNSUPPORTED_SUFFIXES:
        raise JobOutputError(
            f"{output} ends in {suffix}, a format that cannot be written; use a name that ends in "
            ".jsonl, .jsonl.gz or .parquet"
        )
    return suffix in _PARQUET_SUFFIXES


def open_writer(output: Path | Output, file: IO[bytes], scan: InputScan) -> Writer:
    """Open a writer for the format that the name of OUTPUT decides.

    Args:
        output: OUTPUT, whose name decides the format.
        file: file to write, from its beginning.
        scan: scan of the input; its schema and record kinds decide the columns of a table.
    """
    if is_tabular(output):
        assert scan.schema is not None, "the scan for a table has a schema"
        return ParquetWriter(file, scan.names, scan.schema, scan.kinds)
    is_compressed = _get_suffix(output) == _GZIP_SUFFIX
    return JsonlWriter(file, scan.names, compress=is_compressed)


def open_plain_writer(output: Path | Output, file: IO[bytes], schema: pa.Schema | None) -> Writer:
    """Open a writer of rows that have no result columns.

    Args:
        output: OUTPUT, whose name decides the format.
        file: file to write, from its beginning.
        schema: columns of the rows; needed if OUTPUT is a table.
    """
    if is_tabular(output):
        assert schema is not None, "a table has a schema"
        return ParquetWriter(file, ResultNames(), schema, None)
    return JsonlWriter(file, ResultNames(), compress=_get_suffix(output) == _GZIP_SUFFIX)


def _get_suffix(output: Path | Output) -> str:
    return os.path.splitext(str(output))[1].lower()


class AbortableFile(io.RawIOBase):
    """Forwards bytes to a file until `abort`, and discards them afterwards; the file stays open.

    Libraries finish their format even when they are freed, also after an error.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file: IO[bytes] | None = file
        self._num_bytes = 0

    def writable(self) -> bool:
        """Return True."""
        return True

    def write(self, block: Any) -> int:
        """Write the whole block, also if the file is unbuffered."""
        left = memoryview(block).cast("B")
        size = len(left)
        while self._file and left:
            left = left[self._file.write(left) :]
        self._num_bytes += size
        return size

    def tell(self) -> int:
        """Return the number of bytes written so far."""
        return self._num_bytes

    def abort(self) -> None:
        """Discard all further writes."""
        self._file = None


class Writer(ABC):
    """Writes rows in order. A context manager, which finishes the format except after an error.

    Attributes:
        null_counts: number of values per column that the format cannot hold and that are null in
            the output.
    """

    def __init__(self, file: IO[bytes], names: ResultNames) -> None:
        self.null_counts: Counter[str] = Counter()
        self._names = names
        self._sink = AbortableFile(file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, failure: type[BaseException] | None, *_: object) -> None:
        if failure is None:
            self._flush()
        else:
            self._sink.abort()
        self._close()

    @abstractmethod
    def write(self, row: Row, columns: Mapping[str, Any]) -> None:
        """Append one row with its result columns."""

    def _flush(self) -> None:  # noqa: B027
        """Write what was collected."""

    @abstractmethod
    def _close(self) -> None:
        """Write the end of the format."""


class JsonlWriter(Writer):
    """Writes one row per line, with the input's columns unchanged and in their order."""

    def __init__(self, file: IO[bytes], names: ResultNames, *, compress: bool) -> None:
        super().__init__(file, names)
        self._file: AbortableFile | gzip.GzipFile = self._sink
        if compress:
            # Without a time and a name in the header, equal rows give equal bytes.
            self._file = gzip.GzipFile("", "wb", 6, self._sink, mtime=0)

    def write(self, row: Row, columns: Mapping[str, Any]) -> None:
        """See `Writer`."""
        self._file.write(
            encode_line(merge_record(row.content, columns, self._names), self.null_counts)
        )

    def _close(self) -> None:
        self._file.close()


def encode_line(record: dict[str, Any], null_counts: Counter[str] | None = None) -> bytes:
    """Encode the record of a row as one line of JSON (RFC 8259).

    Values that only tables have become text: times in ISO 8601, decimals as digits, bytes in
    base64; durations become seconds. NaN and infinite numbers, which JSON lacks, become null, and
    `null_counts` receives their number by column. Half a surrogate pair is written as an escape.
    """
    try:
        text = _encode_record(record)
    except ValueError:  # NaN or infinity
        counts: Counter[str] = Counter() if null_counts is None else null_counts
        text = _encode_record(
            {key: _replace_non_finite(value, key, counts) for key, value in record.items()}
        )
    return text + b"\n"


def _encode_record(record: dict[str, Any]) -> bytes:
    text = _encode(record)
    try:
        return text.encode()
    except UnicodeEncodeError:
        return _encode_as_ascii(record).encode()


def _replace_non_finite(value: Any, column: str, null_counts: Counter[str]) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        null_counts[column] += 1
        return None
    if isinstance(value, dict):
        return {key: _replace_non_finite(item, column, null_counts) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_replace_non_finite(item, column, null_counts) for item in value]
    return value


def _plain(value: object) -> Any:
    if isinstance(value, datetime.datetime | datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    if isinstance(value, decimal.Decimal):
        return str(value)
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return str(value)


_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, default=_plain).encode
_encode_as_ascii = json.JSONEncoder(allow_nan=False, default=_plain).encode


class ParquetWriter(Writer):
    """Writes one Parquet file; `kinds` are those of the input's rows, None without results."""

    def __init__(
        self,
        file: IO[bytes],
        names: ResultNames,
        schema: pa.Schema,
        kinds: Iterable[RecordKind] | None,
    ) -> None:
        super().__init__(file, names)
        self._input_schema = pa.schema(
            [field for field in schema if field.name not in names.replaced_columns]
        )
        self._result_schema = pa.schema([])
        metadata = dict(schema.metadata or {})
        if kinds is not None:
            self._result_schema = _build_result_schema(kinds, names)
            metadata[RESULTS_METADATA_KEY] = json.dumps(self._result_schema.names).encode()
        self._schema = pa.schema([*self._input_schema, *self._result_schema], metadata)
        self._writer = pq.ParquetWriter(self._sink, self._schema, compression="zstd")
        self._rows: list[Row] = []
        self._outputs: list[Mapping[str, Any]] = []
        self._num_bytes = 0
        self._group: list[pa.RecordBatch] = []

    def write(self, row: Row, columns: Mapping[str, Any]) -> None:
        """See `Writer`."""
        self._rows.append(row)
        self._outputs.append({self._names[key]: value for key, value in columns.items()})
        self._num_bytes += row.size
        if len(self._rows) >= _GATHERED_ROWS or self._num_bytes >= _GATHERED_BYTES:
            self._gather()

    def _flush(self) -> None:
        self._gather()
        self._write_group()

    def _close(self) -> None:
        self._writer.close()

    def _gather(self) -> None:
        if not self._rows:
            return
        if self._rows[0].cells:
            columns = _concat_cells(self._rows, self._input_schema)
        else:
            records = [merge_record(row.content, {}, self._names) for row in self._rows]
            columns = _build_arrays(records, self._input_schema)
        columns += _build_arrays(self._outputs, self._result_schema)
        self._group.append(pa.RecordBatch.from_arrays(columns, schema=self._schema))
        self._rows, self._outputs, self._num_bytes = [], [], 0
        num_rows = sum(batch.num_rows for batch in self._group)
        if num_rows >= _GROUP_ROWS or sum(b.nbytes for b in self._group) >= _GROUP_BYTES:
            self._write_group()

    def _write_group(self) -> None:
        if self._group:
            table = pa.Table.from_batches(self._group)
            self._writer.write_table(table, row_group_size=max(1, table.num_rows))
            self._group = []


def _build_result_schema(kinds: Iterable[RecordKind], names: ResultNames) -> pa.Schema:
    results = list_result_columns(sorted(kinds), names.kind)
    types = _TYPES | (_CLASSIFIER_TYPES if names.kind == "classifier" else {})
    return pa.schema([(names[name], types[name]) for name in results])


def _build_arrays(records: Sequence[Mapping[str, Any]], schema: pa.Schema) -> list[pa.Array]:
    arrays = []
    for field in schema:
        values = [record.get(field.name) for record in records]
        try:
            arrays.append(pa.array(values, field.type))
        except UnicodeEncodeError:
            arrays.append(pa.array([_escape_surrogates(value) for value in values], field.type))
        except pa.ArrowException as error:
            raise JobOutputError(
                f"column `{field.name}` cannot be written as {field.type}: {error}; restore the "
                "input if it changed since the job began, or write JSON lines instead"
            ) from error
    return arrays


def _escape_surrogates(value: Any) -> Any:
    # Parquet holds only valid Unicode: half a surrogate pair is written as the text \udXXX.
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    if isinstance(value, list):
        return [_escape_surrogates(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _escape_surrogates(item) for key, item in value.items()}
    return value


def _concat_cells(rows: list[Row], schema: pa.Schema) -> list[pa.Array]:
    """Return the columns of rows that are in Arrow batches; consecutive rows are sliced at once."""
    runs = []
    for _, same in itertools.groupby(rows, key=lambda row: id(row.cells and row.cells[0])):
        run = list(same)
        assert run[0].cells
        batch, first = run[0].cells
        runs.append(batch.slice(first, len(run)))
    return [pa.concat_arrays([_get_column(run, field) for run in runs]) for field in schema]


def _get_column(batch: pa.RecordBatch, field: pa.Field) -> pa.Array:
    index = batch.schema.get_field_index(field.name)
    if index < 0:  # only another file of the input has this column
        return pa.nulls(batch.num_rows, field.type)
    column = batch.column(index)
    return column if column.type == field.type else column.cast(field.type)

"""Writer of Parquet: the input's columns with their exact types, followed by result columns.

Rows are collected in small batches, kept as Arrow, and written as row groups of tens of megabytes,
so that memory is bounded and readers find row groups of a useful size.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import IO, Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from serve.errors import JobOutputError
from serve.jobs.inputs.rows import Row
from serve.jobs.inputs.scan import RESULTS_METADATA_KEY
from serve.jobs.record_schema import RecordKind
from serve.jobs.row_results import (
    DEFAULT_RESULT_NAMES,
    RESULT_COLUMNS,
    UNREAD_COLUMN,
    ResultNames,
    RowOutput,
)
from serve.jobs.writers.abortable import AbortableFile

_GATHERED_ROWS, _GATHERED_BYTES = 1024, 4 << 20
_GROUP_ROWS, _GROUP_BYTES = 100_000, 64 << 20
_ERROR = pa.struct([("code", pa.string()), ("message", pa.string())])
# Rewards are float32; their difference is exact only in float64, as in JSON output.
_TYPES = {
    "reward": pa.float32(),
    "chosen_reward": pa.float32(),
    "rejected_reward": pa.float32(),
    "margin": pa.float64(),
    "rewards": pa.list_(pa.float32()),
    "error": _ERROR,
    "truncated": pa.bool_(),
    "warnings": pa.list_(pa.string()),
}


class ParquetWriter:
    """Writes one Parquet file.

    Args:
        file: file to write.
        schema: schema of the input.
        kinds: record kinds of the input's rows.
        names: column names of the results.
    """

    def __init__(
        self,
        file: IO[bytes],
        schema: pa.Schema,
        kinds: Iterable[RecordKind],
        names: ResultNames = DEFAULT_RESULT_NAMES,
    ) -> None:
        self.null_counts: Counter[str] = Counter()  # stays empty: a table holds every number
        self._names = names
        self._input_schema = pa.schema(
            [field for field in schema if field.name not in names.replaced_columns]
        )
        self._result_schema = _build_result_schema(kinds, names)
        result_metadata = {RESULTS_METADATA_KEY: json.dumps(self._result_schema.names).encode()}
        metadata = {**(schema.metadata or {}), **result_metadata}
        self._schema = pa.schema([*self._input_schema, *self._result_schema], metadata)
        self._sink = AbortableFile(file)
        self._writer = pq.ParquetWriter(self._sink, self._schema, compression="zstd")
        self._rows: list[Row] = []
        self._outputs: list[Mapping[str, Any]] = []
        self._num_bytes = 0
        self._group: list[pa.RecordBatch] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, failure: type[BaseException] | None, *_: object) -> None:
        if failure is None:
            self._gather()
            self._write_group()
            self._writer.close()
        else:
            self._sink.abort()
            self._writer.close()

    def write(self, row: Row, output: RowOutput) -> None:
        """See `Writer`."""
        self._rows.append(row)
        self._outputs.append({self._names[key]: value for key, value in output.columns.items()})
        self._num_bytes += row.size
        if len(self._rows) >= _GATHERED_ROWS or self._num_bytes >= _GATHERED_BYTES:
            self._gather()

    def _get_record(self, row: Row) -> Mapping[str, Any]:
        if isinstance(row.record, Mapping):
            return row.record
        return {self._names[UNREAD_COLUMN]: row.record if row.raw is None else row.raw}

    def _gather(self) -> None:
        if not self._rows:
            return
        if self._rows[0].cells:
            columns = _concat_cells(self._rows, self._input_schema)
        else:
            columns = _build_arrays(
                [self._get_record(row) for row in self._rows], self._input_schema
            )
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
    results = [name for kind in sorted(kinds) for name in RESULT_COLUMNS[kind]]
    results += ["error", "truncated", "warnings"]
    return pa.schema([(names[name], _TYPES[name]) for name in results])


def _build_arrays(records: list[Mapping[str, Any]], schema: pa.Schema) -> list[pa.Array]:
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

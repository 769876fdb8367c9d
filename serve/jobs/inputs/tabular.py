"""Read Parquet and Arrow files in small batches, so that memory holds a few hundred rows.

The size of a row is its share of its batch in memory. Batches begin at the same rows wherever
reading begins, so row sizes, and the chunks based on them, are the same after a restart.

A file of a kilobyte may hold a text of megabytes that all rows share, or decompress to gigabytes.
The footer of a Parquet file decides how many rows are read at a time, and whether the file is read
at all; the footer may be wrong.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from serve.errors import JobInputError
from serve.jobs.inputs.rows import DecodeFilter, FileRange, FileRows, Row
from serve.jobs.storage import Location

_BATCH_ROWS = 256  # with 1024, a row takes as long (0.43 us, nested text), with 4x the memory
_BUFFER_BYTES = 1 << 20
_ARROW_FILE = b"ARROW1"
# Columns that decompress to more than `_USUAL_RATIO` times their bytes are read in fewer rows.
_USUAL_RATIO = 100
_USUAL_BYTES = 1 << 20
_BATCH_BYTES = 64 << 20
_MOST_UNPACKED = 512 << 20


def read_parquet(rows: FileRange, decode: DecodeFilter) -> FileRows:
    """Yield the rows of a file; arguments as for `FileSource.iter_file_rows`."""
    with _translate_errors(rows.location), open_parquet(rows.location) as file:
        batches = _iter_parquet_batches(file, rows.first_row - rows.start)
        yield from _iter_rows(rows, batches, decode is True)
        return rows.start + int(file.metadata.num_rows)


def read_arrow(rows: FileRange, decode: DecodeFilter) -> FileRows:
    """Yield the rows of an IPC file or stream; arguments as for `FileSource.iter_file_rows`."""
    with _translate_errors(rows.location), rows.location.open_arrow() as file:
        return (yield from _iter_rows(rows, _iter_arrow_batches(file), decode is True))


def read_table_schema(location: Location, *, is_parquet: bool) -> pa.Schema:
    """Read the schema from the footer of a Parquet file or the beginning of an Arrow file."""
    with _translate_errors(location), location.open_arrow() as file:
        return pq.read_schema(file) if is_parquet else _open_arrow(file)[0]


@contextlib.contextmanager
def open_parquet(location: Location) -> Iterator[pq.ParquetFile]:
    """Open a file so that column chunks are read in blocks, never a whole row group."""
    with location.open_arrow() as file:
        yield pq.ParquetFile(file, buffer_size=_BUFFER_BYTES, pre_buffer=False)


@contextlib.contextmanager
def _translate_errors(location: Location) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise JobInputError(
            f"{location} cannot be read as a table ({reason}); copy the complete file again"
        ) from error


def _iter_rows(
    rows: FileRange, batches: Iterator[tuple[int, pa.RecordBatch]], decode: bool
) -> FileRows:
    """Yield rows of a file from batches with the index of their first row in the file."""
    end, name = rows.start, str(rows.location)
    for index, batch in batches:
        first = rows.start + index
        end = first + batch.num_rows
        if end <= rows.first_row:
            continue
        num_bytes = _count_decoded_bytes(batch)
        size = max(1, num_bytes // batch.num_rows)
        # Large batches are decoded row by row, because all rows together would not fit.
        is_small = num_bytes <= _BATCH_BYTES
        records = _decode_or_locate_error(batch, name, index) if decode and is_small else None
        for row in range(max(0, rows.first_row - first), batch.num_rows):
            record = records[row] if records else None
            if decode and not is_small:
                (record,) = _decode_or_locate_error(batch.slice(row, 1), name, index + row)
            yield Row(first + row, size, record, None, rows.file, (batch, row))
    return end


def _count_decoded_bytes(batch: pa.RecordBatch) -> int:
    """Return the size of a batch after decoding, where rows no longer share values, in bytes."""
    num_bytes = batch.nbytes
    for column in batch.columns:
        if pa.types.is_dictionary(column.type) and _is_text(column.type.value_type):
            lengths = pc.binary_length(column.dictionary)
            total = pc.sum(lengths.take(column.indices)).as_py()
            num_bytes += (total or 0) - (pc.sum(lengths).as_py() or 0)
    return int(num_bytes)


def _is_text(kind: pa.DataType) -> bool:
    types = pa.types
    tests = (types.is_string, types.is_large_string, types.is_binary, types.is_large_binary)
    return any(test(kind) for test in tests)


def _choose_batch_rows(file: pq.ParquetFile, group: int) -> int:
    """Return how many rows of a row group to read at a time.

    Raises:
        JobInputError: a column decompresses to more than `_MOST_UNPACKED` bytes.
    """
    metadata = file.metadata.row_group(group)
    most_rows: int = max(1, _BATCH_BYTES * metadata.num_rows // max(1, metadata.total_byte_size))
    total = 0
    for index in range(metadata.num_columns):
        column = metadata.column(index)
        decompressed, compressed = column.total_uncompressed_size, column.total_compressed_size
        if file.schema.column(index).max_repetition_level:
            # Equal values and empty lists are stored as counts but are values in memory.
            decompressed = max(decompressed, 8 * column.num_values)
        if decompressed > _MOST_UNPACKED and decompressed > _USUAL_RATIO * compressed:
            raise JobInputError(
                f"column `{column.path_in_schema}` of row group {group} has {compressed:,} bytes "
                f"that decompress to {decompressed:,}, and {_MOST_UNPACKED:,} are allowed; write "
                "the file again with smaller row groups"
            )
        dictionary = column.dictionary_page_offset
        has_large_dictionary = (
            dictionary is not None and column.data_page_offset - dictionary > 4 * _USUAL_BYTES
        )
        if decompressed > _USUAL_BYTES and (
            has_large_dictionary or decompressed > _USUAL_RATIO * compressed
        ):
            # Any row may have that many bytes.
            total += decompressed
    if total:
        most_rows = min(most_rows, max(1, _BATCH_BYTES // total))
    return min(_BATCH_ROWS, most_rows)


def _iter_parquet_batches(
    file: pq.ParquetFile, num_skipped: int
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Yield batches with the index of their first row, without row groups that are skipped."""
    first = 0
    for group in range(file.num_row_groups):
        num_rows = file.metadata.row_group(group).num_rows
        if first + num_rows > num_skipped:
            batch_rows = _choose_batch_rows(file, group)
            position = first
            for batch in file.iter_batches(batch_rows, row_groups=[group], use_threads=False):
                if batch.num_rows:
                    yield position, batch
                position += batch.num_rows
        first += num_rows


def _iter_arrow_batches(file: Any) -> Iterator[tuple[int, pa.RecordBatch]]:
    first = 0
    for batch in _open_arrow(file)[1]:
        for begin in range(0, batch.num_rows, _BATCH_ROWS):
            yield first + begin, batch.slice(begin, _BATCH_ROWS)
        first += batch.num_rows


def _open_arrow(file: Any) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    is_file = file.read(len(_ARROW_FILE)) == _ARROW_FILE
    file.seek(0)
    if not is_file:
        stream = pa.ipc.open_stream(file)
        return stream.schema, iter(stream)
    reader = pa.ipc.open_file(file)
    batches = (reader.get_batch(index) for index in range(reader.num_record_batches))
    return reader.schema, batches


def _decode_or_locate_error(batch: pa.RecordBatch, name: str, first: int) -> list[dict[str, Any]]:
    """Decode a batch; an error names the row and the column."""
    try:
        return decode_batch(batch)
    except pa.ArrowException:
        raise
    except (ValueError, OverflowError):
        for index, field in enumerate(batch.schema):
            for row, cell in enumerate(batch.column(index)):
                try:
                    cell.as_py()
                except (ValueError, OverflowError) as error:
                    raise JobInputError(
                        f"row {first + row} of {name} has a value in column `{field.name}` that "
                        f"cannot be read ({error}); correct the value, or remove the column from "
                        "the file"
                    ) from error
        raise


def decode_batch(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """Decode the rows of a batch to Python values.

    Times in nanoseconds, which Python lacks, become ISO 8601 text; durations become seconds.
    """
    for index, field in enumerate(batch.schema):
        if pa.types.is_temporal(field.type) and getattr(field.type, "unit", "") == "ns":
            column = batch.column(index)
            if pa.types.is_duration(field.type):
                text = pc.divide(column.cast(pa.int64()), 1e9)
            else:
                text = pc.replace_substring(column.cast(pa.string()), " ", "T", max_replacements=1)
            batch = batch.set_column(index, field.name, text)
    return batch.to_pylist()  # type: ignore[no-any-return]

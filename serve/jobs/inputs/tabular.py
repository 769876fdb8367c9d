"""Parquet and Arrow files: rows by small batches, so that memory holds a few hundred rows.

A row's size is its share of its batch in memory. Batches begin at the same rows wherever reading
begins, so sizes, and the chunks made by them, are the same after a restart.

A file of a kilobyte may hold a text of megabytes that all rows share, or unpack to gigabytes. What
the end of a Parquet file says of its columns decides how many rows are read at a time, and whether
any are; that it may lie about.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from serve.errors import JobInputError
from serve.jobs.inputs.io import Watcher, read_through, truncated_file_error
from serve.jobs.inputs.source import DecodeFilter, Position, Row

_BATCH_ROWS = 256  # 1024 take as long a row (0.43 us, nested text), and four times the memory
_BUFFER_BYTES = 1 << 20
_ARROW_FILE = b"ARROW1"
# Columns that unpack to more than `_USUAL_RATIO` times their bytes are read by fewer rows.
_USUAL_RATIO = 100
_USUAL_BYTES = 1 << 20
_BATCH_BYTES = 64 << 20
_MOST_UNPACKED = 512 << 20


def read_parquet(
    path: Path, start: Position, *, decode: DecodeFilter, watch: Watcher | None = None
) -> Iterator[Row]:
    """Rows of a file; arguments as for `FileSource.iter_file_rows`."""
    if watch:
        read_through(path, watch)
    with _translate_errors(path), open_parquet(path) as file:
        yield from _iter_rows(path, _parquet_batches(file, start.offset), start, decode is True)


def read_arrow(
    path: Path, start: Position, *, decode: DecodeFilter, watch: Watcher | None = None
) -> Iterator[Row]:
    """Rows of an IPC file or stream; arguments as for `FileSource.iter_file_rows`."""
    if watch:
        read_through(path, watch)
    with _translate_errors(path), pa.OSFile(str(path)) as file:
        yield from _iter_rows(path, _arrow_batches(file), start, decode is True)


def read_parquet_schema(path: Path) -> pa.Schema:
    """From the end of the file alone."""
    with _translate_errors(path), open_parquet(path) as file:
        return file.schema_arrow


def read_arrow_schema(path: Path) -> pa.Schema:
    """From the beginning of the file alone."""
    with _translate_errors(path), pa.OSFile(str(path)) as file:
        return _open_arrow(file)[0]


def open_parquet(path: Path) -> pq.ParquetFile:
    """A file that is read column chunk by column chunk in pieces, never a whole row group."""
    return pq.ParquetFile(path, buffer_size=_BUFFER_BYTES, pre_buffer=False)


@contextlib.contextmanager
def _translate_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise JobInputError(
            f"{path} cannot be read as a table ({reason}); bring a whole copy of it"
        ) from error


def _iter_rows(
    path: Path, batches: Iterator[tuple[int, pa.RecordBatch]], start: Position, decode: bool
) -> Iterator[Row]:
    """Rows from a position on.

    Args:
        path: for messages.
        batches: each with the index of its first row in the file.
        start: where to begin.
        decoded: see `Source.iter_rows`.
    """
    shift = start.row - start.offset  # from rows of the file to rows of the input
    end = 0
    for first, batch in batches:
        end = first + batch.num_rows
        if end <= start.offset:
            continue
        num_bytes = _count_decoded_bytes(batch)
        size = max(1, num_bytes // batch.num_rows)
        # Else row by row, since all together would not fit.
        is_small = num_bytes <= _BATCH_BYTES
        records = _decode_or_locate_error(batch, path, first) if decode and is_small else None
        for index in range(max(0, start.offset - first), batch.num_rows):
            row = first + index
            record = records[index] if records else None
            if decode and not is_small:
                (record,) = _decode_or_locate_error(batch.slice(index, 1), path, row)
            yield Row(row + shift, size, record, None, start.file, row + 1, (batch, index))
    if end < start.offset:
        raise truncated_file_error(path)


def _count_decoded_bytes(batch: pa.RecordBatch) -> int:
    """Bytes of the batch once every row has values of its own that rows may share here."""
    num_bytes = batch.nbytes
    for column in batch.columns:
        if pa.types.is_dictionary(column.type) and _is_text(column.type.value_type):
            lengths = pc.binary_length(column.dictionary)
            total = pc.sum(lengths.take(column.indices)).as_py()
            num_bytes += (total or 0) - (pc.sum(lengths).as_py() or 0)
    return int(num_bytes)


def _is_text(kind: pa.DataType) -> bool:
    of = pa.types
    tests = (of.is_string, of.is_large_string, of.is_binary, of.is_large_binary)
    return any(test(kind) for test in tests)


def _choose_batch_rows(file: pq.ParquetFile, group: int) -> int:
    """Rows of a group to read at a time.

    Raises:
        JobInputError: a column of it unpacks to more than memory should hold.
    """
    about = file.metadata.row_group(group)
    shared = 0
    for index in range(about.num_columns):
        column = about.column(index)
        unpacked, packed = column.total_uncompressed_size, column.total_compressed_size
        if file.schema.column(index).max_repetition_level:
            # Equal values, and empty lists, are a number in the file and values in memory.
            unpacked = max(unpacked, 8 * column.num_values)
        if unpacked > _MOST_UNPACKED and unpacked > _USUAL_RATIO * packed:
            raise JobInputError(
                f"column `{column.path_in_schema}` of row group {group} has {packed:,} bytes that "
                f"unpack to {unpacked:,}, and {_MOST_UNPACKED:,} are allowed; write the file again "
                "with smaller row groups"
            )
        dictionary = column.dictionary_page_offset
        large = dictionary is not None and column.data_page_offset - dictionary > 4 * _USUAL_BYTES
        if unpacked > _USUAL_BYTES and (large or unpacked > _USUAL_RATIO * packed):
            # Any row may have as much as that.
            shared += unpacked
    return max(1, min(_BATCH_ROWS, _BATCH_BYTES // shared)) if shared else _BATCH_ROWS


def _parquet_batches(file: pq.ParquetFile, offset: int) -> Iterator[tuple[int, pa.RecordBatch]]:
    first = 0
    for group in range(file.num_row_groups):
        num_rows = file.metadata.row_group(group).num_rows
        batch_rows = _choose_batch_rows(file, group)
        if first + num_rows > offset or group + 1 == file.num_row_groups:
            position = first
            for batch in file.iter_batches(batch_rows, row_groups=[group], use_threads=False):
                if batch.num_rows:
                    yield position, batch
                position += batch.num_rows
        first += num_rows


def _arrow_batches(file: Any) -> Iterator[tuple[int, pa.RecordBatch]]:
    first = 0
    for whole in _open_arrow(file)[1]:
        for begin in range(0, whole.num_rows, _BATCH_ROWS):
            batch = whole.slice(begin, _BATCH_ROWS)
            yield first + begin, batch
        first += whole.num_rows


def _open_arrow(file: Any) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    is_file = file.read(len(_ARROW_FILE)) == _ARROW_FILE
    file.seek(0)
    if not is_file:
        stream = pa.ipc.open_stream(file)
        return stream.schema, iter(stream)
    indexed = pa.ipc.open_file(file)
    batches = (indexed.get_batch(index) for index in range(indexed.num_record_batches))
    return indexed.schema, batches


def _decode_or_locate_error(batch: pa.RecordBatch, path: Path, first: int) -> list[dict[str, Any]]:
    """Like `decode`; an error names the row and the column."""
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
                        f"row {first + row} of {path} has in column `{field.name}` a value that "
                        f"cannot be read ({error}); correct it, or leave the column out of the file"
                    ) from error
        raise


def decode_batch(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """Rows as Python has them.

    Nanoseconds, which it lacks, become ISO 8601 text, and seconds where they are durations.
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

"""Writer of JSON lines, plain or compressed."""

from __future__ import annotations

import base64
import datetime
import decimal
import gzip
import json
import math
from collections import Counter
from typing import IO, Any, Self

from serve.jobs.inputs.rows import Row
from serve.jobs.row_results import DEFAULT_RESULT_NAMES, ResultNames, RowOutput, merge_record
from serve.jobs.writers.abortable import AbortableFile


class JsonlWriter:
    """Writes one row per line, with the input's columns unchanged and in their order.

    Args:
        file: file to write.
        compress: whether to compress with gzip.
        names: column names of the results.
    """

    def __init__(
        self, file: IO[bytes], *, compress: bool, names: ResultNames = DEFAULT_RESULT_NAMES
    ) -> None:
        self.null_counts: Counter[str] = Counter()
        self._names = names
        self._sink = AbortableFile(file)
        self._file: AbortableFile | gzip.GzipFile = self._sink
        if compress:
            # Without a time and a name in the header, equal rows give equal bytes.
            self._file = gzip.GzipFile("", "wb", 6, self._sink, mtime=0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, failure: type[BaseException] | None, *_: object) -> None:
        if failure is not None:
            self._sink.abort()
        self._file.close()

    def write(self, row: Row, output: RowOutput) -> None:
        """See `Writer`."""
        self._file.write(
            encode_line(merge_record(row.record, output, row.raw, self._names), self.null_counts)
        )


def encode_line(record: dict[str, Any], null_counts: Counter[str] | None = None) -> bytes:
    """Encode a record as one line of JSON (RFC 8259).

    Values that only tables have become text: times in ISO 8601, decimals as digits, bytes in
    base64; durations become seconds. NaN and infinite numbers, which JSON lacks, become null. Half
    a surrogate pair is written as an escape.

    Args:
        record: the record of a row, with its results.
        null_counts: receives the number of values that became null, by column.
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

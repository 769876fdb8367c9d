"""JSON lines, plain or compressed."""

from __future__ import annotations

import base64
import datetime
import decimal
import gzip
import json
import math
from collections import Counter
from typing import IO, Any, Self

from serve.jobs.inputs.source import Row
from serve.jobs.row_results import AS_NAMED, Outcome, ResultNames, merged
from serve.jobs.writers.abortable import Sink


class LinesWriter:
    """One row a line, columns as they came in and in their order.

    Args:
        file: where the bytes go.
        packed: whether to compress them.
        names: of the results.
    """

    def __init__(self, file: IO[bytes], *, packed: bool, names: ResultNames = AS_NAMED) -> None:
        self.nulled: Counter[str] = Counter()
        self._names = names
        self._sink = Sink(file)
        self._file: Sink | gzip.GzipFile = self._sink
        if packed:
            # No time and no name in it: the same rows give the same bytes.
            self._file = gzip.GzipFile("", "wb", 6, self._sink, mtime=0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, failure: type[BaseException] | None, *_: object) -> None:
        if failure is not None:
            self._sink.drop()
        self._file.close()

    def write(self, row: Row, outcome: Outcome) -> None:
        """See `Writer`."""
        self._file.write(line_of(merged(row.record, outcome, row.raw, self._names), self.nulled))


def line_of(record: dict[str, Any], nulled: Counter[str] | None = None) -> bytes:
    """One line of JSON as RFC 8259 has it.

    What only tables have becomes text: times in ISO 8601, decimals in digits, bytes in base64;
    durations become seconds. NaN and infinite numbers, which JSON lacks, become null. Half a
    surrogate pair is written as an escape.

    Args:
        record: of the row.
        nulled: gets the number of values that became null, by column.
    """
    try:
        text = _encoded(record)
    except ValueError:  # NaN, or infinite
        counts: Counter[str] = Counter() if nulled is None else nulled
        text = _encoded({key: _finite(value, key, counts) for key, value in record.items()})
    return text + b"\n"


def _encoded(record: dict[str, Any]) -> bytes:
    text = _encode(record)
    try:
        return text.encode()
    except UnicodeEncodeError:
        return _encode_as_ascii(record).encode()


def _finite(value: Any, column: str, nulled: Counter[str]) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        nulled[column] += 1
        return None
    if isinstance(value, dict):
        return {key: _finite(item, column, nulled) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item, column, nulled) for item in value]
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

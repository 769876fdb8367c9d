"""JSON lines, plain or compressed."""

from __future__ import annotations

import base64
import datetime
import decimal
import gzip
import json
from typing import IO, Any, Self

from serve.jobs.inputs.source import Row
from serve.jobs.outputs.sink import Sink
from serve.jobs.results import Outcome, merged


class LinesWriter:
    """One row a line, columns as they came in and in their order.

    Args:
        file: where the bytes go.
        packed: whether to compress them.
    """

    def __init__(self, file: IO[bytes], *, packed: bool) -> None:
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
        self._file.write(line_of(merged(row.record, outcome, row.raw)))


def line_of(record: dict[str, Any]) -> bytes:
    """One line of JSON.

    Columns go out as they came in, also what strict JSON lacks: NaN, or half a surrogate pair.
    What only tables have becomes text: times in ISO 8601, decimals in digits, bytes in base64;
    durations become seconds.
    """
    try:
        return _encode(record).encode() + b"\n"
    except UnicodeEncodeError:
        return _encode_as_ascii(record).encode() + b"\n"


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


_encode = json.JSONEncoder(ensure_ascii=False, default=_plain).encode
_encode_as_ascii = json.JSONEncoder(default=_plain).encode

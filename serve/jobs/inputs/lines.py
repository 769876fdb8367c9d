"""JSON lines, plain or compressed: the line is the row, its bytes are its size."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rm_core import ScoreError
from serve.jobs.inputs.source import START, Position, Row
from serve.jobs.inputs.stored import Watcher, opened


def read_lines(
    path: Path, start: Position, *, decoded: bool, watch: Watcher | None = None
) -> Iterator[Row]:
    """Rows of a file; arguments as for `FileSource.rows_in`."""
    with opened(path, start.offset, watch) as file:
        yield from rows_of(file, start, decoded=decoded)


def rows_of(
    file: Iterable[bytes], start: Position = START, *, decoded: bool = True
) -> Iterator[Row]:
    """Rows of lines of bytes; lines of blanks are none.

    Args:
        file: its next line is the one at `start`.
        start: where it stands.
        decoded: False leaves `Row.record` None.
    """
    number, end = start.row, start.offset
    record: Any = None
    raw: str | None = None
    for line in file:
        size = len(line)
        end += size
        if line.isspace():
            continue
        if decoded:
            record, raw = _parse(line)
        yield Row(number, size, record, raw, start.file, end)
        number += 1


def _parse(line: bytes) -> tuple[Any, str | None]:
    try:
        return json.loads(line), None
    except (ValueError, RecursionError) as error:
        text = line.decode("utf-8", "replace").rstrip("\r\n")
        problem = f"the line is no JSON: {error}; write one record a line"
        return ScoreError("invalid_json", problem), text

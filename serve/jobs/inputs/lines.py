"""JSON lines, plain or compressed: the line is the row, its bytes are its size."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rm_core import ScoreError
from serve.jobs.inputs.source import START, Position, Row
from serve.jobs.inputs.stored import Watcher, opened


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):  # of two equal ones `json` would drop the first without a word
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice[:40]!r} stands twice in one object")
    return record


_decode = json.JSONDecoder(object_pairs_hook=_distinct).decode


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
        # As `json.loads` reads bytes: with a byte order mark, or half a surrogate pair.
        return _decode(line.decode(json.detect_encoding(line), "surrogatepass")), None
    except (ValueError, RecursionError) as error:
        text = line.decode("utf-8", "replace").rstrip("\r\n")
        problem = f"the line cannot be read as JSON: {_told(error)}; write one record a line"
        return ScoreError("invalid_json", problem), text


def _told(error: Exception) -> str:
    # A place in the line alone: its number is always 1, which looks like one of the file.
    return (
        f"{error.msg} at character {error.pos}"
        if isinstance(error, json.JSONDecodeError)
        else str(error)
    )

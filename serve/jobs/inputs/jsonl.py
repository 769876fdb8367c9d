"""Read JSON lines, plain or compressed: a row is a line, its size is the line's bytes."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from rm_core import ScoreError
from rm_core.strict_json import describe_error, parse_strict
from serve.jobs.inputs.encodings import HEAD_BYTES, guess_encoding, require_utf8
from serve.jobs.inputs.io import Watcher, open_decompressed
from serve.jobs.inputs.source import START, DecodeFilter, Position, Row

MAX_ROW_BYTES = 64 << 20
"""Maximum size of a JSON row in bytes; a longer row is an error, and is never held in memory."""
PREVIEW_BYTES = 1000
"""Number of bytes that are kept from the beginning of a longer row."""
_BLOCK_BYTES = 1 << 20


def read_lines(
    path: Path, start: Position, *, decode: DecodeFilter, watch: Watcher | None = None
) -> Iterator[Row]:
    """Yield the rows of a file; arguments as for `FileSource.iter_file_rows`."""
    with open_decompressed(path, start.offset, watch) as file:
        yield from parse_rows(file, start, decode=decode)


def parse_rows(
    file: IO[bytes], start: Position = START, *, decode: DecodeFilter = True
) -> Iterator[Row]:
    """Yield a row for each line that is not blank.

    Args:
        file: file whose next line is the one at `start`.
        start: position of the file.
        decode: see `FileSource.iter_file_rows`.

    Raises:
        JobInputError: the first line shows another encoding, such as UTF-16.
    """
    number, end = start.row, start.offset
    for line, size in split_lines(file):
        if not end:
            require_utf8(line[:HEAD_BYTES], getattr(file, "name", "the input"))
        end += size
        if line.isspace():
            continue
        record: Any = None
        raw: str | None = None
        if size > len(line):
            if decode is not False:
                record, raw = row_too_long_error("line", line, size)
        elif decode(line) if callable(decode) else decode:
            record, raw = parse_line(line)
        yield Row(number, size, record, raw, start.file, end)
        number += 1


def split_lines(file: IO[bytes]) -> Iterator[tuple[bytes, int]]:
    """Yield lines with their sizes in bytes, including the line end.

    A line of more than `MAX_ROW_BYTES` is yielded as its first `PREVIEW_BYTES`, so that its size is
    larger than its length; a blank line of that size is yielded as one blank.
    """
    readline, limit = file.readline, MAX_ROW_BYTES
    while line := readline(limit + 1):
        size = len(line)
        if size > limit:
            is_blank, head = line.isspace(), line[:PREVIEW_BYTES]
            while not line.endswith(b"\n") and (line := readline(_BLOCK_BYTES)):
                size += len(line)
                is_blank = is_blank and line.isspace()
            line = b" " if is_blank else head
        yield line, size


def parse_line(line: bytes, *, finite: bool = True) -> tuple[Any, str | None]:
    """Parse a line; return its record, or a `ScoreError` and the line's text.

    Args:
        line: UTF-8, also with a byte order mark or half a surrogate pair.
        finite: see `parse_strict`.
    """
    try:
        text = line.removeprefix(codecs.BOM_UTF8).decode("utf-8", "surrogatepass")
    except UnicodeDecodeError as error:
        return not_utf8_error("line", line, error)
    try:
        return parse_strict(text, finite=finite), None
    except (ValueError, RecursionError) as error:
        problem = f"the line cannot be read as JSON: {describe_error(error)}"
        if isinstance(error, json.JSONDecodeError):
            problem += "; write one record per line"
        return ScoreError("invalid_json", problem), text.rstrip("\r\n")


def not_utf8_error(unit: str, text: bytes, error: UnicodeDecodeError) -> tuple[ScoreError, str]:
    r"""Return the error and the text of a row that is not UTF-8, with invalid bytes as `\xNN`."""
    guess = guess_encoding(text[:_BLOCK_BYTES])
    hint = f" (it may be {guess})" if guess else ""
    problem = (
        f"the {unit} is not UTF-8: byte {text[error.start]:#04x} at {error.start}{hint}; save the "
        "file as UTF-8"
    )
    return ScoreError("invalid_json", problem), _readable(text)


def row_too_long_error(unit: str, head: bytes, size: int) -> tuple[ScoreError, str]:
    """Return the error and the beginning of a row of more than `MAX_ROW_BYTES`."""
    problem = (
        f"the {unit} has {size:,} bytes, and the maximum is {MAX_ROW_BYTES:,}; only its beginning "
        "is kept here. Write one record per line, or one array of records to a file that ends in "
        ".json"
    )
    return ScoreError("invalid_json", problem), _readable(head[:PREVIEW_BYTES])


def _readable(text: bytes) -> str:
    return text.decode("utf-8", "backslashreplace").rstrip("\r\n")

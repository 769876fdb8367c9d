"""Read JSON: a row is a line, or an element of a `.json` file that is one array.

Memory holds one row and a block, independent of the file's size. A row that is not strict JSON, not
UTF-8 or too long is an error of that row. An element of an array that is not JSON at all ends the
reading, because the start of the next element is unknown.

Elements are separated by their brackets and quotes, then parsed like lines. An event parser such as
`ijson` loses the text of an element, and its fast backends end at the first NaN, number of more
than 64 bits or byte that is not UTF-8.
"""

from __future__ import annotations

import codecs
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Literal, TypeAlias

from rm_core import ScoreError
from rm_core.strict_json import describe_error, parse_strict
from serve.errors import JobInputError
from serve.jobs.inputs.rows import DecodeFilter, FileRange, FileRows, Row
from serve.jobs.inputs.text import HEAD_BYTES, guess_encoding, open_decompressed, require_utf8
from serve.jobs.storage import LocalFile

MAX_ROW_BYTES = 64 << 20
"""Maximum size of a JSON row in bytes; a longer row is an error, and is never held in memory."""
PREVIEW_BYTES = 1000
"""Number of bytes that are kept from the beginning of a longer row."""
Unit: TypeAlias = Literal["line", "element"]
"""What a row is in its file."""
_BLOCK_BYTES, _LARGEST_READ = 1 << 18, 1 << 24

# Text up to the next bracket: other characters, and whole strings.
_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_FLAT = rb'[^"\[\]{}]*+(?:' + _STRING + rb'[^"\[\]{}]*+)*+'
_BLANKS = rb"[ \t\r\n]*+"
_skip_blanks = re.compile(_BLANKS).match
_find_bracket = re.compile(_FLAT, re.DOTALL).match
_match_scalar = re.compile(_STRING + rb'|[^"\s,\]]++', re.DOTALL).match


def _compile_shallow_element(depth: int) -> re.Pattern[bytes]:
    """Compile a pattern for a list or an object with up to `depth` levels, and its comma."""
    value = rb"[\[{]" + _FLAT + rb"[\]}]"
    for _ in range(depth - 1):
        value = rb"[\[{]" + _FLAT + rb"(?:" + value + _FLAT + rb")*+[\]}]"
    return re.compile(_BLANKS + rb"(" + value + rb")" + _BLANKS + rb",", re.DOTALL)


# Almost all elements of an array; finding their brackets one by one takes half as long again.
_match_shallow_element = _compile_shallow_element(4).match


def read_json(rows: FileRange, decode: DecodeFilter) -> FileRows:
    """Yield the rows of a file; arguments as for `FileSource.iter_file_rows`."""
    with open_decompressed(rows.location) as file:
        # `.json` files in use have either one array, or one record per line.
        head = file.read(HEAD_BYTES)
        text = head.removeprefix(codecs.BOM_UTF8)
        is_json = rows.location.name.lower().removesuffix(".gz").endswith(".json")
        if is_json and text.lstrip().startswith(b"["):
            file.seek(len(head) - len(text))
            return (yield from _read_array(file, rows, decode))
        file.seek(0)
        return (yield from _parse_rows(split_lines(file), "line", rows, decode))


def parse_lines(file: IO[bytes], name: str = "the input") -> Iterator[Row]:
    """Yield a row for each line of a stream that is not blank; `name` is for error messages."""
    lines = split_lines(file)
    for line, size in itertools.islice(lines, 1):
        require_utf8(line[:HEAD_BYTES], name)
        lines = itertools.chain([(line, size)], lines)
    yield from _parse_rows(lines, "line", FileRange(LocalFile(Path(name))), decode=True)


def _read_array(file: IO[bytes], rows: FileRange, decode: DecodeFilter) -> FileRows:
    splitter = _ArraySplitter(file, str(rows.location))
    try:
        return (yield from _parse_rows(splitter.split(), "element", rows, decode))
    except json.JSONDecodeError as error:
        raise splitter.build_error(f"row {splitter.number} is not JSON: {error}") from None


def _parse_rows(
    texts: Iterator[tuple[bytes, int]], unit: Unit, rows: FileRange, decode: DecodeFilter
) -> FileRows:
    """Yield a row for each line that is not blank, or for each element; see `split_lines`."""
    number = rows.start
    for text, size in texts:
        if text.isspace():
            continue
        if number >= rows.first_row:
            record: Any = None
            raw: str | None = None
            if size > len(text):
                if decode is not False:
                    record, raw = build_length_error(unit, text, size)
            else:
                is_wanted = decode(text) if callable(decode) else decode
                if is_wanted or unit == "element":  # to find text that is not JSON
                    record, raw = parse_line(text, unit)
                if not is_wanted:
                    record = raw = None
            yield Row(number, size, record, raw, rows.file)
        number += 1
    return number


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


class _ArraySplitter:
    """Splits the text of an array into its elements, which are not parsed.

    Args:
        file: text of the array, without a byte order mark.
        path: path for error messages.

    Attributes:
        number: number of the row that was yielded last, in this file.
    """

    def __init__(self, file: IO[bytes], path: str) -> None:
        self.number = -1
        self._path = path
        self._file = file
        self._text = b""
        self._at = 0  # index into `_text`
        self._num_dropped = 0  # bytes before `_text`

    def split(self) -> Iterator[tuple[bytes, int]]:
        """Yield elements with their sizes in bytes; long ones as `split_lines` does."""
        mark = self._take_mark()
        if self._peek() == b"]":
            mark = self._take_mark()
        while mark != b"]":
            while found := _match_shallow_element(self._text, self._at):
                element = found[1]
                size = len(element)
                self._at = found.end()
                self.number += 1
                yield element if size <= MAX_ROW_BYTES else element[:PREVIEW_BYTES], size
            self.number += 1
            element, size, is_complete = self._take_element()
            yield element, size
            if not is_complete:
                raise self.build_error(f"row {self.number} is truncated")
            mark = self._take_mark()
            if mark not in (b",", b"]"):
                text = mark.decode(errors="backslashreplace") or "the end"
                raise self.build_error(f"row {self.number} is followed by {text}, not by a comma")
        if self._peek():
            raise self.build_error("there is text after the array")

    def build_error(self, reason: str) -> JobInputError:
        """Return the error for a text that is not an array."""
        hint = "; the file may be ISO-2022 text: save it as UTF-8" if b"\x1b" in self._text else ""
        return JobInputError(
            f"{self._path} is not an array of JSON records ({reason}{hint}, near byte "
            f"{self._offset}); correct the file, or write one record per line to a .jsonl file"
        )

    @property
    def _offset(self) -> int:
        return self._num_dropped + self._at

    def _peek(self) -> bytes:
        """Move to the next byte that is not blank, and return it; empty at the end."""
        while True:
            found = _skip_blanks(self._text, self._at)
            assert found
            self._at = found.end()
            if self._at < len(self._text) or not self._read():
                return self._text[self._at : self._at + 1]

    def _take_mark(self) -> bytes:
        mark = self._peek()
        self._at += len(mark)
        return mark

    def _take_element(self) -> tuple[bytes, int, bool]:
        """Return the text and the size of the element, and whether it has an end; move after it."""
        self._peek()
        start, head = self._offset, b""
        end, depth, is_complete = _find_end(self._text, self._at, 0)
        while not is_complete:
            if self._num_dropped + len(self._text) - start > MAX_ROW_BYTES:
                head = head or self._text[self._at : self._at + PREVIEW_BYTES]
                self._shorten(end)
                end = 0
            scanned = end - self._at
            if not self._read():
                end = len(self._text)
                break
            end, depth, is_complete = _find_end(self._text, scanned, depth)
        size = self._num_dropped + end - start
        element = head or self._text[self._at : end]
        self._at = end
        return element if size <= MAX_ROW_BYTES else element[:PREVIEW_BYTES], size, is_complete

    def _shorten(self, end: int) -> None:
        """Drop an element before `end`, but keep what its continuation needs: a cut string."""
        rest = self._text[end:]
        num_escapes = len(rest) - len(rest.rstrip(b"\\"))
        is_string = rest.startswith(b'"')
        rest = b'"' + b"\\" * (num_escapes % 2) if is_string else rest[:1]
        self._num_dropped += len(self._text) - len(rest)
        self._text, self._at = rest, 0

    def _read(self) -> bool:
        """Read more text and drop the text before the current byte; return False at the end."""
        # Double the read size for elements longer than a block, so each is scanned few times.
        num_left = len(self._text) - self._at
        block = self._file.read(min(max(_BLOCK_BYTES, num_left), _LARGEST_READ))
        self._text = self._text[self._at :] + block
        self._num_dropped += self._at
        self._at = 0
        return bool(block)


def _find_end(text: bytes, at: int, depth: int) -> tuple[int, int, bool]:
    """Find the end of a value from index `at`, where `depth` of its brackets are open.

    Returns:
        The index after the value or at which to continue with more text, the number of open
        brackets there, and whether the value has an end.
    """
    if not depth and text[at : at + 1] not in (b"[", b"{"):
        found = _match_scalar(text, at)
        if found is None or (found.end() == len(text) and not text.endswith(b'"')):
            return at, 0, False
        return found.end(), 0, True
    while True:
        found = _find_bracket(text, at)
        assert found
        at = found.end()
        mark = text[at : at + 1]
        if mark in (b"", b'"'):  # the end of the text, or a string that it cuts
            return at, depth, False
        at += 1
        depth += 1 if mark in b"[{" else -1
        if not depth:
            return at, 0, True


def parse_line(line: bytes, unit: Unit = "line", *, finite: bool = True) -> tuple[Any, str | None]:
    """Parse a line or an element; return its record, or a `ScoreError` and the text.

    Text is UTF-8, also with a byte order mark or half a surrogate pair. An element that is not
    JSON raises `json.JSONDecodeError`. `finite` is that of `parse_strict`.
    """
    try:
        text = line.removeprefix(codecs.BOM_UTF8).decode("utf-8", "surrogatepass")
    except UnicodeDecodeError as error:
        return _build_encoding_error(unit, line, error)
    try:
        return parse_strict(text, finite=finite), None
    except (ValueError, RecursionError) as error:
        if isinstance(error, json.JSONDecodeError) and unit == "element":
            raise
        problem = f"the {unit} cannot be read as JSON: {describe_error(error)}"
        return ScoreError("invalid_json", problem), text.rstrip("\r\n")


def _build_encoding_error(
    unit: Unit, text: bytes, error: UnicodeDecodeError
) -> tuple[ScoreError, str]:
    r"""Return the error and the text of a row that is not UTF-8, with invalid bytes as `\xNN`."""
    guess = guess_encoding(text[:_BLOCK_BYTES])
    hint = f" (it may be {guess})" if guess else ""
    problem = (
        f"the {unit} is not UTF-8: byte {text[error.start]:#04x} at {error.start}{hint}; save the "
        "file as UTF-8"
    )
    return ScoreError("invalid_json", problem), _decode_readable(text)


def build_length_error(unit: Unit, head: bytes, size: int) -> tuple[ScoreError, str]:
    """Return the error and the beginning of a row of more than `MAX_ROW_BYTES`."""
    problem = (
        f"the {unit} has {size:,} bytes, and the maximum is {MAX_ROW_BYTES:,}; only its beginning "
        "is kept here. Write one record per line, or one array of records to a file that ends in "
        ".json"
    )
    return ScoreError("invalid_json", problem), _decode_readable(head[:PREVIEW_BYTES])


def _decode_readable(text: bytes) -> str:
    return text.decode("utf-8", "backslashreplace").rstrip("\r\n")

"""Read a `.json` file that is one array of records, element by element.

Memory holds the current element and its block, independent of the file's size. An element that is
not strict JSON or is too long is an error of its row. An element that is not JSON at all ends the
reading, because the start of the next element is unknown.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from rm_core import ScoreError
from rm_core.strict_json import decode_strict, describe_error, require_depth
from serve.errors import JobInputError
from serve.jobs.inputs import jsonl
from serve.jobs.inputs.io import Watcher, open_decompressed
from serve.jobs.inputs.jsonl import not_utf8_error, row_too_long_error
from serve.jobs.inputs.source import DecodeFilter, Position, Row

_BLOCK_BYTES, _LARGEST_READ = 1 << 18, 1 << 24
_LONGEST_TOKEN = 16  # an error this close to the end of a block may be a truncated token
_STRUCTURE = re.compile(r'["\[\]{}]')
_REST_OF_TEXT = re.compile(r'(?:[^"\\]++|\\.)*+"', re.DOTALL)
_END_OF_SCALAR = re.compile(r"[\s,\]]")


def is_array(path: Path) -> bool:
    """Return whether the file begins with an array."""
    with open_decompressed(path, 0) as file:
        return file.read(4096).removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b"["


def read_array(
    path: Path, start: Position, *, decode: DecodeFilter, watch: Watcher | None = None
) -> Iterator[Row]:
    """Yield the rows of a file; arguments as for `FileSource.iter_file_rows`.

    A row ends where its element ends.
    """
    with open_decompressed(path, start.offset, watch) as file:
        cursor = _TextCursor(path, file, start.offset)
        number = start.row
        is_more = cursor.read_separator() == "," if start.offset else cursor.begin()
        while is_more:
            begin = cursor.offset
            record, raw, content = cursor.read_element(number)
            end = cursor.offset
            is_wanted = decode is not False
            if callable(decode) and content is not None:
                is_wanted = decode(content)
            if not is_wanted:
                record = raw = None
            yield Row(number, end - begin, record, raw, start.file, end)
            number += 1
            is_more = cursor.read_separator(number) == ","
        cursor.finish()


class _Element(NamedTuple):
    """An element of the array.

    Attributes:
        record: value of the element, or a `ScoreError`.
        raw: text of the element or the beginning of the text, if `record` is an error.
        content: bytes of the element; None if it is too long.
    """

    record: Any
    raw: str | None
    content: bytes | None


class _TextCursor:
    """A cursor in the file's text.

    Bytes that are not UTF-8 become half surrogate pairs, which UTF-8 cannot encode.
    """

    def __init__(self, path: Path, file: IO[bytes], offset: int) -> None:
        self.offset = offset  # byte offset of the character at `_at`
        self._path = path
        self._file = file
        self._text = ""
        self._at = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._is_exhausted = False

    def begin(self) -> bool:
        """Move to the first element; return False if the array is empty."""
        if self.next() == "\ufeff":
            self._advance_to(self._at + 1)
        if self.next() != "[":
            raise self._corrupt_error("the file does not begin with an array")
        self._advance_to(self._at + 1)
        if is_empty := self.next() == "]":
            self._advance_to(self._at + 1)
        return not is_empty

    def next(self) -> str:
        """Move to the next character that is not blank, and return it; empty at the end."""
        while True:
            rest = self._text[self._at : self._at + 64]
            blanks = len(rest) - len(rest.lstrip(" \t\r\n"))
            self._advance_to(self._at + blanks)
            if blanks < len(rest):
                return rest[blanks]
            if not rest and not self._read():
                return ""

    def read_element(self, number: int) -> _Element:
        """Read one value and move after it."""
        self.next()
        problem: Exception | None = None
        value: Any = None
        end: int | None
        while True:
            try:
                value, end = decode_strict(self._text, self._at)
            except json.JSONDecodeError as error:
                is_cut = self._is_cut(error)
                if self._is_too_long() and (is_cut or error.pos - self._at > jsonl.MAX_ROW_BYTES):
                    return self._skip(number)
                if is_cut and self._read():
                    continue
                is_iso_2022 = "\x1b" in self._text
                hint = "; the file may be ISO-2022 text: save it as UTF-8" if is_iso_2022 else ""
                raise self._corrupt_error(f"row {number} is not JSON: {error}{hint}") from None
            except (ValueError, RecursionError) as error:
                problem = error
                end = self._find_end(number)
                if end is None:
                    return self._skip(number)
                break
            # A number at the end of a block may continue in the next block.
            mark = self._text[end : end + 1]
            is_cut = not mark or (isinstance(value, int | float) and mark not in " \t\r\n,]")
            if not (is_cut and self._read()):
                break
        return self._build_element(value, problem, end)

    def read_separator(self, number: int = 0) -> str:
        """Move after the comma or bracket that follows an element, and return it."""
        mark = self.next()
        if mark not in (",", "]"):
            found = mark.encode(errors="backslashreplace").decode() or "the end"
            raise self._corrupt_error(f"row {number - 1} is followed by {found}, not by a comma")
        self._advance_to(self._at + 1)
        return mark

    def finish(self) -> None:
        """Check that nothing follows the array."""
        if self.next():
            raise self._corrupt_error("there is text after the array")

    def _build_element(self, value: Any, problem: Exception | None, end: int) -> _Element:
        text = self._text[self._at : end]
        content = text.encode(errors="surrogateescape")
        self.offset += len(content)
        self._at = end
        if len(content) > jsonl.MAX_ROW_BYTES:
            return _Element(
                *row_too_long_error("element", content[: jsonl.PREVIEW_BYTES], len(content)), None
            )
        try:
            if not text.isascii():
                content.decode()
            if problem is None:
                require_depth(value, text)
        except UnicodeDecodeError as error:
            return _Element(*not_utf8_error("element", content, error), content)
        except ValueError as error:
            problem = error
        if problem is None:
            return _Element(value, None, content)
        message = f"the element is not strict JSON: {describe_error(problem)}"
        return _Element(ScoreError("invalid_json", message), text, content)

    def _find_end(self, number: int) -> int | None:
        """Return the index after the element, or None if the element is too long.

        Raises:
            JobInputError: the file ends within the element.
        """
        scanner = _Scanner(self._text[self._at])
        scanned = 0  # characters of the element
        while (end := scanner.find_end(self._text, self._at + scanned)) is None:
            if self._is_too_long():
                return None
            scanned = len(self._text) - self._at
            self._require_more(number)
        return end

    def _skip(self, number: int) -> _Element:
        """Move after an element that is too long, without keeping its text."""
        scanner = _Scanner(self._text[self._at])
        head = self._text[self._at : self._at + jsonl.PREVIEW_BYTES].encode(
            errors="surrogateescape"
        )
        before = self.offset
        while (end := scanner.find_end(self._text, self._at)) is None:
            self._advance_to(len(self._text))
            self._require_more(number)
        self._advance_to(end)
        return _Element(*row_too_long_error("element", head, self.offset - before), None)

    def _require_more(self, number: int) -> None:
        if not self._read():
            raise self._corrupt_error(f"row {number} is truncated")

    def _is_too_long(self) -> bool:
        # A character has at least one byte.
        return len(self._text) - self._at > jsonl.MAX_ROW_BYTES

    def _advance_to(self, end: int) -> None:
        self.offset += len(self._text[self._at : end].encode(errors="surrogateescape"))
        self._at = end

    def _is_cut(self, error: json.JSONDecodeError) -> bool:
        is_near_end = error.pos >= len(self._text) - _LONGEST_TOKEN
        return is_near_end or error.msg.startswith("Unterminated string")

    def _read(self) -> bool:
        if self._is_exhausted:
            return False
        # Double the read size for elements longer than a block, so each is parsed few times.
        more = min(max(_BLOCK_BYTES, len(self._text) - self._at), _LARGEST_READ)
        block = self._file.read(more)
        self._is_exhausted = not block
        self._text = self._text[self._at :] + self._decoder.decode(block, self._is_exhausted)
        self._at = 0
        return bool(block)

    def _corrupt_error(self, reason: str) -> JobInputError:
        return JobInputError(
            f"{self._path} is not an array of JSON records ({reason}, near byte {self.offset}); "
            "correct the file, or write one record per line to a .jsonl file"
        )


class _Scanner:
    """Finds the end of a JSON value by its brackets and quotes, block by block.

    Args:
        first: first character of the value.
    """

    def __init__(self, first: str) -> None:
        self._is_scalar = first not in '{["'
        self._depth = 0
        self._is_in_text = self._is_escaped = False

    def find_end(self, text: str, start: int) -> int | None:
        """Return the index after the value, or None if the text ends within the value.

        Args:
            text: text that continues the text of the previous call.
            start: index to continue at.
        """
        if self._is_scalar:
            found = _END_OF_SCALAR.search(text, start)
            return found.start() if found else None
        if self._is_escaped:
            if start == len(text):
                return None
            self._is_escaped = False
            start += 1
        while True:
            if self._is_in_text:
                found = _REST_OF_TEXT.match(text, start)
                if not found:
                    num_escapes = len(text) - max(start, len(text.rstrip("\\")))
                    self._is_escaped = num_escapes % 2 == 1
                    return None
                self._is_in_text = False
            else:
                found = _STRUCTURE.search(text, start)
                if not found:
                    return None
                if found[0] == '"':
                    self._is_in_text = True
                else:
                    self._depth += 1 if found[0] in "[{" else -1
            start = found.end()
            if not self._is_in_text and self._depth <= 0:
                return start

"""A `.json` file that holds one array of records, read element by element.

Memory holds the element at hand and the block it is in, whatever the size of the file. An element
that is no JSON ends the reading: there is no telling where the next one begins.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from serve.jobs.errors import JobInputError
from serve.jobs.inputs.source import Position, Row
from serve.jobs.inputs.stored import Watcher, opened

_BLOCK_BYTES = 1 << 18
_LONGEST_TOKEN = 16  # an error this close to the end of a block may be a token cut in two
_decode = json.JSONDecoder().raw_decode


def is_array(path: Path) -> bool:
    """Whether the file's first character is the beginning of an array."""
    with opened(path, 0) as file:
        return file.read(4096).removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b"["


def read_array(
    path: Path, start: Position, *, decoded: bool, watch: Watcher | None = None
) -> Iterator[Row]:
    """Rows of a file; arguments as for `FileSource.rows_in`. A row ends where its element does."""
    with opened(path, start.offset, watch) as file:
        text = _Text(path, file, start.offset)
        number = start.row
        is_more = text.take() == "," if start.offset else text.begin()
        while is_more:
            before = text.offset
            record = text.element(number)
            end = text.offset
            yield Row(number, end - before, record if decoded else None, None, start.file, end)
            number += 1
            is_more = text.take(number) == ","
        text.finish()


class _Text:
    """The file's text from a place on, and how far it was read."""

    def __init__(self, path: Path, file: IO[bytes], offset: int) -> None:
        self.offset = offset  # of `_at`, in bytes
        self._path = path
        self._file = file
        self._text = ""
        self._at = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._is_all = False

    def begin(self) -> bool:
        """Go to the first element; False if there is none."""
        if self.next() == "\ufeff":
            self._go(self._at + 1)
        if self.next() != "[":
            raise self._damaged("it does not begin with an array")
        self._go(self._at + 1)
        if is_empty := self.next() == "]":
            self._go(self._at + 1)
        return not is_empty

    def next(self) -> str:
        """Go to the next character that is no blank; empty at the end."""
        while True:
            rest = self._text[self._at : self._at + 64]
            blanks = len(rest) - len(rest.lstrip(" \t\r\n"))
            self._go(self._at + blanks)
            if blanks < len(rest):
                return rest[blanks]
            if not rest and not self._read():
                return ""

    def element(self, number: int) -> Any:
        """Read one value and go behind it."""
        self.next()
        while True:
            try:
                value, end = _decode(self._text, self._at)
            except (ValueError, RecursionError) as error:
                if self._is_cut(error) and self._read():
                    continue
                raise self._damaged(f"row {number} is no JSON: {error}") from None
            # A number at the end of a block may go on in the next one.
            mark = self._text[end : end + 1]
            is_cut = not mark or (isinstance(value, int | float) and mark not in " \t\r\n,]")
            if not (is_cut and self._read()):
                self._go(end)
                return value

    def take(self, number: int = 0) -> str:
        """Go behind the comma or bracket that follows an element; that character."""
        mark = self.next()
        if mark not in (",", "]"):
            raise self._damaged(f"after row {number - 1} comes {mark or 'the end'}, not a comma")
        self._go(self._at + 1)
        return mark

    def finish(self) -> None:
        """Make sure that nothing follows."""
        if self.next():
            raise self._damaged("something follows the array")

    def _go(self, end: int) -> None:
        self.offset += len(self._text[self._at : end].encode())
        self._at = end

    def _is_cut(self, error: Exception) -> bool:
        if not isinstance(error, json.JSONDecodeError):
            return False
        is_near_end = error.pos >= len(self._text) - _LONGEST_TOKEN
        return is_near_end or error.msg.startswith("Unterminated string")

    def _read(self) -> bool:
        if self._is_all:
            return False
        # Twice as much where an element is longer than a block: each is looked at few times.
        block = self._file.read(max(_BLOCK_BYTES, len(self._text) - self._at))
        self._is_all = not block
        try:
            more = self._decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            raise self._damaged(f"it is not UTF-8: {error}") from None
        self._text = self._text[self._at :] + more
        self._at = 0
        return bool(block)

    def _damaged(self, reason: str) -> JobInputError:
        return JobInputError(
            f"{self._path} is no array of JSON records ({reason}, near byte {self.offset}); mend "
            "it, or write one record a line into a .jsonl file"
        )

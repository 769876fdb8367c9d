"""One pass over the input before anything is scored: rows, digests, shapes and types."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from serve.jobs.columns import AS_USUAL, Columns
from serve.jobs.inputs.column_types import SeenValues, fields_of
from serve.jobs.inputs.files import FileSource
from serve.jobs.inputs.source import InputFile, Position, Row
from serve.jobs.inputs.stored import digest_of
from serve.jobs.records import RESPONSES, Shape, shapes_among, shapes_in

_TELL_EVERY_ROWS = 10_000


@dataclass(frozen=True, slots=True)
class FileDigest:
    """A file of the input, pinned.

    Attributes:
        path: absolute.
        size: bytes.
        mtime_ns: of its last change.
        sha256: of its first `num_hashed_bytes` bytes, hexadecimal.
        num_hashed_bytes: `size`, or fewer where a limit ended the reading within the file.
    """

    path: str
    size: int
    mtime_ns: int
    sha256: str
    num_hashed_bytes: int


@dataclass(frozen=True, slots=True)
class Survey:
    """What one pass over the input found.

    Attributes:
        num_rows: rows to score, not more than the limit.
        num_bytes: sum of their `Row.size`.
        files: those that were read, in order: with a limit, none after the one it falls in.
        schema: columns of the input for a table as output; None unless asked for.
        shapes: what the rows may be, which decides the result columns of a table; empty unless
            asked for.
    """

    num_rows: int
    num_bytes: int
    files: tuple[FileDigest, ...]
    schema: pa.Schema | None
    shapes: frozenset[Shape]


Told = Callable[[int, int], None]


def survey(
    source: FileSource,
    *,
    limit: int | None = None,
    tabular: bool = False,
    columns: Columns = AS_USUAL,
    told: Told = lambda num_rows, num_bytes: None,
) -> Survey:
    """Read the input once.

    Args:
        source: the input.
        limit: rows to look at; None for all.
        tabular: also find `schema` and `shapes`; costs the parsing of every line of JSON.
        columns: where the caller said a record's parts are.
        told: is told rows and bytes (of `files` as stored) so far, now and then.

    Raises:
        JobInputError: a file cannot be read.
        JobOutputError: a column has values that no one type can hold.
    """
    seen = _Seen(source, columns) if tabular else None
    decoded = seen is not None and seen.needs_records
    progress = _Progress(told)
    digests: list[FileDigest] = []
    for index, file in enumerate(source.files):
        if digests and progress.num_rows == limit:
            break
        left = None if limit is None else limit - progress.num_rows
        watcher = _Hash(progress)
        start = Position(index, 0, progress.num_rows)
        rows = source.rows_in(start, decoded=decoded, watch=watcher)
        for row in itertools.islice(rows, left):
            progress.add(row)
            if seen and decoded:
                seen.add(row)
        digests.append(watcher.digest_of(file))
    schema, shapes = seen.found() if seen else (None, frozenset())
    return Survey(progress.num_rows, progress.num_bytes, tuple(digests), schema, shapes)


def is_unchanged(pinned: FileDigest, now: InputFile) -> bool:
    """Whether a file still is what was pinned; hashes it only if its time of change differs."""
    if (pinned.path, pinned.size) != (str(now.path), now.size):
        return False
    if pinned.mtime_ns == now.mtime_ns:
        return True
    return digest_of(now.path, pinned.num_hashed_bytes) == pinned.sha256


class _Progress:
    """How far the pass is."""

    def __init__(self, told: Told) -> None:
        self.num_rows = self.num_bytes = self.num_stored_bytes = 0
        self._told = told

    def add(self, row: Row) -> None:
        self.num_rows += 1
        self.num_bytes += row.size
        if not self.num_rows % _TELL_EVERY_ROWS:
            self._told(self.num_rows, self.num_stored_bytes)


class _Hash:
    """Watches a file while it is read."""

    def __init__(self, progress: _Progress) -> None:
        self._digest = hashlib.sha256()
        self._num_bytes = 0
        self._progress = progress

    def __call__(self, block: memoryview) -> None:
        self._digest.update(block)
        self._num_bytes += len(block)
        self._progress.num_stored_bytes += len(block)

    def digest_of(self, file: InputFile) -> FileDigest:
        digest = self._digest.hexdigest()
        return FileDigest(str(file.path), file.size, file.mtime_ns, digest, self._num_bytes)


class _Seen:
    """Types and shapes of the rows, for a table as output."""

    def __init__(self, source: FileSource, columns: Columns) -> None:
        self._schema = source.schema
        self._columns = columns
        self._types: dict[str, SeenValues] = {}
        self._shapes: set[Shape] = set()
        if self._schema is not None:
            self._shapes = _possible_shapes(self._schema.names, columns)
        # Names of columns tell the shape of all rows where only one is possible.
        self.needs_records = self._schema is None or len(self._shapes) > 1
        if self.needs_records:
            self._shapes = set()

    def add(self, row: Row) -> None:
        record = row.record
        if not isinstance(record, Mapping):
            record = {"line": record if row.raw is None else row.raw}
        self._shapes.update(shapes_in(record, self._columns)[:1])
        if self._schema is None:
            for name, value in record.items():
                if name not in self._types:
                    self._types[name] = SeenValues()
                self._types[name].add(value)

    def found(self) -> tuple[pa.Schema, frozenset[Shape]]:
        schema = pa.schema(fields_of(self._types)) if self._schema is None else self._schema
        return schema, frozenset(self._shapes)


def _possible_shapes(names: Sequence[str], columns: Columns) -> set[Shape]:
    """Of rows of which any may be null in any column."""
    sets = (("messages",), ("chosen", "rejected"), ("responses",), ("conversations",))
    every = [*sets, *((name,) for name in RESPONSES)]
    there = [some for some in every if set(some) <= set(names)]
    return {shape for some in there for shape in shapes_among(some.__contains__, columns)}

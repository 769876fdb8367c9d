"""One pass over the input before anything is scored: rows, digests, encodings, columns."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from serve.jobs.column_rules import CHOSEN, CONVERSATIONS, GENERATION, GROUPS, REJECTED, RESPONSES
from serve.jobs.columns import AS_USUAL, Columns
from serve.jobs.inputs.encodings import EncodingCount
from serve.jobs.inputs.files import FileSource
from serve.jobs.inputs.io import digest_of
from serve.jobs.inputs.schema_inference import SeenValues, fields_of, require_parquet_types
from serve.jobs.inputs.source import InputFile, Position, Row
from serve.jobs.record_schema import Shape, shapes_among, shapes_in
from serve.jobs.row_results import UNREAD, WATCHED, ResultNames, choose_names, is_error_of_run

RESULTS_KEY = b"skyreward.results"
"""Key of the metadata of a table's schema that lists the columns of results, as a JSON list."""
_TELL_EVERY_ROWS = 10_000
# The keys of `WATCHED` as they are in JSON: one expression costs a sixth of nine searches.
_find_key = re.compile(
    b'"(?:%s)"' % b"|".join(re.escape(name).encode() for name in sorted(WATCHED))
).search
# Letters of a key may be written as escapes, which nobody does but a reader must expect.
_find_escaped_letter = re.compile(rb"\\u00[5-7]").search


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
        names: under which results are written.
    """

    num_rows: int
    num_bytes: int
    files: tuple[FileDigest, ...]
    schema: pa.Schema | None
    shapes: frozenset[Shape]
    names: ResultNames = field(default_factory=ResultNames)


Told = Callable[[int, int], None]
Earlier = Callable[[FileDigest], frozenset[str]]


def survey(
    source: FileSource,
    *,
    limit: int | None = None,
    tabular: bool = False,
    columns: Columns = AS_USUAL,
    replace_results: bool = False,
    earlier: Earlier = lambda file: frozenset(),
    told: Told = lambda num_rows, num_bytes: None,
) -> Survey:
    """Read the input once.

    Args:
        source: the input.
        limit: rows to look at; None for all.
        tabular: also find `schema` and `shapes`; costs the parsing of every line of JSON.
        columns: where the caller said a record's parts are.
        replace_results: see `choose_names`.
        earlier: returns the columns of a file that an earlier run is known to have written.
        told: is told rows and bytes (of `files` as stored) so far, now and then.

    Raises:
        JobInputError: a file cannot be read, is not UTF-8, or leaves no name for a result.
        JobOutputError: a column has values that no one type can hold.
    """
    seen = _Seen(source, columns) if tabular else None
    decoded = seen is not None and seen.needs_records
    progress = _Progress(told)
    digests: list[FileDigest] = []
    own: set[str] = set()
    replaceable: set[str] = set()
    for index, file in enumerate(source.files):
        if digests and progress.num_rows == limit:
            break
        left = None if limit is None else limit - progress.num_rows
        watcher = _Hash(progress)
        start = Position(index, 0, progress.num_rows)
        look = _Look(decoded)
        wanted = decoded if source.schema is not None else look
        rows = source.rows_in(start, decoded=wanted, watch=watcher)
        for row in itertools.islice(rows, left):
            progress.add(row)
            if isinstance(row.record, dict):
                look.see(row.record)
            if seen and decoded:
                seen.add(row)
        look.encodings.require_utf8(file.path, progress.num_rows - start.row)
        digests.append(watcher.digest_of(file))
        if schema := source.schema_in(index):
            look.named.update(WATCHED.intersection(schema.names))
        known = look.known
        if look.named:
            known |= (earlier(digests[-1]) | _marked(schema)) & look.named
        own |= look.named - known
        replaceable |= known
    names = choose_names(own, replaceable, replace=replace_results)
    schema, shapes = seen.found(names) if seen else (None, frozenset())
    return Survey(progress.num_rows, progress.num_bytes, tuple(digests), schema, shapes, names)


def is_unchanged(pinned: FileDigest, now: InputFile) -> bool:
    """Whether a file still is what was pinned; hashes it only if its time of change differs."""
    if (pinned.path, pinned.size) != (str(now.path), now.size):
        return False
    if pinned.mtime_ns == now.mtime_ns:
        return True
    return digest_of(now.path, pinned.num_hashed_bytes) == pinned.sha256


class _Look:
    """Looks at every row of JSON of one file.

    Args:
        decoded: whether all are to be decoded; else those alone that may have a column of
            `WATCHED`.
    """

    def __init__(self, decoded: bool) -> None:
        self.encodings = EncodingCount()
        self.named: set[str] = set()
        self._decoded = decoded
        self._errors = {True: 0, False: 0}  # of a run, and others

    @property
    def known(self) -> frozenset[str]:
        """Columns that show by themselves that an earlier run wrote them."""
        is_known = self._errors[True] and not self._errors[False]
        return frozenset(["error"] if is_known else [])

    def see(self, record: dict[str, Any]) -> None:
        """Take note of the columns of a record."""
        self.named.update(WATCHED.intersection(record))
        if (error := record.get("error")) is not None:
            self._errors[is_error_of_run(error)] += 1

    def __call__(self, text: bytes) -> bool:
        self.encodings.add(text)
        return (
            self._decoded
            or _find_key(text) is not None
            or (b"\\" in text and b"\\u00" in text and _find_escaped_letter(text) is not None)
        )


def _marked(schema: pa.Schema | None) -> frozenset[str]:
    """Columns that the metadata of a table says are results."""
    mark = ((schema and schema.metadata) or {}).get(RESULTS_KEY)
    try:
        return frozenset(json.loads(mark)) if mark else frozenset()
    except (ValueError, TypeError):
        return frozenset()


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
        self._unread = SeenValues()
        self._has_unread = False
        self._shapes: set[Shape] = set()
        if self._schema is not None:
            require_parquet_types(self._schema)
            self._shapes = _possible_shapes(self._schema.names, columns)
        # Names of columns tell the shape of all rows where only one is possible.
        self.needs_records = self._schema is None or len(self._shapes) > 1
        if self.needs_records:
            self._shapes = set()

    def add(self, row: Row) -> None:
        record = row.record
        if not isinstance(record, Mapping):
            self._has_unread = True
            self._unread.add(record if row.raw is None else row.raw)
            return
        self._shapes.update(shapes_in(record, self._columns)[:1])
        if self._schema is None:
            for name, value in record.items():
                if name not in self._types:
                    self._types[name] = SeenValues()
                self._types[name].add(value)

    def found(self, names: ResultNames) -> tuple[pa.Schema, frozenset[Shape]]:
        if self._schema is not None:
            return self._schema, frozenset(self._shapes)
        types = {name: seen for name, seen in self._types.items() if name not in names.replaced}
        if self._has_unread:
            types[names[UNREAD]] = self._unread
        return pa.schema(fields_of(types)), frozenset(self._shapes)


def _possible_shapes(names: Sequence[str], columns: Columns) -> set[Shape]:
    """Of rows of which any may be null in any column."""
    alone = (*CONVERSATIONS, *GROUPS, *RESPONSES, GENERATION)
    better = (*CHOSEN, "messages", *RESPONSES)
    every = [*((name,) for name in alone), *itertools.product(better, REJECTED)]
    read = set(names).difference(columns.ignored)
    there = [some for some in every if set(some) <= read]
    return {shape for some in there for shape in shapes_among(some.__contains__, columns)}

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
from serve.jobs.columns import DEFAULT_COLUMNS, Columns
from serve.jobs.inputs.encodings import EncodingCounter
from serve.jobs.inputs.files import FileSource
from serve.jobs.inputs.io import compute_prefix_sha256
from serve.jobs.inputs.schema_inference import TypeInference, infer_fields, require_parquet_types
from serve.jobs.inputs.source import InputFile, Position, Row
from serve.jobs.record_schema import RecordKind, infer_kinds_from_columns, infer_record_kinds
from serve.jobs.row_results import (
    RESERVED_COLUMNS,
    UNREAD_COLUMN,
    ResultNames,
    choose_result_names,
    is_job_error,
)

RESULTS_METADATA_KEY = b"skyreward.results"
"""Key of the metadata of a table's schema that lists the columns of results, as a JSON list."""
_REPORT_EVERY_ROWS = 10_000
# The keys of `WATCHED` as they are in JSON: one expression costs a sixth of nine searches.
_find_key = re.compile(
    b'"(?:%s)"' % b"|".join(re.escape(name).encode() for name in sorted(RESERVED_COLUMNS))
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
class InputScan:
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
    kinds: frozenset[RecordKind]
    names: ResultNames = field(default_factory=ResultNames)


ProgressCallback = Callable[[int, int], None]
FindResultColumns = Callable[[FileDigest], frozenset[str]]


def scan_input(
    source: FileSource,
    *,
    limit: int | None = None,
    tabular: bool = False,
    columns: Columns = DEFAULT_COLUMNS,
    replace_results: bool = False,
    find_result_columns: FindResultColumns = lambda file: frozenset(),
    on_progress: ProgressCallback = lambda num_rows, num_bytes: None,
) -> InputScan:
    """Read the input once.

    Args:
        source: the input.
        limit: rows to look at; None for all.
        tabular: also find `schema` and `shapes`; costs the parsing of every line of JSON.
        columns: where the caller said a record's parts are.
        replace_results: see `choose_result_names`.
        earlier: returns the columns of a file that an earlier run is known to have written.
        told: is told rows and bytes (of `files` as stored) so far, now and then.

    Raises:
        JobInputError: a file cannot be read, is not UTF-8, or leaves no name for a result.
        JobOutputError: a column has values that no one type can hold.
    """
    seen = _SchemaCollector(source, columns) if tabular else None
    decoded = seen is not None and seen.needs_records
    progress = _ScanProgress(on_progress)
    digests: list[FileDigest] = []
    own: set[str] = set()
    replaceable: set[str] = set()
    for index, file in enumerate(source.files):
        if digests and progress.num_rows == limit:
            break
        left = None if limit is None else limit - progress.num_rows
        watcher = _HashingWatcher(progress)
        start = Position(index, 0, progress.num_rows)
        look = _FileInspector(decoded)
        wanted = decoded if source.schema is not None else look
        rows = source.iter_file_rows(start, decode=wanted, watch=watcher)
        for row in itertools.islice(rows, left):
            progress.add(row)
            if isinstance(row.record, dict):
                look.add_record(row.record)
            if seen and decoded:
                seen.add(row)
        look.encodings.require_utf8(file.path, progress.num_rows - start.row)
        digests.append(watcher.build_digest(file))
        if schema := source.read_file_schema(index):
            look.result_names.update(RESERVED_COLUMNS.intersection(schema.names))
        known = look.known_results
        if look.result_names:
            known |= (
                find_result_columns(digests[-1]) | _read_result_columns(schema)
            ) & look.result_names
        own |= look.result_names - known
        replaceable |= known
    names = choose_result_names(own, replaceable, replace=replace_results)
    schema, shapes = seen.build(names) if seen else (None, frozenset())
    return InputScan(progress.num_rows, progress.num_bytes, tuple(digests), schema, shapes, names)


def is_unchanged(digest: FileDigest, file: InputFile) -> bool:
    """Whether a file still is what was pinned; hashes it only if its time of change differs."""
    if (digest.path, digest.size) != (str(file.path), file.size):
        return False
    if digest.mtime_ns == file.mtime_ns:
        return True
    return compute_prefix_sha256(file.path, digest.num_hashed_bytes) == digest.sha256


class _FileInspector:
    """Looks at every row of JSON of one file.

    Args:
        decoded: whether all are to be decoded; else those alone that may have a column of
            `WATCHED`.
    """

    def __init__(self, decode_all: bool) -> None:
        self.encodings = EncodingCounter()
        self.result_names: set[str] = set()
        self._decode_all = decode_all
        self._errors = {True: 0, False: 0}  # of a run, and others

    @property
    def known_results(self) -> frozenset[str]:
        """Columns that show by themselves that an earlier run wrote them."""
        is_known = self._errors[True] and not self._errors[False]
        return frozenset(["error"] if is_known else [])

    def add_record(self, record: dict[str, Any]) -> None:
        """Take note of the columns of a record."""
        self.result_names.update(RESERVED_COLUMNS.intersection(record))
        if (error := record.get("error")) is not None:
            self._errors[is_job_error(error)] += 1

    def __call__(self, text: bytes) -> bool:
        self.encodings.add(text)
        return (
            self._decode_all
            or _find_key(text) is not None
            or (b"\\" in text and b"\\u00" in text and _find_escaped_letter(text) is not None)
        )


def _read_result_columns(schema: pa.Schema | None) -> frozenset[str]:
    """Columns that the metadata of a table says are results."""
    mark = ((schema and schema.metadata) or {}).get(RESULTS_METADATA_KEY)
    try:
        return frozenset(json.loads(mark)) if mark else frozenset()
    except (ValueError, TypeError):
        return frozenset()


class _ScanProgress:
    """How far the pass is."""

    def __init__(self, on_progress: ProgressCallback) -> None:
        self.num_rows = self.num_bytes = self.num_stored_bytes = 0
        self._on_progress = on_progress

    def add(self, row: Row) -> None:
        self.num_rows += 1
        self.num_bytes += row.size
        if not self.num_rows % _REPORT_EVERY_ROWS:
            self._on_progress(self.num_rows, self.num_stored_bytes)


class _HashingWatcher:
    """Watches a file while it is read."""

    def __init__(self, progress: _ScanProgress) -> None:
        self._digest = hashlib.sha256()
        self._num_bytes = 0
        self._progress = progress

    def __call__(self, block: memoryview) -> None:
        self._digest.update(block)
        self._num_bytes += len(block)
        self._progress.num_stored_bytes += len(block)

    def build_digest(self, file: InputFile) -> FileDigest:
        digest = self._digest.hexdigest()
        return FileDigest(str(file.path), file.size, file.mtime_ns, digest, self._num_bytes)


class _SchemaCollector:
    """Types and shapes of the rows, for a table as output."""

    def __init__(self, source: FileSource, columns: Columns) -> None:
        self._schema = source.schema
        self._columns = columns
        self._types: dict[str, TypeInference] = {}
        self._unread = TypeInference()
        self._has_unread = False
        self._shapes: set[RecordKind] = set()
        if self._schema is not None:
            require_parquet_types(self._schema)
            self._shapes = _infer_table_kinds(self._schema.names, columns)
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
        self._shapes.update(infer_record_kinds(record, self._columns)[:1])
        if self._schema is None:
            for name, value in record.items():
                if name not in self._types:
                    self._types[name] = TypeInference()
                self._types[name].add(value)

    def build(self, names: ResultNames) -> tuple[pa.Schema, frozenset[RecordKind]]:
        if self._schema is not None:
            return self._schema, frozenset(self._shapes)
        types = {
            name: seen for name, seen in self._types.items() if name not in names.replaced_columns
        }
        if self._has_unread:
            types[names[UNREAD_COLUMN]] = self._unread
        return pa.schema(infer_fields(types)), frozenset(self._shapes)


def _infer_table_kinds(names: Sequence[str], columns: Columns) -> set[RecordKind]:
    """Of rows of which any may be null in any column."""
    alone = (*CONVERSATIONS, *GROUPS, *RESPONSES, GENERATION)
    better = (*CHOSEN, "messages", *RESPONSES)
    every = [*((name,) for name in alone), *itertools.product(better, REJECTED)]
    read = set(names).difference(columns.ignored)
    there = [some for some in every if set(some) <= read]
    return {
        shape for some in there for shape in infer_kinds_from_columns(some.__contains__, columns)
    }

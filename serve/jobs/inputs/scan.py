"""Scan the input once before scoring: count rows, and find digests, encodings and columns."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pyarrow as pa

from rm_core.config import Kind
from serve.jobs.columns import (
    CHOSEN,
    CONVERSATIONS,
    DEFAULT_COLUMNS,
    GENERATION,
    GROUPS,
    JUDGED,
    REJECTED,
    RESPONSES,
    STEPS,
    STEPWISE,
    Columns,
    RecordKind,
    infer_kinds,
    infer_record_kinds,
)
from serve.jobs.inputs.rows import DecodeFilter, Row
from serve.jobs.inputs.schema_inference import TypeInference, infer_fields, require_parquet_types
from serve.jobs.inputs.source import FileSource
from serve.jobs.inputs.text import EncodingCounter
from serve.jobs.row_results import (
    RESERVED_COLUMNS,
    UNREAD_COLUMN,
    ResultNames,
    choose_result_names,
    is_job_error,
)
from serve.jobs.storage import FileState, InputFile

RESULTS_METADATA_KEY = b"skyreward.results"
"""Key of the metadata of a table's schema that lists the columns of results, as a JSON list."""
_REPORT_EVERY_ROWS = 10_000
# A limit may end the reading within a file: bytes hashed after its rows, for blank lines among them
# and the header of a compressed file.
_READ_AHEAD = 1 << 20
# The keys of `RESERVED_COLUMNS` in JSON: one expression costs a sixth of nine searches.
_find_key = re.compile(
    b'"(?:%s)"' % b"|".join(re.escape(name).encode() for name in sorted(RESERVED_COLUMNS))
).search
# Letters of a key may be written as escapes, which is unusual but valid.
_find_escaped_letter = re.compile(rb"\\u00[5-7]").search


@dataclass(frozen=True, slots=True)
class FileDigest:
    """A pinned file of the input, as JSON data.

    Attributes:
        path: absolute path, or address without secrets.
        size: size in bytes.
        mtime_ns: see `FileState`.
        sha256: hexadecimal SHA-256 of the first `num_hashed_bytes` bytes.
        num_hashed_bytes: all bytes, or fewer if a limit ended the reading within the file.
        etag: see `FileState`.
    """

    path: str
    size: int
    mtime_ns: int
    sha256: str
    num_hashed_bytes: int
    etag: str = ""


@dataclass(frozen=True, slots=True)
class InputScan:
    """Result of a scan of the input.

    Attributes:
        num_rows: number of rows to score, at most the limit.
        num_bytes: sum of `Row.size` of these rows.
        files: files that were read, in order; with a limit, up to the file where it is reached.
        schema: columns of the input for a tabular output; None unless requested.
        kinds: possible kinds of the rows, which decide the result columns of a table; empty unless
            requested.
        names: names of the result columns.
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
    kind: Kind = "classifier",
    find_result_columns: FindResultColumns = lambda file: frozenset(),
    on_progress: ProgressCallback = lambda num_rows, num_bytes: None,
) -> InputScan:
    """Scan the input.

    Args:
        source: the input.
        limit: number of rows to scan; None for all.
        tabular: whether to find `schema` and `kinds` as well, which parses every line of JSON.
        columns: columns that the caller named.
        replace_results: see `choose_result_names`.
        kind: kind of the model that scores the rows.
        find_result_columns: returns the columns of a file that an earlier run wrote.
        on_progress: called from time to time with the number of rows and of stored bytes so far.

    Raises:
        JobInputError: a file cannot be read, is not UTF-8, or leaves no name for a result.
        JobOutputError: no Arrow type can hold all values of a column.
    """
    collector = _SchemaCollector(source, columns, kind) if tabular else None
    decode_all = collector is not None and collector.needs_records
    num_rows = num_bytes = num_stored_bytes = 0
    digests: list[FileDigest] = []
    own_columns: set[str] = set()
    earlier_columns: set[str] = set()
    for index, file in enumerate(source.files):
        if digests and num_rows == limit:
            break
        location = source.fetched.fetch(file, partial(on_progress, num_rows, num_stored_bytes))
        inspector = _FileInspector(decode_all)
        decode: DecodeFilter = decode_all if source.schema is not None else inspector
        first, num_file_bytes = num_rows, 0
        rows = source.iter_file_rows(index, num_rows, decode=decode)
        for row in itertools.islice(rows, None if limit is None else limit - num_rows):
            num_rows += 1
            num_file_bytes += row.size
            if isinstance(row.record, dict):
                inspector.add_record(row.record)
            if collector and decode_all:
                collector.add(row)
            if not num_rows % _REPORT_EVERY_ROWS:
                on_progress(num_rows, num_stored_bytes + min(num_file_bytes, file.size))
        inspector.encodings.require_utf8(file.path, num_rows - first)
        is_cut = num_rows == limit and source.schema is None
        num_hashed = min(file.size, num_file_bytes + _READ_AHEAD) if is_cut else file.size
        sha256 = location.compute_sha256(num_hashed)
        state = file.state
        digests.append(
            FileDigest(file.path, state.size, state.mtime_ns, sha256, num_hashed, state.etag)
        )
        num_bytes += num_file_bytes
        num_stored_bytes += file.size
        if schema := source.read_file_schema(index):
            inspector.result_names.update(RESERVED_COLUMNS.intersection(schema.names))
        known_columns = inspector.known_results
        if inspector.result_names:
            known_columns |= (
                find_result_columns(digests[-1]) | _read_result_columns(schema)
            ) & inspector.result_names
        own_columns |= inspector.result_names - known_columns
        earlier_columns |= known_columns
    names = choose_result_names(own_columns, earlier_columns, replace=replace_results, kind=kind)
    schema, kinds = collector.build(names) if collector else (None, frozenset())
    return InputScan(num_rows, num_bytes, tuple(digests), schema, kinds, names)


def is_unchanged(digest: FileDigest, file: InputFile) -> bool:
    """Return whether a file is as it was pinned; hash it only if its state differs."""
    if (digest.path, digest.size) != (file.path, file.size):
        return False
    pinned = FileState(digest.size, digest.mtime_ns, digest.etag)
    if pinned == file.state and pinned.is_certain:
        return True
    return file.location.compute_sha256(digest.num_hashed_bytes) == digest.sha256


class _FileInspector:
    """Inspects every JSON row of one file.

    It decodes all rows, or only those that may have a column of `RESERVED_COLUMNS`.
    """

    def __init__(self, decode_all: bool) -> None:
        self.encodings = EncodingCounter()
        self.result_names: set[str] = set()
        self._decode_all = decode_all
        self._errors = {True: 0, False: 0}  # number of values that a job wrote, and of others

    @property
    def known_results(self) -> frozenset[str]:
        """Columns whose content shows that an earlier run wrote them."""
        is_known = self._errors[True] and not self._errors[False]
        return frozenset(["error"] if is_known else [])

    def add_record(self, record: dict[str, Any]) -> None:
        """Inspect the columns of a record."""
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
    """Return the result columns according to the metadata of a table."""
    names = ((schema and schema.metadata) or {}).get(RESULTS_METADATA_KEY)
    try:
        return frozenset(json.loads(names)) if names else frozenset()
    except (ValueError, TypeError):
        return frozenset()


class _SchemaCollector:
    """Collects types and kinds of the rows, for a tabular output."""

    def __init__(self, source: FileSource, columns: Columns, kind: Kind) -> None:
        self._schema = source.schema
        self._columns = columns
        self._kind = kind
        self._records = TypeInference()
        self._unread: TypeInference | None = None
        self._kinds: set[RecordKind] = set()
        if self._schema is not None:
            require_parquet_types(self._schema)
            self._kinds = _infer_table_kinds(self._schema.names, columns, kind)
        # If the column names allow only one kind, all rows have that kind.
        self.needs_records = self._schema is None or len(self._kinds) > 1
        if self.needs_records:
            self._kinds = set()

    def add(self, row: Row) -> None:
        record = row.record
        if not isinstance(record, Mapping):
            self._unread = self._unread or TypeInference()
            self._unread.add(row.content)
            return
        self._kinds.update(infer_record_kinds(record, self._columns, self._kind)[:1])
        if self._schema is None:
            self._records.add(record)

    def build(self, names: ResultNames) -> tuple[pa.Schema, frozenset[RecordKind]]:
        kinds = frozenset(self._kinds)
        if self._kind == "judge":
            kinds = frozenset(JUDGED[kind] for kind in kinds if kind in JUDGED)
        if self._schema is not None:
            return self._schema, kinds
        columns = self._records.fields or {}
        types = {name: columns[name] for name in columns if name not in names.replaced_columns}
        if self._unread:
            types[names[UNREAD_COLUMN]] = self._unread
        return pa.schema(infer_fields(types)), kinds


def _infer_table_kinds(names: Sequence[str], columns: Columns, kind: Kind) -> set[RecordKind]:
    """Return the possible kinds of the rows of a table, where any value may be null."""
    alone = (*CONVERSATIONS, *GROUPS, *RESPONSES, GENERATION, STEPS)
    better = (*CHOSEN, "messages", *RESPONSES)
    combinations = [
        *((name,) for name in alone),
        *itertools.product(better, REJECTED),
        STEPWISE,
    ]
    names_read = set(names).difference(columns.ignored)
    found = [combination for combination in combinations if set(combination) <= names_read]
    return {
        possible
        for combination in found
        for possible in infer_kinds(set(combination), columns, kind)
    }

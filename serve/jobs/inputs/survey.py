"""One pass over the input before anything is scored: rows, sizes, digests, shapes and types."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from serve.jobs.columns import AS_USUAL, Columns
from serve.jobs.inputs.source import InputFile, Source
from serve.jobs.records import Shape


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
        files: those that were read, in order: with a limit, none after the one it falls in.
        schema: columns of the input for a table as output; None unless asked for.
        shapes: what the rows may be, which decides the result columns of a table; empty unless
            asked for.
    """

    num_rows: int
    files: tuple[FileDigest, ...]
    schema: pa.Schema | None
    shapes: frozenset[Shape]


def survey(
    source: Source,
    *,
    limit: int | None = None,
    tabular: bool = False,
    columns: Columns = AS_USUAL,
    told: Callable[[int, int], None] = lambda num_rows, num_bytes: None,
) -> Survey:
    """Read the input once.

    Args:
        source: the input.
        limit: rows to look at; None for all.
        tabular: also find `schema` and `shapes`; costs the parsing of every line of JSON.
        columns: where the caller said a record's parts are.
        told: is told rows and bytes (of `files` as stored) so far, now and
            then.

    Raises:
        JobInputError: a file cannot be read.
        JobOutputError: a column has values that no one type can hold.
    """
    raise NotImplementedError


def digest_of(path: Path, num_bytes: int) -> str:
    """SHA-256 of the first bytes of a file, hexadecimal; of all of it where it is shorter."""
    raise NotImplementedError


def is_unchanged(pinned: FileDigest, now: InputFile) -> bool:
    """Whether a file still is what was pinned; hashes it only if its time of change differs."""
    raise NotImplementedError

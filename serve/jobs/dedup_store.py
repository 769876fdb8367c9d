"""Store of a job's distinct conversations and their results on disk, so that each is scored once.

The store is a SQLite database with a page cache of bounded size. The results of a chunk are
committed before the chunk's file gets its name, so the results of a chunk whose file was lost are
all in the store. The store can be rebuilt from the input and the chunks, so a damaged store costs
time but no rewards.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from rm_core.inputs.conversations import ChatJson
from serve.errors import DiskFullError
from serve.jobs.chunk_files import CorruptStateError, Result, decode_result, encode_result

Digest = bytes

# Keys are not sorted: templates render functions and their arguments in the order of the keys.
_canonical = json.JSONEncoder(separators=(",", ":")).encode

_CACHE_KIB = 65_536
_WAL_PAGES = 16_384  # of 4 KiB: a page that several chunks change is written back once
_LOOKUPS = 500
_TABLES = """
CREATE TABLE seen (digest BLOB PRIMARY KEY, chunk INTEGER, result TEXT) WITHOUT ROWID;
CREATE TABLE chunks (chunk INTEGER PRIMARY KEY, num_computed_tokens INTEGER);
CREATE TABLE job (digest TEXT);
"""


class KnownResult(NamedTuple):
    """The result of a scored conversation and the chunk that it was scored with."""

    chunk: int
    result: Result


def compute_digest(conversation: ChatJson) -> Digest:
    """Return a digest of 16 bytes, equal for conversations that every template renders equally."""
    return hashlib.blake2b(_canonical(conversation).encode(), digest_size=16).digest()


class DedupStore:
    """The conversations and results of all scored chunks. Use from one thread.

    Args:
        path: file of the store, created if it does not exist.
        job_id: `Manifest.job_id`.

    Raises:
        CorruptStateError: the store is damaged or belongs to another job.
        DiskFullError: the disk is too full to create the store.
    """

    def __init__(self, path: Path, job_id: str) -> None:
        self._path = path
        is_new = not path.exists()
        self._connection = sqlite3.connect(path, isolation_level=None)
        try:
            with _translate_errors(path):
                self._open(job_id, is_new)
        except BaseException:
            self._connection.close()
            raise

    def _open(self, job_id: str, is_new: bool) -> None:
        execute = self._connection.execute
        execute("PRAGMA journal_mode = WAL")
        execute("PRAGMA synchronous = FULL")
        execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        execute(f"PRAGMA wal_autocheckpoint = {_WAL_PAGES}")
        execute(f"PRAGMA journal_size_limit = {_WAL_PAGES * 4096}")
        if is_new:
            self._connection.executescript(f"BEGIN; {_TABLES}")
            execute("INSERT INTO job VALUES (?)", (job_id,))
            execute("COMMIT")
            return
        (status,) = execute("PRAGMA quick_check(1)").fetchone()
        if status != "ok":
            raise CorruptStateError(f"SQLite reports damage ({status})")
        if execute("SELECT digest FROM job").fetchall() != [(job_id,)]:
            raise CorruptStateError("it belongs to another job")

    @property
    def num_chunks(self) -> int:
        """Number of chunks in the store; chunks are added in order, from the first."""
        with _translate_errors(self._path):
            (last,) = self._connection.execute("SELECT max(chunk) FROM chunks").fetchone()
        return 0 if last is None else int(last) + 1

    def get_num_computed_tokens(self, chunk: int) -> int | None:
        """Return the number of tokens computed for a chunk; None if the chunk is not stored."""
        query = "SELECT num_computed_tokens FROM chunks WHERE chunk = ?"
        with _translate_errors(self._path):
            row = self._connection.execute(query, (chunk,)).fetchone()
        return int(row[0]) if row else None

    def find(self, digests: Sequence[Digest]) -> dict[Digest, KnownResult]:
        """Return the results of those conversations that were scored."""
        found: dict[Digest, KnownResult] = {}
        with _translate_errors(self._path):
            for start in range(0, len(digests), _LOOKUPS):
                batch = digests[start : start + _LOOKUPS]
                placeholders = ",".join("?" * len(batch))
                rows = self._connection.execute(
                    f"SELECT digest, chunk, result FROM seen WHERE digest IN ({placeholders})",
                    batch,
                )
                found |= {
                    key: KnownResult(chunk, _decode_with_checksum(key, text))
                    for key, chunk, text in rows
                }
        return found

    def add(self, chunk: int, results: Mapping[Digest, Result], num_computed_tokens: int) -> None:
        """Add the results of a chunk in one durable transaction; known results do not change.

        Raises:
            DiskFullError: the disk is too full; the store is unchanged.
        """
        rows = (
            (digest, chunk, _encode_with_checksum(digest, results[digest]))
            for digest in sorted(results)
        )
        with self._transaction():
            self._connection.executemany("INSERT OR IGNORE INTO seen VALUES (?, ?, ?)", rows)
            self._connection.execute(
                "INSERT OR IGNORE INTO chunks VALUES (?, ?)", (chunk, num_computed_tokens)
            )

    def close(self) -> None:
        """Close the database."""
        self._connection.close()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        with _translate_errors(self._path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    self._connection.execute("ROLLBACK")
                raise


def remove_store(path: Path) -> None:
    """Remove a store and SQLite's additional files."""
    for ending in ("", "-wal", "-shm"):
        path.with_name(path.name + ending).unlink(missing_ok=True)


def _encode_with_checksum(key: Digest, result: Result) -> str:
    """Encode a result with a checksum, because SQLite has no checksums."""
    text = encode_result(result)
    return f"{zlib.crc32(key + text.encode()):08x}{text}"


def _decode_with_checksum(key: Digest, text: str) -> Result:
    if f"{zlib.crc32(key + text[8:].encode()):08x}" != text[:8]:
        raise CorruptStateError("the checksum of a result is wrong")
    return decode_result(json.loads(text[8:]))


@contextlib.contextmanager
def _translate_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
            raise DiskFullError(f"{path} cannot be written: {error}") from error
        raise CorruptStateError(f"{type(error).__name__}: {error}") from error

"""Every distinct conversation of a job and its result, on disk, so that each is scored once.

SQLite, with a page cache of bounded size. What a chunk brought is committed before the chunk's own
file gets its name: a chunk whose file was lost finds all its results here. The store can be made
again from the input and the chunks, so a damaged one costs time, no rewards.
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

# Keys stay in their order: templates that write functions and their arguments write it too.
_canonical = json.JSONEncoder(separators=(",", ":")).encode

_CACHE_KIB = 65_536
_WAL_PAGES = 16_384  # of 4 KiB: a page that several chunks touch is written back once
_LOOKUPS = 500
_TABLES = """
CREATE TABLE seen (digest BLOB PRIMARY KEY, chunk INTEGER, result TEXT) WITHOUT ROWID;
CREATE TABLE chunks (chunk INTEGER PRIMARY KEY, num_computed_tokens INTEGER);
CREATE TABLE job (digest TEXT);
"""


class KnownResult(NamedTuple):
    """A conversation that was scored: in which chunk, and what came of it."""

    chunk: int
    result: Result


def compute_digest(conversation: ChatJson) -> Digest:
    """Equal for conversations that are the same to every template, tools included: 16 bytes."""
    return hashlib.blake2b(_canonical(conversation).encode(), digest_size=16).digest()


class DedupStore:
    """The conversations of all chunks that were scored. Use from one thread.

    Args:
        path: of the store; made if it is not there.
        job: digest of what the job is pinned to.

    Raises:
        DamagedError: the file is no whole store of this job.
        DiskFullError: there is no room to make it.
    """

    def __init__(self, path: Path, job_id: str) -> None:
        self._path = path
        is_new = not path.exists()
        self._connection = sqlite3.connect(path, isolation_level=None)
        try:
            with _explained(path):
                self._open(job_id, is_new)
        except BaseException:
            self._connection.close()
            raise

    def _open(self, job: str, is_new: bool) -> None:
        run = self._connection.execute
        run("PRAGMA journal_mode = WAL")
        run("PRAGMA synchronous = FULL")
        run(f"PRAGMA cache_size = -{_CACHE_KIB}")
        run(f"PRAGMA wal_autocheckpoint = {_WAL_PAGES}")
        run(f"PRAGMA journal_size_limit = {_WAL_PAGES * 4096}")
        if is_new:
            self._connection.executescript(f"BEGIN; {_TABLES}")
            run("INSERT INTO job VALUES (?)", (job,))
            run("COMMIT")
            return
        (verdict,) = run("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise CorruptStateError(f"SQLite finds it damaged ({verdict})")
        if run("SELECT digest FROM job").fetchall() != [(job,)]:
            raise CorruptStateError("it belongs to another job")

    @property
    def num_chunks(self) -> int:
        """Chunks from the first on that it holds, as they were added in order."""
        with _explained(self._path):
            (last,) = self._connection.execute("SELECT max(chunk) FROM chunks").fetchone()
        return 0 if last is None else int(last) + 1

    def get_num_computed_tokens(self, chunk: int) -> int | None:
        """What a chunk cost when it was scored; None if it was not."""
        query = "SELECT num_computed_tokens FROM chunks WHERE chunk = ?"
        with _explained(self._path):
            found = self._connection.execute(query, (chunk,)).fetchone()
        return int(found[0]) if found else None

    def find(self, digests: Sequence[Digest]) -> dict[Digest, KnownResult]:
        """Those of the conversations that were scored."""
        found: dict[Digest, KnownResult] = {}
        with _explained(self._path):
            for start in range(0, len(digests), _LOOKUPS):
                some = digests[start : start + _LOOKUPS]
                marks = ",".join("?" * len(some))
                rows = self._connection.execute(
                    f"SELECT digest, chunk, result FROM seen WHERE digest IN ({marks})", some
                )
                found |= {key: KnownResult(chunk, _checked(key, text)) for key, chunk, text in rows}
        return found

    def add(self, chunk: int, results: Mapping[Digest, Result], num_computed_tokens: int) -> None:
        """Keep what a chunk brought, durably, all at once; known conversations stay as they are.

        Raises:
            DiskFullError: there is no room; nothing of it is kept.
        """
        rows = ((key, chunk, _sealed(key, results[key])) for key in sorted(results))
        with self._transaction():
            self._connection.executemany("INSERT OR IGNORE INTO seen VALUES (?, ?, ?)", rows)
            self._connection.execute(
                "INSERT OR IGNORE INTO chunks VALUES (?, ?)", (chunk, num_computed_tokens)
            )

    def close(self) -> None:
        """Let go of the file."""
        self._connection.close()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        with _explained(self._path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    self._connection.execute("ROLLBACK")
                raise


def remove_store(path: Path) -> None:
    """Remove a store with what SQLite keeps beside it."""
    for ending in ("", "-wal", "-shm"):
        path.with_name(path.name + ending).unlink(missing_ok=True)


def _sealed(key: Digest, result: Result) -> str:
    """A result with a checksum: SQLite has none of its own."""
    text = encode_result(result)
    return f"{zlib.crc32(key + text.encode()):08x}{text}"


def _checked(key: Digest, text: str) -> Result:
    if f"{zlib.crc32(key + text[8:].encode()):08x}" != text[:8]:
        raise CorruptStateError("a result is not as it was written")
    return decode_result(json.loads(text[8:]))


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
            raise DiskFullError(f"{path} cannot be written: {error}") from error
        raise CorruptStateError(f"{type(error).__name__}: {error}") from error

"""The state of a job: one SQLite file in the private folder `OUTPUT.job`, next to the output.

One transaction saves a finished chunk: the results of its rows, the results of the conversations
that it was the first to have, and the summary so far. However a run ends (a kill, a loss of power,
a full disk), the file holds the chunks that were saved before. SQLite has no checksums, so every
value carries its own: a damaged file is reported, and nothing damaged is read as a reward.

The results of conversations are needed only while the job scores. They are dropped at its end; the
results of rows stay, for a report that is wanted later, and for `--retry-errors`.

A retry replaces chunks that have rows with errors, each in one transaction with its progress. The
table `retried` has the results of retried conversations until all chunks are done, so that a retry
that was interrupted repeats nothing.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import socket
import sqlite3
import stat
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout

from rm_core import Reward, ScoreError
from serve.errors import DiskFullError, JobError, JobOutputError, JobRefusedError
from serve.jobs.inputs.scan import FileDigest
from serve.jobs.manifest import Manifest
from serve.jobs.output import FETCHED_FOLDER, LOCK_FILE, Output
from serve.jobs.row_results import Result, RowResults
from serve.jobs.spec import JobSpec
from serve.jobs.storage import parse_location
from serve.jobs.summary import Summary

T = TypeVar("T")

Digest = bytes
Key = str | int | bytes

FORMAT = 3
"""Format of the state, in SQLite's `user_version`."""
STATE_FILE = "state.sqlite"

_OLD_FILES = ("manifest.json", "seen.sqlite", "chunks")  # of format 2
_SCHEMA = f"""
BEGIN IMMEDIATE;
CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB, checksum INTEGER) WITHOUT ROWID;
CREATE TABLE chunks (key INTEGER PRIMARY KEY, value BLOB, checksum INTEGER);
CREATE TABLE results (key BLOB PRIMARY KEY, value BLOB, checksum INTEGER) WITHOUT ROWID;
PRAGMA user_version = {FORMAT};
COMMIT;
"""
_RETRIED_TABLE = (
    "CREATE TABLE IF NOT EXISTS retried (key BLOB PRIMARY KEY, value BLOB, checksum INTEGER) "
    "WITHOUT ROWID"
)
_CACHE_KIB = 65_536
_WAL_PAGES = 16_384  # of 4 KiB: a page that several chunks change is written back once
# `quick_check` reads the whole file, in 1.6 s of CPU for each GiB; chunks are checked in any case.
_MAX_CHECKED_BYTES = 2 << 30
_NO_ROOM = (
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR_WRITE,
    sqlite3.SQLITE_IOERR_FSYNC,
    sqlite3.SQLITE_IOERR_TRUNCATE,
)


@contextlib.contextmanager
def open_store(spec: JobSpec) -> Iterator[JobStore]:
    """Lock and open the state of a job; create it if the job is new or `overwrite` is set.

    Errors of the file system and of SQLite within the block are raised as errors of the job.

    Raises:
        JobRefusedError: another run of the job is active, another version of the program began the
            job, or the folder is not private.
        JobOutputError: the output cannot be written there.
        DiskFullError: the disk is too full for the files of the job.
        JobError: the state is damaged.
    """
    spec.output.require_writable(spec.source)
    folder = spec.output.state_folder
    path = folder / STATE_FILE
    try:
        spec.output.make_state_folder()
        with _hold_lock(folder):
            if spec.overwrite:
                _remove_state(spec.output)
            elif any((folder / name).exists() for name in _OLD_FILES):
                raise _format_error(folder, "2 or older")
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600))
            with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
                yield JobStore(path, connection)
    except (OSError, sqlite3.Error) as error:
        if translated := _translate_error(path, error):
            raise translated from error
        raise


@dataclass(frozen=True, slots=True)
class RetryProgress:
    """Progress of a retry, which is kept until the output has its results.

    Attributes:
        num_chunks: number of chunks that are done, from the first one on.
        is_done: whether all chunks are done, and the summary of the job has the new results.
        summary: rows, tokens and seconds of the retry.
    """

    num_chunks: int
    is_done: bool
    summary: Summary


class JobStore:
    """The state of a job in an SQLite file that no other process has open. Use from one thread.

    Attributes:
        manifest: what the job is pinned to; None for a new job.
        num_chunks: number of saved chunks, which are always the first ones of the job.
        summary: summary of these chunks.
        max_batch_tokens: see `ScoreBatchResult`; of the last saved chunk that has one.
        retry: progress of a retry; None without one.

    Raises:
        JobRefusedError: another version of the program began the job.
        sqlite3.Error: the file is damaged or cannot be written; `open_store` translates it.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self._connection = connection
        # One process at a time: no memory is shared, which network file systems cannot do.
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        connection.execute(f"PRAGMA wal_autocheckpoint = {_WAL_PAGES}")
        if connection.execute("SELECT 1 FROM sqlite_schema").fetchone() is None:
            connection.executescript(_SCHEMA)
        elif path.stat().st_size <= _MAX_CHECKED_BYTES:
            (status,) = connection.execute("PRAGMA quick_check(1)").fetchone()
            if status != "ok":
                raise sqlite3.DatabaseError(status)
        self.manifest = _read_manifest(path, connection)
        progress = json.loads(_read(connection, "meta", "progress") or b"{}")
        self.num_chunks: int = progress.get("num_chunks", 0)
        self.max_batch_tokens: int | None = progress.get("max_batch_tokens")
        self.summary = Summary.from_json(progress["summary"]) if progress else Summary()
        retry = json.loads(_read(connection, "meta", "retry") or b"null")
        self.retry: RetryProgress | None = retry and RetryProgress(
            **{**retry, "summary": Summary.from_json(retry["summary"])}
        )
        if not (self.manifest and self.manifest.completion):
            self._check_chunks()

    def save_manifest(self, manifest: Manifest) -> None:
        """Save the manifest durably."""
        self._write("meta", [("manifest", json.dumps(manifest.as_json()).encode())])
        self.manifest = manifest

    @property
    def cache_snapshot(self) -> list[Any] | None:
        """`RewardCache.snapshot` of the job; None without one."""
        snapshot: list[Any] | None = json.loads(
            _read(self._connection, "meta", "cache_snapshot") or b"null"
        )
        return snapshot

    def save_cache_snapshot(self, snapshot: list[Any]) -> None:
        """Save what a later run of the job may read of the reward cache."""
        self._write("meta", [("cache_snapshot", json.dumps(snapshot).encode())])

    def find(self, digests: Iterable[Digest]) -> dict[Digest, Result]:
        """Return the results of those conversations that saved chunks have."""
        return self._find("results", digests)

    def add_chunk(
        self,
        rows: Sequence[RowResults],
        new_results: Mapping[Digest, Result],
        summary: Summary,
        max_batch_tokens: int | None = None,
    ) -> None:
        """Save the next chunk durably, as a whole or not at all; `summary` is that of the chunk."""
        max_batch_tokens = max_batch_tokens or self.max_batch_tokens
        total = Summary()
        total.add(self.summary)
        total.add(summary)
        with self._transaction():
            self._write("chunks", [(self.num_chunks, _encode_rows(rows))])
            self._write("results", _encode_results(new_results))
            self._write_progress(self.num_chunks + 1, total, max_batch_tokens)
        self.num_chunks, self.summary = self.num_chunks + 1, total
        self.max_batch_tokens = max_batch_tokens

    def find_retried(self, digests: Iterable[Digest]) -> dict[Digest, Result]:
        """Return the results of those conversations that the retry has scored already."""
        return self._find("retried", digests) if self._has_table("retried") else {}

    def replace_chunk(
        self,
        number: int,
        rows: Sequence[RowResults],
        new_results: Mapping[Digest, Result],
        summary: Summary,
    ) -> None:
        """Save a chunk whose rows with errors were retried, as a whole or not at all.

        Args:
            number: number of the chunk; the retry is done with it and all chunks before.
            rows: all rows of the chunk.
            new_results: results of the conversations that were scored again.
            summary: summary of the retry's part.
        """
        total = Summary()
        if self.retry:
            total.add(self.retry.summary)
        total.add(summary)
        with self._transaction():
            self._connection.execute(_RETRIED_TABLE)
            self._write("chunks", [(number, _encode_rows(rows))])
            self._write("retried", _encode_results(new_results))
            if self._has_table("results"):  # chunks that follow have the same conversations
                self._write("results", _encode_results(new_results))
            retry = self._write_retry(RetryProgress(number + 1, False, total))
        self.retry = retry

    def finish_retry(self, summary: Summary) -> None:
        """Save that the retry is done with all chunks; `summary` is that of the whole job."""
        total = self.retry.summary if self.retry else Summary()
        with self._transaction():
            self._connection.execute("DROP TABLE IF EXISTS retried")
            self._write_progress(self.num_chunks, summary, self.max_batch_tokens)
            retry = self._write_retry(RetryProgress(self.num_chunks, True, total))
        self.retry, self.summary = retry, summary

    def iter_chunks(self) -> Iterator[list[RowResults]]:
        """Yield the results of each saved chunk's rows, in order."""
        for number in range(self.num_chunks):
            yield _decode_rows(self._read_chunk(number))

    def complete(self, manifest: Manifest) -> None:
        """Save the manifest of the finished job, and free the space that only scoring needs."""
        self._connection.execute("DROP TABLE IF EXISTS results")
        with contextlib.suppress(sqlite3.OperationalError):  # no room for a copy: it stays larger
            self._connection.execute("VACUUM")
        # Without a log next to it, the file can be read from a folder that is not writable.
        self._connection.execute("PRAGMA journal_mode = DELETE")
        with self._transaction():
            self._connection.execute("DELETE FROM meta WHERE key = 'retry'")
            self.save_manifest(manifest)
        self.retry = None

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        with self._connection:
            yield

    def _has_table(self, name: str) -> bool:
        query = "SELECT 1 FROM sqlite_schema WHERE name = ?"
        return self._connection.execute(query, (name,)).fetchone() is not None

    def _find(self, table: str, digests: Iterable[Digest]) -> dict[Digest, Result]:
        found = ((digest, _read(self._connection, table, digest)) for digest in digests)
        return {digest: result_from_json(json.loads(text)) for digest, text in found if text}

    def _write_progress(
        self, num_chunks: int, summary: Summary, max_batch_tokens: int | None
    ) -> None:
        progress = {
            "num_chunks": num_chunks,
            "max_batch_tokens": max_batch_tokens,
            "summary": summary.as_json(),
        }
        self._write("meta", [("progress", json.dumps(progress).encode())])

    def _write_retry(self, retry: RetryProgress) -> RetryProgress:
        content = {
            "num_chunks": retry.num_chunks,
            "is_done": retry.is_done,
            "summary": retry.summary.as_json(),
        }
        self._write("meta", [("retry", json.dumps(content).encode())])
        return retry

    def _check_chunks(self) -> None:
        (num_stored,) = self._connection.execute("SELECT count(*) FROM chunks").fetchone()
        if num_stored != self.num_chunks:
            raise sqlite3.DatabaseError(f"it has {num_stored} of {self.num_chunks} chunks")
        for number in range(self.num_chunks):
            self._read_chunk(number)

    def _read_chunk(self, number: int) -> bytes:
        content = _read(self._connection, "chunks", number)
        if content is None:
            raise sqlite3.DatabaseError(f"chunk {number} is missing")
        return content

    def _write(self, table: str, values: Iterable[tuple[Key, bytes]]) -> None:
        self._connection.executemany(
            f"INSERT OR REPLACE INTO {table} VALUES (?, ?, ?)",
            ((key, value, _compute_checksum(key, value)) for key, value in values),
        )


def read_finished_manifest(state_folder: Path) -> Manifest | None:
    """Return the manifest of a finished job; None if none can be read.

    The folder may be that of somebody else.
    """
    manifest = _read_state(state_folder, _read_manifest)
    return manifest if manifest and manifest.completion else None


def read_job_summary(state_folder: Path) -> Summary | None:
    """Return the summary of a job; None if none can be read.

    The folder may be that of somebody else.
    """

    def read(_: Path, connection: sqlite3.Connection) -> Summary:
        progress = json.loads(_read(connection, "meta", "progress") or b"")
        return Summary.from_json(progress["summary"])

    return _read_state(state_folder, read)


def _read_state(state_folder: Path, read: Callable[[Path, sqlite3.Connection], T]) -> T | None:
    """Read from the state of a job without a lock; None if that raises."""
    path = state_folder / STATE_FILE
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would wait for a writer
            return None
        uri = f"{path.absolute().as_uri()}?immutable=1"
        with contextlib.closing(sqlite3.connect(uri, uri=True)) as connection:
            connection.set_progress_handler(lambda: 1, 100_000)  # a view may never end
            connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 64 << 20)
            return read(path, connection)
    # The file may have any content, so reading it may raise any exception.
    except Exception:
        return None


def find_result_columns(file: FileDigest) -> frozenset[str]:
    """Return the result columns of a file if it is the unchanged output of a job, else none."""
    manifest = read_finished_manifest(Output.parse(file.path).state_folder)
    if not (manifest and manifest.completion and manifest.completion.size == file.size):
        return frozenset()
    is_whole = file.num_hashed_bytes == file.size
    digest = file.sha256 if is_whole else parse_location(file.path).compute_sha256(file.size)
    is_unchanged = digest == manifest.completion.sha256
    return manifest.scan.names.result_columns if is_unchanged else frozenset()


@contextlib.contextmanager
def _hold_lock(folder: Path) -> Iterator[None]:
    """Hold the lock of a job, which the operating system releases when the process ends.

    The content of the lock file names the process. The file is never removed: removal would let two
    runs lock two files of the same name.
    """
    path = folder / LOCK_FILE

    def write_owner(descriptor: int) -> None:
        # Only for people to read, so a full disk does not fail the run here.
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)

    try:
        lock = FileLock(path, blocking=False, mode=0o600, on_acquired=write_owner).acquire()
    except Timeout:
        owner = path.read_text("utf-8", "replace").strip()
        raise JobRefusedError(
            f"{folder} is in use by {owner or 'another run'}; wait until that run ends, or give "
            "another output"
        ) from None
    with lock:
        yield


def _remove_state(output: Output) -> None:
    """Remove all files of a job but its lock and its output."""
    folder = output.state_folder
    for pattern in (f"{STATE_FILE}*", "manifest.json*", "seen.sqlite*", "batches.json*"):
        for path in folder.glob(pattern):
            path.unlink()
    for name in ("chunks", FETCHED_FOLDER):
        shutil.rmtree(folder / name, ignore_errors=True)
    output.remove_partial()


def _read_manifest(path: Path, connection: sqlite3.Connection) -> Manifest | None:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version != FORMAT:
        raise _format_error(path, version)
    content = _read(connection, "meta", "manifest")
    return None if content is None else Manifest.from_json(json.loads(content))


def _read(connection: sqlite3.Connection, table: str, key: Key) -> bytes | None:
    query = f"SELECT * FROM {table} WHERE key = ?"
    row = connection.execute(query, (key,)).fetchone()
    if row is None:
        return None
    key, value, checksum = row
    if not isinstance(value, bytes) or _compute_checksum(key, value) != checksum:
        raise sqlite3.DatabaseError(f"the checksum of {key!r} is wrong")
    return value


def _compute_checksum(key: Key, value: bytes) -> int:
    return zlib.crc32(value, zlib.crc32(repr(key).encode()))


def _encode_rows(rows: Sequence[RowResults]) -> bytes:
    values = [
        [
            row.kind,
            [result_to_json(result) for result in row.results],
            row.error and result_to_json(row.error),
            row.warnings,
        ]
        for row in rows
    ]
    return zlib.compress(json.dumps(values).encode(), 1)  # digits: other levels save little


def _encode_results(results: Mapping[Digest, Result]) -> Iterator[tuple[Digest, bytes]]:
    for digest in sorted(results):
        yield digest, json.dumps(result_to_json(results[digest])).encode()


def _decode_rows(content: bytes) -> list[RowResults]:
    return [
        RowResults(
            kind,
            [result_from_json(result) for result in results],
            error and ScoreError(**error),
            tuple(warnings),
        )
        for kind, results, error, warnings in json.loads(zlib.decompress(content))
    ]


def result_to_json(result: Result) -> list[Any] | dict[str, str]:
    """Return a result as JSON data, which keeps every bit of a reward: a float is its `repr`."""
    if isinstance(result, ScoreError):
        return {"code": result.code, "message": result.message}
    if result.truncated or result.warnings or result.step_rewards or result.label_mass is not None:
        more = (result.truncated, result.warnings, result.step_rewards, result.label_mass)
        return [result.reward, result.num_tokens, *more]
    return [result.reward, result.num_tokens]


def result_from_json(value: Any) -> Result:
    """Create a result from the data of `result_to_json`."""
    if isinstance(value, dict):
        return ScoreError(**value)
    defaults: list[Any] = [False, (), (), None]
    reward, num_tokens, truncated, warnings, steps, label_mass = value + defaults[len(value) - 2 :]
    return Reward(
        reward,
        num_tokens,
        truncated,
        tuple(warnings),
        step_rewards=tuple(steps),
        label_mass=label_mass,
    )


def _translate_error(path: Path, error: OSError | sqlite3.Error) -> JobError | None:
    """Return the error of the job for an error of SQLite or the file system; None if unknown."""
    folder = path.parent.parent
    if isinstance(error, OSError):
        code, is_full = 0, error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        is_denied = isinstance(error, PermissionError)
    else:
        code = getattr(error, "sqlite_errorcode", 0)
        is_full = code in _NO_ROOM
        is_denied = code & 0xFF in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN)
    if is_full:
        return DiskFullError(
            f"the disk is too full for the job's files in {folder} ({error}); free some space, "
            "then run the same command again to resume"
        )
    if is_denied:
        return JobOutputError(
            f"{folder} is not writable ({error}); a job writes its output and its state there: "
            "choose another folder for the output, or one for the state with --state"
        )
    if isinstance(error, OSError):
        return None
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return JobRefusedError(
            f"{path} is in use by another program ({error}); close that program, then run the same "
            "command again to resume"
        )
    if code & 0xFF == sqlite3.SQLITE_IOERR:
        return JobError(
            f"{path} cannot be read or written ({error}); check the disk, then run the same "
            "command again to resume"
        )
    return JobError(
        f"{path} is damaged ({error}), so the results in it cannot be used; put back a copy of "
        "the file, or score all rows again with --overwrite"
    )


def _format_error(path: Path, version: object) -> JobRefusedError:
    return JobRefusedError(
        f"{path} has format {version}, and this version of skyreward resumes jobs of format "
        f"{FORMAT}; finish the job with the version that began it, or start over with --overwrite"
    )

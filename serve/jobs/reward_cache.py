"""Rewards kept across jobs: the SQLite file of `--reward-cache`.

A reward is found by what decides it: the model (its fingerprint and the settings in `_describe`),
the truncation, and the digest of the conversation. Local models, services and Ray therefore share
a file. Errors are never stored, since a retry may succeed.

Several jobs may use a file at a time. Nothing in it is ever changed or removed, and each
transaction has a number: a job reads only rewards that were there when it began. A resumed job
therefore scores the same conversations as an uninterrupted one, in the same batches, however many
rewards other jobs have added since.

SQLite has no checksums, so every reward carries its own, as in `serve.jobs.store`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import secrets
import sqlite3
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rm_core import Reward, Truncation
from serve.errors import DiskFullError, JobError, JobOutputError, JobRefusedError
from serve.jobs.atomic_io import reject_foreign_link
from serve.jobs.executors.base import ScoringModel
from serve.jobs.row_results import Result
from serve.jobs.store import Digest, result_from_json, result_to_json

FORMAT = 1
"""Format of the file, in SQLite's `user_version`."""
_APPLICATION_ID = 0x534B5243  # "SKRC", for `file` and against files of other programs
_SCHEMA = f"""
PRAGMA journal_mode = WAL;
BEGIN;
CREATE TABLE file (id TEXT, num_additions INTEGER);
CREATE TABLE models (id INTEGER PRIMARY KEY, description TEXT UNIQUE);
CREATE TABLE rewards (
    model INTEGER, digest BLOB, addition INTEGER, value BLOB, checksum INTEGER,
    PRIMARY KEY (model, digest)
) WITHOUT ROWID;
PRAGMA application_id = {_APPLICATION_ID};
PRAGMA user_version = {FORMAT};
COMMIT;
"""
_OTHER_NAME = "give the name of another file as --reward-cache"
_PAGES_KIB = 32_768
WAIT_S = 60.0
MOUNTS = "/proc/self/mountinfo"
_NETWORK_FILE_SYSTEMS = frozenset(
    (
        *("nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "ceph", "lustre", "gpfs", "beegfs"),
        *("glusterfs", "ocfs2", "gfs2", "fuse.sshfs", "fuse.glusterfs", "fuse.ceph-fuse"),
        *("fuse.s3fs", "fuse.gcsfuse", "fuse.goofys", "fuse.rclone", "fuse.mount-s3"),
    )
)


class RewardCache:
    """The rewards of one model in a file. Use from one thread; see `open_reward_cache`.

    Attributes:
        snapshot: the file's id and the number of additions that the job may read, as JSON data.
    """

    def __init__(
        self,
        path: Path,
        connection: sqlite3.Connection,
        model: ScoringModel,
        truncation: Truncation,
        snapshot: list[Any] | None,
    ) -> None:
        self._path, self._connection = path, connection
        # A snapshot has to survive a loss of power, as the chunks that depend on it do.
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(f"PRAGMA cache_size = -{_PAGES_KIB}")
        description = json.dumps(_describe(model, truncation), sort_keys=True)
        connection.execute("INSERT OR IGNORE INTO models (description) VALUES (?)", (description,))
        (self._model,) = connection.execute(
            "SELECT id FROM models WHERE description = ?", (description,)
        ).fetchone()
        current: list[Any] = list(connection.execute("SELECT * FROM file").fetchone())
        is_same_file = snapshot is not None and snapshot[0] == current[0]
        self.snapshot = snapshot if snapshot and is_same_file else current

    def find(self, digests: Iterable[Digest]) -> dict[Digest, Result]:
        """Return the rewards of those conversations that the job's snapshot has.

        The reward of a step model is that of the aggregation `last`.
        """
        query = "SELECT addition, value, checksum FROM rewards WHERE model = ? AND digest = ?"
        found: dict[Digest, Result] = {}
        with _translate_errors(self._path):
            for digest in digests:
                row = self._connection.execute(query, (self._model, digest)).fetchone()
                if row is None:
                    continue
                addition, value, checksum = row
                if self._compute_checksum(digest, addition, value) != checksum:
                    raise sqlite3.DatabaseError("the checksum of a reward is wrong")
                if addition <= self.snapshot[1]:
                    found[digest] = result_from_json(json.loads(value))
        return found

    def add(self, results: Mapping[Digest, Result]) -> None:
        """Add the rewards among results, as a whole or not at all; rewards in the file stay."""
        rewards = [
            (digest, json.dumps(result_to_json(results[digest])).encode())
            for digest in sorted(results)
            if isinstance(results[digest], Reward)
        ]
        if not rewards:
            return
        with _translate_errors(self._path), self._connection as connection:
            connection.execute("BEGIN IMMEDIATE")
            (addition,) = connection.execute(
                "UPDATE file SET num_additions = num_additions + 1 RETURNING num_additions"
            ).fetchone()
            rows = (
                (self._model, key, addition, value, self._compute_checksum(key, addition, value))
                for key, value in rewards
            )
            connection.executemany("INSERT OR IGNORE INTO rewards VALUES (?, ?, ?, ?, ?)", rows)

    def _compute_checksum(self, digest: Digest, addition: object, value: object) -> int:
        if not isinstance(value, bytes):
            raise sqlite3.DatabaseError("a reward is not bytes")
        return zlib.crc32(value, zlib.crc32(f"{self._model} {addition} ".encode() + digest))


@contextlib.contextmanager
def open_reward_cache(
    path: Path,
    get_model: Callable[[], ScoringModel],
    truncation: Truncation,
    *,
    snapshot: list[Any] | None,
    other_files: Iterable[Path],
) -> Iterator[RewardCache]:
    """Open a file of rewards for a job; create it if there is none.

    Args:
        path: the file.
        get_model: returns the model that scores; called once the file is known to be usable.
        truncation: truncation of longer conversations.
        snapshot: `RewardCache.snapshot` when the job began. It is replaced by a current one if it
            is None or of another file.
        other_files: files of the job, which the file may not be.

    Raises:
        JobOutputError: the file cannot be written, or cannot be a cache there.
        JobRefusedError: the file is not a reward cache, has another format, or is locked; or the
            model is that of services which differ.
        DiskFullError: the disk is full.
        JobError: the file is damaged.
    """
    if path.resolve() in {file.resolve() for file in other_files}:
        raise JobOutputError(f"{path} is a file of the job; {_OTHER_NAME}")
    if not path.parent.is_dir():
        raise JobOutputError(f"the folder {path.parent} does not exist; create it first")
    if file_system := _find_network_file_system(path):
        raise JobOutputError(
            f"{path} is on a network file system ({file_system}), where jobs of several machines "
            "could damage it; give a file on a local disk as --reward-cache"
        )
    reject_foreign_link(path)
    with contextlib.ExitStack() as stack:
        with _translate_errors(path):
            if not path.exists():
                _create_file(path)
            uri = f"{path.absolute().as_uri()}?mode=rw"
            connection = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=WAIT_S)
            stack.enter_context(contextlib.closing(connection))
            _require_format(path, connection)
        model = get_model()
        if not model.reward_settings:
            raise JobRefusedError(
                "the services differ in settings that decide the last bits of a reward "
                "(deterministic, compiled, device), so --reward-cache cannot keep their rewards; "
                "give services with equal settings, or leave the option out"
            )
        with _translate_errors(path):
            cache = RewardCache(path, connection, model, truncation, snapshot)
        yield cache


def _describe(model: ScoringModel, truncation: Truncation) -> dict[str, Any]:
    """Return what decides rewards besides conversations, as JSON data.

    The aggregation of step rewards is left out: a job aggregates what the file has. So are limits
    that only decide which conversations get an error.
    """
    return {
        **model.fingerprint.as_dict(),
        **model.reward_settings,
        "max_length": model.max_length,
        "kind": model.kind,
        "step_format": model.step_format,
        # Other kinds truncate nothing.
        "truncation": truncation if model.kind == "classifier" else "error",
    }


def _create_file(path: Path) -> None:
    """Create an empty file of rewards, unless another process does so first."""
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(descriptor)
    try:
        with contextlib.closing(sqlite3.connect(temporary, isolation_level=None)) as connection:
            connection.executescript(_SCHEMA)
            connection.execute("INSERT INTO file VALUES (?, 0)", (secrets.token_hex(8),))
        with _hold_folder(path.parent):
            if not path.exists():
                # SQLite would write the log of a file that was deleted into the new one.
                for suffix in ("-wal", "-shm"):
                    path.with_name(path.name + suffix).unlink(missing_ok=True)
                os.link(temporary, path)
    finally:
        os.unlink(temporary)


@contextlib.contextmanager
def _hold_folder(folder: Path) -> Iterator[None]:
    """Hold a lock on a folder, which the operating system releases when the process ends."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _require_format(path: Path, connection: sqlite3.Connection) -> None:
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if application != _APPLICATION_ID:
        raise JobRefusedError(f"{path} is not a reward cache; {_OTHER_NAME}")
    if version != FORMAT:
        raise JobRefusedError(
            f"{path} has format {version}, and this version of skyreward has reward caches of "
            f"format {FORMAT}; {_OTHER_NAME}"
        )


def _find_network_file_system(path: Path) -> str | None:
    """Return the type of the network file system that a file is on; None if it is on a local one.

    Only Linux lists its file systems in a file; elsewhere, None.
    """
    if not sys.platform.startswith("linux"):
        return None
    folder = path.parent.resolve()
    found: tuple[int, str] = (-1, "")
    with contextlib.suppress(OSError), open(MOUNTS, encoding="utf-8") as mounts:
        for line in mounts:
            before, _, after = line.partition(" - ")
            mount = Path(before.split()[4].encode().decode("unicode_escape"))
            if folder.is_relative_to(mount):
                # Of two mounts at the same place, the later one covers the earlier one.
                found = max((len(mount.parts), after.split()[0]), found, key=lambda one: one[0])
    return found[1] if found[1] in _NETWORK_FILE_SYSTEMS else None


@contextlib.contextmanager
def _translate_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        raise _translate_error(path, error) from error


def _translate_error(path: Path, error: OSError | sqlite3.Error) -> JobError:
    code = getattr(error, "sqlite_errorcode", 0)
    kind = code & 0xFF
    if kind == sqlite3.SQLITE_FULL or getattr(error, "errno", 0) in (errno.ENOSPC, errno.EDQUOT):
        return DiskFullError(
            f"the disk is too full for {path} ({error}); free some space, then run the same "
            "command again to resume"
        )
    if kind in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return JobRefusedError(
            f"{path} is locked by another program ({error}); end that program, then run the same "
            "command again to resume"
        )
    if isinstance(error, OSError) or kind in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN):
        return JobOutputError(f"{path} cannot be written ({error}); {_OTHER_NAME}")
    if kind == sqlite3.SQLITE_NOTADB:
        return JobRefusedError(
            f"{path} is not a reward cache, or its beginning is damaged; {_OTHER_NAME}, or put "
            "back a copy"
        )
    if kind == sqlite3.SQLITE_IOERR:
        return JobError(
            f"{path} cannot be read or written ({error}); check the disk, then run the same "
            "command again to resume"
        )
    return JobError(
        f"{path} is damaged ({error}), so none of its rewards is used; delete it or put back a "
        "copy, then run the same command again to resume"
    )

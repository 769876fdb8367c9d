"""The state of a job, in the folder `OUTPUT.job` next to the output.

At the start of a job, files that a kill truncated or left behind, or that were changed, are found,
reported in one line and repaired: chunks count up to the first one that is damaged or missing.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from rm_core import RewardError
from serve.jobs.atomic_io import TEMP_SUFFIX, sync_folder
from serve.jobs.chunk_files import ChunkResult, CorruptStateError, Span, chunk_path, read_chunk
from serve.jobs.dedup_store import DedupStore, remove_store
from serve.jobs.manifest import Manifest
from serve.jobs.private_files import make_private_folder
from serve.jobs.summary import Summary


@dataclass(slots=True)
class CompletedChunks:
    """The finished chunks, which are always the first chunks of the job.

    Attributes:
        num_chunks: number of finished chunks.
        end: number of the row after these chunks.
        summary: summary of these chunks.
    """

    num_chunks: int = 0
    end: int = 0
    summary: Summary = field(default_factory=Summary)

    def add(self, span: Span, summary: Summary) -> None:
        """Add the next finished chunk."""
        self.num_chunks += 1
        self.end = span.end
        self.summary.add(summary)


def job_folder_path(output: Path) -> Path:
    """Return the folder for the state of an output's job."""
    return output.with_name(output.name + ".job")


def manifest_path(output: Path) -> Path:
    """Return the manifest of an output's job."""
    return job_folder_path(output) / "manifest.json"


class JobFolder:
    """The state of a job on disk.

    Args:
        output: output of the job.
        notify: called with a message about each damaged file.
    """

    def __init__(self, output: Path, notify: Callable[[str], None]) -> None:
        self.output = output
        self.path = job_folder_path(output)
        self.chunks_folder = self.path / "chunks"
        self._store_path = self.path / "seen.sqlite"
        self._manifest = manifest_path(output)
        self._notify = notify

    @property
    def lock_path(self) -> Path:
        """File that is locked while the job runs."""
        return self.path / "lock"

    @property
    def batches_path(self) -> Path:
        """File for settings that an executor must keep when the job resumes."""
        return self.path / "batches.json"

    def read_manifest(self) -> Manifest | None:
        """Return the manifest; None if there is none, or only a damaged one.

        Raises:
            JobRefusedError: another version of the program wrote the manifest.
        """
        try:
            return Manifest.read(self._manifest)
        except CorruptStateError as error:
            self._notify(f"{self._manifest} is damaged ({error}) and is written again")
            return None

    def read_template_date(self) -> str | None:
        """Return the `template_date` of the job; None if unknown."""
        with contextlib.suppress(CorruptStateError, RewardError, OSError, KeyError, TypeError):
            manifest = Manifest.read(self._manifest)
            date = manifest and manifest.model.get("template_date")
            return date if isinstance(date, str) else None
        return None

    def write_manifest(self, manifest: Manifest) -> None:
        """Write the manifest durably."""
        manifest.write(self._manifest)

    def clear(self) -> None:
        """Remove all state except the lock; the manifest, which describes the rest, goes last."""
        self.remove_work()
        self.batches_path.unlink(missing_ok=True)
        self._manifest.unlink(missing_ok=True)
        sync_folder(self.path)

    def remove_work(self) -> None:
        """Remove files that a finished job does not need, and leftovers of a kill."""
        self.remove_temp_files()
        remove_store(self._store_path)
        shutil.rmtree(self.chunks_folder, ignore_errors=True)

    def remove_temp_files(self) -> None:
        """Remove temporary files."""
        for folder in (self.path, self.chunks_folder):
            for file in folder.glob("*" + TEMP_SUFFIX):
                file.unlink(missing_ok=True)
        self.output.with_name(self.output.name + TEMP_SUFFIX).unlink(missing_ok=True)

    def read_chunks(self, job_id: str, num_chunks: int) -> Iterator[ChunkResult]:
        """Yield the finished chunks in order.

        Args:
            job_id: `Manifest.job_id`.
            num_chunks: number of chunks to read.

        Raises:
            CorruptStateError: a chunk changed since `recover_chunks` checked it.
        """
        for chunk in range(num_chunks):
            yield read_chunk(self.chunks_folder, job_id, chunk)

    def recover_chunks(self, job_id: str) -> CompletedChunks:
        """Find the finished chunks, and remove chunks after the first gap."""
        make_private_folder(self.chunks_folder)
        completed = CompletedChunks()
        names = {file.name for file in self.chunks_folder.iterdir()}
        while chunk_path(self.chunks_folder, completed.num_chunks).name in names:
            number = completed.num_chunks
            try:
                chunk = read_chunk(self.chunks_folder, job_id, number)
                if chunk.span.first_row != completed.end:
                    raise CorruptStateError("its rows do not follow the rows of the chunk before")
            except CorruptStateError as error:
                self._notify(
                    f"{chunk_path(self.chunks_folder, number)} is damaged ({error}); this chunk "
                    "and all later chunks are processed again"
                )
                break
            names.discard(chunk_path(self.chunks_folder, number).name)
            completed.add(chunk.span, chunk.summary)
        for name in names:
            (self.chunks_folder / name).unlink()
        return completed

    def open_dedup_store(
        self, job_id: str, num_chunks: int, rebuild: Callable[[DedupStore], None]
    ) -> DedupStore:
        """Open the dedup store; rebuild it if it is missing, damaged or incomplete.

        Args:
            job_id: `Manifest.job_id`.
            num_chunks: number of finished chunks that the store must contain.
            rebuild: fills an empty store.
        """
        try:
            store = DedupStore(self._store_path, job_id)
            num_stored = store.num_chunks
            if num_stored >= num_chunks:
                return store
            store.close()
            problem = f"has {num_stored} of {num_chunks} chunks"
        except CorruptStateError as error:
            problem = f"is damaged ({error})"
        self._notify(f"{self._store_path} {problem}; it is rebuilt from the input and the chunks")
        remove_store(self._store_path)
        store = DedupStore(self._store_path, job_id)
        rebuild(store)
        return store

    def discard_dedup_store(self) -> None:
        """Remove the dedup store; the next start rebuilds it."""
        remove_store(self._store_path)

"""The folder beside an output in which its job keeps what is done: `OUTPUT.job`.

Whatever in it was cut off, changed or left behind by a kill is found here when a job starts, told
in one line, and made good: chunks count up to the first that is not whole.
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
from serve.jobs.inputs.source import START, Position
from serve.jobs.manifest import Manifest
from serve.jobs.private_files import make_private_folder
from serve.jobs.summary import Summary


@dataclass(slots=True)
class CompletedChunks:
    """The chunks that are done: always the first ones.

    Attributes:
        num_chunks: how many.
        end: where the first row behind them begins.
        summary: their figures.
    """

    num_chunks: int = 0
    end: Position = START
    summary: Summary = field(default_factory=Summary)

    def add(self, span: Span, summary: Summary) -> None:
        """One more is done."""
        self.num_chunks += 1
        self.end = span.end
        self.summary.add(summary)


def job_folder_path(output: Path) -> Path:
    """The folder in which the job of an output keeps what is done."""
    return output.with_name(output.name + ".job")


def manifest_path(output: Path) -> Path:
    """The manifest of the job of an output."""
    return job_folder_path(output) / "manifest.json"


class JobFolder:
    """What a job keeps on disk.

    Args:
        output: of the job.
        say: told what was found to be damaged.
    """

    def __init__(self, output: Path, notify: Callable[[str], None]) -> None:
        self.output = output
        self.path = job_folder_path(output)
        self.chunks_folder = self.path / "chunks"
        self._seen = self.path / "seen.sqlite"
        self._manifest = manifest_path(output)
        self._say = notify

    @property
    def lock_path(self) -> Path:
        """The file that is locked while a run is at work."""
        return self.path / "lock"

    @property
    def batches_path(self) -> Path:
        """Where a carrier keeps what it has to do in the same way at the next start."""
        return self.path / "batches.json"

    def read_manifest(self) -> Manifest | None:
        """How the job began; None if there is no job, or nothing is left to tell.

        Raises:
            JobRefusedError: another version of the program wrote it.
        """
        try:
            return Manifest.read(self._manifest)
        except CorruptStateError as error:
            self._say(f"{self._manifest} is damaged ({error}); it is made again")
            return None

    def read_template_date(self) -> str | None:
        """The `template_date` that the job began with; None if it is not known."""
        with contextlib.suppress(CorruptStateError, RewardError, OSError, KeyError, TypeError):
            kept = Manifest.read(self._manifest)
            date = kept and kept.model.get("template_date")
            return date if isinstance(date, str) else None
        return None

    def write_manifest(self, manifest: Manifest) -> None:
        """Keep it, durably."""
        manifest.write(self._manifest)

    def clear(self) -> None:
        """Forget the job, all but its lock; the manifest, which says what the rest is, last."""
        self.remove_work()
        self.batches_path.unlink(missing_ok=True)
        self._manifest.unlink(missing_ok=True)
        sync_folder(self.path)

    def remove_work(self) -> None:
        """Remove what a job needs only until it is done, and what a kill left behind."""
        self.remove_temp_files()
        remove_store(self._seen)
        shutil.rmtree(self.chunks_folder, ignore_errors=True)

    def remove_temp_files(self) -> None:
        """Remove temporary files."""
        for folder in (self.path, self.chunks_folder):
            for file in folder.glob("*" + TEMP_SUFFIX):
                file.unlink(missing_ok=True)
        self.output.with_name(self.output.name + TEMP_SUFFIX).unlink(missing_ok=True)

    def read_chunks(self, job_id: str, num_chunks: int) -> Iterator[ChunkResult]:
        """The chunks that are done, in order.

        Args:
            job: digest of what the job is pinned to.
            num_chunks: how many.

        Raises:
            DamagedError: one changed since `check` found them whole.
        """
        for chunk in range(num_chunks):
            yield read_chunk(self.chunks_folder, job_id, chunk)

    def recover_chunks(self, job_id: str) -> CompletedChunks:
        """Find the chunks that are done, and remove what comes behind the first gap."""
        make_private_folder(self.chunks_folder)
        prefix = CompletedChunks()
        there = {file.name for file in self.chunks_folder.iterdir()}
        while chunk_path(self.chunks_folder, prefix.num_chunks).name in there:
            number = prefix.num_chunks
            try:
                one = read_chunk(self.chunks_folder, job_id, number)
                if one.span.first_row != prefix.end.row:
                    raise CorruptStateError("its rows do not follow those of the chunk before")
            except CorruptStateError as error:
                self._say(
                    f"{chunk_path(self.chunks_folder, number)} is damaged ({error}); it and all chunks "
                    "behind it are done again"
                )
                break
            there.discard(chunk_path(self.chunks_folder, number).name)
            prefix.add(one.span, one.summary)
        for name in there:
            (self.chunks_folder / name).unlink()
        return prefix

    def open_dedup_store(
        self, job_id: str, num_chunks: int, rebuild: Callable[[DedupStore], None]
    ) -> DedupStore:
        """The store of what was scored, made again where it is not whole.

        Args:
            job: digest of what the job is pinned to.
            num_chunks: that are done and have to be in it.
            rebuild: fills an empty one.
        """
        try:
            store = DedupStore(self._seen, job_id)
            held = store.num_chunks
            if held >= num_chunks:
                return store
            store.close()
            found = f"has {held} of {num_chunks} chunks"
        except CorruptStateError as error:
            found = f"is damaged ({error})"
        self._say(f"{self._seen} {found}; it is made again from the input and the chunks")
        remove_store(self._seen)
        store = DedupStore(self._seen, job_id)
        rebuild(store)
        return store

    def discard_dedup_store(self) -> None:
        """Remove the store, for the next start to make it again."""
        remove_store(self._seen)

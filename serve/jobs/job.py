"""A job from its first row to its output: start reading here.

Rows are read in chunks, a carrier scores several of them at a time, and each that is done is kept
on disk, in order. When all are, the input is read once more and goes out with the results.
Whatever ends a run, the next one goes on behind the last chunk that is whole.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from serve.errors import (
    DiskFullError,
    JobError,
    JobInputError,
    JobOutputError,
    JobRefusedError,
    JobStoppedError,
)
from serve.jobs.atomic_io import compute_file_sha256, is_disk_full
from serve.jobs.chunk_files import CorruptStateError
from serve.jobs.executors.base import Executor
from serve.jobs.export import write_output
from serve.jobs.inputs.scan import InputScan, scan_input
from serve.jobs.lock import hold_lock
from serve.jobs.manifest import Completion, Manifest, require_compatible
from serve.jobs.previous_output import find_result_columns
from serve.jobs.private_files import make_private_folder
from serve.jobs.progress import Progress
from serve.jobs.runner import ChunkRunner, raise_on_error
from serve.jobs.shutdown import GracefulShutdown
from serve.jobs.spec import JobSpec
from serve.jobs.state import CompletedChunks, JobFolder
from serve.jobs.summary import RowSink, Summary
from serve.jobs.writers.base import is_tabular
from serve.reports import require_matplotlib


@dataclass(slots=True)
class Job:
    """One run of a job.

    Attributes:
        plan: what was asked for.
        carrier: scores.
        say: tells a person a line.
        progress: shows how far it is.
        stopping: says when to stop.
        sink: is told of every row once all are done; None for nobody.
        prefix: the chunks that are done.
    """

    spec: JobSpec
    executor: Executor
    notify: Callable[[str], None]
    progress: Progress
    shutdown: GracefulShutdown
    sink: RowSink | None = None
    completed_chunks: CompletedChunks = field(default_factory=CompletedChunks)

    def run(self) -> Summary:
        """Do what is left of the job; returns the figures of all of it.

        Raises:
            JobRefusedError: another job or another run is there.
            JobStoppedError: it was asked to stop.
            DiskFullError: there is no room for what it writes.
            RewardError: it cannot go on for another reason.
        """
        require_output_path(self.spec)
        folder = JobFolder(self.spec.output, self.notify)
        try:
            make_private_folder(folder.path)
            with hold_lock(folder.lock_path):
                return self._run_and_notify(folder)
        except CorruptStateError as error:
            raise JobError(
                f"a file in {folder.path} is damaged ({error}); run the same command again, which "
                "makes it good"
            ) from error
        except (OSError, DiskFullError) as error:
            if isinstance(error, PermissionError):
                raise JobOutputError(
                    f"{folder.path.parent} cannot be written to ({error.strerror}); the output and "
                    "what a job keeps beside it go there: choose another place for the output"
                ) from error
            if isinstance(error, OSError) and not is_disk_full(error):
                raise
            raise DiskFullError(
                f"there is no room left for what the job writes in {folder.path.parent} ({error}); "
                "make room, then run the same command again, which goes on where this one ended"
            ) from error

    def _run_and_notify(self, folder: JobFolder) -> Summary:
        try:
            return self._run(folder)
        except BaseException:
            if self.completed_chunks.num_chunks:
                done = self.completed_chunks.summary
                self.notify(
                    f"{done.num_rows:,} rows in {self.completed_chunks.num_chunks:,} chunks are scored and "
                    f"kept in {folder.path}"
                )
            raise

    def _run(self, folder: JobFolder) -> Summary:
        manifest = self._open_manifest(folder)
        if manifest.completion:
            folder.remove_work()
            self._require_output(manifest.completion)
            if self.sink:
                self.notify(
                    "a report is written when a job ends; --overwrite scores all of it again"
                )
            return manifest.completion.summary
        for line in manifest.scan.names.format_notices():
            self.notify(line)
        folder.remove_temp_files()
        self.completed_chunks = folder.recover_chunks(manifest.job_id)
        self._run_chunks(folder, manifest)
        self.completed_chunks.summary.renamed = dict(manifest.scan.names.renames)
        self._write_output(folder, manifest)
        output = self.spec.output
        stat = output.stat()
        summary = self.completed_chunks.summary
        done = Completion(stat.st_size, stat.st_mtime_ns, compute_file_sha256(output), summary)
        folder.write_manifest(replace(manifest, completion=done, model_spec=self.spec.model_spec))
        folder.remove_work()
        return summary

    def _open_manifest(self, folder: JobFolder) -> Manifest:
        """How the job began, be it now."""
        plan = self.spec
        kept = None
        if plan.overwrite:
            folder.clear()
        else:
            kept = folder.read_manifest()
            if kept is None and plan.output.exists() and not folder.chunks_folder.exists():
                raise JobRefusedError(
                    f"{plan.output} is there already, and no job is known to have written it; give "
                    "another output, or --overwrite to replace it"
                )
        if kept:
            # Nothing is asked of a model or a service for a job that is done.
            asks = not (kept.completion and kept.model_spec == plan.model_spec)
            model = self._resolve_identity() if asks else None
            require_compatible(kept, plan.source.files, model, plan.options)
            return kept
        model = self._resolve_identity()
        if not folder.chunks_folder.exists():
            folder.clear()
        manifest = Manifest(self._scan_input(), model, plan.options, plan.model_spec)
        folder.write_manifest(manifest)
        return manifest

    def _resolve_identity(self) -> dict[str, Any]:
        with self.shutdown.allow_interrupt(self.executor.drain_timeout_s is not None):
            return self.executor.resolve_identity()

    def _scan_input(self) -> InputScan:
        source = self.spec.source
        total = sum(file.size for file in source.files)

        def told(num_rows: int, num_bytes: int) -> None:
            self.progress.update(num_bytes)
            if self.shutdown.received_signal is not None:
                raise JobStoppedError("stopped as asked")

        self.progress.start_phase("reading", total=total, unit="bytes")
        return scan_input(
            source,
            limit=self.spec.limit,
            tabular=is_tabular(self.spec.output),
            columns=self.spec.columns,
            replace_results=self.spec.replace_results,
            find_result_columns=find_result_columns,
            on_progress=told,
        )

    def _run_chunks(self, folder: JobFolder, manifest: Manifest) -> None:
        done, total = self.completed_chunks.summary, manifest.scan
        if self.spec.fail_fast and done.num_failed:
            for finished in folder.read_chunks(manifest.job_id, self.completed_chunks.num_chunks):
                raise_on_error(finished)
        if done.num_rows < total.num_rows:
            if done.num_rows:
                self.notify(f"going on behind row {done.num_rows:,} of {total.num_rows:,}")
            self.progress.start_phase(
                "scoring",
                total=total.num_rows,
                completed=done.num_rows,
            )
            ChunkRunner(
                spec=self.spec,
                job_id=manifest.job_id,
                folder=folder,
                completed_chunks=self.completed_chunks,
                progress=self.progress,
                shutdown=self.shutdown,
            ).run(self.executor)
        if self.completed_chunks.summary.num_rows != total.num_rows:
            raise JobInputError(
                f"the input had {total.num_rows} rows when the job began and has "
                f"{self.completed_chunks.summary.num_rows} now; put it back as it was, or start afresh with "
                "--overwrite"
            )

    def _write_output(self, folder: JobFolder, manifest: Manifest) -> None:
        self.progress.start_phase("writing", total=manifest.scan.num_rows)
        self.completed_chunks.summary.nulled = write_output(
            self.spec,
            manifest,
            folder.read_chunks(manifest.job_id, self.completed_chunks.num_chunks),
            sink=self.sink,
            progress=self.progress,
            shutdown=self.shutdown,
        )
        if self.sink:
            self.sink.write(self.completed_chunks.summary)

    def _require_output(self, done: Completion) -> None:
        output = self.spec.output
        if not output.exists():
            found = "is gone"
        elif output.stat().st_size != done.size:
            found = f"had {done.size} bytes and has {output.stat().st_size}"
        elif (
            output.stat().st_mtime_ns != done.mtime_ns
            and compute_file_sha256(output) != done.sha256
        ):
            found = "changed"
        else:
            self.notify(f"{output} is done already")
            return
        raise JobRefusedError(
            f"the job was done, but since then {output} {found}; put it back, or score all of it "
            "again with --overwrite"
        )


def require_report_path(report: Path, spec: JobSpec) -> None:
    """Return if a report can be where it is asked for, and takes the place of nothing else.

    Raises:
        JobOutputError: it cannot, or it does.
        MissingExtraError: the extra `reports` is not installed.
    """
    require_matplotlib()
    if not report.parent.is_dir():
        raise JobOutputError(f"there is no folder {report.parent}; make it first")
    others = {spec.output.resolve(), *(file.path.resolve() for file in spec.source.files)}
    is_page = True
    if report.is_file():
        with report.open("rb") as file:
            is_page = file.read(64).lstrip().lower().startswith((b"<!doctype html", b"<html"))
    if report.resolve() in others or not is_page:
        raise JobOutputError(
            f"the report would replace {report}, which is no page of HTML but something else; give "
            "another name, such as report.html"
        )


def require_output_path(spec: JobSpec) -> None:
    """Return if an output can be where it is asked for.

    Raises:
        JobOutputError: it cannot.
    """
    output = spec.output
    if not output.parent.is_dir():
        raise JobOutputError(f"there is no folder {output.parent}; make it first")
    if output.exists() and not output.is_file():
        raise JobOutputError(f"{output} is no file; give the name of a file as the output")
    if output.resolve() in {file.path.resolve() for file in spec.source.files}:
        raise JobOutputError(f"{output} is the input too; give another name as the output")

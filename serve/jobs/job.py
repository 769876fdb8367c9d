"""A job from its first row to its output: start reading here.

Rows are read in chunks, an executor scores several chunks at a time, and finished chunks are saved
to disk in order. When all chunks are finished, the input is read again and written with the
results. However a run ends, the next run resumes after the last chunk that is saved.
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
from serve.jobs.spec import JobSpec
from serve.jobs.state import CompletedChunks, JobFolder
from serve.jobs.summary import RowSink, Summary
from serve.jobs.writers import is_tabular
from serve.shutdown import GracefulShutdown


@dataclass(slots=True)
class Job:
    """One run of a job.

    Attributes:
        spec: specification of the job.
        executor: scores the conversations.
        notify: prints a line for the user.
        progress: shows the progress.
        shutdown: tells when to stop.
        sink: receives every row once all rows are scored; None for no sink.
        completed_chunks: the finished chunks.
    """

    spec: JobSpec
    executor: Executor
    notify: Callable[[str], None]
    progress: Progress
    shutdown: GracefulShutdown
    sink: RowSink | None = None
    completed_chunks: CompletedChunks = field(default_factory=CompletedChunks)

    def run(self) -> Summary:
        """Run the rest of the job; return the summary of the whole job.

        Raises:
            JobRefusedError: the output belongs to another job, or another run is active.
            JobStoppedError: a signal asked the job to stop.
            DiskFullError: the disk is too full for the files of the job.
            RewardError: the job cannot continue for another reason.
        """
        require_output_path(self.spec)
        folder = JobFolder(self.spec.output, self.notify)
        try:
            make_private_folder(folder.path)
            with hold_lock(folder.lock_path):
                return self._run_and_notify(folder)
        except CorruptStateError as error:
            raise JobError(
                f"a file in {folder.path} is damaged ({error}); run the same command again to "
                "repair it"
            ) from error
        except (OSError, DiskFullError) as error:
            if isinstance(error, PermissionError):
                raise JobOutputError(
                    f"{folder.path.parent} is not writable ({error.strerror}); a job writes its "
                    "output and its state there: choose another folder for the output"
                ) from error
            if isinstance(error, OSError) and not is_disk_full(error):
                raise
            raise DiskFullError(
                f"the disk is too full for the job's files in {folder.path.parent} ({error}); "
                "free some space, then run the same command again to resume"
            ) from error

    def _run_and_notify(self, folder: JobFolder) -> Summary:
        try:
            return self._run(folder)
        except BaseException:
            if self.completed_chunks.num_chunks:
                summary = self.completed_chunks.summary
                self.notify(
                    f"{summary.num_rows:,} rows in {self.completed_chunks.num_chunks:,} chunks are "
                    f"scored and kept in {folder.path}"
                )
            raise

    def _run(self, folder: JobFolder) -> Summary:
        manifest = self._open_manifest(folder)
        if manifest.completion:
            folder.remove_work()
            self._require_output(manifest.completion)
            if self.sink:
                self.notify(
                    "the report is written only when a job ends; give --overwrite to score all "
                    "rows again"
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
        completion = Completion(
            stat.st_size, stat.st_mtime_ns, compute_file_sha256(output), summary
        )
        folder.write_manifest(
            replace(manifest, completion=completion, model_spec=self.spec.model_spec)
        )
        folder.remove_work()
        return summary

    def _open_manifest(self, folder: JobFolder) -> Manifest:
        """Return the manifest of the job; create it if the job is new."""
        spec = self.spec
        manifest = None
        if spec.overwrite:
            folder.clear()
        else:
            manifest = folder.read_manifest()
            if manifest is None and spec.output.exists() and not folder.chunks_folder.exists():
                raise JobRefusedError(
                    f"{spec.output} exists, and no job is known to have written it; give another "
                    "output, or --overwrite to replace it"
                )
        if manifest:
            # A finished job neither opens a model nor contacts a service.
            needs_identity = not (manifest.completion and manifest.model_spec == spec.model_spec)
            model = self._resolve_identity() if needs_identity else None
            require_compatible(manifest, spec.source.files, model, spec.options)
            return manifest
        model = self._resolve_identity()
        if not folder.chunks_folder.exists():
            folder.clear()
        manifest = Manifest(self._scan_input(), model, spec.options, spec.model_spec)
        folder.write_manifest(manifest)
        return manifest

    def _resolve_identity(self) -> dict[str, Any]:
        with self.shutdown.allow_interrupt(self.executor.drain_timeout_s is not None):
            return self.executor.resolve_identity()

    def _scan_input(self) -> InputScan:
        source = self.spec.source
        total = sum(file.size for file in source.files)

        def report_progress(num_rows: int, num_bytes: int) -> None:
            self.progress.update(num_bytes)
            if self.shutdown.received_signal is not None:
                raise JobStoppedError("stopped by a signal")

        self.progress.start_phase("reading", total=total, unit="bytes")
        return scan_input(
            source,
            limit=self.spec.limit,
            tabular=is_tabular(self.spec.output),
            columns=self.spec.columns,
            replace_results=self.spec.replace_results,
            find_result_columns=find_result_columns,
            on_progress=report_progress,
        )

    def _run_chunks(self, folder: JobFolder, manifest: Manifest) -> None:
        summary, scan = self.completed_chunks.summary, manifest.scan
        if self.spec.fail_fast and summary.num_failed:
            for chunk in folder.read_chunks(manifest.job_id, self.completed_chunks.num_chunks):
                raise_on_error(chunk)
        if summary.num_rows < scan.num_rows:
            if summary.num_rows:
                self.notify(f"resuming after row {summary.num_rows:,} of {scan.num_rows:,}")
            self.progress.start_phase(
                "scoring",
                total=scan.num_rows,
                completed=summary.num_rows,
            )
            ChunkRunner(
                spec=self.spec,
                job_id=manifest.job_id,
                folder=folder,
                completed_chunks=self.completed_chunks,
                progress=self.progress,
                shutdown=self.shutdown,
            ).run(self.executor)
        if self.completed_chunks.summary.num_rows != scan.num_rows:
            raise JobInputError(
                f"the input had {scan.num_rows} rows when the job began and has "
                f"{self.completed_chunks.summary.num_rows} now; restore the input, or start over "
                "with --overwrite"
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

    def _require_output(self, completion: Completion) -> None:
        output = self.spec.output
        if not output.exists():
            change = "was removed"
        elif output.stat().st_size != completion.size:
            change = f"changed from {completion.size} to {output.stat().st_size} bytes"
        elif (
            output.stat().st_mtime_ns != completion.mtime_ns
            and compute_file_sha256(output) != completion.sha256
        ):
            change = "changed"
        else:
            self.notify(f"{output} is complete already")
            return
        raise JobRefusedError(
            f"the job was finished, but since then {output} {change}; restore the file, or score "
            "all rows again with --overwrite"
        )


def require_report_path(report: Path, spec: JobSpec) -> None:
    """Check that a report can be written, and that it does not replace another kind of file.

    Raises:
        JobOutputError: the folder does not exist, or the report would replace another file.
    """
    if not report.parent.is_dir():
        raise JobOutputError(f"the folder {report.parent} does not exist; create it first")
    other_files = {
        spec.output.resolve(),
        *(Path(file.path).resolve() for file in spec.source.files),
    }
    is_html = True
    if report.is_file():
        with report.open("rb") as file:
            is_html = file.read(64).lstrip().lower().startswith((b"<!doctype html", b"<html"))
    if report.resolve() in other_files or not is_html:
        raise JobOutputError(
            f"the report would replace {report}, which is not an HTML report; give another name, "
            "such as report.html"
        )


def require_output_path(spec: JobSpec) -> None:
    """Check that the output can be written.

    Raises:
        JobOutputError: the folder does not exist, or the output is not a file or is the input.
    """
    output = spec.output
    if not output.parent.is_dir():
        raise JobOutputError(f"the folder {output.parent} does not exist; create it first")
    if output.exists() and not output.is_file():
        raise JobOutputError(f"{output} is not a file; give the name of a file as the output")
    if output.resolve() in {Path(file.path).resolve() for file in spec.source.files}:
        raise JobOutputError(f"{output} is also the input; give another name for the output")

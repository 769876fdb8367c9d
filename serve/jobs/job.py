"""A job from its first row to its output: start reading here.

Rows are read in chunks, an executor scores several chunks at a time, and finished chunks are saved
in order. When all chunks are finished, the input is read again and written with the results.
However a run ends, the next run resumes after the last chunk that is saved. A retry of rows with
errors (`serve.jobs.retry`) comes before the chunks that are left, and the output is then written
again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from rm_core.config import Kind
from serve import __version__
from serve.errors import JobInputError, JobRefusedError, JobStoppedError
from serve.jobs.correlation import RewardCorrelation
from serve.jobs.executors.base import Executor, ScoringModel
from serve.jobs.inputs.scan import FileDigest, InputScan, is_unchanged, scan_input
from serve.jobs.manifest import (
    Completion,
    Manifest,
    find_input_changes,
    get_kind,
    get_max_image_bytes,
    require_compatible,
)
from serve.jobs.progress import Progress
from serve.jobs.report import Report
from serve.jobs.retry import RetryRunner, format_retry, summarize_again
from serve.jobs.reward_cache import RewardCache, open_reward_cache
from serve.jobs.runner import ChunkRunner, raise_on_error
from serve.jobs.spec import JobSpec, require_fitting_options
from serve.jobs.storage import InputFile, hash_stream
from serve.jobs.store import JobStore, find_result_columns
from serve.jobs.summary import Summary
from serve.jobs.writers import Writer, is_tabular, open_writer
from serve.shutdown import GracefulShutdown

_OTHER_BITS = "unless the model is deterministic, rewards may differ in their last bits"


@dataclass(frozen=True, slots=True)
class Job:
    """One run of a job.

    Attributes:
        spec: specification of the job.
        store: state of the job, from `open_store`.
        executor: scores the conversations.
        notify: prints a line for the user.
        progress: shows the progress.
        shutdown: tells when to stop.
        report: receives every row once all rows are scored.
    """

    spec: JobSpec
    store: JobStore
    executor: Executor
    notify: Callable[[str], None]
    progress: Progress
    shutdown: GracefulShutdown
    report: Report | None = None

    def run(self) -> Summary:
        """Run the rest of the job; return the summary of the whole job.

        Raises:
            JobRefusedError: the output belongs to another job.
            JobStoppedError: a signal asked the job to stop.
            RewardError: the job cannot continue for another reason.
        """
        manifest = self._open_manifest()
        if self.spec.retry_errors:
            self._retry_errors(manifest)
        elif self.store.retry and not self.store.retry.is_done:
            raise JobRefusedError(
                "a retry of this job was interrupted, so its rows have old and new results; run "
                "the command with --retry-errors again to finish the retry"
            )
        if manifest.completion and not self.store.retry:
            self._require_output(manifest.completion)
            self.notify(f"{self.spec.output} is complete already")
            summary = manifest.completion.summary
        else:
            summary = self._finish(manifest)
        if self.report:
            for rows in self.store.iter_chunks():
                for row in rows:
                    self.report.add(row)
            self.report.write(summary)
        return summary

    def _open_manifest(self) -> Manifest:
        """Return the manifest of the job; create it if the job is new."""
        spec, manifest = self.spec, self.store.manifest
        if manifest:
            # A finished job neither opens a model nor contacts a service.
            is_finished = manifest.completion and not (spec.retry_errors or self.store.retry)
            needs_identity = not (is_finished and manifest.model_spec == spec.model_spec)
            model = self._resolve_identity() if needs_identity else None
            try:
                require_compatible(manifest, spec.source.files, model, spec)
            except JobRefusedError:
                if manifest.completion or self.store.num_chunks:
                    raise
                # A job without results has nothing to keep: it begins again.
            else:
                return manifest
        if spec.retry_errors:
            raise JobRefusedError(
                f"no job of {spec.output} is known, so nothing can be retried; run the command "
                "without --retry-errors first"
            )
        before = spec.output.measure()
        if before.exists and not spec.overwrite:
            raise JobRefusedError(
                f"{spec.output} exists, and no job is known to have written it; give another "
                "output, or --overwrite to replace it"
            )
        model = self._resolve_identity()
        kind = get_kind(model)
        require_fitting_options(spec, kind)
        scan = self._scan_input(kind)
        manifest = Manifest(scan, model, spec.options, spec.model_spec, output_before=before)
        self.store.save_manifest(manifest)
        return manifest

    def _resolve_identity(self) -> dict[str, Any]:
        with self.shutdown.allow_interrupt(self.executor.drain_timeout_s is not None):
            return self.executor.resolve_identity()

    def _scan_input(self, kind: Kind) -> InputScan:
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
            tabular=self.spec.writes_rows and is_tabular(self.spec.output),
            columns=self.spec.columns,
            replace_results=self.spec.replace_results,
            kind=kind,
            find_result_columns=find_result_columns,
            on_progress=report_progress,
        )

    def _retry_errors(self, manifest: Manifest) -> None:
        """Score the rows with errors again that the job has so far, or the rest of them."""
        store = self.store
        if store.retry and store.retry.is_done:
            return
        num_failed = store.summary.num_failed
        if not store.retry:
            if manifest.completion:
                self._require_output(manifest.completion)
            if not num_failed:
                self.notify(
                    "no row has an error, so there is nothing to retry"
                    if manifest.completion
                    else "the job is not finished and no row has an error so far; it goes on"
                )
                return
        completed = store.retry.summary.num_retried if store.retry else 0
        self.progress.start_phase("retrying", total=num_failed, completed=completed)
        # A new retry reads what the reward cache has now, and not what it had for the job.
        snapshot = store.cache_snapshot if store.retry else None
        self._run_chunks(RetryRunner, manifest, snapshot, is_new=not store.retry)
        store.finish_retry(summarize_again(store))
        for line in format_retry(store.summary):
            self.notify(line)

    def _run_chunks(
        self,
        runner: type[ChunkRunner],
        manifest: Manifest,
        snapshot: list[Any] | None,
        *,
        is_new: bool,
    ) -> None:
        """Score the chunks that are left.

        Args:
            runner: which chunks these are.
            manifest: manifest of the job.
            snapshot: what to read of the reward cache, see `RewardCache.snapshot`; None for all.
            is_new: whether no chunk is saved that an earlier run of `runner` scored.
        """
        try:
            with self._open_reward_cache(snapshot, is_new=is_new) as reward_cache:
                runner(
                    self.spec,
                    manifest.kind,
                    self.store,
                    self.executor,
                    self.progress,
                    self.shutdown,
                    get_max_image_bytes(manifest.model),
                    reward_cache,
                ).run()
        finally:
            self._save_scored_by()

    def _finish(self, manifest: Manifest) -> Summary:
        """Score what is left and write the output, if it has the rows."""
        for line in manifest.scan.names.format_notices() if self.spec.writes_rows else ():
            self.notify(line)
        try:
            self._score(manifest)
            manifest = self.store.manifest or manifest
            if self.spec.writes_rows:
                summary = self._write_output(manifest)
            else:
                self._require_same_input(manifest)
                summary = self.store.summary
            self.spec.source.fetched.clear()
            return summary
        except BaseException:
            if self.store.num_chunks:
                self.notify(
                    f"{self.store.summary.num_rows:,} rows in {self.store.num_chunks:,} chunks are "
                    f"scored and kept in {self.store.path.parent}"
                )
            elif fetched := self.spec.source.fetched.kept_folder:
                self.notify(f"copies of the input are kept in {fetched}")
            raise

    def _score(self, manifest: Manifest) -> None:
        num_rows = manifest.scan.num_rows
        num_scored = self.store.summary.num_rows
        if self.spec.fail_fast and self.store.summary.num_failed:
            first_row = 0
            for rows in self.store.iter_chunks():
                raise_on_error(rows, first_row)
                first_row += len(rows)
        if num_scored < num_rows:
            if num_scored:
                self.notify(f"resuming at row {num_scored:,} of {num_rows:,} (counted from 0)")
            self.progress.start_phase("scoring", total=num_rows, completed=num_scored)
            snapshot, is_new = self.store.cache_snapshot, not num_scored
            self._run_chunks(ChunkRunner, manifest, snapshot, is_new=is_new)
        if self.store.summary.num_rows != num_rows:
            raise self._input_changed_error(
                f"it had {num_rows:,} rows and has {self.store.summary.num_rows:,}"
            )

    @contextlib.contextmanager
    def _open_reward_cache(
        self, snapshot: list[Any] | None, *, is_new: bool
    ) -> Iterator[RewardCache | None]:
        """Open the reward cache, if the job has one; see `_run_chunks` for the arguments."""
        path = self.spec.reward_cache
        if path is None:
            if snapshot:
                self.notify(
                    f"the job began with --reward-cache, and goes on without; {_OTHER_BITS}"
                )
            yield None
            return

        def get_model() -> ScoringModel:
            with self.shutdown.allow_interrupt(self.executor.drain_timeout_s is not None):
                model = self.executor.get_scoring_model(fetch=True)
            assert model
            return model

        with open_reward_cache(
            path,
            get_model,
            self.spec.truncation,
            snapshot=snapshot,
            other_files=self.spec.local_paths,
        ) as cache:
            if not is_new and cache.snapshot != snapshot:
                self.notify(f"the job began without the rewards of {path}; {_OTHER_BITS}")
            self.store.save_cache_snapshot(cache.snapshot)
            yield cache

    def _save_scored_by(self) -> None:
        """Save which model scored; a finished job does not open a model to find that out."""
        manifest, model = self.store.manifest, self.executor.get_scoring_model()
        if manifest and model:
            scored_by = asdict(model) | {
                "fingerprint": model.fingerprint.as_dict(),
                "version": __version__,
            }
            self.store.save_manifest(replace(manifest, scored_by=scored_by))

    def _write_output(self, manifest: Manifest) -> Summary:
        output, summary = self.spec.output, self.store.summary
        summary.renamed = dict(manifest.scan.names.renames)
        self.progress.start_phase("writing", total=manifest.scan.num_rows)
        self._require_same_input(manifest)
        with output.open_atomic() as stream:
            with open_writer(output, stream, manifest.scan) as writer:
                correlation = self._write_rows(writer)
            self._require_same_input(manifest)
            size = stream.tell()
            stream.seek(0)
            sha256 = hash_stream(stream)
            self._require_replaceable(manifest, size, sha256)
        summary.nulled = writer.null_counts
        if correlation.column and correlation.value is not None:
            summary.correlations = {correlation.column: correlation.value}
        state = output.measure()
        if state.size != size:
            raise JobRefusedError(
                f"{output} changed right after it was written; give another output"
            )
        completion = Completion(size, state.mtime_ns, sha256, summary, state.etag)
        self.store.complete(
            replace(manifest, completion=completion, model_spec=self.spec.model_spec)
        )
        return summary

    def _write_rows(self, writer: Writer) -> RewardCorrelation:
        """Read the input again, and write each row with its results."""
        correlation = RewardCorrelation()
        spec = self.spec
        tabular = spec.source.schema is not None and is_tabular(spec.output)
        rows = spec.source.iter_rows(decode=not tabular)
        for chunk in self.store.iter_chunks():
            if self.shutdown.received_signal is not None:
                raise JobStoppedError("stopped by a signal")
            for results in chunk:
                row = next(rows, None)
                if row is None:
                    raise self._input_changed_error("it has fewer rows than were scored")
                writer.write(row, results.build_columns())
                correlation.add(row, results)
            self.progress.advance(len(chunk))
        return correlation

    def _require_same_input(self, manifest: Manifest) -> None:
        current = [InputFile.from_location(file.location) for file in self.spec.source.files]
        has_limit = self.spec.limit is not None
        if changes := find_input_changes(manifest.scan.files, current, has_limit=has_limit):
            raise self._input_changed_error("; ".join(changes))

    def _input_changed_error(self, reason: str) -> JobInputError:
        return JobInputError(
            f"the input {self.spec.source.name} changed since the job began: {reason}. Restore the "
            "input, or start over with --overwrite"
        )

    def _require_replaceable(self, manifest: Manifest, size: int, sha256: str) -> None:
        """Check that the output is still what it was when the job began, or is what it becomes.

        A retry begins with the output of the job that ended.
        """
        output, state = self.spec.output, self.spec.output.measure()
        if manifest.output_before is None or not state.exists or state == manifest.output_before:
            return
        if manifest.completion and self._is_unchanged(manifest.completion):
            return
        if state.size != size or output.location.compute_sha256() != sha256:
            raise JobRefusedError(
                f"{output} was written by something else since the job began; move it away, then "
                "run the same command again, or score all rows again with --overwrite"
            )

    def _require_output(self, completion: Completion) -> None:
        if self._is_unchanged(completion):
            return
        output, before, now = self.spec.output, completion.size, self.spec.output.measure().size
        change = "was removed" if now < 0 else f"changed ({before:,} to {now:,} bytes)"
        raise JobRefusedError(
            f"the job was finished, but since then {output} {change}; restore the file, or score "
            "all rows again with --overwrite"
        )

    def _is_unchanged(self, completion: Completion) -> bool:
        """Return whether the output is still what it was at the end of the job."""
        file, size = InputFile.from_location(self.spec.output.location), completion.size
        pinned = FileDigest(
            file.path, size, completion.mtime_ns, completion.sha256, size, completion.etag
        )
        return is_unchanged(pinned, file)

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
from serve.jobs.atomic_io import is_no_room, sha256_of
from serve.jobs.chunk_files import DamagedError
from serve.jobs.executors.base import Carrier
from serve.jobs.export import write_output
from serve.jobs.inputs.scan import Survey, survey
from serve.jobs.lock import locked
from serve.jobs.manifest import Done, Manifest, require_same
from serve.jobs.previous_output import find_results
from serve.jobs.private_files import make_private
from serve.jobs.progress import Progress
from serve.jobs.runner import Scoring, require_good
from serve.jobs.shutdown import Stopping
from serve.jobs.spec import Plan
from serve.jobs.state import JobFolder, Prefix
from serve.jobs.summary import RowSink, Summary
from serve.jobs.writers.base import is_tabular


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

    plan: Plan
    carrier: Carrier
    say: Callable[[str], None]
    progress: Progress
    stopping: Stopping
    sink: RowSink | None = None
    prefix: Prefix = field(default_factory=Prefix)

    def run(self) -> Summary:
        """Do what is left of the job; returns the figures of all of it.

        Raises:
            JobRefusedError: another job or another run is there.
            JobStoppedError: it was asked to stop.
            DiskFullError: there is no room for what it writes.
            RewardError: it cannot go on for another reason.
        """
        require_place(self.plan)
        folder = JobFolder(self.plan.output, self.say)
        try:
            make_private(folder.path)
            with locked(folder.lock):
                return self._run_told(folder)
        except DamagedError as error:
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
            if isinstance(error, OSError) and not is_no_room(error):
                raise
            raise DiskFullError(
                f"there is no room left for what the job writes in {folder.path.parent} ({error}); "
                "make room, then run the same command again, which goes on where this one ended"
            ) from error

    def _run_told(self, folder: JobFolder) -> Summary:
        try:
            return self._run(folder)
        except BaseException:
            if self.prefix.num_chunks:
                done = self.prefix.summary
                self.say(
                    f"{done.num_rows:,} rows in {self.prefix.num_chunks:,} chunks are scored and "
                    f"kept in {folder.path}"
                )
            raise

    def _run(self, folder: JobFolder) -> Summary:
        manifest = self._manifest(folder)
        if manifest.done:
            folder.remove_work()
            self._require_output(manifest.done)
            if self.sink:
                self.say("a report is written when a job ends; --overwrite scores all of it again")
            return manifest.done.summary
        for line in manifest.survey.names.lines():
            self.say(line)
        folder.sweep()
        self.prefix = folder.check(manifest.job)
        self._score(folder, manifest)
        self.prefix.summary.renamed = dict(manifest.survey.names.renamed)
        self._write(folder, manifest)
        output = self.plan.output
        stat = output.stat()
        summary = self.prefix.summary
        done = Done(stat.st_size, stat.st_mtime_ns, sha256_of(output), summary)
        folder.write_manifest(replace(manifest, done=done, asked=self.plan.asked))
        folder.remove_work()
        return summary

    def _manifest(self, folder: JobFolder) -> Manifest:
        """How the job began, be it now."""
        plan = self.plan
        kept = None
        if plan.overwrite:
            folder.clear()
        else:
            kept = folder.read_manifest()
            if kept is None and plan.output.exists() and not folder.chunks.exists():
                raise JobRefusedError(
                    f"{plan.output} is there already, and no job is known to have written it; give "
                    "another output, or --overwrite to replace it"
                )
        if kept:
            # Nothing is asked of a model or a service for a job that is done.
            asks = not (kept.done and kept.asked == plan.asked)
            model = self._identity() if asks else None
            require_same(kept, plan.source.files, model, plan.options)
            return kept
        model = self._identity()
        if not folder.chunks.exists():
            folder.clear()
        manifest = Manifest(self._survey(), model, plan.options, plan.asked)
        folder.write_manifest(manifest)
        return manifest

    def _identity(self) -> dict[str, Any]:
        with self.stopping.interrupting(self.carrier.patience_s is not None):
            return self.carrier.identity()

    def _survey(self) -> Survey:
        source = self.plan.source
        total = sum(file.size for file in source.files)

        def told(num_rows: int, num_bytes: int) -> None:
            self.progress.reach(num_bytes)
            if self.stopping.asked is not None:
                raise JobStoppedError("stopped as asked")

        self.progress.phase("reading", total=total, unit="bytes")
        return survey(
            source,
            limit=self.plan.limit,
            tabular=is_tabular(self.plan.output),
            columns=self.plan.columns,
            replace_results=self.plan.replace_results,
            earlier=find_results,
            told=told,
        )

    def _score(self, folder: JobFolder, manifest: Manifest) -> None:
        done, total = self.prefix.summary, manifest.survey
        if self.plan.fail_fast and done.num_failed:
            for finished in folder.finished(manifest.job, self.prefix.num_chunks):
                require_good(finished)
        if done.num_rows < total.num_rows:
            if done.num_rows:
                self.say(f"going on behind row {done.num_rows:,} of {total.num_rows:,}")
            self.progress.phase(
                "scoring",
                total=total.num_rows,
                done=done.num_rows,
            )
            Scoring(
                plan=self.plan,
                job=manifest.job,
                folder=folder,
                prefix=self.prefix,
                progress=self.progress,
                stopping=self.stopping,
            ).run(self.carrier)
        if self.prefix.summary.num_rows != total.num_rows:
            raise JobInputError(
                f"the input had {total.num_rows} rows when the job began and has "
                f"{self.prefix.summary.num_rows} now; put it back as it was, or start afresh with "
                "--overwrite"
            )

    def _write(self, folder: JobFolder, manifest: Manifest) -> None:
        self.progress.phase("writing", total=manifest.survey.num_rows)
        self.prefix.summary.nulled = write_output(
            self.plan,
            manifest,
            folder.finished(manifest.job, self.prefix.num_chunks),
            sink=self.sink,
            progress=self.progress,
            stopping=self.stopping,
        )
        if self.sink:
            self.sink.write(self.prefix.summary)

    def _require_output(self, done: Done) -> None:
        output = self.plan.output
        if not output.exists():
            found = "is gone"
        elif output.stat().st_size != done.size:
            found = f"had {done.size} bytes and has {output.stat().st_size}"
        elif output.stat().st_mtime_ns != done.mtime_ns and sha256_of(output) != done.sha256:
            found = "changed"
        else:
            self.say(f"{output} is done already")
            return
        raise JobRefusedError(
            f"the job was done, but since then {output} {found}; put it back, or score all of it "
            "again with --overwrite"
        )


def require_report(report: Path, plan: Plan) -> None:
    """Return if a report can be where it is asked for, and takes the place of nothing else.

    Raises:
        JobOutputError: it cannot, or it does.
    """
    if not report.parent.is_dir():
        raise JobOutputError(f"there is no folder {report.parent}; make it first")
    others = {plan.output.resolve(), *(file.path.resolve() for file in plan.source.files)}
    is_page = True
    if report.is_file():
        with report.open("rb") as file:
            is_page = file.read(64).lstrip().lower().startswith((b"<!doctype html", b"<html"))
    if report.resolve() in others or not is_page:
        raise JobOutputError(
            f"the report would replace {report}, which is no page of HTML but something else; give "
            "another name, such as report.html"
        )


def require_place(plan: Plan) -> None:
    """Return if an output can be where it is asked for.

    Raises:
        JobOutputError: it cannot.
    """
    output = plan.output
    if not output.parent.is_dir():
        raise JobOutputError(f"there is no folder {output.parent}; make it first")
    if output.exists() and not output.is_file():
        raise JobOutputError(f"{output} is no file; give the name of a file as the output")
    if output.resolve() in {file.path.resolve() for file in plan.source.files}:
        raise JobOutputError(f"{output} is the input too; give another name as the output")

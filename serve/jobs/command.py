"""What `skyreward score` does with its options: puts a job together, runs it, shows its figures."""

from __future__ import annotations

import datetime
import gc
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from serve.errors import JobOutputError, JobStoppedError
from serve.jobs.columns import Columns
from serve.jobs.dry_run import estimate
from serve.jobs.executors.base import Executor
from serve.jobs.inputs.resolve import open_source
from serve.jobs.job import Job, require_report_path
from serve.jobs.model_options import build_model_config
from serve.jobs.progress import Progress
from serve.jobs.shutdown import GracefulShutdown
from serve.jobs.spec import JobSpec
from serve.jobs.state import JobFolder
from serve.jobs.summary import RowSink
from serve.jobs.summary_table import format_examples, format_summary, print_lines
from serve.jobs.writers.base import is_tabular

EXIT_PARTIAL = 3
_NOTE = "\nskyreward: stopping after what is in flight; once more to end at once\n"


@dataclass(frozen=True, slots=True)
class ExecutorOptions:
    """Where a job is scored: by a model here, unless there are addresses or a cluster.

    Attributes:
        model: arguments of `build_model_config`.
        urls: of services.
        served: which of their models; None if each serves one.
        api_key: of all of them.
        retry_s: seconds to go on trying.
        timeout_s: deadline of each request; None: the service's own.
        ray: address of a cluster.
        ray_actors: how many models there; None for as many as it has room for.
    """

    model: dict[str, Any]
    urls: tuple[str, ...] = field(default=(), repr=False)
    served_model: str | None = None
    api_key: str | None = field(default=None, repr=False)
    retry_s: float = 300.0
    timeout_s: float | None = None
    ray: str | None = None
    ray_actors: int | None = None

    @property
    def model_spec(self) -> dict[str, Any]:
        """How the model was asked for; without the key, passwords and queries of addresses."""
        if self.urls:
            from serve.client.endpoints import get_display_url

            return {"urls": sorted(map(get_display_url, self.urls)), "model": self.served_model}
        return {**self.model, "ray": bool(self.ray)}

    def build_executor(self, folder: JobFolder | None, *, overwrite: bool = False) -> Executor:
        """The way to score that was asked for.

        Args:
            folder: of the job; None if it keeps nothing.
            overwrite: whether the job starts again, whatever the folder holds.

        Raises:
            RewardError: a model's option has a bad value, or an address is none.
        """
        if self.urls:
            from serve.jobs.executors.service import ServiceExecutor

            return ServiceExecutor(
                self.urls,
                self.served_model,
                api_key=self.api_key,
                retry_s=self.retry_s,
                timeout_s=self.timeout_s,
            )
        config = build_model_config(**self.model)
        if config.template_date is None:
            # A job that goes on another day, and every actor of a pool, renders the same prompts.
            kept = folder.read_template_date() if folder and not overwrite else None
            config = replace(config, template_date=kept or datetime.date.today().isoformat())
        if self.ray:
            from serve.jobs.executors.ray_executor import RayExecutor

            return RayExecutor(config, self.ray, self.ray_actors)
        from serve.jobs.executors.local import LocalExecutor

        return LocalExecutor(config, folder.batches_path if folder else None)


def run(
    input: str,
    output: Path | None,
    executor_options: ExecutorOptions,
    *,
    notify: Callable[[str], None],
    dry_run: bool,
    report: Path | None,
    **options: Any,
) -> int:
    """Run a job from its options; returns the exit code.

    Args:
        input: what to read.
        output: what to write; may be None for a dry run.
        ways: where to score.
        say: tells a person a line.
        dry_run: whether to count and estimate only.
        report: where to write a report; None for none.
        options: see `_build_spec`.

    Raises:
        RewardError: the job cannot begin or go on.
    """
    plan = _build_spec(input, output, executor_options, **options)
    if report:
        require_report_path(report, plan)
    gc.freeze()  # the collector went through all that is imported, for half of a row's overhead
    folder = None if dry_run else JobFolder(plan.output, notify)
    with GracefulShutdown(_NOTE) as stopping, Progress(notify) as progress:
        carrier = executor_options.build_executor(folder, overwrite=plan.overwrite)
        try:
            if dry_run:
                found = estimate(plan, carrier, progress, stopping)
                lines, failed = found.format_lines(), bool(found.errors)
            else:
                job = Job(plan, carrier, notify, progress, stopping, _build_report(report, plan))
                summary = job.run()
                lines, failed = format_summary(summary), bool(summary.num_failed)
                for line in format_examples(summary):
                    notify(line)
        except JobStoppedError as error:
            notify(f"{error.detail}; run the same command again to go on")
            return stopping.exit_code
        finally:
            carrier.close()
    print_lines(lines)
    if stopping.received_signal is not None and dry_run:
        notify("stopped: not all was counted")
        return stopping.exit_code
    return EXIT_PARTIAL if failed else 0


def _build_spec(
    input: str,
    output: Path | None,
    executor_options: ExecutorOptions,
    *,
    split: str | None,
    columns: dict[str, Any],
    **options: Any,
) -> JobSpec:
    """The plan of a job; `options` are fields of `Plan`."""
    if output:
        if str(output) == "-":
            raise JobOutputError(
                "a job keeps what is done beside its output, so that cannot be standard output; "
                "give the name of a file"
            )
        is_tabular(output)  # a name that asks for an unknown format is refused before all else
    return JobSpec(
        source=open_source(input, split=split, exclude=output),
        output=output or Path("dry-run.jsonl"),
        columns=Columns(**columns),
        model_spec=executor_options.model_spec,
        **options,
    )


def _build_report(report: Path | None, spec: JobSpec) -> RowSink | None:
    if report is None:
        return None
    from serve.jobs.report import Report

    return Report(report, spec.output.name)

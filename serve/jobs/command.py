"""Run `skyreward score` from its options: build the job, run it, print its results."""

from __future__ import annotations

import contextlib
import datetime
import gc
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rm_core import ModelConfig, ModelLoadError
from serve.config.model_settings import ModelSettings
from serve.config.settings import format_validation_error
from serve.errors import JobStoppedError
from serve.jobs.columns import Columns
from serve.jobs.dataset_card import CardSection, build_job_section
from serve.jobs.dry_run import estimate
from serve.jobs.executors.base import Executor
from serve.jobs.hub import Push, open_repository
from serve.jobs.inputs.source import open_source
from serve.jobs.job import Job
from serve.jobs.output import Output
from serve.jobs.progress import Progress
from serve.jobs.report import Report
from serve.jobs.spec import JobSpec, require_report_path
from serve.jobs.store import JobStore, open_store
from serve.jobs.summary import format_examples, format_summary, print_lines
from serve.jobs.writers import is_tabular
from serve.shutdown import GracefulShutdown

EXIT_PARTIAL = 3
NOTICE = "\nskyreward: stopping after the chunks in flight; a second signal ends the job at once\n"


@dataclass(frozen=True, slots=True)
class ExecutorOptions:
    """Where to score a job: with a local model, unless services or a Ray cluster are given.

    `model` has the arguments of `build_model_config`, and `served_model` is the alias of the model
    in the services, None if each serves one. The other fields are options of `skyreward score`.
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
        """How the user specified the model, without API keys, passwords and queries of URLs.

        JSON data, which equals what a manifest reads back: tuples are lists.
        """
        if self.urls:
            from serve.client.endpoints import get_display_url

            return {"urls": sorted(map(get_display_url, self.urls)), "model": self.served_model}
        fields = {n: list(v) if isinstance(v, tuple) else v for n, v in self.model.items()}
        return {**fields, "ray": bool(self.ray)}

    def build_executor(self, store: JobStore | None) -> Executor:
        """Build the executor; `store` is the state of the job, if it has one.

        Raises:
            RewardError: a model option has an invalid value, or a URL is invalid.
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
            # A job resumed on another day and all actors of a pool must render equal prompts.
            manifest = store and store.manifest
            kept_date = manifest and manifest.model.get("template_date")
            config = replace(config, template_date=kept_date or datetime.date.today().isoformat())
        if self.ray:
            from serve.jobs.executors.ray import RayExecutor

            return RayExecutor(config, self.ray, self.ray_actors)
        from serve.jobs.executors.local import LocalExecutor

        return LocalExecutor(config, store.max_batch_tokens if store else None)


def build_model_config(model: str, **fields: Any) -> ModelConfig:
    """Build a model configuration from options of the command line.

    `model` is NAME or NAME@REVISION; `fields` are other fields of `ModelConfig`.

    Raises:
        ModelLoadError: an option has an invalid value.
    """
    try:
        settings = ModelSettings.model_validate(model)
    except ValidationError as error:
        raise ModelLoadError(format_validation_error(error)) from None
    return ModelConfig(
        name=settings.name, revision=settings.revision, catalog_name=settings.alias, **fields
    )


def run(
    input: str,
    output: str | Path | None,
    executor_options: ExecutorOptions,
    *,
    notify: Callable[[str], None],
    dry_run: bool,
    report: Path | None,
    push: Push | None = None,
    **options: Any,
) -> int:
    """Run a job from the options of `skyreward score`; return the exit code.

    Args:
        input: INPUT of the command line.
        output: path or address of the file to write; may be None for a dry run.
        executor_options: where to score.
        notify: prints a line for the user.
        dry_run: whether to only count and estimate.
        report: file of the HTML report; None for no report.
        push: where to upload the output; None for nowhere.
        **options: `state`, `split`, `columns` and fields of `JobSpec`.
    """
    spec = _build_spec(input, output, executor_options, keep_copies=not dry_run, **options)
    if report:
        require_report_path(report, spec)
    repository = open_repository(push, spec.output) if push and not dry_run else None
    section: CardSection | None = None
    gc.freeze()  # half of a row's overhead was the collector's walk through imported modules
    with (
        GracefulShutdown(NOTICE) as shutdown,
        Progress(notify) as progress,
        contextlib.ExitStack() as stack,
    ):
        store = None if dry_run else stack.enter_context(open_store(spec))
        executor = executor_options.build_executor(store)
        stack.callback(executor.close)
        try:
            if store is None:
                dry_run_estimate = estimate(spec, executor, progress, shutdown)
                lines = dry_run_estimate.format_lines()
                has_errors = bool(dry_run_estimate.summary.num_failed)
            else:
                page = Report(report, spec.output.location.basename) if report else None
                summary = Job(spec, store, executor, notify, progress, shutdown, page).run()
                lines, has_errors = format_summary(summary), bool(summary.num_failed)
                for line in format_examples(summary):
                    notify(line)
                if push and repository:
                    section = build_job_section(
                        store, spec.source.name, repository.path, push.command
                    )
        except JobStoppedError as error:
            notify(f"{error.detail}; run the same command again to resume")
            return shutdown.exit_code
    print_lines(lines)
    if repository and section:
        notify(repository.push(section))
    if shutdown.received_signal is not None and dry_run:
        notify("stopped: the input was counted only in part")
        return shutdown.exit_code
    return EXIT_PARTIAL if has_errors else 0


def _build_spec(
    input: str,
    output_name: str | Path | None,
    executor_options: ExecutorOptions,
    *,
    keep_copies: bool,
    state: Path | None = None,
    split: str | None,
    columns: dict[str, Any],
    **options: Any,
) -> JobSpec:
    output = Output.parse(output_name or "dry-run.jsonl", state)
    is_tabular(output)  # refuses a name with an unknown format before anything else
    return JobSpec(
        source=open_source(
            input,
            split=split,
            exclude=output.location if output_name else None,
            fetched=output.fetched_files if keep_copies else None,
        ),
        output=output,
        columns=Columns(**columns),
        model_spec=executor_options.model_spec,
        **options,
    )

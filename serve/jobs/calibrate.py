"""Run `skyreward calibrate`: a job whose output is the calibration of its rewards."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rm_core import Aggregation, Reward
from rm_core.calibration import Calibration, RewardSample
from serve.errors import JobInputError, JobOutputError, JobStoppedError
from serve.jobs.columns import Columns
from serve.jobs.command import EXIT_PARTIAL, NOTICE, ExecutorOptions
from serve.jobs.executors.base import Executor
from serve.jobs.inputs.source import open_source
from serve.jobs.job import Job
from serve.jobs.output import Output
from serve.jobs.progress import Progress
from serve.jobs.spec import JobSpec
from serve.jobs.store import JobStore, open_store
from serve.jobs.summary import Line, print_lines
from serve.shutdown import GracefulShutdown


def run_calibration(
    input: str,
    output_name: str | Path,
    executor_options: ExecutorOptions,
    *,
    notify: Callable[[str], None],
    state: Path | None = None,
    split: str | None,
    columns: dict[str, Any],
    **options: Any,
) -> int:
    """Score an input and write the calibration of its rewards; return the exit code.

    Args:
        input: INPUT of the command line.
        output_name: path or address of the file to write; ends with `.json`.
        executor_options: where to score.
        notify: prints a line for the user.
        state: folder for the state of the job; None for the usual one.
        split: split of the input.
        columns: fields of `Columns`.
        **options: further fields of `JobSpec`.
    """
    output = Output.parse(output_name, state)
    if not output.location.name.endswith(".json"):
        raise JobOutputError(f"{output} does not end in .json; a calibration is a JSON file")
    spec = JobSpec(
        source=open_source(
            input, split=split, exclude=output.location, fetched=output.fetched_files
        ),
        output=output,
        columns=Columns(**columns),
        model_spec=executor_options.model_spec,
        writes_rows=False,
        **options,
    )
    with (
        GracefulShutdown(NOTICE) as shutdown,
        Progress(notify) as progress,
        open_store(spec) as store,
        contextlib.closing(executor_options.build_executor(store)) as executor,
    ):
        try:
            summary = Job(spec, store, executor, notify, progress, shutdown).run()
        except JobStoppedError as error:
            notify(f"{error.detail}; run the same command again to resume")
            return shutdown.exit_code
        calibration = compute_calibration(store, executor, spec.aggregation)
        output.location.write(calibration.to_json().encode())
    print_lines(_format_lines(calibration))
    return EXIT_PARTIAL if summary.num_failed else 0


def compute_calibration(
    store: JobStore, executor: Executor, aggregation: Aggregation | None
) -> Calibration:
    """Return the calibration of the rewards of a job whose rows are all scored.

    A pair has two rewards and a group has several. A conversation counts once for each row with it.

    Raises:
        JobInputError: no conversation has a reward, or all rewards are equal.
    """
    model = executor.get_scoring_model(fetch=True)
    assert model is not None
    with tempfile.NamedTemporaryFile(dir=store.path.parent) as file:
        sample = RewardSample(file)
        for rows in store.iter_chunks():
            sample.add(r.reward for row in rows for r in row.results if isinstance(r, Reward))
        try:
            return sample.calibrate(
                model.name,
                model.fingerprint,
                (aggregation or "last") if model.kind == "step" else None,
            )
        except ValueError as error:
            raise JobInputError(f"the rewards cannot be calibrated: {error}") from None


def _format_lines(calibration: Calibration) -> Iterator[Line]:
    yield "rewards", f"{calibration.count:,}"
    yield "mean", f"{calibration.mean:.6g}"
    yield "standard deviation", f"{calibration.std:.6g}"
    for probability in ("0", "0.05", "0.5", "0.95", "1"):
        yield f"quantile {probability}", f"{calibration.quantiles[probability]:.6g}"

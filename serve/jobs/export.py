"""The output: the input, read once more, with the results beside each row."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from serve.errors import JobInputError, JobStoppedError
from serve.jobs.atomic_io import replacing
from serve.jobs.chunk_files import Finished, RowResults
from serve.jobs.inputs.source import InputFile
from serve.jobs.manifest import Manifest, input_changes
from serve.jobs.progress import Progress
from serve.jobs.record_schema import Work
from serve.jobs.row_results import Outcome, outcome_of
from serve.jobs.shutdown import Stopping
from serve.jobs.spec import Plan
from serve.jobs.summary import RowSink
from serve.jobs.writers.base import is_tabular, open_writer


def write_output(
    plan: Plan,
    manifest: Manifest,
    finished: Iterator[Finished],
    *,
    sink: RowSink | None,
    progress: Progress,
    stopping: Stopping,
) -> Counter[str]:
    """Write the output; it has its name only once it is whole.

    Returns the number of values that the format could not hold and that became null, by column.

    Args:
        plan: of the job.
        manifest: of the job.
        finished: all its chunks.
        sink: is told of every row too.
        progress: is told.
        stopping: says when to stop.

    Raises:
        JobInputError: the input changed since it was scored.
        JobStoppedError: it was asked to stop.
    """
    _require_unchanged(plan, manifest)
    tabular = plan.source.schema is not None and is_tabular(plan.output)
    rows = plan.source.rows(decoded=not tabular)
    with replacing(plan.output) as file:
        with open_writer(plan.output, file, manifest.survey) as writer:
            for chunk in finished:
                if stopping.asked is not None:
                    raise JobStoppedError("stopped as asked")
                for results in chunk.rows:
                    row = next(rows, None)
                    if row is None:
                        raise _changed(plan, "it has fewer rows than were scored")
                    writer.write(row, _outcome(results))
                    if sink:
                        sink.add(results.shape, results.results, results.failure)
                progress.add(chunk.figures)
        _require_unchanged(plan, manifest)
    return writer.nulled


def _outcome(row: RowResults) -> Outcome:
    return outcome_of(Work(row.shape, error=row.error, warnings=row.warnings), row.results)


def _require_unchanged(plan: Plan, manifest: Manifest) -> None:
    now = [_now(file.path) for file in plan.source.files]
    limited = plan.limit is not None
    if changes := input_changes(manifest.survey.files, now, limited=limited):
        raise _changed(plan, "; ".join(changes))


def _changed(plan: Plan, how: str) -> JobInputError:
    return JobInputError(
        f"the input {plan.source.name} changed while it was scored: {how}. Put it back as it was, "
        "or start afresh with --overwrite"
    )


def _now(path: Path) -> InputFile:
    try:
        stat = os.stat(path)
    except OSError:
        return InputFile(path, -1, -1)
    return InputFile(path, stat.st_size, stat.st_mtime_ns)

"""Write the output: read the input again and add the results to each row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from serve.errors import JobInputError, JobStoppedError
from serve.jobs.atomic_io import open_atomic
from serve.jobs.chunk_files import ChunkResult, RowResults
from serve.jobs.inputs.storage import measure_file
from serve.jobs.manifest import Manifest, find_input_changes
from serve.jobs.progress import Progress
from serve.jobs.record_schema import ParsedRecord
from serve.jobs.row_results import RowOutput, build_row_output
from serve.jobs.spec import JobSpec
from serve.jobs.summary import RowSink
from serve.jobs.writers import is_tabular, open_writer
from serve.shutdown import GracefulShutdown


def write_output(
    spec: JobSpec,
    manifest: Manifest,
    chunks: Iterator[ChunkResult],
    *,
    sink: RowSink | None,
    progress: Progress,
    shutdown: GracefulShutdown,
) -> Counter[str]:
    """Write the output atomically.

    Args:
        spec: specification of the job.
        manifest: manifest of the job.
        chunks: all chunks of the job, in order.
        sink: receives every row as well; None for no sink.
        progress: receives the progress.
        shutdown: tells when to stop.

    Returns:
        Number of values that the format cannot hold and that became null, by column.

    Raises:
        JobInputError: the input changed since it was scored.
        JobStoppedError: a signal asked the job to stop.
    """
    _require_unchanged(spec, manifest)
    tabular = spec.source.schema is not None and is_tabular(spec.output)
    rows = spec.source.iter_rows(decode=not tabular)
    with open_atomic(spec.output) as file:
        with open_writer(spec.output, file, manifest.scan) as writer:
            for chunk in chunks:
                if shutdown.received_signal is not None:
                    raise JobStoppedError("stopped by a signal")
                for results in chunk.rows:
                    row = next(rows, None)
                    if row is None:
                        raise _input_changed_error(
                            spec, "the input has fewer rows than were scored"
                        )
                    writer.write(row, _build_output(results))
                    if sink:
                        sink.add(results.kind, results.results, results.failure)
                progress.add(chunk.summary)
        _require_unchanged(spec, manifest)
    return writer.null_counts


def _build_output(row: RowResults) -> RowOutput:
    return build_row_output(
        ParsedRecord(row.kind, error=row.error, warnings=row.warnings), row.results
    )


def _require_unchanged(spec: JobSpec, manifest: Manifest) -> None:
    current = [measure_file(file.path) for file in spec.source.files]
    has_limit = spec.limit is not None
    if changes := find_input_changes(manifest.scan.files, current, has_limit=has_limit):
        raise _input_changed_error(spec, "; ".join(changes))


def _input_changed_error(spec: JobSpec, reason: str) -> JobInputError:
    return JobInputError(
        f"the input {spec.source.name} changed while it was scored: {reason}. Restore the input, "
        "or start over with --overwrite"
    )

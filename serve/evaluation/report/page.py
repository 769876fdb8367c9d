"""One page for one benchmark: a single model, or several beside one another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from markupsafe import Markup

from rm_core.benchmarks.intervals import compute_intervals
from serve.evaluation.report import best_of_n, mistakes, pairs, plots, scores, tables
from serve.evaluation.result import Evaluation
from serve.jobs.atomic_io import write_durably
from serve.reports.document import columns, document


def write_report(path: Path, evaluations: Sequence[Evaluation]) -> None:
    """Write the page; equal evaluations give equal bytes.

    Args:
        path: of the file, which is there whole or as it was before.
        evaluations: of one benchmark, at least one; in the order in which they are shown.
    """
    title = evaluations[0].benchmark.title
    if any(one.benchmark.name != evaluations[0].benchmark.name for one in evaluations):
        raise ValueError("a report is of one benchmark")
    about = evaluations[0].model if len(evaluations) == 1 else f"{len(evaluations)} models"
    page = document(title, _parts(evaluations), about=about)
    # Text of a benchmark may have half a surrogate pair, which no file can hold.
    write_durably(path, page.encode(errors="replace"))


def _parts(evaluations: Sequence[Evaluation]) -> Iterator[Markup]:
    within = [compute_intervals(one.benchmark, one.scored, one.figures) for one in evaluations]
    yield from tables.warnings(evaluations)
    yield tables.result(evaluations, within)
    yield from tables.compared(evaluations)
    yield columns([*scores.few(evaluations, within), *tables.further(evaluations)])
    judged = [pairs.judged(one.scored) for one in evaluations]
    yield columns(
        [
            *plots.margins(evaluations, judged),
            *plots.calibrations(evaluations, judged),
            *plots.length_bias(evaluations, judged),
            *plots.prompt_lengths(evaluations, judged),
            *plots.matrices(evaluations),
            *best_of_n.curves_of(evaluations),
        ]
    )
    yield from scores.many(evaluations, within)
    yield from mistakes.worst(evaluations, judged)
    yield from mistakes.failed(evaluations)
    yield tables.used(evaluations)

"""One page for one benchmark: a single model, or several beside one another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from markupsafe import Markup

from rm_core.benchmarks.intervals import compute_intervals
from serve.evaluation.report import best_of_n, mistakes, pairs, plots, scores, tables
from serve.evaluation.result import Evaluation
from serve.jobs.atomic_io import write_atomically
from serve.reports.document import columns, render_document


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
    page = render_document(title, _render_sections(evaluations), about=about)
    # Text of a benchmark may have half a surrogate pair, which no file can hold.
    write_atomically(path, page.encode(errors="replace"))


def _render_sections(evaluations: Sequence[Evaluation]) -> Iterator[Markup]:
    within = [compute_intervals(one.benchmark, one.scored_items, one.result) for one in evaluations]
    yield from tables.render_warnings(evaluations)
    yield tables.render_result(evaluations, within)
    yield from tables.render_published(evaluations)
    yield columns(
        [*scores.render_sections(evaluations, within), *tables.render_further_metrics(evaluations)]
    )
    judged = [pairs.build_pairs(one.scored_items) for one in evaluations]
    yield columns(
        [
            *plots.render_margins(evaluations, judged),
            *plots.render_calibration(evaluations, judged),
            *plots.render_length_bias(evaluations, judged),
            *plots.render_prompt_lengths(evaluations, judged),
            *plots.render_style_matrices(evaluations),
            *best_of_n.render_best_of_n(evaluations),
        ]
    )
    yield from scores.render_subsets(evaluations, within)
    yield from mistakes.render_worst_mistakes(evaluations, judged)
    yield from mistakes.render_failures(evaluations)
    yield tables.render_provenance(evaluations)

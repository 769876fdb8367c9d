"""The report of one benchmark, for one model or for several models side by side."""

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
    """Write the report; equal evaluations give equal bytes.

    Args:
        path: file to write, atomically.
        evaluations: at least one evaluation, all of one benchmark, in display order.
    """
    title = evaluations[0].benchmark.title
    if any(one.benchmark.name != evaluations[0].benchmark.name for one in evaluations):
        raise ValueError("all evaluations of a report must be of one benchmark")
    about = evaluations[0].model if len(evaluations) == 1 else f"{len(evaluations)} models"
    page = render_document(title, _render_sections(evaluations), about=about)
    # The texts of a benchmark may contain lone surrogates, which UTF-8 cannot encode.
    write_atomically(path, page.encode(errors="replace"))


def _render_sections(evaluations: Sequence[Evaluation]) -> Iterator[Markup]:
    intervals = [
        compute_intervals(one.benchmark, one.scored_items, one.result) for one in evaluations
    ]
    yield from tables.render_warnings(evaluations)
    yield tables.render_result(evaluations, intervals)
    yield from tables.render_published(evaluations)
    yield columns(
        [
            *scores.render_sections(evaluations, intervals),
            *tables.render_further_metrics(evaluations),
        ]
    )
    pairs_by_model = [pairs.build_pairs(one.scored_items) for one in evaluations]
    yield columns(
        [
            *plots.render_margins(evaluations, pairs_by_model),
            *plots.render_calibration(evaluations, pairs_by_model),
            *plots.render_length_bias(evaluations, pairs_by_model),
            *plots.render_prompt_lengths(evaluations, pairs_by_model),
            *plots.render_style_matrices(evaluations),
            *best_of_n.render_best_of_n(evaluations),
        ]
    )
    yield from scores.render_subsets(evaluations, intervals)
    yield from mistakes.render_worst_mistakes(evaluations, pairs_by_model)
    yield from mistakes.render_failures(evaluations)
    yield tables.render_provenance(evaluations)

"""Bar charts of sections and subsets, with their confidence intervals."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from markupsafe import Markup

from rm_core.benchmarks.base import BenchmarkResult, SubsetScore
from rm_core.benchmarks.intervals import Intervals
from rm_core.benchmarks.statistics import Interval
from serve.evaluation.report.format import describe_subset
from serve.evaluation.result import Evaluation
from serve.reports.bars import Bar, BarRow, render_bars
from serve.reports.document import columns, section
from serve.reports.elements import legend

_ABOUT = "thin lines: 95% confidence intervals with respect to the choice of items"
_MAX_FEW_SUBSETS = 8


def render_sections(
    evaluations: Sequence[Evaluation], intervals: Sequence[Intervals]
) -> Iterator[Markup]:
    """Yield the charts of sections and of few subsets, for the columns of the page."""
    rows = _build_rows(evaluations, lambda one: one.sections, [one.sections for one in intervals])
    if rows:
        yield _render_section(
            "Sections", evaluations, render_bars("Sections", rows, as_percent=True)
        )
    rows = _build_subset_rows(evaluations, intervals)
    if 0 < len(rows) <= _MAX_FEW_SUBSETS:
        yield _render_section("Subsets", evaluations, render_bars("Subsets", rows, as_percent=True))


def render_subsets(
    evaluations: Sequence[Evaluation], intervals: Sequence[Intervals]
) -> Iterator[Markup]:
    """Yield the chart of many subsets, over the full width of the page."""
    rows = _build_subset_rows(evaluations, intervals)
    if len(rows) > _MAX_FEW_SUBSETS:
        half = (len(rows) + 1) // 2
        first = render_bars("Subsets, first half", rows[:half], as_percent=True)
        second = render_bars("Subsets, second half", rows[half:], as_percent=True)
        yield _render_section("Subsets", evaluations, columns([first, second]))


def _render_section(title: str, evaluations: Sequence[Evaluation], plot: Markup) -> Markup:
    return section(title, legend([one.model for one in evaluations]), plot, about=_ABOUT)


def _build_subset_rows(
    evaluations: Sequence[Evaluation], intervals: Sequence[Intervals]
) -> list[BarRow]:
    if all(one.result.subsets == one.result.sections for one in evaluations):
        return []
    return _build_rows(evaluations, lambda one: one.subsets, [one.subsets for one in intervals])


def _build_rows(
    evaluations: Sequence[Evaluation],
    get_scores: Callable[[BenchmarkResult], Mapping[str, SubsetScore]],
    intervals: Sequence[Mapping[str, Interval]],
) -> list[BarRow]:
    scores_by_model = [get_scores(one.result) for one in evaluations]
    names = dict.fromkeys(name for scores in scores_by_model for name in scores)
    return [
        BarRow(
            name,
            tuple(
                _build_bar(name, scores[name], by_name.get(name)) if name in scores else None
                for scores, by_name in zip(scores_by_model, intervals, strict=True)
            ),
        )
        for name in names
    ]


def _build_bar(name: str, subset: SubsetScore, interval: Interval | None) -> Bar:
    return Bar(
        subset.score,
        f"{100 * subset.score:.1f}%",
        interval,
        describe_subset(name, subset, interval),
    )

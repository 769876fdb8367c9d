"""Sections and subsets as bars, with the intervals they may lie in."""

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

_ABOUT = "thin lines: where a figure would lie with other items of the same kind, 95 times of 100"
_FEW = 8


def render_sections(
    evaluations: Sequence[Evaluation], intervals: Sequence[Intervals]
) -> Iterator[Markup]:
    """Sections, and subsets where there are few: sections of a page's columns."""
    rows = _build_rows(evaluations, lambda one: one.sections, [one.sections for one in intervals])
    if rows:
        yield _render_section(
            "Sections", evaluations, render_bars("Sections", rows, as_percent=True)
        )
    rows = _build_subset_rows(evaluations, intervals)
    if 0 < len(rows) <= _FEW:
        yield _render_section("Subsets", evaluations, render_bars("Subsets", rows, as_percent=True))


def render_subsets(
    evaluations: Sequence[Evaluation], intervals: Sequence[Intervals]
) -> Iterator[Markup]:
    """Subsets where there are many: a section over the whole width."""
    rows = _build_subset_rows(evaluations, intervals)
    if len(rows) > _FEW:
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
    pick: Callable[[BenchmarkResult], Mapping[str, SubsetScore]],
    intervals: Sequence[Mapping[str, Interval]],
) -> list[BarRow]:
    parts = [pick(one.result) for one in evaluations]
    names = dict.fromkeys(name for one in parts for name in one)
    return [
        BarRow(
            name,
            tuple(
                _build_bar(name, one[name], between.get(name)) if name in one else None
                for one, between in zip(parts, intervals, strict=True)
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

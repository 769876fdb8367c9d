"""Sections and subsets as bars, with the intervals they may lie in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from markupsafe import Markup

from rm_core.benchmarks.base import BenchmarkResult, SubsetScore
from rm_core.benchmarks.intervals import Intervals
from rm_core.benchmarks.statistics import Interval
from serve.evaluation.report.format import part_hint
from serve.evaluation.result import Evaluation
from serve.reports.bars import Bar, Row, bars
from serve.reports.document import columns, section
from serve.reports.elements import legend

_ABOUT = "thin lines: where a figure would lie with other items of the same kind, 95 times of 100"
_FEW = 8


def few(evaluations: Sequence[Evaluation], within: Sequence[Intervals]) -> Iterator[Markup]:
    """Sections, and subsets where there are few: sections of a page's columns."""
    rows = _rows(evaluations, lambda one: one.sections, [one.sections for one in within])
    if rows:
        yield _section("Sections", evaluations, bars("Sections", rows, shares=True))
    rows = _subsets(evaluations, within)
    if 0 < len(rows) <= _FEW:
        yield _section("Subsets", evaluations, bars("Subsets", rows, shares=True))


def many(evaluations: Sequence[Evaluation], within: Sequence[Intervals]) -> Iterator[Markup]:
    """Subsets where there are many: a section over the whole width."""
    rows = _subsets(evaluations, within)
    if len(rows) > _FEW:
        half = (len(rows) + 1) // 2
        first = bars("Subsets, first half", rows[:half], shares=True)
        second = bars("Subsets, second half", rows[half:], shares=True)
        yield _section("Subsets", evaluations, columns([first, second]))


def _section(title: str, evaluations: Sequence[Evaluation], drawn: Markup) -> Markup:
    return section(title, legend([one.model for one in evaluations]), drawn, about=_ABOUT)


def _subsets(evaluations: Sequence[Evaluation], within: Sequence[Intervals]) -> list[Row]:
    if all(one.figures.subsets == one.figures.sections for one in evaluations):
        return []
    return _rows(evaluations, lambda one: one.subsets, [one.subsets for one in within])


def _rows(
    evaluations: Sequence[Evaluation],
    pick: Callable[[BenchmarkResult], Mapping[str, SubsetScore]],
    within: Sequence[Mapping[str, Interval]],
) -> list[Row]:
    parts = [pick(one.figures) for one in evaluations]
    names = dict.fromkeys(name for one in parts for name in one)
    return [
        Row(
            name,
            tuple(
                _bar(name, one[name], between.get(name)) if name in one else None
                for one, between in zip(parts, within, strict=True)
            ),
        )
        for name in names
    ]


def _bar(name: str, part: SubsetScore, interval: Interval | None) -> Bar:
    return Bar(part.score, f"{100 * part.score:.1f}%", interval, part_hint(name, part, interval))

"""Sections and subsets as bars, with the intervals they may lie in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from markupsafe import Markup

from rm_core.benchmarks.intervals import Intervals
from rm_core.benchmarks.records import Figures, Part
from rm_core.benchmarks.statistics import Interval
from serve.evaluation.report.wording import part_hint
from serve.evaluation.result import Evaluation
from serve.pages.bars import Bar, Row, bars
from serve.pages.document import columns, section
from serve.pages.elements import legend

_ABOUT = "thin lines: where a figure would lie with other items of the same kind, 95 times of 100"
# More rows than these are cut in two drawings, side by side.
_LONGEST = 4


def sections(evaluations: Sequence[Evaluation], within: Sequence[Intervals]) -> Iterator[Markup]:
    """The sections, if there are any."""
    rows = _rows(evaluations, lambda one: one.sections, [one.sections for one in within])
    if rows:
        names = legend([one.model for one in evaluations])
        yield section("Sections", names, bars("Sections", rows, shares=True), about=_ABOUT)


def subsets(evaluations: Sequence[Evaluation], within: Sequence[Intervals]) -> Iterator[Markup]:
    """The subsets, where they are not the sections."""
    if all(one.figures.subsets == one.figures.sections for one in evaluations):
        return
    rows = _rows(evaluations, lambda one: one.subsets, [one.subsets for one in within])
    half = len(rows) if len(rows) <= _LONGEST else (len(rows) + 1) // 2
    drawn = [
        bars(f"Subsets, part {part + 1}", piece, shares=True)
        for part, piece in enumerate((rows[:half], rows[half:]))
        if piece
    ]
    yield section("Subsets", legend([one.model for one in evaluations]), columns(drawn))


def _rows(
    evaluations: Sequence[Evaluation],
    pick: Callable[[Figures], Mapping[str, Part]],
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


def _bar(name: str, part: Part, interval: Interval | None) -> Bar:
    return Bar(part.score, f"{100 * part.score:.1f}%", interval, part_hint(name, part, interval))

"""Names of figures, the same in files, tables and the catalogue, and their order."""

from __future__ import annotations

from rm_core.benchmarks.base import BenchmarkResult

OVERALL = "overall"
MEAN_OF_SECTIONS = "mean_of_sections"
DIFFICULTY = "difficulty"


def named_figures(figures: BenchmarkResult) -> dict[str, float | None]:
    """The figures that a table shows: overall first, then sections, then difficulties."""
    named: dict[str, float | None] = {OVERALL: figures.overall}
    if MEAN_OF_SECTIONS in figures.extra:
        named[MEAN_OF_SECTIONS] = figures.extra[MEAN_OF_SECTIONS]
    named |= {name: part.score for name, part in figures.sections.items()}
    named |= figures.extra.get(DIFFICULTY, {})
    return named
